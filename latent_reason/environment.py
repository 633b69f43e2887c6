"""What a run depends on besides its configuration: code, packages, device, processes, memory."""

from __future__ import annotations

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.commands.config.config_args import load_config_from_file

from latent_reason.errors import ConfigError
from latent_reason.files import read_json

PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "numpy")


def check_compiler(device: torch.device) -> None:
    """Refuse torch.compile on a CPU without the C++ compiler that it calls.

    Raises:
        ConfigError: there is none.
    """
    default = {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", default)
    if device.type == "cpu" and shutil.which(name) is None:
        raise ConfigError(
            f"compile: there is no C++ compiler {name}; install one (CXX may name another) or do "
            "without compiling: --train.no-compile in a recipe"
        )


def check_world(accelerator: Accelerator) -> None:
    """Refuse to run when fewer processes formed than were asked for.

    `accelerate launch --cpu --num_processes 2` starts a single process without a word; a process
    group that failed to form would give N runs that write the same folder.

    Raises:
        ConfigError: naming the number asked for, the number formed and a command that works.
    """
    asked = int(os.environ.get("WORLD_SIZE", "1"))
    try:
        parent = psutil.Process().parent()
        words = parent.cmdline() if parent is not None else []
    except psutil.Error:  # it is gone, or another user's
        words = []
    names = [Path(word).name for word in words[:3]]
    if any(re.fullmatch(r"accelerate(-launch|\.commands\..*)?", name) for name in names):
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
    # An installed package may lie within somebody else's repository.
    calls = ["ls-files --error-unmatch .", "rev-parse HEAD", "status --porcelain -uno"]
    try:
        done = [
            subprocess.run([*git, *call.split()], capture_output=True, text=True) for call in calls
        ]
    except OSError:
        return "unknown"
    if any(process.returncode for process in done):
        return "unknown"
    _, head, status = (process.stdout.strip() for process in done)
    return head[:12] + ("+changes" if status else "")


def has_amx() -> bool:
    """Say whether the CPU multiplies matrices in bf16 (AMX) rather than emulating it."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16"))


def hardware() -> str:
    """Describe the device in a few words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"
    amx = ", AMX" if has_amx() else ""
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
