"""What every recipe is told: the options all of them have, presets, `--resume FOLDER`."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from latent_reason.command_line import read_options
from latent_reason.config import JsonConfig, check, check_refinement_steps
from latent_reason.errors import CheckpointError, ConfigError
from latent_reason.files import UNREADABLE, read_bounded
from latent_reason.model_folder import MAX_CONFIG_BYTES
from latent_reason.train_config import TrainConfig

Tracker = Literal["none", "tensorboard", "wandb", "trackio"]


@dataclass(frozen=True, kw_only=True)
class FrameConfig(JsonConfig):
    """What the configuration of every recipe has; a recipe adds `model`, its data and its sizes."""

    num_val: int = 256
    """Examples for evaluation during training: generated, or taken out of train_data."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """How to train."""
    refinement_steps: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Refinement steps to evaluate at; more than trained are worth a look."""
    controls: bool = False
    """Also train the controls, for as long: the same network in one pass; for text also LoRA and
    pause slots."""
    output_dir: Path | None = None
    """Run folder; runs/PRESET-TIME if not given."""
    log_with: Tracker = "none"
    """Tracker besides metrics.jsonl."""

    def settle(self) -> None:
        """Do what `JsonConfig.settle` does, and check the fields above."""
        super().settle()
        check(self.num_val >= 1, "num_val", self.num_val, "at least 1")
        check_refinement_steps(self.refinement_steps)

    def resume_options(self) -> str:
        """Return what the command line must name besides --resume FOLDER."""
        return ""


Config = TypeVar("Config", bound=FrameConfig)
Presets = Mapping[str, tuple[str, Config]]


def parse(argv: Sequence[str], presets: Presets[Config], about: str) -> tuple[str, Config, bool]:
    """Read the command line of a recipe: [PRESET] [options], or --resume FOLDER [--puzzle NAME].

    Args:
        argv: without the name of the script.
        presets: name -> (description, configuration); the first is the default.
        about: help text.

    Returns:
        Preset name, configuration, whether to resume.

    Raises:
        ConfigError: on an unknown preset or a value out of range.
        CheckpointError: on a folder that cannot be resumed.
    """
    argv = [*argv]
    if argv and argv[0].startswith("--resume="):
        argv = [*argv[0].split("=", 1), *argv[1:]]
    if "--resume" in argv:
        return *_resumed(argv, presets), True
    return *_chosen(argv, presets, about), False


def _resumed(argv: list[str], presets: Presets[Config]) -> tuple[str, Config]:
    """Return preset name and configuration of --resume FOLDER [--puzzle NAME]."""
    if argv in (["--resume"], ["--resume", ""]):
        raise ConfigError("--resume FOLDER: give the folder of a run, as in --resume runs/NAME")
    whole = len(argv) == 2 or (len(argv) == 4 and argv[2] == "--puzzle")
    if argv[0] != "--resume" or not whole:
        raise ConfigError("--resume FOLDER takes no other options: the folder knows them")
    folder = Path(argv[1])
    try:
        saved = json.loads(read_bounded(folder / "config.json", MAX_CONFIG_BYTES))
        _check_own_puzzle(folder, saved.get("puzzle"), argv[3:])
        name = saved.pop("preset")
        if name not in presets:
            raise ValueError(f"preset {str(name)[:80]!r} is of another recipe; resume it there")
        kind: Any = type(presets[name][1])
        config = kind.from_dict(saved)
    except UNREADABLE as error:
        raise CheckpointError(
            f"{folder}: no run to resume ({error}); give a run folder with config.json"
        ) from error
    return name, dataclasses.replace(config, output_dir=folder)


def _chosen(argv: list[str], presets: Presets[Config], about: str) -> tuple[str, Config]:
    """Return preset name and configuration of [PRESET] [options]."""
    name = argv[0] if argv and not argv[0].startswith("-") else next(iter(presets))
    if name not in presets:
        close = difflib.get_close_matches(name, presets, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError(f"preset {name!r}: unknown; {hint}there are {', '.join(presets)}")
    options = argv[1:] if argv and argv[0] == name else argv
    described = "\n".join(f"  {key}: {text}" for key, (text, _) in presets.items())
    about = f"{about}\nPresets (first argument):\n{described}"
    try:
        return name, read_options(presets[name][1], options, about)
    except ConfigError as error:
        unknown = re.match(r"Unrecognized options: ([^;]*)", str(error))
        late = [word for word in unknown[1].split(", ") if word in presets] if unknown else []
        if not late:
            raise
        raise ConfigError(
            f"{late[0]!r} is a preset; give one, as the first word, before all options"
        ) from error


def _check_own_puzzle(folder: Path, puzzle: object, given: list[str]) -> None:
    """Refuse to import code that a folder names, unless the command line names it too."""
    own = isinstance(puzzle, str) and ":" in puzzle
    if own and given != [puzzle]:
        raise CheckpointError(
            f"{folder}: a run of {str(puzzle)[:80]!r}, which is code; if it is yours, resume with "
            f"--resume {folder} --puzzle {str(puzzle)[:80]}"
        )
    if given and not own:
        raise CheckpointError(f"{folder}: knows its puzzle; resume with --resume {folder} alone")
