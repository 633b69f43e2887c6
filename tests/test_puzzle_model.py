"""The puzzle model: exact symmetries, sizes, variants, embeddings, read-out, losses by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from latent_reason.config import PuzzleModelConfig, ReasonerConfig
from latent_reason.data.kinds import find_puzzle
from latent_reason.data.maze import Maze
from latent_reason.data.order import Draws
from latent_reason.data.puzzles import Puzzle, Symmetry
from latent_reason.data.sudoku import Sudoku
from latent_reason.halting import Carry
from latent_reason.puzzles.model import NEVER, PuzzleModel, PuzzleOutput

SMALL = ReasonerConfig(
    hidden_size=16,
    num_heads=2,
    width_multiple=8,
    L_layers=1,
    L_cycles=2,
    H_cycles=2,
    residual_init="normal",
)
GROUPED = replace(SMALL, mixer="groups", positions="none")


def make_model(puzzle: Puzzle, reasoner: ReasonerConfig = SMALL, **changes: Any) -> PuzzleModel:
    """Return a model with random weights, those of its halting head too."""
    torch.manual_seed(1)
    config = PuzzleModelConfig(
        reasoner=reasoner, vocab_size=puzzle.vocab_size, num_cells=puzzle.num_cells, **changes
    )
    model = PuzzleModel(config, puzzle.groups())
    nn.init.normal_(model.q_head.weight)
    nn.init.zeros_(model.q_head.bias)
    return model


def refined(model: PuzzleModel, inputs: Tensor, steps: int = 2, **batch: Tensor) -> PuzzleOutput:
    """Return the output after some refinement steps."""
    carry = model.initial_carry(*inputs.shape)
    for _ in range(steps):
        output = model(carry, inputs, **batch)
        carry = output.carry
    return output


def move_logits(symmetry: Symmetry, logits: Tensor) -> Tensor:
    """Return the logits (B, S, V) of a transformed grid, from those of the grid."""
    moved = torch.empty_like(logits)
    for b, (cells, symbols) in enumerate(zip(symmetry.cells, symmetry.symbols, strict=True)):
        for new, old in enumerate(cells.tolist()):
            for token, name in enumerate(symbols.tolist()):
                moved[b, new, name] = logits[b, old, token]
    return moved


# Symmetries


@pytest.mark.parametrize("name", ["sudoku-4x4", "sudoku-6x6", "sudoku-9x9"])
def test_symbol_states_have_the_symmetries_of_sudoku_built_in(name: str) -> None:
    puzzle = find_puzzle(name)
    questions, _ = puzzle.generate(6, seed=0)
    symmetry = puzzle.symmetry(Draws(torch.arange(6), seed=1))
    assert symmetry is not None
    turned = symmetry.apply(questions)
    assert not torch.equal(turned, questions)
    model = make_model(puzzle, GROUPED, symbol_states=True)
    before, after = refined(model, questions), refined(model, turned)
    expected = move_logits(symmetry, before.logits)
    torch.testing.assert_close(after.logits, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(after.q_halt_logits, before.q_halt_logits, rtol=0, atol=1e-5)
    assert before.logits[:, :, 2:].std() > 0.005, "the answers are all alike"
    assert (after.logits - before.logits).abs().max() > 0.005, "nothing was transformed"


def test_what_is_no_symmetry_changes_the_answer() -> None:
    puzzle = Sudoku(2, 2)
    questions, _ = puzzle.generate(4, seed=0)
    cells = torch.arange(16)
    cells[[0, 5]] = cells[[5, 0]]  # two cells of the first box change places
    wrong = Symmetry(cells.expand(4, -1), torch.arange(6).expand(4, -1))
    model = make_model(puzzle, GROUPED, symbol_states=True)
    expected = move_logits(wrong, refined(model, questions).logits)
    assert (refined(model, wrong.apply(questions)).logits - expected).abs().max() > 1e-2


def test_groups_without_symbol_states_have_the_symmetries_of_cells() -> None:
    puzzle = Maze(5, 5)
    questions, _ = puzzle.generate(6, seed=0)
    symmetry = puzzle.symmetry(Draws(torch.arange(6), seed=1))
    model = make_model(puzzle, GROUPED)
    expected = move_logits(symmetry, refined(model, questions).logits)
    logits = refined(model, symmetry.apply(questions)).logits
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    other = make_model(puzzle, SMALL)
    expected = move_logits(symmetry, refined(other, questions).logits)
    assert (refined(other, symmetry.apply(questions)).logits - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("small", "large", "symbol_states"),
    [("sudoku-4x4", "sudoku-9x9", True), ("maze-5x5", "maze-7x9", False)],
)
def test_weights_of_a_small_size_answer_a_large_one(
    small: str, large: str, symbol_states: bool
) -> None:
    puzzle = find_puzzle(large)
    trained = make_model(find_puzzle(small), GROUPED, symbol_states=symbol_states)
    model = make_model(puzzle, GROUPED, symbol_states=symbol_states)
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    weights = {name: w for name, w in trained.state_dict().items() if name != "groups"}
    missing, unexpected = model.load_state_dict(weights, strict=False)
    assert (missing, unexpected) == (["groups"], [])
    questions, _ = puzzle.generate(2, seed=0)
    output = refined(model, questions)
    assert output.logits.shape == (2, puzzle.num_cells, puzzle.vocab_size)
    assert output.logits.isfinite().all() and output.logits[:, :, 2:].std() > 0.005


def test_more_cells_in_the_groups_do_not_change_how_a_halting_head_starts() -> None:
    for name in ("sudoku-4x4", "sudoku-9x9"):
        puzzle = find_puzzle(name)
        config = PuzzleModelConfig(
            reasoner=GROUPED,
            vocab_size=puzzle.vocab_size,
            num_cells=puzzle.num_cells,
            symbol_states=True,
        )
        model = PuzzleModel(config, puzzle.groups())
        output = refined(model, puzzle.generate(2, seed=0)[0])
        torch.testing.assert_close(output.q_halt_logits, torch.tensor([-5.0, -5.0]))


def test_the_halting_head_of_groups_goes_by_the_worst_position() -> None:
    model = make_model(Sudoku(2, 2), GROUPED)
    with torch.no_grad():
        model.q_head.weight.zero_()[:, 0] = 1
    z_H = torch.zeros(3, 16, SMALL.hidden_size)
    z_H[:, :, 0] = 30
    z_H[1, 7, 0] = -20
    z_H[2, 7, 0] = z_H[2, 9, 0] = -20
    q_halt, q_continue = model.judge(z_H)
    # log(16) more than the least, since the mean of exp(-q) counts: one bad position of 16.
    expected = [30, -20 + math.log(16), -20 + math.log(8)]
    assert q_halt.tolist() == pytest.approx(expected, abs=1e-4)
    assert torch.equal(q_halt, q_continue)
    assert (q_halt > 0).tolist() == [True, False, False]


def test_mixer_groups_needs_groups() -> None:
    with pytest.raises(ValueError, match="groups: mixer 'groups' needs the sets of cells"):
        PuzzleModel(PuzzleModelConfig(reasoner=GROUPED))


# Variants

VARIANTS: dict[str, dict[str, Any]] = {
    "rope": {},
    "none": {"positions": "none"},
    "learned": {"positions": "learned"},
    "mlp": {"mixer": "mlp", "positions": "none"},
    "mlp, learned": {"mixer": "mlp", "positions": "learned"},
    "groups": {"mixer": "groups", "positions": "none"},
    "hrm": {"kind": "hrm", "H_layers": 1, "gradient": "one_step"},
}


def test_variants_run_learn_and_differ() -> None:
    puzzle = Sudoku(2, 2)
    questions, answers = puzzle.generate(3, seed=0)
    logits: dict[str, Tensor] = {}
    for name, changes in VARIANTS.items():
        prefix = {} if name == "groups" else {"puzzle_emb_size": 20, "puzzle_emb_len": 2}
        model = make_model(puzzle, replace(SMALL, **changes), **prefix)
        batch = {"labels": answers, "puzzle_identifiers": torch.zeros(3, dtype=torch.long)}
        output = refined(model, questions, **batch)
        assert output.logits.shape == (3, 16, 6) and output.logits.dtype == torch.float32
        length = 16 + model.config.puzzle_emb_len
        assert output.carry.z_H.shape == (3, length, SMALL.hidden_size)
        assert output.loss is not None
        output.loss.backward()
        without = [n for n, p in model.named_parameters() if p.grad is None]
        assert without == [], name
        logits[name] = output.logits.detach()
    for name, ours in logits.items():
        for other, theirs in logits.items():
            assert name == other or (ours - theirs).abs().max() > 1e-2, (name, other)


@pytest.mark.parametrize(
    ("changes", "sees_places"),
    [
        ({"positions": "none"}, False),
        ({"positions": "rope"}, True),
        ({"positions": "learned"}, True),
        ({"mixer": "mlp"}, True),
    ],
)
def test_positions_tell_cells_apart(changes: dict[str, Any], sees_places: bool) -> None:
    puzzle, order = Sudoku(2, 2), torch.randperm(16)
    questions, _ = puzzle.generate(3, seed=0)
    model = make_model(puzzle, replace(SMALL, **changes))
    expected = refined(model, questions).logits[:, order]
    difference = (refined(model, questions[:, order]).logits - expected).abs().max()
    assert (difference > 1e-2) if sees_places else (difference < 1e-5)


def test_symbol_states_never_answer_with_padding_or_blank() -> None:
    puzzle = Sudoku(2, 2)
    questions, answers = puzzle.generate(4, seed=0)
    model = make_model(puzzle, GROUPED, symbol_states=True)
    output = refined(model, questions, labels=answers)
    assert output.logits[:, :, :2].eq(NEVER).all()
    assert output.logits.argmax(dim=-1).min() >= 2
    assert output.loss is not None and output.loss < 20


# Embeddings, as the originals have them


def test_cells_prefix_and_positions_are_embedded_by_the_formula() -> None:
    reasoner = replace(SMALL, positions="learned")
    puzzle, size = Sudoku(2, 2), SMALL.hidden_size
    model = make_model(puzzle, reasoner, num_puzzles=5, puzzle_emb_size=20, puzzle_emb_len=3)
    assert model.puzzle_emb is not None and model.embed_pos is not None
    assert model.puzzle_emb.weight.eq(0).all() and model.puzzle_emb.sparse
    nn.init.normal_(model.puzzle_emb.weight)
    questions, _ = puzzle.generate(2, seed=0)
    identifiers = torch.tensor([4, 2])
    x = model.embed(questions, identifiers)
    assert x.shape == (2, 3 + 16, size)
    for b in range(2):
        row = torch.zeros(3 * size)
        row[:20] = model.puzzle_emb.weight[identifiers[b]].detach()
        for s in range(19):
            if s < 3:
                cell = row[s * size : (s + 1) * size]
            else:
                cell = model.embed_tokens.weight[questions[b, s - 3]]
            expected = 0.5**0.5 * (cell + model.embed_pos.weight[s]) * size**0.5
            torch.testing.assert_close(x[b, s], expected, rtol=0, atol=1e-6)
    plain = make_model(puzzle)
    expected = plain.embed_tokens.weight[questions] * 4
    torch.testing.assert_close(plain.embed(questions, None), expected, rtol=0, atol=1e-6)


def test_symbols_of_cells_are_given_excluded_or_open() -> None:
    puzzle = Sudoku(2, 2)
    model = make_model(puzzle, GROUPED, symbol_states=True)
    inputs = torch.tensor([[1, 2, 3, 4, 5, *[1] * 11]])
    x = model.embed(inputs, None).view(4, 16, SMALL.hidden_size)
    excluded, given, unknown = model.embed_tokens.weight * 4
    for symbol in range(4):
        assert torch.equal(x[symbol, 0], unknown)
        for cell in range(1, 5):
            assert torch.equal(x[symbol, cell], given if cell == symbol + 1 else excluded)


@pytest.mark.parametrize(("kind", "std"), [("zero", 0.88), ("normal", 1.0)])
def test_tables_and_states_start_as_normals_in_use(
    kind: Literal["zero", "normal"], std: float
) -> None:
    sizes = replace(SMALL, hidden_size=512, positions="learned", residual_init=kind)
    model = make_model(Sudoku(3, 3), sizes)
    assert model.embed_pos is not None
    scale = 512**0.5
    states = torch.stack((model.reasoner.H_init, model.reasoner.L_init))
    for weight in (model.embed_tokens.weight * scale, model.embed_pos.weight * scale, states):
        assert weight.std().item() == pytest.approx(std, abs=0.06)
        assert weight.abs().max() <= 2 * std / 0.8796


@pytest.mark.parametrize("reasoner", [SMALL, GROUPED])
def test_bf16_gives_every_weight_a_gradient(reasoner: ReasonerConfig) -> None:
    """Weights that autocast has cast in a cycle without gradient are not those of the last one."""
    model, inputs = make_model(Sudoku(2, 2), reasoner), torch.randint(1, 6, (2, 16))
    with torch.autocast("cpu", torch.bfloat16):
        output = model(model.initial_carry(2, 16), inputs, labels=inputs.clamp(min=2))
    assert output.loss is not None
    output.loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


# Loss and halting


def slow_bce(logits: Tensor, targets: Tensor) -> float:
    """Return the mean binary cross entropy of (B,) in Python's doubles."""
    chances = [1 / (1 + math.exp(-q)) for q in logits.tolist()]
    parts = [
        t * math.log(p) + (1 - t) * math.log(1 - p)
        for p, t in zip(chances, targets.tolist(), strict=True)
    ]
    return -sum(parts) / len(parts)


def slow_answer_loss(logits: Tensor, labels: Tensor, kind: str) -> float:
    examples = []
    for rows, targets in zip(logits.tolist(), labels.tolist(), strict=True):
        cells = []
        for row, target in zip(rows, targets, strict=True):
            if target == -100:
                continue
            if kind == "softmax":
                s = [math.exp(v) for v in row]
            else:
                s = [v + 1 if v >= 0 else 1 / (1 - v) for v in row]
            cells.append(-math.log(s[target] / sum(s)))
        examples.append(sum(cells) / len(cells))
    return sum(examples) / len(examples)


def half_asked() -> tuple[Tensor, Tensor]:
    """Return questions and labels in which the given cells are not asked."""
    questions, answers = Sudoku(2, 2).generate(4, seed=0)
    return questions, answers.masked_fill(questions > 1, -100)


@pytest.mark.parametrize("kind", ["softmax", "stablemax"])
def test_the_loss_is_answer_loss_and_half_the_halting_loss(kind: Any) -> None:
    questions, labels = half_asked()
    model = make_model(Sudoku(2, 2), loss=kind)
    first = refined(model, questions)
    # One example is right: it asks for what the model says.
    labels[2] = torch.where(labels[2] == -100, labels[2], first.logits[2].argmax(dim=-1))
    output = refined(model, questions, steps=1, labels=labels)
    labels[2] = torch.where(labels[2] == -100, labels[2], output.logits[2].argmax(dim=-1))
    output = refined(model, questions, steps=1, labels=labels)
    assert output.correct is not None and output.loss is not None
    assert output.correct.tolist() == [False, False, True, False]
    expected = slow_answer_loss(output.logits, labels, kind)
    expected += 0.5 * slow_bce(output.q_halt_logits, output.correct.double())
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    assert output.target_q_continue is None
    assert output.stop.tolist() == [q > 0 for q in output.q_halt_logits.tolist()]
    assert first.loss is None and first.correct is None


def mixed_carry(model: PuzzleModel) -> Carry:
    """Return a carry of four examples: a new one, and three that had a step or two."""
    carry = model.initial_carry(4, 16)
    carry.z_H, carry.z_L = torch.randn_like(carry.z_H), torch.randn_like(carry.z_L)
    carry.refinement_steps = torch.tensor([7, 1, 2, 1])
    carry.halted = torch.tensor([True, False, False, False])
    return carry


def test_q_continue_learns_from_the_next_step() -> None:
    questions, labels = half_asked()
    model = make_model(Sudoku(2, 2), q_continue=True).eval()
    carry = mixed_carry(model)
    after = model(model(carry, questions).carry, questions)
    gain = (after.q_continue_logits - after.q_halt_logits).detach()
    # Going on looks better for some, and surely for the one that has to halt after this step.
    last = 1 + int(gain[1:].argmax())
    carry.refinement_steps[last] = 3
    with torch.no_grad():
        model.q_head.bias[1] -= gain.sort().values[1:3].mean()
    output = model.train()(carry, questions, labels, max_refinement_steps=4)
    assert output.carry.refinement_steps[last] == 4 and output.carry.refinement_steps[0] == 1
    after = model.eval()(output.carry, questions)
    better = after.q_continue_logits > after.q_halt_logits
    assert better.sum() == 2 and better[last]
    targets = []
    for b in range(4):
        q_halt, q_continue = after.q_halt_logits[b].item(), after.q_continue_logits[b].item()
        best = q_halt if b == last else max(q_halt, q_continue)
        targets.append(1 / (1 + math.exp(-best)))
    found = output.target_q_continue
    assert found is not None and not found.requires_grad
    assert found.tolist() == pytest.approx(targets, abs=1e-6)
    expected = slow_answer_loss(output.logits, labels, "softmax")
    expected += 0.5 * slow_bce(output.q_halt_logits, output.correct.double())
    expected += 0.5 * slow_bce(output.q_continue_logits, found.double())
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)
    pairs = zip(output.q_halt_logits.tolist(), output.q_continue_logits.tolist(), strict=True)
    assert output.stop.tolist() == [q_halt > q_continue for q_halt, q_continue in pairs]


def test_the_target_of_q_continue_takes_as_many_cycles_as_the_step() -> None:
    questions, labels = half_asked()
    model = make_model(Sudoku(2, 2), q_continue=True).train()
    output = model(mixed_carry(model), questions, labels, max_refinement_steps=4, cycles=(1, 1))
    after = model(output.carry, questions, cycles=(1, 1))
    best = torch.maximum(after.q_halt_logits, after.q_continue_logits).sigmoid()
    torch.testing.assert_close(output.target_q_continue, best.detach())
    full = model(output.carry, questions)
    assert (full.q_halt_logits - after.q_halt_logits).abs().min() > 1e-3


def test_q_continue_is_not_trained_in_evaluation() -> None:
    questions, labels = half_asked()
    model = make_model(Sudoku(2, 2), q_continue=True).eval()
    output = model(mixed_carry(model), questions, labels)
    assert output.target_q_continue is None
    expected = slow_answer_loss(output.logits, labels, "softmax")
    expected += 0.5 * slow_bce(output.q_halt_logits, output.correct.double())
    assert output.loss.item() == pytest.approx(expected, abs=1e-5)


def test_a_step_starts_halted_rows_anew_and_detaches_its_states() -> None:
    questions, _ = half_asked()
    model = make_model(Sudoku(2, 2))
    carry = mixed_carry(model)
    before = {name: value.clone() for name, value in carry.tensors().items()}
    output = model(carry, questions)
    assert all(torch.equal(before[name], value) for name, value in carry.tensors().items())
    fresh = model(model.initial_carry(4, 16), questions)
    torch.testing.assert_close(output.logits[0], fresh.logits[0], rtol=0, atol=1e-6)
    assert (output.logits[1:] - fresh.logits[1:]).abs().amax(dim=(1, 2)).min() > 1e-3
    assert not output.carry.z_H.requires_grad and not output.carry.z_L.requires_grad
    assert not output.carry.halted.any()
