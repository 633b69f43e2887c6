"""Checkpoints of the original HRM and TRM as our models, and back, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save
from torch import Tensor

from latent_reason.config import check
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
from latent_reason.puzzles.published_config import (
    ORIGINAL_CONFIG,
    check_exportable,
    is_hrm,
    original_config,
    prefix_length,
    read_original_config,
    write_original_config,
)
from latent_reason.puzzles.published_files import DTYPES, read_weights
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
    config_file = Path(config_file or source.parent / ORIGINAL_CONFIG)
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
    """Write the weights of a model folder under the originals' names, and all_config.yaml.

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
    check_exportable(saved.model.config)
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
    write_original_config(target.parent / ORIGINAL_CONFIG, saved.model.config)


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
        cells = length - prefix_length(values, is_hrm(values))
    if cells is None:
        raise CheckpointError("the number of cells is not told; give the puzzle or num_cells")
    puzzles = _rows(weights, TABLE) or 1
    return {"vocab_size": vocab, "seq_len": cells, "num_puzzle_identifiers": puzzles}


def _rows(weights: Mapping[str, Tensor], name: str) -> int | None:
    tensor = weights.get(name)
    if tensor is not None and tensor.ndim != 2:
        raise CheckpointError(f"tensor {name} has shape {tuple(tensor.shape)}, expected a matrix")
    return None if tensor is None else len(tensor)
