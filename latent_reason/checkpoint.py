"""Checkpoints that survive a kill at any moment.

A checkpoint is a folder `step-00001200/` of `<group>.safetensors`, `state.json` and, written last,
`manifest.json` with the size and sha256 of the others. It is made under a hidden name and appears
by one rename, so a visible folder is complete; damage afterwards is found by the manifest.
Only one process of a run may save and rotate.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import Tensor

from latent_reason.errors import CheckpointError
from latent_reason.model_folder import cpu_copy

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
STATE = "state.json"
SUFFIX = ".safetensors"
TEMP_PREFIX = ".tmp-step-"
STEP_NAME = re.compile(r"step-(\d{8,})(\.old)?")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint; tensors are on the CPU with dtype and shape as saved.

    Attributes:
        path: Folder it was read from.
        step: Optimizer step at which it was saved.
        tensors: Group name -> tensor name -> tensor.
        state: The saved `state`, after a round trip through JSON.
    """

    path: Path
    step: int
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write one checkpoint; a kill or an error leaves the earlier ones as they were.

    A folder of the same step is replaced: it becomes `step-*.old`, which `latest_checkpoint` also
    reads, and is deleted once the new one is in place, unless it has no manifest of ours.

    Args:
        folder: The run's `checkpoints/` folder; made if missing.
        step: Optimizer step, at least 0.
        tensors: Group name (letters, digits, `_`, `-`) -> tensor name -> dense tensor of any
            device, shape and strides. They are copied to the CPU, one group at a time.
        state: JSON values with string keys; tuples come back as lists.

    Returns:
        The new folder.

    Raises:
        CheckpointError: The disk is full or cannot be written.
        ValueError: `step` or a group name is not allowed, or `state` holds NaN or infinity.
        TypeError: `state` holds something that is not JSON.
    """
    if step < 0:
        raise ValueError(f"checkpoint step: got {step}, expected at least 0")
    for group in tensors:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", group):
            raise ValueError(f"checkpoint group: got {group!r}, expected letters, digits, _ and -")
    state_bytes = _to_json({"step": step, "state": dict(state)})
    final = folder / f"step-{step:08d}"
    old = folder / f"{final.name}.old"
    temp = folder / f"{TEMP_PREFIX}{step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        needed = _num_bytes(tensors) + len(state_bytes)
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OSError(f"needs {needed} bytes, the disk has {free} free")
        if temp.exists():
            shutil.rmtree(temp)
        temp.mkdir()
        _write_files(temp, tensors, state_bytes)
        if final.exists():
            if _is_own(old):
                shutil.rmtree(old)
            os.rename(final, old)
        os.rename(temp, final)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot save checkpoint {final}: {error}; earlier checkpoints are intact, "
            "free some space or choose another --output-dir"
        ) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    if _is_own(old):
        _delete(old)
    return final


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, comparing every byte with the manifest.

    Args:
        path: A `step-*` folder, or a copy of one under another name.

    Raises:
        CheckpointError: A file is missing, unexpected, or differs from the manifest; the message
            names folder, file and reason.
    """
    files = _read_manifest(path)
    present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    for name in sorted(present ^ files.keys()):
        reason = "is missing" if name in files else f"is not listed in {MANIFEST}"
        raise _rejected(path, name, reason)
    tensors, name = {}, STATE
    try:
        saved = json.loads(_read_verified(path, STATE, files.pop(STATE)))
        step, state = int(saved["step"]), dict(saved["state"])
        for name, entry in files.items():
            tensors[name.removesuffix(SUFFIX)] = load_tensors(_read_verified(path, name, entry))
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _rejected(path, name, f"cannot be read ({error!r})") from error
    match = STEP_NAME.fullmatch(path.name)
    if match and int(match[1]) != step:
        raise _rejected(path, STATE, f"is of step {step}, unlike the folder's name")
    return Checkpoint(path=path, step=step, tensors=tensors, state=state)


def latest_checkpoint(folder: Path) -> Checkpoint | None:
    """Load the newest valid checkpoint, or return None if there is none.

    Args:
        folder: The run's `checkpoints/` folder, which need not exist. A damaged checkpoint in it
            is skipped with a logged warning.
    """
    for _, path in _step_folders(folder):
        try:
            return load_checkpoint(path)
        except CheckpointError as error:
            logger.warning("skipped a damaged checkpoint: %s", error)
    return None


def rotate_checkpoints(folder: Path, keep_last: int, protect: Collection[int]) -> None:
    """Delete old checkpoints and what interrupted saves left behind.

    Kept are the `keep_last` highest steps, the checkpoint written last, every step in `protect`,
    and every folder without a readable manifest of this project. A folder that cannot be deleted
    is logged as a warning.

    Args:
        folder: The run's `checkpoints/` folder.
        keep_last: At least 1.
        protect: Steps such as the best one and the one resumed from.

    Raises:
        ValueError: `keep_last` is below 1.
    """
    if keep_last < 1:
        raise ValueError(f"keep_last: got {keep_last}, expected at least 1")
    for path in folder.glob(f"{TEMP_PREFIX}*"):
        _delete(path)
    own = [(step, path) for step, path in _step_folders(folder) if _is_own(path)]
    keep = {*sorted({step for step, _ in own})[-keep_last:], *protect}
    # A run resumed from an older step shares the folder with higher steps, which may be damaged.
    written = [((path / MANIFEST).stat().st_mtime_ns, step) for step, path in own]
    keep.update(step for _, step in sorted(written)[-1:])
    for step, path in own:
        if step not in keep:
            _delete(path)


def _to_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, allow_nan=False) + "\n").encode()


def _rejected(path: Path, name: str, reason: str) -> CheckpointError:
    message = f"checkpoint {path}: {name} {reason}"
    return CheckpointError(f"{message}; restore it or resume from another step-* folder")


def _num_bytes(tensors: Mapping[str, Mapping[str, Tensor]]) -> int:
    """Room for all files: 512 bytes a tensor for its header entry, one block a file."""
    values = [tensor for named in tensors.values() for tensor in named.values()]
    num_content = sum(value.numel() * value.element_size() + 512 for value in values)
    return num_content + 4096 * (len(tensors) + 2)


def _write_files(
    temp: Path, tensors: Mapping[str, Mapping[str, Tensor]], state_bytes: bytes
) -> None:
    for group, named in tensors.items():
        path = temp / f"{group}{SUFFIX}"
        save_tensors({name: cpu_copy(tensor) for name, tensor in named.items()}, path)
        # The library makes files that only their owner can read; follow the user's umask.
        path.chmod(temp.stat().st_mode & 0o666)
    (temp / STATE).write_bytes(state_bytes)
    files = {}
    for path in sorted(temp.iterdir()):
        _fsync(path)
        with open(path, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        files[path.name] = {"bytes": path.stat().st_size, "sha256": digest}
    (temp / MANIFEST).write_bytes(_to_json({"schema_version": SCHEMA_VERSION, "files": files}))
    _fsync(temp / MANIFEST)
    _fsync(temp)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read_manifest(path: Path) -> dict[str, tuple[int, str]]:
    """File name -> (bytes, sha256), never with the manifest itself and always with the state."""
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
        version = manifest["schema_version"]
        files = {
            name: (int(entry["bytes"]), str(entry["sha256"]))
            for name, entry in manifest["files"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _rejected(path, MANIFEST, f"cannot be read ({error!r})") from error
    if version != SCHEMA_VERSION:
        reason = f"has schema_version {version}, expected {SCHEMA_VERSION}"
        raise _rejected(path, MANIFEST, reason)
    if STATE not in files or not all(name == STATE or name.endswith(SUFFIX) for name in files):
        raise _rejected(path, MANIFEST, f"must list {STATE} and *{SUFFIX} only")
    return files


def _read_verified(path: Path, name: str, entry: tuple[int, str]) -> bytes:
    """The bytes that were hashed, so that the very same ones are parsed."""
    size = (path / name).stat().st_size
    if size != entry[0]:
        raise _rejected(path, name, f"has {size} bytes, {MANIFEST} says {entry[0]}")
    content = (path / name).read_bytes()
    if hashlib.sha256(content).hexdigest() != entry[1]:
        raise _rejected(path, name, f"is corrupt: its sha256 differs from {MANIFEST}")
    return content


def _step_folders(folder: Path) -> list[tuple[int, Path]]:
    """Folders named like checkpoints, newest first, `step-N` before `step-N.old`."""
    if not folder.is_dir():
        return []
    found = [(STEP_NAME.fullmatch(path.name), path) for path in folder.iterdir()]
    steps = [(int(match[1]), path) for match, path in found if match and path.is_dir()]
    return sorted(steps, key=lambda item: (-item[0], item[1].name))


def _is_own(path: Path) -> bool:
    if path.is_symlink() or not path.is_dir():
        return False
    try:
        return bool(_read_manifest(path))
    except CheckpointError:
        return False


def _delete(path: Path) -> None:
    """Rename to a hidden name first: a kill half way leaves no damaged checkpoint in sight."""
    hidden = path.with_name(f"{TEMP_PREFIX}deleted-{path.name}")
    try:
        if not path.name.startswith(TEMP_PREFIX):
            os.rename(path, hidden)
            path = hidden
        shutil.rmtree(path)
    except OSError as error:
        logger.warning("could not delete %s: %s", path, error)
