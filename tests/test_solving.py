"""Solving one puzzle: what is read, when thinking ends, what is told, what is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_recipes import run_main
from torch import Tensor

from latent_reason.__main__ import main
from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.kinds import find_puzzle
from latent_reason.data.puzzles import Puzzle
from latent_reason.errors import ConfigError, DataError
from latent_reason.halting import Carry
from latent_reason.puzzles import solving
from latent_reason.puzzles.folder import SavedPuzzleModel, load_puzzle_model, save_puzzle_model
from latent_reason.puzzles.model import PuzzleModel, PuzzleOutput
from latent_reason.puzzles.solving import puzzle_name_of, solve

QUESTION = "3.2......3..24.1"
ANSWER = "3124\n4213\n1342\n2431"
WRONG = "3124\n4213\n1342\n2433"
MAZE = "#####\n#S  #\n# # #\n#  G#\n#####"
PATHS = ("#####\n#Soo#\n# #o#\n#  G#\n#####", "#####\n#S  #\n#o# #\n#ooG#\n#####")


def make_model(puzzle: Puzzle, kind: type[PuzzleModel] = PuzzleModel) -> PuzzleModel:
    torch.manual_seed(0)
    reasoner = ReasonerConfig(
        hidden_size=16,
        num_heads=1,
        mixer="mlp",
        width_multiple=16,
        L_layers=1,
        L_cycles=1,
        H_cycles=1,
    )
    config = PuzzleModelConfig(
        reasoner=reasoner, vocab_size=puzzle.vocab_size, num_cells=puzzle.num_cells
    )
    return kind(config, puzzle.groups())


def learn_by_heart(puzzle: Puzzle, question: str, answer: str) -> PuzzleModel:
    """Return a model that knows one puzzle, and how sure it may be of it."""
    model = make_model(puzzle)
    inputs, labels = (torch.tensor([puzzle.parse(text)]) for text in (question, answer))
    for _ in range(40):
        model.zero_grad()
        model(model.initial_carry(1, puzzle.num_cells), inputs, labels).loss.backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter -= 0.02 * parameter.grad.sign()
    return model


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of models, as they come with the package."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for name, question, answer in (
        ("sudoku-4x4", QUESTION, ANSWER),
        ("maze-5x5", MAZE, PATHS[1]),
    ):
        model = learn_by_heart(find_puzzle(name), question, answer)
        save_puzzle_model(folder / name, model, name)
    return folder


@pytest.fixture
def shipped(checkpoints: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(solving, "CHECKPOINTS", checkpoints)
    return checkpoints


def run(*words: str) -> int:
    return run_main(main, "solve", *words)


# --- when thinking ends ---------------------------------------------------------------------------


class Scripted(PuzzleModel):
    """Answers what it is told, step by step; `halts` are its halting logits."""

    answers: list[list[int]]
    halts: list[float]
    stops_above = 0.0

    def forward(self, carry: Carry, inputs: Tensor, **_: Tensor) -> PuzzleOutput:  # type: ignore[override]
        at = int(carry.refinement_steps)
        logits = torch.nn.functional.one_hot(
            torch.tensor([self.answers[at]]), self.config.vocab_size
        ).float()
        halt = torch.tensor([self.halts[at]])
        carry = replace(carry, refinement_steps=carry.refinement_steps + 1)
        return PuzzleOutput(logits, halt, halt, carry, halt > self.stops_above)


class NoRule(Puzzle):
    name, height, width, alphabet = "letters", 1, 3, "abc"


def scripted(puzzle: Puzzle, steps: list[tuple[str, float]]) -> SavedPuzzleModel:
    model = make_model(puzzle, Scripted)
    assert isinstance(model, Scripted)
    model.answers = [puzzle.parse(answer) for answer, _ in steps]
    model.halts = [halt for _, halt in steps]
    return SavedPuzzleModel(model, "sudoku-4x4", puzzle, ("averaged",), None)


SCRIPTS = [
    ([(WRONG, -1), (ANSWER, 2), (WRONG, 3)], 2, ANSWER, 2.0),
    ([(WRONG, 5), (WRONG, 5), (ANSWER, 1)], 3, ANSWER, 1.0),
    ([(ANSWER, -1), (ANSWER, -2), (ANSWER, -3)], 3, ANSWER, -3.0),
    ([(WRONG, -1), (ANSWER, -2), (WRONG, 3)], 3, ANSWER, -2.0),
    ([(ANSWER, 4), (WRONG, 3), (WRONG, 3)], 1, ANSWER, 4.0),
]


@pytest.mark.parametrize(("script", "steps", "answer", "halt"), SCRIPTS)
def test_thinking_ends_when_the_head_says_stop_and_the_rule_agrees(
    script: list[tuple[str, float]], steps: int, answer: str, halt: float
) -> None:
    solution = solve(QUESTION, scripted(find_puzzle("sudoku-4x4"), script), len(script))
    assert (solution.refinement_steps, solution.answer) == (steps, answer)
    assert solution.confidence == pytest.approx(torch.tensor(halt).sigmoid().item())
    assert (solution.solved, solution.conflicts) == (True, [])
    assert solution.verdict == "valid solution"


def test_a_wrong_answer_is_told_with_its_conflicts() -> None:
    saved = scripted(find_puzzle("sudoku-4x4"), [(ANSWER[::-1], -1), (WRONG, 3)])
    solution = solve(QUESTION, saved, 2)
    assert (solution.answer, solution.refinement_steps, solution.solved) == (WRONG, 2, False)
    assert solution.conflicts is not None and "row 4 holds 3 twice" in solution.conflicts
    num = len(solution.conflicts)
    assert solution.verdict.startswith(f"not solved, {num} conflicts: ")
    assert "row 4 holds 3 twice" in solution.verdict


def test_many_conflicts_are_cut_short() -> None:
    solution = solve(QUESTION, scripted(find_puzzle("sudoku-4x4"), [("1" * 16, 3)]), 1)
    assert solution.conflicts is not None and len(solution.conflicts) > 10
    assert solution.verdict.endswith(", ...") and solution.verdict.count(",") < 8


@pytest.mark.parametrize(
    ("halts", "steps", "solved"), [([-1, 2, 3], 2, True), ([-1] * 3, 3, False)]
)
def test_without_a_rule_the_halting_head_decides(
    halts: list[float], steps: int, solved: bool
) -> None:
    saved = scripted(NoRule(), [("abc", halt) for halt in halts])
    solution = solve("cba", saved, 3)
    assert (solution.refinement_steps, solution.solved) == (steps, solved)
    assert (solution.answer, solution.conflicts) == ("abc", None)
    assert solution.verdict.endswith("the model is sure" if solved else "the model is not sure")


def test_without_a_rule_sure_means_that_the_head_says_stop() -> None:
    saved = scripted(NoRule(), [("abc", 1.0)] * 2)
    assert isinstance(saved.model, Scripted)
    for limit, solved in ((2.0, False), (-1.0, True), (1.5, False)):
        saved.model.stops_above = limit
        solution = solve("cba", saved, 2)
        assert solution.confidence > 0.5 and solution.solved == solved
    saved.model.halts, saved.model.stops_above = [-1.0], -2.0
    assert solve("cba", saved, 1).solved


def test_any_shortest_path_is_right(shipped: Path) -> None:
    puzzle = find_puzzle("maze-5x5")
    for path in PATHS:
        assert solve(MAZE, scripted(puzzle, [(path, 1)])).verdict == "valid solution"
    verdict = solve(MAZE, scripted(puzzle, [(MAZE, 1)]), 1).verdict
    assert verdict == "not solved, 1 conflict: the path does not join S and G"


# --- what is read ---------------------------------------------------------------------------------

FORMS = [
    QUESTION,
    QUESTION.replace(".", "0"),
    "3.2.\n....\n.3..\n24.1\n",
    "\n3 . | 2 .\r\n. . | . .\r\n----+----\r\n. 3 | . .\r\n2 4 | . 1\r\n\n",
]


@pytest.mark.parametrize("text", FORMS)
def test_forms_of_a_sudoku(text: str, shipped: Path) -> None:
    solution = solve(text)
    assert (solution.answer, solution.solved) == (ANSWER, True)
    assert solution.confidence > 0.5 and solution.refinement_steps == 1


@pytest.mark.parametrize(
    "text", [MAZE, MAZE.replace(" ", "."), MAZE.replace("\n", ""), f"\n{MAZE}\n"]
)
def test_forms_of_a_maze(text: str, shipped: Path) -> None:
    solution = solve(text)
    assert (solution.answer, solution.solved) == (PATHS[1], True)


def test_signs_that_are_symbols_are_no_frame() -> None:
    class Signs(Puzzle):
        name, height, width, alphabet = "signs", 1, 4, ".+-"

    assert solve(".+-.", scripted(Signs(), [("-+-+", 1.0)]), 1).answer == "-+-+"


def test_a_drawing_with_spaces_as_cells() -> None:
    class Spaces(Puzzle):
        name, height, width, alphabet = "spaces", 2, 2, " ab"

    assert solve("a \n b", scripted(Spaces(), [("ab\nab", 1.0)]), 1).answer == "ab\nab"


def test_the_model_by_folder_and_loaded(checkpoints: Path) -> None:
    folder = checkpoints / "sudoku-4x4"
    for model in (folder, str(folder), load_puzzle_model(folder)):
        assert solve(QUESTION, model).answer == ANSWER


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("." * 36, "sudoku-6x6"),
        ("." * 81, "sudoku-9x9"),
        ("G" * 256, "sudoku-16x16"),
        ("#" * 900, "maze-30x30"),
        ("S  G\n    \n    ", "maze-3x4"),
    ],
)
def test_the_kind_is_told_by_the_text(text: str, name: str) -> None:
    assert puzzle_name_of(text) == name


# --- what is refused ------------------------------------------------------------------------------

BAD = [
    ("", "puzzle: it is empty"),
    ("\n \n", "puzzle: it is empty"),
    (QUESTION[:-1], "puzzle: 15 cells; a Sudoku has 16, 36, 81, 256, with blanks as . or 0; a"),
    (QUESTION[:-1] + "5", "puzzle: cell 16 is '5', expected one of '01234'"),
    (QUESTION[:-1] + "x", "puzzle: cell 16 is 'X'"),
    ("3.2\n.....\n.3..\n24.1", "puzzle: row 1 has 3 cells, expected 4"),
    ("33" + QUESTION[2:], "puzzle: contradictory clues: row 1 holds 3 twice, column 2 holds 3 twi"),
    ("." * 16, "puzzle: it has several solutions; add clues"),
    ("12......3.......", "puzzle: it has several solutions"),
    ("12....3.......4.", "puzzle: it has no solution; check the clues"),
    ("1" * 10**6, "puzzle: more than 100,000 characters"),
    (MAZE.replace("S", " ").replace(" ", "."), "puzzle: 0 cells are S, expected one"),
    (MAZE.replace("G#", "G"), "puzzle: row 4 has 4 cells, expected 5; write open cells at its end"),
    (MAZE.replace("#  G#", "# #G#").replace("# # #", "#####"), "puzzle: no way leads from S to G"),
    (PATHS[0], "puzzle: the maze holds path cells 'o'"),
    ("#" * 26, "puzzle: a maze of 26 cells in one line is not square"),
]


@pytest.mark.parametrize(("text", "words"), BAD, ids=range(len(BAD)))
def test_bad_puzzles(text: str, words: str, shipped: Path) -> None:
    with pytest.raises((DataError, ConfigError)) as caught:
        solve(text)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 300


def test_models_that_do_not_fit(checkpoints: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="81 cells, expected 16"):
        solve("." * 81, checkpoints / "sudoku-4x4")
    with pytest.raises(ConfigError, match="refinement_steps: got 0"):
        solve(QUESTION, checkpoints / "sudoku-4x4", 0)
    save_puzzle_model(tmp_path, make_model(find_puzzle("sudoku-4x4")), "hexagons")
    with pytest.raises(ConfigError, match="made for puzzle 'hexagons', which is not known"):
        solve(QUESTION, tmp_path)


def test_no_shipped_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "CHECKPOINTS", tmp_path)
    (tmp_path / "maze-5x5").mkdir()
    with pytest.raises(
        ConfigError, match=r"no model for sudoku-4x4 .* \(maze-5x5\); name a folder"
    ):
        solve(QUESTION)


def test_a_shipped_model_takes_another_size_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(solving, "CHECKPOINTS", tmp_path)
    small, large = (find_puzzle(f"perfect-maze-{side}x{side}") for side in (5, 7))
    reasoner = ReasonerConfig(hidden_size=16, num_heads=1, mixer="groups", positions="none")
    config = PuzzleModelConfig(
        reasoner=reasoner, vocab_size=small.vocab_size, num_cells=small.num_cells
    )
    model = PuzzleModel(config, small.groups())
    save_puzzle_model(tmp_path / "maze-5x5", model, "perfect-maze-5x5")
    question, _ = large.generate(1, seed=0, split="test")
    solution = solve(large.format(question[0].tolist()), refinement_steps=2)
    assert len(solution.answer.splitlines()) == 7
    assert solution.note == "the model was trained on perfect-maze-5x5 only"


# --- the command line -----------------------------------------------------------------------------


def test_a_solved_puzzle(shipped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(QUESTION) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith(f"{ANSWER}\nvalid solution\nconfidence 0.")
    assert ", 1 refinement step, " in out and out.endswith(" s\n")


LOOP = "#####\n#S  #\n#   #\n#  G#\n#####"
NO_LOOP = "#####\n#S###\n#   #\n###G#\n#####"


@pytest.mark.parametrize(
    ("name", "maze", "told"),
    [
        ("perfect-maze-5x5", MAZE, True),
        ("perfect-maze-5x5", LOOP, True),
        ("perfect-maze-5x5", NO_LOOP, False),
        ("maze-5x5", MAZE, False),
    ],
)
def test_a_loop_is_told_to_who_asks_a_model_of_mazes_without(
    name: str,
    maze: str,
    told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_puzzle_model(tmp_path, make_model(find_puzzle(name)), name)
    (tmp_path / "maze").write_text(maze)
    run(str(tmp_path / "maze"), "--model", str(tmp_path), "--refinement-steps", "1")
    line = "note: this maze has a loop; the model has learnt mazes without loops only"
    assert capsys.readouterr().out.splitlines().count(line) == told


def test_a_file_and_stdin(
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "maze").write_text(MAZE + "\n")
    assert run(str(tmp_path / "maze")) == 0
    assert capsys.readouterr().out.startswith(PATHS[1])
    monkeypatch.setattr(sys, "stdin", io.StringIO("\ufeff" + QUESTION))
    assert run("-", "--model", str(shipped / "sudoku-4x4")) == 0
    assert capsys.readouterr().out.startswith(ANSWER)


def test_a_puzzle_that_it_cannot_solve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_puzzle_model(tmp_path, make_model(find_puzzle("sudoku-4x4")), "sudoku-4x4")
    words = ["--model", str(tmp_path), "--refinement-steps", "3"]
    assert run(QUESTION, *words) == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "\nnot solved, " in out and ", 3 refinement steps, " in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such/puzzle"], "no/such/puzzle: no such file; give a puzzle"),
        (["puzzle.txt"], "puzzle.txt: no such file"),
        (["noise.bin"], "noise.bin: cannot be read"),
        (["1234"], "puzzle: 4 cells"),
        ([QUESTION, "--model", "nowhere"], "model nowhere: not a complete model folder"),
        ([QUESTION, "--refinement-steps", "0"], "refinement_steps: got 0"),
        ([QUESTION, "--puzzle", "/tmp/model-1"], "puzzle: got '/tmp/model-1'"),
        (
            [QUESTION, "--refinement-steps", "many"],
            "invalid int value: 'many'; see python -m latent_reason solve --help",
        ),
        ([], "the following arguments are required: puzzle"),
        (["\x00"], "puzzle: 1 cells"),
        (["x" * 5000], "puzzle: 5000 cells"),
    ],
)
def test_bad_input_is_one_line(
    words: list[str],
    message: str,
    shipped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "noise.bin").write_bytes(b"\xff\xfe\xfa")
    assert run(*words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1
    assert message in err


def test_it_starts_without_heavy_libraries(checkpoints: Path) -> None:
    code = (
        "import sys; from latent_reason.__main__ import main\n"
        f"main(['solve', '{QUESTION}', '--model', '{checkpoints / 'sudoku-4x4'}'])\n"
        "heavy = {'transformers', 'peft', 'datasets', 'matplotlib', 'pyarrow'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
        check=True,
    )
    assert done.stdout.endswith(" s\n[]\n")
