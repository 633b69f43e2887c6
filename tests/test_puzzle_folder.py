"""Folders of puzzle models: what comes back, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import KINDS, make_puzzle_model

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.kinds import find_puzzle
from latent_reason.errors import CheckpointError
from latent_reason.puzzles.folder import load_puzzle_model, save_puzzle_model
from latent_reason.puzzles.model import PuzzleModel

NAME = "sudoku-4x4"


def logits_of(model: PuzzleModel) -> torch.Tensor:
    inputs = torch.arange(32).view(2, 16) % 5 + 1
    carry = model.initial_carry(2, 16)
    with torch.no_grad():
        return model(carry, inputs, puzzle_identifiers=torch.tensor([0, 2])).logits


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_puzzle_model(tmp_path / "model", make_puzzle_model(), NAME)
    return tmp_path / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_comes_back_bit_equal(kind: str, tmp_path: Path) -> None:
    model = make_puzzle_model(kind)
    save_puzzle_model(tmp_path / "runs" / "model", model, NAME)
    saved = load_puzzle_model(tmp_path / "runs" / "model")
    state = saved.model.state_dict()
    assert {"reasoner.H_init", "reasoner.L_init"} <= state.keys() == model.state_dict().keys()
    assert ("groups" in state) == (kind == "groups")
    for name, tensor in model.state_dict().items():
        assert state[name].dtype == tensor.dtype and torch.equal(state[name], tensor), name
    assert saved.model.config == model.config
    assert torch.equal(logits_of(saved.model), logits_of(model))
    assert not saved.model.training
    assert [p.requires_grad for p in saved.model.parameters()] == [True] * len(
        [*model.parameters()]
    )
    assert (saved.puzzle_name, saved.weights, saved.published) == (NAME, ("averaged",), None)
    assert saved.puzzle is not None and saved.puzzle.groups().equal(find_puzzle(NAME).groups())


def test_a_shape_with_as_many_cells_has_other_groups(tmp_path: Path) -> None:
    puzzle, other = find_puzzle("maze-6x6"), find_puzzle("maze-4x9")
    reasoner = ReasonerConfig(hidden_size=16, num_heads=1, mixer="groups", positions="none")
    config = PuzzleModelConfig(reasoner=reasoner, vocab_size=puzzle.vocab_size, num_cells=36)
    save_puzzle_model(tmp_path, PuzzleModel(config, puzzle.groups()), "maze-6x6")
    saved = load_puzzle_model(tmp_path, puzzle_name="maze-4x9")
    assert saved.trained_on == "maze-6x6"
    assert saved.model.groups is not None and saved.model.groups.equal(other.groups())


def test_a_run_folder_is_not_its_model(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"preset": "sudoku-4x4"}))
    with pytest.raises(CheckpointError, match="it is the folder of a run, which holds such a"):
        load_puzzle_model(tmp_path)


def test_raw_weights_beside_the_averaged_ones(tmp_path: Path) -> None:
    averaged, raw = make_puzzle_model(seed=0), make_puzzle_model(seed=1)
    save_puzzle_model(tmp_path / "both", averaged, NAME, raw=raw.state_dict())
    for weights, model in (("averaged", averaged), ("raw", raw)):
        saved = load_puzzle_model(tmp_path / "both", weights)
        assert saved.weights == ("averaged", "raw")
        assert torch.equal(logits_of(saved.model), logits_of(model))
    save_puzzle_model(tmp_path / "both", averaged, NAME)
    assert load_puzzle_model(tmp_path / "both").weights == ("averaged",)


def test_raw_weights_that_are_not_there(folder: Path) -> None:
    assert_unusable(folder, "raw.safetensors", "raw")


@pytest.mark.parametrize("name", ["my-puzzle-3x3", None])
def test_a_puzzle_that_nobody_knows_is_none(name: str | None, tmp_path: Path) -> None:
    save_puzzle_model(tmp_path / "model", make_puzzle_model(), name)
    saved = load_puzzle_model(tmp_path / "model")
    assert (saved.puzzle_name, saved.puzzle) == (name, None)


def test_the_files_and_the_card(folder: Path) -> None:
    assert {p.name for p in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    card = (folder / "README.md").read_text()
    assert NAME in card and "python -m latent_reason solve" in card
    save_puzzle_model(folder, make_puzzle_model(), NAME, card="# Mine")
    assert (folder / "README.md").read_text() == "# Mine\n"


def assert_unusable(folder: Path, words: str | None, weights: Any = "averaged") -> None:
    with pytest.raises(CheckpointError, match=words) as caught:
        load_puzzle_model(folder, weights)
    message = str(caught.value)
    assert message.startswith(f"model {folder}: not a complete model folder (")
    assert "\n" not in message


def test_a_missing_folder(tmp_path: Path) -> None:
    assert_unusable(tmp_path / "nowhere", "No such file")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_missing_and_truncated_files(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-40])
    assert_unusable(folder, None)
    path.unlink()
    assert_unusable(folder, f"No such file.*{name}")


CHANGES: list[tuple[dict[str, Any], str | None]] = [
    ({"format": "latent_reason adapter 1"}, "format 'latent_reason adapter 1', expected"),
    ({"model": {"hidden_sizes": 3}}, "hidden_sizes"),
    ({"model": []}, None),
    ({"model": None}, None),
    ({"puzzle": 3}, "puzzle must be a text"),
    ({"puzzle": "sudoku-9x9"}, "made for 16 cells and 6 tokens, sudoku-9x9 has 81 and 11"),
    ({"published": [1]}, "published"),
]


@pytest.mark.parametrize(("change", "words"), CHANGES)
def test_an_impossible_config(folder: Path, change: dict[str, Any], words: str | None) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    assert_unusable(folder, words)


def test_a_config_that_is_too_long_is_not_read(folder: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text + " " * 2**20)
    assert_unusable(folder, "config.json: more than 1,048,576 bytes")


def test_numbers_that_no_weight_tells_are_bounded(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    for name, most in (("num_chains", "64"), ("vocab_size", "256")):
        changed = config | {"puzzle": None, "model": config["model"] | {name: 10**9}}
        (folder / "config.json").write_text(json.dumps(changed))
        assert_unusable(folder, f"{name}: got 1000000000, expected at most {most}\\)")


@pytest.mark.parametrize("text", ["[]", "3", "[" * 20_000, "\x00", '{"format": 1}'])
def test_a_config_that_is_none(folder: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    assert_unusable(folder, None)


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"L_layers": 10**9}, "L_layers: got 1000000000, expected at most 1,000"),
        ({"L_layers": 1000}, "1000 layers are said to be in 1"),
        ({"hidden_size": 2**40}, "hidden_size: got 1099511627776, expected at most 65,536"),
        ({"hidden_size": 2**16}, "tensor .* has shape .*, expected .*65536"),
        ({"L_cycles": 10**9}, "L_cycles: got 1000000000, expected at most 1,000"),
        ({"num_heads": "two"}, "num_heads: got 'two'"),
        ({"mixer": "mlp"}, "tensor .*mlp_t.* is missing"),
    ],
)
def test_sizes_are_checked_before_memory_is_taken(
    folder: Path, field: dict[str, Any], words: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["model"]["reasoner"] |= field
    config["model"]["symbol_states"] = False
    (folder / "config.json").write_text(json.dumps(config))
    assert_unusable(folder, words)


def test_tensors_that_do_not_fit(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors, name = load_file(path), "q_head.bias"
    spoiled: list[tuple[dict[str, Any], str]] = [
        ({name: torch.zeros(5)}, f"tensor {name} has shape \\(5,\\), expected \\(2,\\)"),
        ({name: torch.zeros(2, dtype=torch.int64)}, f"tensor {name} is torch.int64, expected"),
        ({"extra": torch.zeros(1)}, "unknown tensor extra"),
        ({"groups": torch.ones(3, 9, dtype=torch.bool)}, "groups have shape \\(3, 9\\)"),
    ]
    for change, words in spoiled:
        save_file(tensors | change, path)
        assert_unusable(folder, words)
    save_file({k: v for k, v in tensors.items() if k != name}, path)
    assert_unusable(folder, f"tensor {name} is missing")
