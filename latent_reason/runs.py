"""The run folder and the frame around every script: environment, one-line errors, processes."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import platform
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import psutil
import torch
import tyro
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file

from latent_reason.errors import ConfigError, UserError
from latent_reason.results import clean_text, read_json

Config = TypeVar("Config")
PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy")


def run_script(main: Callable[[], int | None]) -> None:
    """Run a script's main function and exit.

    A `UserError` becomes one line on stderr and exit code 2, Ctrl-C one line and exit code 130.
    """
    try:
        sys.exit(main() or 0)
    except UserError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)  # noqa: T201
        sys.exit(2)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)  # noqa: T201
        sys.exit(130)


def read_options(default: Config, words: Sequence[str], description: str) -> Config:
    """Read command line options on top of `default`, a dataclass; --help prints and exits.

    Raises:
        ConfigError: on an unknown option, with the nearest known one, or an impossible value.
    """
    box = io.StringIO()
    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(type(default), args=words, default=default, description=description)
    except SystemExit as end:
        if not end.code:
            raise
    # tyro prints a title, the reason, rules between its parts and a hint at --help, in a box.
    lines = re.sub("[\u2500-\u257f]", " ", clean_text(box.getvalue())).splitlines()[1:]
    text = " ".join(line.strip() if re.search(r"\w", line) else ";" for line in lines)
    text = text.partition("; For full helptext")[0].strip(" ;")
    # A class or a group of options that it could not make; an option is left to be named.
    text = re.sub(r"^Error parsing ([A-Za-z][\w.]*: )?", "", text)
    raise ConfigError(f"{text.replace(' ;', ';')}; see --help")


class Parser(argparse.ArgumentParser):
    """A parser of the command line whose errors are one line, as those of the recipes."""

    def error(self, message: str) -> NoReturn:
        """Raise `ConfigError`."""
        raise ConfigError(f"{message}; see --help")


class StopRequest:
    """Turns the first SIGINT or SIGTERM into a flag; the second one acts at once."""

    def __init__(self) -> None:
        self.signal = 0
        self._old: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._old[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, self._old[number])


def check_compiler(device: torch.device) -> None:
    """Refuse torch.compile on a CPU without the C++ compiler that it calls.

    Raises:
        ConfigError: there is none.
    """
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", default)
    if device.type == "cpu" and shutil.which(name) is None:
        raise ConfigError(
            f"train.compile: there is no C++ compiler {name}; install one (CXX may name another) "
            "or give --train.no-compile"
        )


def check_world(accelerator: Accelerator) -> None:
    """Refuse to run when fewer processes formed than were asked for.

    `accelerate launch --cpu --num_processes 2` starts a single process without a word; a process
    group that failed to form would give N runs that write the same folder.

    Raises:
        ConfigError: naming the number asked for, the number formed and a command that works.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    parent = psutil.Process().parent()
    words = parent.cmdline() if parent is not None else []
    if any("accelerate" in word for word in words[:3]):
        asked = max(asked, _asked_of_accelerate(" ".join(words)))
    formed = accelerator.num_processes
    if formed != asked:
        raise ConfigError(
            f"{asked} processes were asked for, {formed} formed; on CPUs launch with "
            f"ACCELERATE_USE_CPU=true torchrun --nproc_per_node {asked} SCRIPT"
        )


def _asked_of_accelerate(launch: str) -> int:
    """Return the processes asked for by a command line of `accelerate launch` or its file."""
    numbers = re.findall(r" --num[_-]processes[ =](\d+)", launch)
    if numbers:
        return max(map(int, numbers))
    files = re.findall(r" --config[_-]file[ =](\S+)", launch)
    try:
        config = load_config_from_file(files[-1] if files else None)
    except (OSError, ValueError, TypeError):  # there is none, or it is for accelerate to refuse
        return 1
    return getattr(config, "num_processes", 1) or 1


def commit() -> str:
    """Return the git commit of the code, with "+changes" if the tree differs, or "unknown"."""
    folder = Path(__file__).parent
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        status = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True
        )
    except OSError:
        return "unknown"
    if head.returncode:
        return "unknown"
    return head.stdout.strip()[:12] + ("+changes" if status.stdout.strip() else "")


def hardware() -> str:
    """Describe the device in a few words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    amx = ", AMX" if torch.cpu._is_amx_tile_supported() else ""
    return (
        f"{os.cpu_count()} CPU cores ({platform.machine()}{amx}), {torch.get_num_threads()} threads"
    )


def command() -> str:
    """Return the command line of this script."""
    return shlex.join(["python", *sys.argv])


def environment() -> dict[str, Any]:
    """Return what a result depends on besides its configuration."""
    versions: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = None
    return {
        "commit": commit(),
        "hardware": hardware(),
        "python": platform.python_version(),
        "packages": versions,
        "command": command(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def resumed_environment(path: Path, now: dict[str, Any]) -> dict[str, Any]:
    """Return what a resumed run depends on: its first environment, with a list `resumed`.

    Args:
        path: environment.json of the run.
        now: `environment()` of this resumption, of which `resumed` gets an entry.

    Raises:
        DataError: the file is damaged.
    """
    first = read_json(path, dict)
    again = {key: now[key] for key in ("commit", "hardware", "command", "started")}
    return now | first | {"resumed": [*first.get("resumed", []), again]}


def write_json(path: Path, value: Any) -> None:
    """Write JSON in one rename, so that no reader meets half a file."""
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")
    os.replace(temporary, path)


def peak_memory_gib() -> float:
    """Return the most memory of the host this process has held, in GiB (0 where unknown)."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def peak_gpu_memory_gib(device: torch.device) -> float | None:
    """Return the most memory that tensors of this process have held on its GPU, in GiB.

    None if `device` is no CUDA device.
    """
    if device.type != "cuda":
        return None
    return round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
