"""Checkpoints of the original HRM and TRM as our models, and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from latent_reason.config import PuzzleModelConfig, ReasonerConfig, check
from latent_reason.data.own_puzzle import named_puzzle
from latent_reason.errors import CheckpointError
from latent_reason.files import replacing
from latent_reason.model_folder import IDENTIFIERS, check_fit
from latent_reason.puzzles.folder import (
    SavedPuzzleModel,
    Weights,
    assemble,
    check_sizes,
    load_puzzle_model,
    model_card,
    save_puzzle_model,
    skeleton,
)
from latent_reason.puzzles.published_files import DTYPES, read_original_config, read_weights
from latent_reason.puzzles.published_identifiers import read_identifiers

PREFIX = "_orig_mod.model.inner."
"""Before every name in the originals' checkpoints: torch.compile, the loss head, the model."""
NAMES = {
    "embed_tokens.embedding_weight": "embed_tokens.weight",
    "embed_pos.embedding_weight": "embed_pos.weight",
    "puzzle_emb.weights": "puzzle_emb.weight",
    "H_init": "reasoner.H_init",
    "L_init": "reasoner.L_init",
}
OUR_NAMES = {ours: theirs for theirs, ours in NAMES.items()}
TABLE = "puzzle_emb.weights"
MAX_TABLE = 2**30
"""Most numbers in a puzzle table that is resized: 4 GiB."""
CLASSES = {
    "TinyRecursiveReasoningModel_ACTV1": ("trm", "trm"),
    "HierarchicalReasoningModel_ACTV1": ("hrm", "hrm_act_v1"),
}
"""Classes of the originals, with the names of the modules that define them."""
FIELDS = {
    *("name", "class", "loss", "H_cycles", "L_cycles", "H_layers", "L_layers", "hidden_size"),
    *("num_heads", "expansion", "pos_encodings", "rms_norm_eps", "rope_theta", "halt_max_steps"),
    *("halt_exploration_prob", "forward_dtype", "puzzle_emb_ndim", "puzzle_emb_len", "mlp_t"),
    *("no_ACT_continue", "vocab_size", "seq_len", "num_puzzle_identifiers", "batch_size"),
    *("causal", "seed"),
}

Puzzles = Literal["keep", "mean", "zero"]


def our_name(name: str) -> str:
    """Return our name of a tensor of the originals, given without `PREFIX`."""
    if name in NAMES:
        return NAMES[name]
    name = name.replace(".mlp_t.", ".mixer.mlp_t.")
    if name.startswith("H_level."):
        return f"reasoner._{name}"
    return f"reasoner.{name}" if name.startswith("L_level.") else name


def original_name(name: str) -> str:
    """Return the originals' name of one of our tensors, without `PREFIX`."""
    if name in OUR_NAMES:
        return OUR_NAMES[name]
    name = name.replace(".mixer.mlp_t.", ".mlp_t.").removeprefix("reasoner.")
    return name.removeprefix("_") if name.startswith("_H_level.") else name


def from_published(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict of our `PuzzleModel` from tensors under the originals' names."""
    return {our_name(name.removeprefix(PREFIX)): value for name, value in weights.items()}


def original_config(values: Mapping[str, Any]) -> PuzzleModelConfig:
    """Translate the configuration of an original (the `arch` of its all_config.yaml and its sizes).

    Args:
        values: their field names; of vocab_size, seq_len and num_puzzle_identifiers as well.

    Raises:
        CheckpointError: a field is missing or unknown, or it is of another model.
        ConfigError: a value is out of range.
    """
    unknown = sorted(str(key) for key in values if key not in FIELDS)
    if unknown:
        raise CheckpointError(f"fields that HRM and TRM do not have: {', '.join(unknown)[:200]}")
    try:
        hrm = _is_hrm(values)
        reasoner = ReasonerConfig(
            kind="hrm" if hrm else "trm",
            hidden_size=values["hidden_size"],
            num_heads=values["num_heads"],
            expansion=values["expansion"],
            L_layers=values["L_layers"],
            H_layers=values["H_layers"] if hrm else 0,
            L_cycles=values["L_cycles"],
            H_cycles=values["H_cycles"],
            gradient="one_step" if hrm else "last_cycle",
            mixer="mlp" if values.get("mlp_t") else "attention",
            positions=values["pos_encodings"],
            residual_init="normal",
            rope_theta=values.get("rope_theta", 10000.0),
            norm_eps=values.get("rms_norm_eps", 1e-5),
        )
        loss = values.get("loss", "stablemax_cross_entropy")
        loss = str(loss.get("loss_type") if isinstance(loss, Mapping) else loss)
        return PuzzleModelConfig(
            reasoner=reasoner,
            vocab_size=values["vocab_size"],
            num_cells=values["seq_len"],
            num_puzzles=values["num_puzzle_identifiers"],
            puzzle_emb_size=values.get("puzzle_emb_ndim", 0),
            puzzle_emb_len=_prefix_length(values, hrm),
            loss=loss.removesuffix("_cross_entropy"),  # type: ignore[arg-type]
            q_continue=hrm or not values.get("no_ACT_continue", True),
        )
    except KeyError as error:
        raise CheckpointError(f"configuration of the original: {error} is missing") from error


def _is_hrm(values: Mapping[str, Any]) -> bool:
    """Say which of the two originals it is, by its class and the module that defines it."""
    name = str(values.get("name", values.get("class")))
    module, _, cls = name.rpartition("@")
    if cls not in CLASSES or module.rpartition(".")[2] not in ("", *CLASSES[cls]):
        raise CheckpointError(f"model {name[:200]!r}: not one of {', '.join(CLASSES)}")
    return CLASSES[cls][0] == "hrm"


def _prefix_length(values: Mapping[str, Any], hrm: bool) -> int:
    """Return the prefix positions of an original, 0 without a puzzle table."""
    size = values.get("puzzle_emb_ndim", 0)
    check(type(size) is int, "puzzle_emb_ndim", size, "a whole number")
    if size == 0:
        return 0
    if "hidden_size" not in values:
        raise CheckpointError("configuration of the original: 'hidden_size' is missing")
    length = 0 if hrm else values.get("puzzle_emb_len", 16)
    return length or -(-size // values["hidden_size"])


def import_published(
    source: str | Path,
    folder: str | Path,
    config_file: str | Path | None = None,
    puzzle_name: str | None = None,
    num_cells: int | None = None,
    num_puzzles: int | None = None,
    puzzles: Puzzles | None = None,
    identifiers: str | Path | None = None,
) -> None:
    """Turn a checkpoint of the originals into a model folder.

    Args:
        source: what they saved, `step_N`, or a safetensors file with the same names.
        folder: to write, see `folder.py`.
        config_file: YAML or JSON; all_config.yaml beside `source` if not given.
        puzzle_name: such as "sudoku-9x9", for `solve` and evaluation.
        num_cells: S, needed where neither the puzzle nor the weights tell it (rotary positions).
        num_puzzles: rows of the puzzle table that are wanted; as many as there are if not given.
        puzzles: what becomes of the rows, needed if `num_puzzles` differs: "keep" keeps those that
            there is room for and fills up with their mean, "mean" makes all rows the mean, as the
            originals do, "zero" starts anew.
        identifiers: identifiers.json of an ARC checkpoint, for `solve` and evaluation.

    Raises:
        CheckpointError: a file cannot be read or would execute something, or does not fit.
        ConfigError: an unknown puzzle.
    """
    source = Path(source)
    config_file = Path(config_file or source.parent / "all_config.yaml")
    weights, prefix = read_weights(source)
    values = read_original_config(config_file)
    puzzle = None if puzzle_name is None else named_puzzle(puzzle_name)
    dtypes = {our_name(k): str(v.dtype).removeprefix("torch.") for k, v in weights.items()}
    wanted = values.get("num_puzzle_identifiers") if num_puzzles is None else num_puzzles
    try:
        if _rows(weights, TABLE) is not None:
            weights[TABLE] = _resized(weights[TABLE], wanted, puzzles)
        elif num_puzzles is not None or puzzles is not None:
            raise CheckpointError("there is no puzzle table to resize")
        told = {"seq_len": num_cells} if puzzle is None else {"seq_len": puzzle.num_cells}
        values |= _sizes(weights, values | {k: v for k, v in told.items() if v is not None})
        config = original_config(values)
        if puzzle is not None:
            check_sizes(config, puzzle, puzzle_name)
        expected = skeleton(config, None, len(weights)).state_dict()
        check_fit(
            {prefix + original_name(k): v for k, v in expected.items()},
            {prefix + k: v for k, v in weights.items()},
        )
        model = assemble(config, from_published(weights))
    except (ValueError, TypeError, ZeroDivisionError, CheckpointError) as error:
        raise CheckpointError(f"{source} with {config_file}: {error}") from error
    more = None
    if identifiers is not None:
        read_identifiers(Path(identifiers), config.num_puzzles)  # or it says what is wrong
        more = {IDENTIFIERS: json.loads(Path(identifiers).read_bytes())}
    published = {"prefix": prefix, "dtypes": {k: v for k, v in dtypes.items() if v != "float32"}}
    card = model_card(model, puzzle_name, f"Imported from `{source.name}`.")
    save_puzzle_model(folder, model, puzzle_name, card, published=published, more=more)


def export_published(folder: str | Path, target: str | Path, weights: Weights = "averaged") -> None:
    """Write the weights of a model folder under the originals' names.

    Args:
        folder: of a model that the originals can hold, imported or trained here.
        target: a safetensors file if it is named so, else by `torch.save` as theirs.
        weights: "raw" for those without averaging.

    Raises:
        CheckpointError: the folder is not usable, or the file cannot be written.
        ConfigError: the originals have no such model.
    """
    target = Path(target)
    saved = load_puzzle_model(folder, weights)
    _check_exportable(saved.model.config)
    prefix, dtypes = _origin(saved, Path(folder))
    tensors = {
        prefix + original_name(name): tensor.to(dtypes.get(name, torch.float32)).contiguous()
        for name, tensor in saved.model.state_dict().items()
    }
    try:
        with replacing(target) as temporary, open(temporary, "wb") as file:
            if target.suffix == ".safetensors":
                file.write(save(tensors))
            else:
                torch.save(tensors, file)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(f"cannot write {target}: {error}; choose another file") from error


def _origin(saved: SavedPuzzleModel, folder: Path) -> tuple[str, dict[str, torch.dtype]]:
    """Return prefix and dtypes of the checkpoint that a model was imported from."""
    if saved.published is None:
        return PREFIX, {}
    try:
        dtypes = {name: DTYPES[dtype] for name, dtype in saved.published["dtypes"].items()}
        return str(saved.published["prefix"]), dtypes
    except (KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"model {folder}: config.json: 'published' is damaged ({error!r}); import it again"
        ) from error


def _check_exportable(config: PuzzleModelConfig) -> None:
    """Refuse what the original of this kind would compute differently.

    What only training and halting read (gradient, loss, q_continue, halt_confidence) is free: their
    evaluation always runs all refinement steps.
    """
    reasoner, size = config.reasoner, config.puzzle_emb_size
    hrm = reasoner.kind == "hrm"
    length = config.puzzle_emb_len
    allowed: dict[str, tuple[object, tuple[object, ...]]] = {
        "mixer": (reasoner.mixer, ("attention",) if hrm else ("attention", "mlp")),
        "positions": (
            reasoner.positions,
            ("rope", "learned") if hrm else ("rope", "learned", "none"),
        ),
        "width_multiple": (reasoner.width_multiple, (256,)),
        "norm_swiglu": (reasoner.norm_swiglu, (False,)),
        "num_chains": (config.num_chains, (1,)),
        "puzzle_emb_len": (length, (-(-size // reasoner.hidden_size) if hrm else length,)),
    }
    for name, (got, values) in allowed.items():
        expected = " or ".join(repr(value) for value in values)
        check(got in values, name, got, f"{expected} as the originals of kind {reasoner.kind!r}")


def _resized(table: Tensor, wanted: Any, puzzles: Puzzles | None) -> Tensor:
    """Return the puzzle table (P, E) with `wanted` rows."""
    num = len(table)
    wanted = num if wanted is None else wanted
    most = MAX_TABLE // max(1, table[:1].numel())
    fits = type(wanted) is int and 1 <= wanted <= max(num, most)
    check(fits, "num_puzzles", wanted, f"a whole number from 1 to {max(num, most):,}")
    if puzzles is None and wanted == num:
        return table
    if puzzles is None:
        raise CheckpointError(
            f"the puzzle table has {num} rows, {wanted} are wanted; choose what becomes "
            "of them: puzzles 'keep', 'mean' or 'zero'"
        )
    check(puzzles in ("keep", "mean", "zero"), "puzzles", puzzles, "'keep', 'mean' or 'zero'")
    kept = min(num, wanted) if puzzles == "keep" else 0
    mean = table.float().mean(dim=0, keepdim=True).to(table.dtype)
    rest = mean if puzzles != "zero" else torch.zeros_like(mean)
    return torch.cat((table[:kept], rest.expand(wanted - kept, -1)))


def _sizes(weights: Mapping[str, Tensor], values: Mapping[str, Any]) -> dict[str, int]:
    """Return vocab_size, seq_len and num_puzzle_identifiers, from the weights where they tell."""
    vocab = _rows(weights, "embed_tokens.embedding_weight")
    if vocab is None:
        raise CheckpointError("tensor embed_tokens.embedding_weight is missing")
    cells = values.get("seq_len")
    told = ("L_level.layers.0.mlp_t.down_proj.weight", "embed_pos.embedding_weight")
    length = next((rows for name in told if (rows := _rows(weights, name)) is not None), None)
    if cells is None and length is not None:
        cells = length - _prefix_length(values, _is_hrm(values))
    if cells is None:
        raise CheckpointError("the number of cells is not told; give the puzzle or num_cells")
    puzzles = _rows(weights, TABLE) or 1
    return {"vocab_size": vocab, "seq_len": cells, "num_puzzle_identifiers": puzzles}


def _rows(weights: Mapping[str, Tensor], name: str) -> int | None:
    tensor = weights.get(name)
    if tensor is not None and tensor.ndim != 2:
        raise CheckpointError(f"tensor {name} has shape {tuple(tensor.shape)}, expected a matrix")
    return None if tensor is None else len(tensor)
