"""The evaluation script: the rows of the run, other data, other slots, bad input in one line."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tiny_recipes import assert_refused, evaluate, run_eval
from tiny_runs import make_data, make_examples, train_once

from eval import latent
from latent_reason.data import Example, read_jsonl, write_jsonl
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.llm import FrozenLLM

pytestmark = pytest.mark.usefixtures("one_process")
MakeLLM = Callable[..., FrozenLLM]
SaveLLM = Callable[[FrozenLLM, Any], str]
NUM_ROWS = 9
run = partial(run_eval, latent)


@pytest.fixture
def adapter(
    make_llm: MakeLLM,
    save_llm: SaveLLM,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The folder tmp_path/adapter of a reasoner that knows the first six rows of rows.jsonl."""
    llm = make_llm(name=str(tmp_path / "base"))
    save_llm(llm, tmp_path / "base")
    model = train_once(llm, tmp_path_factory.getbasetemp())
    model.save_pretrained(tmp_path / "adapter")
    write_jsonl(tmp_path / "rows.jsonl", make_examples(NUM_ROWS))
    return tmp_path / "adapter"


def counts_of(model: LatentReasoner, steps: int) -> tuple[float, float]:
    """Return exact accuracy and accuracy by a naive comparison."""
    data = make_data(model.llm, NUM_ROWS)
    tokens = model.generate(data.input_ids, data.attention_mask, refinement_steps=steps)
    labelled = data.labels != -100
    hits = (tokens == data.labels) & labelled
    exact = (hits == labelled).all(dim=1).float().mean().item()
    return exact, (hits.sum() / labelled.sum()).item()


def test_rows_by_refinement_steps(adapter: Path, tmp_path: Path) -> None:
    words = ["--adapter", "adapter", "--data", "rows.jsonl", "--refinement-steps", "3", "1"]
    out, results = evaluate(latent, tmp_path, *words, "--batch-size", "4")
    assert [row["refinement_steps"] for row in results["rows"]] == [1, 3]
    assert results["packages"]["torch"]
    model = LatentReasoner.from_pretrained(adapter).eval()
    for row in results["rows"]:
        assert (row["system"], row["task"], row["split"]) == ("latent reasoner", "rows", "file")
        assert row["n"] == NUM_ROWS
        exact, accuracy = counts_of(model, row["refinement_steps"])
        assert row["exact_accuracy"] == pytest.approx(exact)
        assert row["accuracy"] == pytest.approx(accuracy)
    assert 3 / NUM_ROWS <= results["rows"][1]["exact_accuracy"] < 1
    assert "rows/file" in out
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_rows_by_slots(adapter: Path, tmp_path: Path) -> None:
    words = ["--adapter", "adapter", "--data", "rows.jsonl", "--refinement-steps", "1", "3"]
    rows = evaluate(latent, tmp_path, *words, "--slots")[1]["rows"]
    systems = [(row["system"], row["refinement_steps"]) for row in rows]
    kinds = ("own", "shuffled", "mean", "no")
    assert systems[2:] == [(f"latent reasoner, {kind} slots", 3) for kind in kinds]
    assert rows[1]["exact_accuracy"] == rows[2]["exact_accuracy"] > rows[3]["exact_accuracy"]


def test_shuffled_slots_need_two_rows(adapter: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "one.jsonl", make_examples(1))
    done = run(tmp_path, "--adapter", "adapter", "--data", "one.jsonl", "--slots")
    assert_refused(done, "error: slots: got one row, expected two or more")
    assert done.out == ""


def test_a_data_set_is_read_as_the_recipe_does(adapter: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "mine" / "train.jsonl", make_examples(3, start=60))
    write_jsonl(tmp_path / "mine" / "test.jsonl", make_examples(NUM_ROWS))
    words = ["--adapter", "adapter", "--refinement-steps", "3", "--data"]
    ours, theirs = (
        evaluate(latent, tmp_path, *words, data)[1]["rows"][0] for data in ("mine", "rows.jsonl")
    )
    assert (ours["task"], ours["split"]) == ("mine", "test")
    assert ours | {"task": "rows", "split": "file"} == theirs


def test_answers_longer_than_trained(adapter: Path, tmp_path: Path) -> None:
    rows = read_jsonl(tmp_path / "rows.jsonl")
    long = [*rows, type(rows[0])("add 1 2 3 4", "1 2 3 4")]
    write_jsonl(tmp_path / "long.jsonl", long)
    words = ["--adapter", "adapter", "--data", "long.jsonl", "--refinement-steps", "2"]
    place = f"error: long.jsonl:{NUM_ROWS + 1}: "
    assert_refused(run(tmp_path, *words), f"{place}the answer needs 9 slots")
    code, out, err = run(tmp_path, *words, "--num-slots", "9")
    assert (code, err) == (0, "")
    assert f" {NUM_ROWS + 1} " in out


def test_the_base_is_found_where_it_was_moved(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "base").rename(tmp_path / "moved")
    words = ["--adapter", "adapter", "--data", "rows.jsonl", "--refinement-steps", "1"]
    assert_refused(run(tmp_path, *words), f"error: base {tmp_path / 'base'}: no such folder")
    assert run(tmp_path, *words, "--base", "moved")[0] == 0


BAD = [
    (["--adapter", "nowhere"], ["adapter nowhere: not a complete adapter folder"]),
    (["--data", "nowhere.jsonl"], ["nowhere.jsonl: no such file"]),
    (["--base", "/no/such/base"], ["base /no/such/base: no such folder"]),
    (["--base", "nobody/nothing"], ["base nobody/nothing: cannot be loaded"]),
    (["--refinement-steps", "0"], ["refinement_steps: got [0], expected numbers from 1 up"]),
    (["--refinement-steps", "two"], ["--refinement-steps", "'two'"]),
    (["--batch-size", "0"], ["batch_size: got 0, expected at least 1"]),
    (["--num-slots", "-1"], ["num_slots: got -1, expected at least 1"]),
    (["--num-slots", "3"], ["rows.jsonl:1: the answer needs", "there are 3"]),
    (["--output", "nowhere/found.json"], ["output: there is no folder nowhere"]),
    (["--colour", "red"], ["unrecognized arguments: --colour red", "--help"]),
]


@pytest.mark.parametrize(("words", "message"), BAD, ids=lambda value: " ".join(value)[:30])
def test_bad_input_is_one_line(
    adapter: Path, tmp_path: Path, words: list[str], message: list[str]
) -> None:
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, "--adapter", "adapter", "--data", "rows.jsonl", *words)
    assert_refused(done, *message)
    assert done.out == ""
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("seed", "config", "message"),
    [
        (5, {}, "with other weights"),
        (0, {"hidden_size": 64}, "(width 64) with other weights"),
    ],
)
def test_an_adapter_for_another_base_is_refused(
    adapter: Path,
    make_llm: MakeLLM,
    save_llm: SaveLLM,
    tmp_path: Path,
    seed: int,
    config: dict[str, int],
    message: str,
) -> None:
    save_llm(make_llm(seed=seed, **config), tmp_path / "other")
    words = ["--adapter", "adapter", "--data", "rows.jsonl", "--base", "other"]
    done = run(tmp_path, *words)
    start = f"error: adapter adapter: made for base {tmp_path / 'base'} (width 32)"
    assert_refused(done, start, message)
    assert done.out == ""


def test_a_damaged_adapter_is_refused(adapter: Path, tmp_path: Path) -> None:
    weights = adapter / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    done = run(tmp_path, "--adapter", "adapter", "--data", "rows.jsonl")
    assert_refused(done, "error: adapter adapter: not a complete adapter folder")


def test_help(tmp_path: Path) -> None:
    code, out, _ = run(tmp_path, "--help")
    assert code == 0
    assert "--refinement-steps" in out


def test_a_prompt_longer_than_the_context(adapter: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "long.jsonl", [*make_examples(1), Example("add " + "1" * 128, "1")])
    done = run(tmp_path, "--adapter", "adapter", "--data", "long.jsonl")
    assert_refused(done, "long.jsonl:2: the prompt has 132 tokens", "takes 128; shorten it")
