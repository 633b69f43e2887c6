"""Reader and writers: padding, positions and the number of slots; lengths of soft tokens."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from latent_reason.adapters import (
    Reader,
    Writer,
    end_of_prompt,
    nearest_token_logits,
    soft_tokens,
)
from latent_reason.config import LatentReasonerConfig, ReasonerConfig

NUM_FEATURES = 12
READERS = ("perceiver", "concat")
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])


def make_reader(kind, num_slots=3, **changes):
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "num_heads": 2} | changes
    config = LatentReasonerConfig(
        reasoner=ReasonerConfig(**sizes), reader=kind, num_slots=num_slots
    )
    return Reader(config, NUM_FEATURES)


def read_slots(reader, states, mask):
    x, _ = reader(states, mask)
    return x[:, -reader.config.num_slots :]


@pytest.mark.parametrize(("kind", "positions"), [("perceiver", 3), ("concat", 8)])
def test_shape_of_x(kind, positions):
    reader = make_reader(kind)
    x, where = reader(torch.randn(2, 5, NUM_FEATURES), MASK)
    assert x.shape == (2, positions, 16)
    assert reader.num_positions(5) == positions
    cos, _ = where.rotary
    assert cos.shape[-2] == positions


@pytest.mark.parametrize("kind", READERS)
def test_slots_follow_the_last_real_token(kind):
    _, where = make_reader(kind)(torch.randn(2, 5, NUM_FEATURES), MASK)
    cos, sin = (table[:, 0, -3:, 0] for table in where.rotary)  # turns by one per position
    angles = torch.tensor([[5.0, 6.0, 7.0], [2.0, 3.0, 4.0]])
    torch.testing.assert_close(cos, angles.cos())
    torch.testing.assert_close(sin, angles.sin())


def test_concat_hides_padding_from_the_recursion_and_nothing_else():
    _, where = make_reader("concat")(torch.randn(2, 5, NUM_FEATURES), MASK)
    hidden = where.bias[:, 0, 0] < -1e8
    assert hidden.tolist() == [[False] * 8, [False] * 2 + [True] * 3 + [False] * 3]


def test_perceiver_slots_do_not_depend_on_padding():
    reader = make_reader("perceiver")
    states = torch.randn(2, 5, NUM_FEATURES)
    slots = read_slots(reader, states, MASK)
    other = states.clone()
    other[1, 2:] = 100.0
    assert torch.equal(read_slots(reader, other, MASK), slots)
    other[1, 1] = 100.0
    assert not torch.allclose(read_slots(reader, other, MASK)[1], slots[1])
    left = torch.stack((states[0], states[1].roll(3, dims=0)))
    left_mask = torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]])
    torch.testing.assert_close(read_slots(reader, left, left_mask), slots)


@pytest.mark.parametrize("positions", ["rope", "none"])
def test_perceiver_slots_differ_from_the_start(positions):
    states = torch.randn(1, 5, NUM_FEATURES)
    slots = read_slots(make_reader("perceiver", positions=positions), states, MASK[:1])[0]
    apart = torch.cdist(slots, slots) + torch.eye(len(slots))
    assert apart.min() > 0.1


@pytest.mark.parametrize("kind", READERS)
def test_the_number_of_slots_is_in_no_weight(kind):
    few, many = make_reader(kind), make_reader(kind, num_slots=6)
    many.load_state_dict(few.state_dict())
    slots = read_slots(many, torch.randn(2, 5, NUM_FEATURES), MASK)
    assert slots.shape == (2, 6, 16) and slots.isfinite().all()


def test_slots_begin_with_the_end_of_the_prompt():
    first, second = torch.randn(5, 4), torch.randn(2, 4)
    none = torch.zeros(1, 4)
    expected = torch.stack((torch.cat((first[2:], none)), torch.cat((none, second, none))))
    for padding in ("right", "left"):
        states, mask = torch.full((2, 5, 4), 100.0), torch.zeros(2, 5)
        for row, real in enumerate((first, second)):
            at = slice(0, len(real)) if padding == "right" else slice(5 - len(real), 5)
            states[row, at], mask[row, at] = real, 1
        assert torch.equal(end_of_prompt(states, mask, 4), expected), padding
        assert torch.equal(end_of_prompt(states, mask, 6)[:, 2:], expected), "it moves with K"


def test_writer_is_linear_into_the_width_of_the_base():
    writer = Writer(make_reader("perceiver").config, 24)
    slots = torch.randn(2, 3, 16)
    assert writer(slots).shape == (2, 3, 24)
    torch.testing.assert_close(writer(2 * slots), 2 * writer(slots))


def test_soft_tokens_have_the_norm_asked_for_and_keep_their_direction():
    vectors = torch.randn(2, 3, 24) * torch.logspace(-3, 3, 3)[:, None]
    rows = soft_tokens(vectors, 1.7)
    torch.testing.assert_close(rows.norm(dim=-1), torch.full((2, 3), 1.7))
    cosine = torch.cosine_similarity(rows, vectors, dim=-1)
    torch.testing.assert_close(cosine, torch.ones(2, 3))
    assert soft_tokens(vectors.bfloat16(), 1.7).dtype == torch.float32


def test_nearest_token_logits_are_scaled_cosines():
    table = torch.randn(10, 24)
    rows = torch.tensor([[4, 9, 0]])
    logits = nearest_token_logits(3.0 * table[rows], table, table.norm(dim=-1))
    assert logits.shape == (1, 3, 10)
    assert torch.equal(logits.argmax(dim=-1), rows)
    torch.testing.assert_close(logits.amax(dim=-1), torch.full((1, 3), 20.0))
    assert logits.min() >= -20.0


def test_nearest_token_logits_and_their_gradient_are_those_of_unit_rows():
    table, vectors = torch.randn(10, 24).bfloat16(), torch.randn(2, 3, 24, requires_grad=True)
    logits = nearest_token_logits(vectors, table, table.float().norm(dim=-1))
    expected = 20 * F.normalize(vectors, dim=-1) @ F.normalize(table.float(), dim=-1).T
    torch.testing.assert_close(logits, expected)
    weights = torch.randn(2, 3, 10)
    ours, theirs = (torch.autograd.grad((x * weights).sum(), vectors) for x in (logits, expected))
    torch.testing.assert_close(ours, theirs)


def test_mlp_mixer_needs_a_fixed_number_of_positions():
    mlp = ReasonerConfig(hidden_size=16, num_heads=2, mixer="mlp")
    config = LatentReasonerConfig(reasoner=mlp, reader="perceiver")
    with pytest.raises(ValueError, match=r"^reasoner.mixer: got 'mlp'"):
        dataclasses.replace(config, reader="concat")
