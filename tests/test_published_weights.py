"""Checkpoints of the originals: bit-equal both ways, nothing executed, misfits named."""

from __future__ import annotations

import json
import os
import pickle
import resource
import zipfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_originals import ARCH, FILES, ROWS, assert_equal, make_weights, write_original
from torch import Tensor

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.kinds import find_puzzle
from latent_reason.errors import CheckpointError, ConfigError
from latent_reason.puzzles.folder import load_puzzle_model, save_puzzle_model
from latent_reason.puzzles.model import PuzzleModel
from latent_reason.puzzles.published_weights import PREFIX, export_published, import_published


@pytest.fixture
def original(tmp_path: Path) -> Path:
    return write_original(tmp_path / "original", make_weights())


def import_tiny(source: Path, **options: Any) -> Path:
    """Import a checkpoint for 4x4 Sudoku; return the model folder."""
    folder = source.parent.parent / "model"
    import_published(source, folder, **{"puzzle_name": "sudoku-4x4"} | options)
    return folder


def assert_round_trip(folder: Path, weights: dict[str, Tensor]) -> None:
    """Export in both formats and compare with what the originals had, bit by bit."""
    for name in ("back", "back.pt", "back.safetensors"):
        file = folder.parent / name
        export_published(folder, file)
        read = load_file(file) if name.endswith("safetensors") else torch.load(file)
        assert_equal(read, weights)


@pytest.mark.skipif(not FILES, reason="no shared/golden here")
@pytest.mark.parametrize("suffix", ["", ".pt", ".safetensors"])
@pytest.mark.parametrize("golden", FILES, ids=lambda path: path.stem)
def test_golden_weights_come_back_bit_equal(golden: Path, suffix: str, tmp_path: Path) -> None:
    with safe_open(golden, "pt") as file:
        names = [key for key in file.keys() if key.startswith("weights/")]
        weights = {name.removeprefix("weights/"): file.get_tensor(name) for name in names}
        (tmp_path / "all_config.yaml").write_text(file.metadata()["config"])
    source = tmp_path / f"step_7{suffix}"
    save_file(weights, source) if suffix == ".safetensors" else torch.save(weights, source)
    import_published(source, tmp_path / "model")
    assert_round_trip(tmp_path / "model", weights)


@pytest.mark.parametrize("prefix", [PREFIX, "model.inner.", "inner.", ""])
def test_prefix_and_dtypes_come_back(prefix: str, tmp_path: Path) -> None:
    weights = make_weights(prefix)
    folder = import_tiny(write_original(tmp_path / "original", weights))
    assert_round_trip(folder, weights)
    saved = load_puzzle_model(folder)
    assert saved.puzzle_name == "sudoku-4x4"
    assert saved.model.reasoner.H_init.equal(weights[f"{prefix}H_init"].float())


def test_the_configuration_is_theirs(original: Path) -> None:
    config = load_puzzle_model(import_tiny(original)).model.config
    reasoner = config.reasoner
    assert (config.vocab_size, config.num_cells, config.num_puzzles) == (6, 16, ROWS)
    assert (config.puzzle_emb_size, config.puzzle_emb_len) == (8, 2)
    assert (config.loss, config.q_continue) == ("stablemax", False)
    assert (reasoner.kind, reasoner.gradient, reasoner.H_cycles) == ("trm", "last_cycle", 3)


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ({"loss": {"loss_type": "softmax_cross_entropy"}}, {"loss": "softmax"}),
        ({"no_ACT_continue": False}, {"q_continue": True}),
        ({"puzzle_emb_len": 0}, {"puzzle_emb_len": 1}),
    ],
)
def test_options_of_the_originals(
    arch: dict[str, Any], expected: dict[str, Any], tmp_path: Path
) -> None:
    source = write_original(tmp_path / "original", make_weights(), **arch)
    config = load_puzzle_model(import_tiny(source)).model.config.to_dict()
    assert expected.items() <= config.items()


def test_the_number_of_cells_is_read_from_learned_positions(tmp_path: Path) -> None:
    weights = make_weights() | {f"{PREFIX}embed_pos.embedding_weight": torch.randn(2 + 20, 8)}
    source = write_original(tmp_path / "original", weights, pos_encodings="learned")
    import_published(source, tmp_path / "model")
    assert load_puzzle_model(tmp_path / "model").model.config.num_cells == 20


def test_the_number_of_cells_must_be_told_with_rotary_positions(original: Path) -> None:
    with pytest.raises(CheckpointError, match="number of cells is not told; give the puzzle"):
        import_tiny(original, puzzle_name=None)
    folder = import_tiny(original, puzzle_name=None, num_cells=25)
    saved = load_puzzle_model(folder)
    assert (saved.puzzle_name, saved.model.config.num_cells) == (None, 25)


def test_a_model_trained_here_is_exported(tmp_path: Path) -> None:
    reasoner = ReasonerConfig(hidden_size=8, num_heads=2, kind="hrm", H_layers=1, L_layers=1)
    model = PuzzleModel(PuzzleModelConfig(reasoner=reasoner, num_cells=16, vocab_size=6))
    raw = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_puzzle_model(tmp_path / "model", model, "sudoku-4x4", raw=raw)
    for weights, expected in (("averaged", model.q_head.bias.data), ("raw", raw["q_head.bias"])):
        export_published(tmp_path / "model", tmp_path / "x.safetensors", weights)
        tensors = load_file(tmp_path / "x.safetensors")
        assert tensors[f"{PREFIX}q_head.bias"].equal(expected)
        assert f"{PREFIX}H_level.layers.0.self_attn.o_proj.weight" in tensors


# --- puzzle tables --------------------------------------------------------------------------------


def imported_table(folder: Path) -> Tensor:
    model = load_puzzle_model(folder).model
    assert model.puzzle_emb is not None and model.config.num_puzzles == len(model.puzzle_emb.weight)
    return model.puzzle_emb.weight.data


@pytest.mark.parametrize("num_puzzles", [1, ROWS, 5])
def test_another_number_of_puzzles(original: Path, num_puzzles: int) -> None:
    table = make_weights()[f"{PREFIX}puzzle_emb.weights"]
    mean = table.mean(dim=0, keepdim=True)
    kept = table[:num_puzzles]
    expected = {
        "keep": torch.cat((kept, mean.expand(num_puzzles - len(kept), -1))),
        "mean": mean.expand(num_puzzles, -1),
        "zero": torch.zeros(num_puzzles, 8),
    }
    for puzzles, rows in expected.items():
        folder = import_tiny(original, num_puzzles=num_puzzles, puzzles=puzzles)
        assert imported_table(folder).equal(rows), puzzles


def test_another_number_of_puzzles_needs_a_choice(original: Path, tmp_path: Path) -> None:
    words = f"table has {ROWS} rows, 5 are wanted; choose .* 'keep', 'mean' or 'zero'"
    with pytest.raises(CheckpointError, match=words):
        import_tiny(original, num_puzzles=5)
    source = write_original(tmp_path / "other", make_weights(), num_puzzle_identifiers=5)
    with pytest.raises(CheckpointError, match=words):
        import_tiny(source)
    assert not (tmp_path / "model").exists()
    assert imported_table(import_tiny(original, num_puzzles=ROWS)).shape == (ROWS, 8)


def test_a_huge_number_of_puzzles_is_refused_before_memory_is_taken(original: Path) -> None:
    with pytest.raises(
        CheckpointError, match="num_puzzles: got 100000000000, expected a whole number"
    ):
        import_tiny(original, num_puzzles=10**11, puzzles="zero")


def test_no_table_to_resize(tmp_path: Path) -> None:
    weights = make_weights()
    del weights[f"{PREFIX}puzzle_emb.weights"]
    source = write_original(tmp_path / "original", weights, puzzle_emb_ndim=0, puzzle_emb_len=0)
    assert load_puzzle_model(import_tiny(source)).model.puzzle_emb is None
    with pytest.raises(CheckpointError, match="no puzzle table to resize"):
        import_tiny(source, num_puzzles=5, puzzles="mean")


# --- hostile and damaged files --------------------------------------------------------------------


class Payload:
    """Writes a canary file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


def test_the_payload_would_work(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "canary")))
    assert (tmp_path / "canary").exists()


@pytest.mark.parametrize("place", ["alone", "entry", "key", "pickle", "legacy"])
def test_a_payload_is_refused_without_being_executed(place: str, tmp_path: Path) -> None:
    payload = Payload(tmp_path / "canary")
    content: Any = {"alone": payload, "key": {payload: torch.zeros(1)}}.get(
        place, make_weights() | {"more": payload}
    )
    source = write_original(tmp_path / "original", {})
    if place == "pickle":
        source.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, source, _use_new_zipfile_serialization=place != "legacy")
    with pytest.raises(CheckpointError, match="nothing in it was executed") as caught:
        import_tiny(source)
    assert str(caught.value).startswith(f"{source}: ")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    if place in ("alone", "entry", "key"):
        assert "it asks for" in str(caught.value)
    assert {path.name for path in tmp_path.iterdir()} == {"original"}


class Filler:
    """Takes 1 GB of memory when it is unpickled, from a file of 1 kB."""

    def __reduce__(self) -> Any:
        return bytearray, (10**9,)


def rewrite_pickle(file: Path, change: Any) -> None:
    """Replace the pickle in a file of torch.save."""
    with zipfile.ZipFile(file) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in parts.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


ONE_DICT = b"\x80\x02ccollections\nOrderedDict\nq\x01}(K\x01NK\x02Nuq\x02"
HUNGRY = [
    (ONE_DICT + b"h\x01h\x02\x85R.", "a call that rebuilds no tensor"),
    (ONE_DICT + b"h\x01)Rh\x02bh\x01)Rh\x02b.", "state of more than one object"),
    (b"}" * 2**20 + b".", "one data.pkl of at most 1,048,576 bytes"),
]


def test_a_small_file_takes_little_memory(original: Path) -> None:
    torch.save(make_weights() | {"more": Filler()}, original)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(CheckpointError, match="it asks for __builtin__.bytearray"):
        import_tiny(original)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB
    for data, words in HUNGRY:
        rewrite_pickle(original, lambda _, data=data: data)
        with pytest.raises(CheckpointError, match=words):
            import_tiny(original)


def test_a_whole_state_dict_is_read(tmp_path: Path) -> None:
    module = torch.nn.Module()
    for name, tensor in make_weights("").items():
        module.register_parameter(name.replace(".", "/"), torch.nn.Parameter(tensor))
    weights = module.state_dict(prefix=PREFIX)  # an OrderedDict with _metadata
    for name in [*weights]:
        weights[name.replace("/", ".")] = torch.nn.Parameter(weights.pop(name))
    folder = import_tiny(write_original(tmp_path / "original", weights))
    assert_round_trip(folder, make_weights())


CONTENTS: list[tuple[Any, str]] = [
    ([torch.zeros(1)], "opcode EMPTY_LIST"),
    ({"model": {}}, "'model' is a dict, expected a tensor"),
    ({3: torch.zeros(1)}, "'3' is a Tensor, expected a tensor"),
    ({"x": 1.5}, "opcode BINFLOAT"),
    ({}, "tensor H_init is missing"),
    ({"weight": torch.zeros(1)}, "tensor H_init is missing"),
    ({"H_init": torch.zeros(2, dtype=torch.int64)}, "tensor H_init is torch.int64, expected"),
    ({"H_init": torch.zeros(2, dtype=torch.float64)}, "tensor H_init is torch.float64, expected"),
    ({"H_init": torch.zeros(2).to_sparse()}, "it asks for torch._utils._rebuild_sparse_tensor"),
    (
        {"H_init": torch.zeros(2, device="meta")},
        "it asks for torch._utils._rebuild_meta_tensor_no_storage",
    ),
    ({"H_init": torch.tensor([1.0, float("nan")])}, "tensor H_init holds NaN or infinity"),
    ({"H_init": torch.zeros(1).expand(10**12)}, "tensor H_init claims to be larger than the file"),
    ({"a.H_init": torch.zeros(1), "b": torch.zeros(1)}, "unknown tensor b, all start with 'a.'"),
]


@pytest.mark.parametrize(("content", "words"), CONTENTS)
def test_contents_that_are_no_checkpoint(content: Any, words: str, tmp_path: Path) -> None:
    source = write_original(tmp_path / "original", content)
    with pytest.raises(CheckpointError, match=words) as caught:
        import_tiny(source)
    assert str(caught.value).startswith(f"{source}: ")


def test_files_that_cannot_be_read(original: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="step_9: cannot be read"):
        import_tiny(original.with_name("step_9"))
    original.write_bytes(original.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="step_5: refused, since it is damaged"):
        import_tiny(original)
    original.write_bytes(b"")
    with pytest.raises(CheckpointError, match="neither safetensors nor a zip file"):
        import_tiny(original)
    with zipfile.ZipFile(original, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"0" * 10**6)
    with pytest.raises(CheckpointError, match="its parts are compressed"):
        import_tiny(original)


# --- misfits --------------------------------------------------------------------------------------

QKV = f"{PREFIX}L_level.layers.0.self_attn.qkv_proj.weight"
MISFITS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({QKV: None}, {}, f"tensor {QKV} is missing"),
    ({QKV: torch.zeros(24, 9)}, {}, f"tensor {QKV} has shape \\(24, 9\\), expected \\(24, 8\\)"),
    ({f"{PREFIX}extra": torch.zeros(1)}, {}, f"unknown tensor {PREFIX}extra"),
    ({f"{PREFIX}embed_tokens.embedding_weight": None}, {}, "tensor embed_tokens.* is missing"),
    ({f"{PREFIX}embed_tokens.embedding_weight": torch.zeros(6)}, {}, "embed_tokens.* a matrix"),
    ({f"{PREFIX}puzzle_emb.weights": torch.tensor(1.0)}, {}, "puzzle_emb.* a matrix"),
    ({f"{PREFIX}puzzle_emb.weights": None}, {}, "tensor .*puzzle_emb.weights is missing"),
    ({}, {"mlp_t": True}, "tensor .*mlp_t.* is missing"),
    ({}, {"hidden_size": 2**16}, "tensor .* expected .*65536"),
    ({}, {"hidden_size": 2**50}, "hidden_size: got 1125899906842624, expected at most 65,536"),
    ({}, {"L_layers": 1000}, "1000 layers are said"),
    ({}, {"hidden_size": "wide"}, "hidden_size: got 'wide'"),
    ({}, {"hidden_size": 0}, "hidden_size: got 0"),
    ({}, {"puzzle_emb_ndim": "8"}, "puzzle_emb_ndim: got '8'"),
    ({}, {"pos_encodings": "alibi"}, "positions: got 'alibi'"),
    ({}, {"loss": {"loss_type": "hinge"}}, "loss: got 'hinge'"),
    ({}, {"name": "recursive_reasoning.trm_singlez@TinyRecursiveReasoningModel_ACTV1"}, "singlez"),
    ({}, {"name": None}, "model 'None': not one of TinyRecursiveReasoningModel_ACTV1"),
    ({}, {"depth": 3}, "fields that HRM and TRM do not have: depth"),
]


@pytest.mark.parametrize(("tensors", "arch", "words"), MISFITS)
def test_what_does_not_fit_is_named(
    tensors: dict[str, Any], arch: dict[str, Any], words: str, tmp_path: Path
) -> None:
    weights = {k: v for k, v in (make_weights() | tensors).items() if v is not None}
    source = write_original(tmp_path / "original", weights, **arch)
    with pytest.raises(CheckpointError, match=words) as caught:
        import_tiny(source)
    assert str(caught.value).startswith(f"{source} with {source.parent / 'all_config.yaml'}: ")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


def test_a_missing_field_is_named(original: Path) -> None:
    arch = {key: value for key, value in ARCH.items() if key != "L_cycles"}
    config = original.with_name("arch.json")
    config.write_text(json.dumps(arch))
    with pytest.raises(CheckpointError, match="'L_cycles' is missing"):
        import_tiny(original, config_file=config)


def test_a_puzzle_of_other_sizes(original: Path) -> None:
    with pytest.raises(CheckpointError, match="made for 81 cells and 6 tokens, sudoku-9x9 has"):
        import_tiny(original, puzzle_name="sudoku-9x9")
    with pytest.raises(ConfigError, match="puzzle: got 'chess'"):
        import_tiny(original, puzzle_name="chess")


NESTED = "a: &a [1]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in pairwise("abcdefghijkl"))
TEXTS = [
    NESTED,
    "",
    "3",
    "[]",
    "a: !!python/object/apply:os.getpid []",
    "[" * 10**4,
    "a: [",
    "\x00",
    "- a",
]


@pytest.mark.parametrize("text", TEXTS, ids=range(len(TEXTS)))
def test_configurations_that_are_none(original: Path, text: str) -> None:
    original.with_name("all_config.yaml").write_text(text)
    with pytest.raises(CheckpointError, match="all_config.yaml: not a configuration"):
        import_tiny(original)


def test_a_missing_or_huge_configuration(original: Path) -> None:
    config = original.with_name("all_config.yaml")
    config.write_text("#" * 2**21)
    with pytest.raises(CheckpointError, match="larger than 65,536 bytes"):
        import_tiny(original)
    config.unlink()
    with pytest.raises(CheckpointError, match="all_config.yaml: not a configuration"):
        import_tiny(original)


# --- export ---------------------------------------------------------------------------------------


HRM: dict[str, Any] = {"kind": "hrm", "H_layers": 1}
UNKNOWN: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"mixer": "groups", "positions": "none"}, {}, "mixer: got 'groups', .* 'attention' or 'mlp'"),
    ({"width_multiple": 8}, {}, "width_multiple: got 8, expected 256"),
    ({"norm_swiglu": True}, {}, "norm_swiglu: got True, expected False"),
    ({}, {"num_chains": 2}, "num_chains: got 2, expected 1"),
    (HRM | {"mixer": "mlp"}, {}, "mixer: got 'mlp', expected 'attention'"),
    (HRM | {"positions": "none"}, {}, "positions: got 'none', expected 'rope' or 'learned'"),
    (HRM, {"puzzle_emb_size": 8, "puzzle_emb_len": 2}, "puzzle_emb_len: got 2, expected 1"),
]


@pytest.mark.parametrize(("reasoner", "change", "words"), UNKNOWN)
def test_models_that_the_originals_do_not_have(
    reasoner: dict[str, Any], change: dict[str, Any], words: str, tmp_path: Path
) -> None:
    sizes = ReasonerConfig(hidden_size=8, num_heads=2, **reasoner)
    config = PuzzleModelConfig(reasoner=sizes, num_cells=16, vocab_size=6, **change)
    model = PuzzleModel(config, find_puzzle("sudoku-4x4").groups())
    save_puzzle_model(tmp_path / "model", model, None)
    with pytest.raises(ConfigError, match=f"^{words}.* as the originals of kind '{sizes.kind}'"):
        export_published(tmp_path / "model", tmp_path / "x")
    assert not (tmp_path / "x").exists()


KNOWN: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"mixer": "mlp", "positions": "none"}, {"puzzle_emb_size": 8, "puzzle_emb_len": 2}),
    ({"positions": "none"}, {"q_continue": True}),
    (HRM | {"positions": "learned"}, {"halt_confidence": 0.9}),
    (HRM, {"puzzle_emb_size": 12, "puzzle_emb_len": 2}),
]


@pytest.mark.parametrize(("reasoner", "change"), KNOWN)
def test_models_that_the_originals_have(
    reasoner: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    sizes = ReasonerConfig(hidden_size=8, num_heads=2, **reasoner)
    config = PuzzleModelConfig(reasoner=sizes, num_cells=16, vocab_size=6, **change)
    save_puzzle_model(tmp_path / "model", PuzzleModel(config), None)
    export_published(tmp_path / "model", tmp_path / "x")
    cells = None if sizes.positions == "learned" or sizes.mixer == "mlp" else 16
    import_published(tmp_path / "x", tmp_path / "back", num_cells=cells)
    back = load_puzzle_model(tmp_path / "back").model.config
    gradient = "one_step" if sizes.kind == "hrm" else "last_cycle"
    told = replace(sizes, residual_init="normal", gradient=gradient)
    told = replace(config, reasoner=told, q_continue=back.q_continue, halt_confidence=0.5)
    assert back == replace(told, loss=config.loss)
    export_published(tmp_path / "model", tmp_path / "y")  # all_config.yaml is that of this model
    other = replace(config, reasoner=replace(sizes, L_cycles=7))
    save_puzzle_model(tmp_path / "other", PuzzleModel(other), None)
    with pytest.raises(CheckpointError, match=r"all_config.yaml: is of another model"):
        export_published(tmp_path / "other", tmp_path / "z")


@pytest.mark.parametrize("change", [{"dtypes": {"q_head.bias": "load"}}, {"dtypes": 3}, {}])
def test_a_damaged_origin(change: dict[str, Any], original: Path) -> None:
    folder = import_tiny(original)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"published": change}))
    with pytest.raises(CheckpointError, match="'published' is damaged"):
        export_published(folder, folder.parent / "x")


def test_a_file_that_cannot_be_written(original: Path) -> None:
    folder = import_tiny(original)
    for target in ("nowhere/x", "nowhere/x.safetensors", "original", "original/step_5/x"):
        with pytest.raises(CheckpointError, match="^cannot write "):
            export_published(folder, folder.parent / target)
    assert sorted(path.name for path in folder.parent.iterdir()) == ["model", "original"]
