"""The cache of base states: a frozen base reads every prompt once, its states stay on disk.

Writer `head` needs nothing of the base but these states; writer `soft` trains on them until it
learns through the base, and reads the base anew where it generates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latent_reason.config import ReadLayer
from latent_reason.data.order import rows_at
from latent_reason.data.tasks import Example
from latent_reason.data.text import TextDataset
from latent_reason.files import replacing
from latent_reason.llm import FrozenLLM


def cache_key(llm: FrozenLLM, layers: tuple[ReadLayer, ...], dataset: TextDataset) -> str:
    """Return a digest of base weights, layers and token ids; equal keys mean equal states."""
    about = [llm.sha256(), list(layers), list(dataset.input_ids.shape)]
    digest = hashlib.sha256(json.dumps(about).encode())
    for tensor in (dataset.input_ids, dataset.attention_mask):
        digest.update(tensor.numpy().tobytes())
    return digest.hexdigest()[:32]


class StateCache:
    """Prompt states of a dataset as one memory-mapped fp16 file.

    Args:
        dataset: N prompts of up to T tokens.
        llm: the frozen base; it is called once per prompt, and not at all if the file exists.
        layers: which hidden states.
        folder: where the file goes; its name is the `cache_key`.
        batch_size: prompts per call.
        progress: called with (done, total) after each call.

    `batch(rows)` gives what a training step needs.
    """

    def __init__(
        self,
        dataset: TextDataset,
        llm: FrozenLLM,
        layers: tuple[ReadLayer, ...],
        folder: Path,
        batch_size: int = 256,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.dataset = dataset
        path = folder / f"states-{cache_key(llm, layers, dataset)}.npy"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as temporary:
                write_states(dataset, llm, layers, temporary, batch_size, progress)
        self.states = np.load(path, mmap_mode="r", allow_pickle=False)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def examples(self) -> Sequence[Example]:
        """The rows the states were read from."""
        return self.dataset.examples

    @property
    def num_tokens(self) -> int:
        """T, tokens of the longest prompt."""
        return self.dataset.num_tokens

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Gather (B,) rows: what the dataset gives, and states (B, T, F) fp32."""
        states = torch.from_numpy(self.states[rows.numpy()]).float()
        return self.dataset.batch(rows) | {"states": states}

    def at(self, positions: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the training examples at positions (B,) of the endless data order."""
        return self.batch(rows_at(positions, seed, len(self)))


def write_states(
    dataset: TextDataset,
    llm: FrozenLLM,
    layers: tuple[ReadLayer, ...],
    path: Path,
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> None:
    """Read all prompts with the base into a .npy file of shape (N, T, F), fp16."""
    shape = (*dataset.input_ids.shape, llm.num_features(layers))
    states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    device = llm.embedding.device
    for start in range(0, len(dataset), batch_size):
        part = slice(start, start + batch_size)
        prompt = llm.read(
            dataset.input_ids[part].to(device), dataset.attention_mask[part].to(device), layers
        )
        states[part] = prompt.states.half().cpu().numpy()
        if progress is not None:
            progress(min(start + batch_size, len(dataset)), len(dataset))
    states.flush()
