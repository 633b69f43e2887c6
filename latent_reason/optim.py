"""Optimizers, their parameter groups, and the moving average of the trainable weights."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from latent_reason.train_config import TrainConfig

BETA1 = 0.9
HEADS = ("lm_head", "q_head")
"""Names of the linear layers that read an answer out; Muon is for the layers before them."""


class AdamATan2(Optimizer):
    """Adam with atan2 in the place of a division: no epsilon, and no update grows without bound.

    Step n is p = p * (1 - lr * weight_decay) - lr / (1 - beta1^n) * atan2(m, sqrt(v)), where m and
    v are the moving averages of gradient and squared gradient, v corrected for its start at zero.
    The correction of m is outside of atan2, as in the originals' CUDA kernel (package adam-atan2).
    An update does not depend on the scale of the gradients and tends to pi / 4 * lr where they
    agree.

    Args:
        params: parameters with dense gradients, or groups of them.
        lr: learning rate.
        betas: decays of the two moving averages.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-4,
        betas: tuple[float, float] = (BETA1, 0.95),
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update all parameters that have a gradient; `closure` is torch's, and must be None."""
        assert closure is None, "closure"
        for group in self.param_groups:
            self._update(group)

    def _update(self, group: dict[str, Any]) -> None:
        params = [p for p in group["params"] if p.grad is not None]
        if not params:
            return
        for p in params:
            if not self.state[p]:
                self.state[p]["step"] = torch.zeros((), device="cpu")
                self.state[p]["exp_avg"] = torch.zeros_like(p)
                self.state[p]["exp_avg_sq"] = torch.zeros_like(p)
        grads = [p.grad for p in params]
        steps, exp_avgs, exp_avg_sqs = (
            [self.state[p][name] for p in params] for name in ("step", "exp_avg", "exp_avg_sq")
        )
        lr, (beta1, beta2) = group["lr"], group["betas"]
        torch._foreach_add_(steps, 1)
        torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
        torch._foreach_mul_(exp_avg_sqs, beta2)
        torch._foreach_addcmul_(exp_avg_sqs, grads, grads, 1 - beta2)
        numbers = [step.item() for step in steps]
        scales = torch._foreach_sqrt(exp_avg_sqs)
        torch._foreach_div_(scales, [math.sqrt(1 - beta2**n) for n in numbers])
        updates = [m.atan2(scale) for m, scale in zip(exp_avgs, scales, strict=True)]
        torch._foreach_mul_(updates, [lr / (1 - beta1**n) for n in numbers])
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_sub_(params, updates)


def _gather(part: Tensor, dim: int) -> Tensor:
    """Join a tensor of every process along `dim`, in the order of their ranks."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return part
    part = part.contiguous()
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, part)
    return torch.cat(parts, dim=dim)


def _summed_rows(grad: Tensor) -> tuple[Tensor, Tensor]:
    """Sum the entries of a sparse gradient (N, D) that are of one row, over all processes.

    The entries of all processes are first joined in the order of their ranks, so that the sums do
    not depend on how a batch was split; every process must hold the same number of entries.

    Returns:
        rows (R,) int64, each once, rising; sums (R, D).
    """
    indices, values = _gather(grad._indices(), dim=1), _gather(grad._values(), dim=0)
    summed = torch.sparse_coo_tensor(indices, values, grad.shape, check_invariants=False).coalesce()
    return summed.indices()[0], summed.values()


class SignSGD(Optimizer):
    """Sign-SGD with decoupled weight decay for tables of which a batch uses a few rows.

    A row of the batch becomes row * (1 - lr * weight_decay) - lr * sign(gradient); all other rows
    stay as they are. Gradients of a row that is used several times, also by other processes, are
    summed first: the processes must not average these gradients themselves (DDP does, unless told
    to ignore the parameter).

    Args:
        params: weights of `nn.Embedding(sparse=True)`, or groups of them.
        lr: learning rate.
        weight_decay: decoupled weight decay.
    """

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Update the rows of the batch; `closure` is torch's, and must be None.

        Raises:
            ValueError: if a gradient is dense.
        """
        assert closure is None, "closure"
        for group in self.param_groups:
            lr = group["lr"]
            for p in group["params"]:
                if p.grad is None:
                    continue
                if not p.grad.is_sparse:
                    raise ValueError(
                        f"SignSGD: the parameter of shape {tuple(p.shape)} has a dense gradient; "
                        "take the weight of an nn.Embedding(sparse=True)"
                    )
                rows, sums = _summed_rows(p.grad)
                updated = p.index_select(0, rows).mul_(1 - lr * group["weight_decay"])
                p.index_copy_(0, rows, updated.add_(sums.sign(), alpha=-lr))


def _groups(
    params: Sequence[Tensor], lr: float, weight_decay: float, vector_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Return the groups of matrices and of vectors, each with its decay; none that is empty."""
    matrices = [p for p in params if p.ndim >= 2], weight_decay
    vectors = [p for p in params if p.ndim < 2], vector_decay
    return [
        {"params": some, "lr": lr, "initial_lr": lr, "weight_decay": decay}
        for some, decay in (matrices, vectors)
        if some
    ]


def sparse_tables(module: nn.Module) -> dict[str, nn.Embedding]:
    """Return the embeddings in a module whose gradients are sparse, by name."""
    return {
        name: part
        for name, part in module.named_modules()
        if isinstance(part, nn.Embedding) and part.sparse
    }


def make_optimizers(module: nn.Module, config: TrainConfig) -> list[Optimizer]:
    """Return what together updates every trainable parameter of a module once.

    Weights of `nn.Embedding(sparse=True)` go to SignSGD. With optimizer muon, weights of linear
    layers other than `HEADS` go to Muon, whose rate is scaled by sqrt(max(1, rows / columns)), the
    "original" adjustment that rates around 0.02 are made for. AdamW or AdamATan2 has the rest.
    AdamATan2 decays all of it, as the originals; AdamW leaves vectors and biases as they are. All
    matrices shrink alike, by learning_rate * weight_decay a step: the decay given to Muon makes up
    for its other rate.

    Every group holds its peak learning rate as "initial_lr".

    Args:
        module: its parameters that do not require gradients are left out.
        config: choice of the optimizer, rates and decays.
    """
    trainable = [p for p in module.parameters() if p.requires_grad]
    tables = {table.weight for table in sparse_tables(module).values()}
    hidden: set[Tensor] = set()
    if config.optimizer == "muon":
        hidden = {
            m.weight
            for name, m in module.named_modules()
            if isinstance(m, nn.Linear) and name.rpartition(".")[2] not in HEADS
        }
    lr, decay = config.learning_rate, config.weight_decay
    optimizers: list[Optimizer] = []
    vector_decay = decay if config.optimizer == "adam_atan2" else 0.0
    rest = [p for p in trainable if p not in tables | hidden]
    if groups := _groups(rest, lr, decay, vector_decay):
        betas = (BETA1, config.beta2)
        if config.optimizer == "adam_atan2":
            optimizers.append(AdamATan2(groups, betas=betas))
        else:
            optimizers.append(torch.optim.AdamW(groups, betas=betas, eps=config.adamw_eps))
    rate = config.muon_learning_rate
    if groups := _groups([p for p in trainable if p in hidden], rate, decay * lr / rate):
        optimizers.append(torch.optim.Muon(groups, adjust_lr_fn="original"))
    rate, decay = config.puzzle_learning_rate, config.puzzle_weight_decay
    if groups := _groups([p for p in trainable if p in tables], rate, decay):
        optimizers.append(SignSGD(groups))
    return optimizers


def make_ema(module: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of a trainable module (never of the base)."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=False)


def optimizer_tensors(optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """Return the optimizers' state, keyed "optimizer index/parameter index/name"."""
    return {
        f"{number}/{index}/{name}": torch.as_tensor(value)
        for number, optimizer in enumerate(optimizers)
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def load_optimizer_tensors(optimizers: Sequence[Optimizer], tensors: dict[str, Tensor]) -> None:
    """Undo `optimizer_tensors` (values are copied); learning rates and groups stay as they are."""
    states: list[dict[int, dict[str, Tensor]]] = [{} for _ in optimizers]
    for key, value in tensors.items():
        number, index, name = key.split("/", 2)
        states[int(number)].setdefault(int(index), {})[name] = value.clone()
    for optimizer, state in zip(optimizers, states, strict=True):
        optimizer.load_state_dict(optimizer.state_dict() | {"state": state})
