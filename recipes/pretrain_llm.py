"""Pretrain the small causal LM that is shipped in `latent_reason/embedded`.

It makes its own text: statements of the text tasks with short worked instances, lists that are
written twice around "Answer:" (so that the model copies what stands before it), and plain
templated English. The model is a standard Llama of 1M parameters with a byte-level BPE tokenizer.

    python recipes/pretrain_llm.py                      # about half an hour on one CPU core
    python recipes/pretrain_llm.py --max-steps 20 --num-blocks 64   # a quick look
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
from accelerate import Accelerator
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from latent_reason.command_line import read_options, run_script
from latent_reason.config import check
from latent_reason.core import AnswerOutput
from latent_reason.data import TASKS
from latent_reason.data.order import rows_at
from latent_reason.environment import command, hardware
from latent_reason.halting import Carry, empty_carry
from latent_reason.run_lock import run_lock
from latent_reason.train_config import HaltConfig, TrainConfig
from latent_reason.training import Trainer

END = "<|end|>"
CONTEXT = 1024
"""Tokens that the model is made for."""
NAMES = "Anna Ben Clara David Emma Felix Grace Hugo Ida Jonas Kate Leo Mia Nora Oscar Paul".split()
THINGS = "apple book coin card shell stone stamp ball cup key leaf ring pen box bell cake".split()
PLACES = "garden kitchen school market library station forest harbour bakery office".split()
COLOURS = "red blue green white black yellow brown grey".split()
FEELINGS = "happy tired hungry proud curious calm late early careful brave".split()


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """What to train and where to put it."""

    output_dir: Path = Path("runs/pretrain_llm")
    """Run folder; the finished model goes to its subfolder `model`."""
    hidden_size: int = 128
    """Width."""
    num_layers: int = 4
    """Decoder layers."""
    num_heads: int = 4
    """Attention heads."""
    vocab_size: int = 1024
    """Tokens, 256 bytes and one end token among them."""
    block_size: int = 128
    """Tokens per training row."""
    num_blocks: int = 80_000
    """Training rows; they are read once or more."""
    max_steps: int = 3500
    """Optimizer steps."""
    batch_size: int = 32
    """Rows per step."""
    learning_rate: float = 2e-3
    """Peak learning rate."""
    seed: int = 0
    """Of text, weights and order."""

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_heads", "num_blocks", "max_steps", "batch_size"):
            check(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        # Rotary positions want an even width of heads.
        fits = self.hidden_size >= 1 and self.hidden_size % (2 * self.num_heads) == 0
        expected = f"a multiple of {2 * self.num_heads}, twice the heads"
        check(fits, "hidden_size", self.hidden_size, expected)
        check(self.vocab_size >= 257, "vocab_size", self.vocab_size, "at least 257")
        fits = 8 <= self.block_size <= CONTEXT
        check(fits, "block_size", self.block_size, f"from 8 to {CONTEXT}")


def english(rng: Random) -> str:
    """Return a few templated sentences about people, things and numbers below ten."""
    name, other = rng.sample(NAMES, 2)
    thing, place, colour = rng.choice(THINGS), rng.choice(PLACES), rng.choice(COLOURS)
    have, more = rng.randint(2, 9), rng.randint(1, 4)
    feeling = rng.choice(FEELINGS)
    given = min(more, have - 1)
    stories = (
        f"{name} has {have} {colour} {thing}s. {name} gives {given} to {other}. "
        f"Now {name} has {have - given} {thing}s and {other} has {given}.",
        f"{name} went to the {place} and saw {other}. {other} was {feeling}, so they talked about "
        f"the {colour} {thing} for a while.",
        f"There is a {thing} in the {place}. It is {colour}. What colour is the {thing}? "
        f"The {thing} is {colour}.",
        f"{name} is {feeling} today because {other} found the {thing}. "
        f"Who found the {thing}? {other} found it in the {place}.",
        f"First {name} walked to the {place}, then {other} came with a {colour} {thing}. "
        f"Both were {feeling}.",
        f"Count from {given} to {have}: {' '.join(str(i) for i in range(given, have + 1))}.",
    )
    return " ".join(rng.sample(stories, rng.randint(1, 3)))


def documents(seed: int) -> Iterator[tuple[str, str]]:
    """Yield (text before, text after "Answer:") without end; the second may be empty.

    Worked instances are short tails of training instances: the last moves of `permutations` and
    the last digits of `rolling_sums` have the last places and totals as their answers.
    """
    rng = Random(seed)
    pools = {name: task.generate("train", 2000, seed) for name, task in TASKS.items()}
    while True:
        kind = rng.random()
        if kind < 0.35:
            yield english(rng), ""
            continue
        name = rng.choice([*pools])
        example = rng.choice(pools[name])
        instruction, _, data = example.prompt.rpartition(": ")
        if kind < 0.6:
            alphabet = rng.choice(("0123456789", "abcdefghijklmnopqrstuvwxyz", "01", "123456"))
            scratch = " ".join(rng.choice(alphabet) for _ in range(rng.randint(1, 48)))
            answer = scratch if rng.random() < 0.5 else example.answer
            yield f"{example.prompt} {answer}{END * rng.randint(1, 10)}", answer
        elif name in ("permutations", "rolling_sums"):
            keep = rng.randint(1, 8)
            tail, answer = data.split(" ")[-keep:], example.answer.split(" ")[-keep:]
            yield f"{instruction}: {' '.join(tail)}", " ".join(answer)
        else:
            yield example.prompt, example.answer


def text_of(before: str, answer: str) -> str:
    """Join the parts of a document."""
    return f"{before} Answer: {answer}{END}" if answer else f"{before}{END}"


def train_tokenizer(config: PretrainConfig) -> PreTrainedTokenizerFast:
    """Train byte-level BPE that keeps every digit a token of its own."""
    tokenizer = Tokenizer(models.BPE())
    pattern = Regex(r" ?\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pattern, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    source = documents(config.seed + 1)
    tokenizer.train_from_iterator((text_of(*next(source)) for _ in range(20_000)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, model_max_length=CONTEXT
    )


class Blocks:
    """Packed rows of tokens, (num_blocks, block_size)."""

    def __init__(self, config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, seed: int):
        self.num_tokens = config.block_size
        wanted, ids = config.num_blocks * config.block_size, []
        source = documents(seed)
        while len(ids) < wanted:
            texts = [text_of(*next(source)) for _ in range(1000)]
            ids.extend(token for row in tokenizer(texts)["input_ids"] for token in row)
        self.rows = torch.tensor(ids[:wanted], dtype=torch.int16).view(-1, config.block_size)

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Tensor) -> dict[str, Tensor]:
        """Gather (B,) rows: labels (B, block_size)."""
        return {"labels": self.rows[rows].long()}

    def at(self, positions: Tensor, seed: int) -> dict[str, Tensor]:
        """Return the training rows at positions (B,) of the endless data order."""
        return self.batch(rows_at(positions, seed, len(self)))


class NextToken(nn.Module):
    """A causal LM under the protocol of the training loop."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__()
        self.lm = model

    def initial_carry(self, num: int, num_tokens: int) -> Carry:
        """Return a carry that holds nothing."""
        return empty_carry(num, self.lm.device)

    def forward(self, carry: Carry, labels: Tensor) -> AnswerOutput:
        """Score every next token of (B, T) labels."""
        logits = self.lm(input_ids=labels, use_cache=False).logits[:, :-1].float()
        loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
        logits = nn.functional.pad(logits, (0, 0, 1, 0))
        return AnswerOutput(loss, logits, carry)


CARD = """# A small causal LM for latent_reason

A Llama-type model of {parameters:,} parameters with a byte-level BPE tokenizer of {vocab} tokens,
made so that the toolkit can be tried without a download. It knows short templated English, the
wording of the text tasks and how to copy a list. It has no general knowledge.

- Data: {tokens:,} tokens generated by `recipes/pretrain_llm.py` (seed {seed}); no third-party text.
- Command: `{command}`
- Training: {steps} steps of {batch} x {block} tokens, {minutes:.0f} minutes on
  {hardware}.
- Loss on {val} held-out rows: {loss:.3f} nats per token.
- Licence: Apache-2.0.
"""


def make_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Return a new Llama with seeded weights."""
    torch.manual_seed(config.seed)
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=config.hidden_size,
            intermediate_size=-(-config.hidden_size * 8 // 3 // 64) * 64,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            vocab_size=len(tokenizer),
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def make_evaluation(model: NextToken, val: Blocks) -> Callable[[], dict[str, float]]:
    """Return what measures loss (nats per token) and next-token accuracy on all of `val`."""

    @torch.no_grad()
    def evaluate() -> dict[str, float]:
        labels = val.batch(torch.arange(len(val)))["labels"].to(model.lm.device)
        output = model(model.initial_carry(len(val), val.num_tokens), labels)
        hit = (output.logits[:, 1:].argmax(-1) == labels[:, 1:]).float().mean().item()
        return {"val/loss": output.loss.item(), "val/exact_accuracy": 0.0, "val/accuracy": hit}

    return evaluate


def pretrain(config: PretrainConfig) -> int:
    """Train, evaluate, save model, tokenizer and card; returns the exit code."""
    started = time.perf_counter()
    tokenizer = train_tokenizer(config)
    data = Blocks(config, tokenizer, config.seed + 2)
    val = Blocks(PretrainConfig(num_blocks=64, block_size=config.block_size), tokenizer, 10**6)
    model = make_model(config, tokenizer)
    parameters = sum(p.numel() for p in model.parameters())
    print(
        f"{len(data):,} rows of {config.block_size} tokens | {parameters:,} parameters", flush=True
    )
    wrapper = NextToken(model)
    evaluate = make_evaluation(wrapper, val)
    train = TrainConfig(
        max_steps=config.max_steps,
        batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        halt=HaltConfig(halt_max_steps=1),
        ema_decay=0.995,
        seed=config.seed,
    )
    trainer = Trainer(Accelerator(), wrapper, data, train, config.output_dir, evaluate)
    trainer.resume()
    if stopped := trainer.run():
        print("stopped; the same command goes on from here")
        return 128 + stopped
    trainer.use_best_weights()
    target = config.output_dir / "model"
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    card = CARD.format(
        command=command(),
        parameters=parameters,
        vocab=len(tokenizer),
        tokens=len(data) * config.block_size,
        seed=config.seed,
        steps=config.max_steps,
        batch=config.batch_size,
        block=config.block_size,
        minutes=(time.perf_counter() - started) / 60,
        hardware=hardware(),
        val=len(val),
        loss=evaluate()["val/loss"],
    )
    (target / "README.md").write_text(card)
    print(json.dumps({"folder": str(target), **evaluate()}))
    return 0


def main() -> int:
    """Run the recipe; returns the exit code."""
    config = read_options(PretrainConfig(), sys.argv[1:], __doc__ or "")
    with run_lock(config.output_dir):
        return pretrain(config)


if __name__ == "__main__":
    run_script(main)
