"""Folders of puzzle models: `model.safetensors`, `raw.safetensors`, `config.json` and a model card.

`model.safetensors` holds the weights to use, after training the best moving average of them;
`raw.safetensors`, if it is there, the weights of the last step as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import Tensor

from latent_reason.config import PuzzleModelConfig
from latent_reason.data.kinds import find_puzzle
from latent_reason.data.own_puzzle import named_puzzle
from latent_reason.data.puzzles import Puzzle
from latent_reason.errors import ConfigError
from latent_reason.model_folder import (
    RAW_WEIGHTS,
    check_fit,
    read_config,
    reading,
    without_memory,
    write_model_folder,
)
from latent_reason.puzzles.model import PuzzleModel

FORMAT = "latent_reason puzzle model 1"
Weights = Literal["averaged", "raw"]
FILES: dict[Weights, str] = {"averaged": "model.safetensors", "raw": RAW_WEIGHTS}


@dataclass(frozen=True)
class SavedPuzzleModel:
    """What a folder holds.

    model: ready for use, on the CPU. puzzle_name: as in `data.kinds`; puzzle: that puzzle, None if
    there is none of this name. weights: which there are. published: how a checkpoint of the
    originals was written, see `published_weights.py`; None for other models. trained_on: name of
    the puzzle it was trained on, if that one has another size.
    """

    model: PuzzleModel
    puzzle_name: str | None
    puzzle: Puzzle | None
    weights: tuple[Weights, ...]
    published: dict[str, Any] | None
    trained_on: str | None = None


def save_puzzle_model(
    folder: str | Path,
    model: PuzzleModel,
    puzzle_name: str | None,
    card: str = "",
    raw: Mapping[str, Tensor] | None = None,
    published: Mapping[str, Any] | None = None,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Save a model; a kill leaves the folder as it was or whole (see `model_folder.py`).

    Args:
        folder: made if missing.
        model: with the weights to use.
        puzzle_name: kind and size of the puzzle, such as "sudoku-9x9".
        card: Markdown for README.md; a short default if empty.
        raw: state dict of the weights without averaging, if they are to be kept too.
        published: for `SavedPuzzleModel.published`.
        more: see `write_model_folder`; what the rows of the puzzle table of an ARC model are.

    Raises:
        CheckpointError: files of the same names there are not of this library, or the folder
            cannot be written.
    """
    weights = {FILES["averaged"]: model.state_dict()}
    if raw is not None:
        weights[FILES["raw"]] = {**raw}
    config = {"format": FORMAT, "puzzle": puzzle_name, "model": model.config.to_dict()}
    if published is not None:
        config["published"] = {**published}
    write_model_folder(folder, weights, config, card or model_card(model, puzzle_name), more)


def model_card(model: PuzzleModel, puzzle_name: str | None, about: str = "") -> str:
    """Return a model card in Markdown.

    Args:
        model: to describe.
        puzzle_name: of the puzzle it is made for.
        about: Markdown on its training and results.
    """
    config, reasoner = model.config, model.config.reasoner
    num = sum(p.numel() for p in model.parameters())
    return f"""---
library_name: latent_reason
tags: [recursive-reasoning, {reasoner.kind}]
---
# {reasoner.kind.upper()} for {puzzle_name or "puzzles"}

A recursive reasoner of {num:,} parameters: width {reasoner.hidden_size}, mixer {reasoner.mixer!r};
grids of {config.num_cells} cells, {config.vocab_size} tokens. It may be wrong; its halting head
says how sure it is, and `solve` checks answers by the rule of the puzzle.

    python -m latent_reason solve --model FOLDER PUZZLE

{about}"""


def load_puzzle_model(
    folder: str | Path, weights: Weights = "averaged", puzzle_name: str | None = None
) -> SavedPuzzleModel:
    """Load what `save_puzzle_model` saved.

    Args:
        folder: of the model.
        weights: "raw" for those without averaging.
        puzzle_name: of its puzzle, instead of the name in the folder; of the two only this one may
            name code, as module:Name, since it is imported and run. A Sudoku or maze may be of
            another size if no weight depends on the size: mixer "groups" without learned positions.

    Raises:
        ConfigError: there is no puzzle `puzzle_name`.
        CheckpointError: a file is missing or corrupt, or the folder is not of a puzzle model.
    """
    folder = Path(folder)
    given = None if puzzle_name is None else named_puzzle(puzzle_name)
    with reading(folder, "model", "save_puzzle_model"):
        saved = read_config(folder, FORMAT)
        config = PuzzleModelConfig.from_dict(saved["model"])
        name, published = saved["puzzle"], saved.get("published")
        if not isinstance(name, str | None) or not isinstance(published, dict | None):
            raise ValueError("config.json: puzzle must be a text, published an object")
        tensors, puzzle, trained_on = load_file(folder / FILES[weights]), known_puzzle(name), None
        if given is not None:
            same_kind = puzzle is not None and type(given) is type(puzzle)
            if same_kind and (given.height, given.width) != (puzzle.height, puzzle.width):
                config, trained_on = resized(config, tensors, given), name
            puzzle, name = given, puzzle_name
        if puzzle is not None:
            check_sizes(config, puzzle, name)
        model = assemble(config, tensors)
    present = tuple(kind for kind in FILES if (folder / FILES[kind]).is_file())
    return SavedPuzzleModel(model, name, puzzle, present, published, trained_on)


def resized(
    config: PuzzleModelConfig, tensors: dict[str, Tensor], puzzle: Puzzle
) -> PuzzleModelConfig:
    """Return the configuration for the size of a puzzle, and put its groups into `tensors`.

    Both stay as they are if weights depend on the size.
    """
    reasoner = config.reasoner
    if reasoner.mixer != "groups" or reasoner.positions == "learned" or config.puzzle_emb_len:
        return config
    tensors["groups"] = puzzle.groups()
    vocab_size = puzzle.vocab_size if config.symbol_states else config.vocab_size
    return replace(config, num_cells=puzzle.num_cells, vocab_size=vocab_size)


def known_puzzle(name: str | None) -> Puzzle | None:
    """Return the puzzle of a name, None if there is none."""
    try:
        return None if name is None else find_puzzle(name)
    except ConfigError:
        return None


def check_sizes(config: PuzzleModelConfig, puzzle: Puzzle, name: str | None) -> None:
    """Raise ValueError unless a model is made for the cells and tokens of a puzzle."""
    ours, theirs = (config.num_cells, config.vocab_size), (puzzle.num_cells, puzzle.vocab_size)
    if ours != theirs:
        raise ValueError(
            f"the model is made for {ours[0]} cells and {ours[1]} tokens, "
            f"{name} has {theirs[0]} and {theirs[1]}"
        )


def assemble(config: PuzzleModelConfig, tensors: Mapping[str, Tensor]) -> PuzzleModel:
    """Return a model with these weights, in evaluation mode; no memory is taken before they fit.

    Raises:
        ValueError: a tensor is missing, unknown, or has another shape or kind of numbers.
    """
    model = skeleton(config, tensors.get("groups"), len(tensors))
    check_fit(model.state_dict(), tensors)
    own = {}
    for name, tensor in tensors.items():
        dtype = torch.float32 if tensor.is_floating_point() else torch.bool
        own[name] = tensor.to(dtype, copy=True)
    model.load_state_dict(own, assign=True)
    return model.eval()


def skeleton(config: PuzzleModelConfig, groups: Tensor | None, most_layers: int) -> PuzzleModel:
    """Return a model without the memory of its weights.

    Args:
        config: of the model.
        groups: (G, S) bool for mixer "groups".
        most_layers: the file has so many tensors; more layers are refused.

    Raises:
        ValueError: groups are missing or of another size.
    """
    num_layers = config.reasoner.L_layers + config.reasoner.H_layers
    if num_layers > most_layers:
        raise ValueError(f"{num_layers} layers are said to be in {most_layers} tensors")
    if groups is not None and groups.shape[1:] != (config.num_cells,):
        raise ValueError(f"groups have shape {tuple(groups.shape)}, expected (G, cells)")
    with without_memory():
        return PuzzleModel(config, groups)
