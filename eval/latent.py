"""Evaluate a saved adapter on rows with `prompt` and `answer`, by refinement steps.

    python eval/latent.py --adapter runs/x/adapter --data test.jsonl --refinement-steps 1 4 16
    python eval/latent.py --adapter runs/x/adapter --data test.jsonl --output rows.json --slots

--data takes what --test-data of the recipe takes: a JSONL file, or the name of a Hub data set.
The code is the recipe's own; rows.json has the rows of results.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from accelerate import Accelerator
from transformers.utils import logging as transformers_logging

from latent_reason.command_line import Parser, check_evaluation, run_script
from latent_reason.data.hub import read_examples
from latent_reason.data.text import TextDataset
from latent_reason.environment import check_world, environment
from latent_reason.errors import ConfigError
from latent_reason.evaluation import Evaluator
from latent_reason.files import write_json
from latent_reason.latent_reasoner import LatentReasoner
from latent_reason.results import format_table


def main() -> int:
    """Evaluate and print the table; returns the exit code."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapter", type=Path, required=True, help="folder of save_pretrained")
    parser.add_argument(
        "--data", type=Path, required=True, help="JSONL file or Hub data set (its test split)"
    )
    parser.add_argument("--base", help="base by Hub name or folder; default: as saved")
    parser.add_argument(
        "--refinement-steps", type=int, nargs="+", default=[1, 2, 4, 8, 16], metavar="N"
    )
    parser.add_argument("--num-slots", type=int, help="more slots than trained, longer answers")
    parser.add_argument("--slots", action="store_true", help="also shuffled, mean and no slots")
    parser.add_argument("--batch-size", type=int, default=128, metavar="N")
    parser.add_argument("--output", type=Path, help="write the rows to this JSON file")
    options = parser.parse_args()
    check_evaluation(options, ("batch_size", "num_slots"), ("output",))
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    accelerator = Accelerator()
    check_world(accelerator)
    examples = read_examples(options.data, "test")
    if options.slots and len(examples) < 2:
        raise ConfigError("slots: got one row, expected two or more, which exchange their slots")
    model = LatentReasoner.from_pretrained(options.adapter, base=options.base)
    model = model.with_num_slots(options.num_slots or model.config.num_slots)
    model = model.to(accelerator.device)
    num_slots = model.config.num_slots
    data = TextDataset.build(examples, model.llm.tokenizer, num_slots, str(options.data))
    source = f"{options.data}:"
    model.llm.check_prompts(data.input_ids, data.attention_mask, source, model.num_after)
    evaluator = Evaluator(data, accelerator, batch_size=options.batch_size)
    unnamed = "file" if options.data.is_file() else "test"
    splits = {example.split or unnamed for example in examples}
    common = {"task": options.data.stem, "split": "+".join(sorted(splits))}
    rows = [
        {"system": "latent reasoner", "refinement_steps": step} | common | counter.as_dict()
        for step, counter in evaluator.by_refinement_steps(model, options.refinement_steps).items()
    ]
    if options.slots:
        steps = max(options.refinement_steps)
        for name, counter in evaluator.by_slots(model, steps).items():
            row = {"system": f"latent reasoner, {name}", "refinement_steps": steps}
            rows.append(row | common | counter.as_dict())
    if accelerator.is_main_process:
        print(format_table(rows))
        if options.output is not None:
            write_json(options.output, {"schema_version": 1, "rows": rows} | environment())
    return 0


if __name__ == "__main__":
    run_script(main)
