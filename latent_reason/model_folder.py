"""Model folders: weights as safetensors, `config.json` and the model card `README.md`.

Such a folder changes by renames, so that a kill at any moment leaves the old one, the new one or,
between two renames, a whole one beside its place as `.old-NAME`; never half of one. A folder that
is there already stays the same folder to programs that work in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from latent_reason.errors import CheckpointError
from latent_reason.files import UNREADABLE, read_bounded

CONFIG = "config.json"
CARD = "README.md"
MAX_CONFIG_BYTES = 2**20
FORMAT_PREFIX = "latent_reason "
"""Every "format" in a config.json of this library begins so."""
RAW_WEIGHTS, TASKS, IDENTIFIERS = "raw.safetensors", "tasks.json", "identifiers.json"
"""Files that one save may write and a later one without them removes."""


def write_model_folder(
    folder: str | Path,
    weights: Mapping[str, Mapping[str, Tensor]],
    config: Mapping[str, Any],
    card: str,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a model folder; one that is there already is replaced, its other files are kept.

    A mount point cannot be renamed: its files are replaced one by one, each of them whole.

    Args:
        folder: made if missing, with its parents.
        weights: file name -> tensor name -> tensor of any device and strides.
        config: JSON values; "format" begins with `FORMAT_PREFIX`.
        card: Markdown.
        more: JSON values of `TASKS` or `IDENTIFIERS`.

    Raises:
        CheckpointError: files of the same names there are not of this library, or the disk is
            full or cannot be written.
    """
    folder = Path(folder).resolve()
    temp, old = (folder.with_name(f".{kind}-{folder.name}") for kind in ("tmp", "old"))
    if os.path.ismount(folder):
        temp = folder / ".tmp"
    own = {*weights, CONFIG, CARD, RAW_WEIGHTS, TASKS, IDENTIFIERS}
    try:
        if folder.exists() and not folder.is_dir():
            raise OSError("a file of this name is in the way")
        shutil.rmtree(temp, ignore_errors=True)
        if old.exists():  # a kill came between the renames below
            _bring_back(old, folder, temp, own)
        _refuse_foreign(folder, sorted(own))
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir(parents=True)
        for name, tensors in weights.items():
            save_file({k: cpu_copy(v) for k, v in tensors.items()}, temp / name)
            # The library makes files that only their owner can read; follow the user's umask.
            (temp / name).chmod(temp.stat().st_mode & 0o666)
        (temp / CARD).write_text(card.rstrip() + "\n", encoding="utf-8")
        for name, values in {CONFIG: config, **(more or {})}.items():
            text = json.dumps(values, indent=2, allow_nan=False)
            (temp / name).write_text(text + "\n", encoding="utf-8")
        if temp.parent == folder:
            _move_files(temp, folder, own)
        elif folder.exists():
            os.rename(folder, old)
            os.rename(temp, folder)
            _bring_back(old, folder, temp, own)
        else:
            os.rename(temp, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"cannot write model folder {folder}: {error}; free some space or choose another"
        ) from error
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _refuse_foreign(folder: Path, names: list[str]) -> None:
    """Raise CheckpointError where files would be replaced that this library has not written."""
    present = [name for name in names if (folder / name).exists()]
    if not present:
        return
    try:
        form = json.loads(read_bounded(folder / CONFIG, MAX_CONFIG_BYTES))["format"]
        ours = form.startswith(FORMAT_PREFIX)
    except UNREADABLE:
        ours = False
    if not ours:
        raise CheckpointError(
            f"cannot write model folder {folder}: it holds other files ({', '.join(present)}); "
            "choose a new folder"
        )


def _bring_back(old: Path, folder: Path, temp: Path, own: set[str]) -> None:
    """Put the folder that was there before into its place again, with the model of the new one.

    What else lies in it stays untouched, and a shell whose working directory it is stays in it.
    """
    if folder.exists():
        for name in own:
            (old / name).unlink(missing_ok=True)
        shutil.copytree(folder, old, dirs_exist_ok=True)
        os.rename(folder, temp)
    os.rename(old, folder)


def _move_files(temp: Path, folder: Path, own: set[str]) -> None:
    """Replace the files of a model by those of `temp`, the configuration last."""
    for name in sorted(own, key=lambda name: name == CONFIG):
        if (temp / name).exists():
            os.replace(temp / name, folder / name)
        else:
            (folder / name).unlink(missing_ok=True)


def read_config(folder: Path, form: str) -> dict[str, Any]:
    """Return config.json of a model folder without its "format".

    Raises:
        UNREADABLE: see `reading`.
    """
    saved = json.loads(read_bounded(folder / CONFIG, MAX_CONFIG_BYTES))
    if "preset" in saved:
        raise ValueError("it is the folder of a run, which holds such a folder")
    if (found := saved.pop("format")) != form:
        raise ValueError(f"format {found!r}, expected {form!r}")
    return saved


@contextmanager
def reading(folder: Path, kind: str, writer: str) -> Iterator[None]:
    """Turn what can go wrong on reading a model folder into a `CheckpointError`.

    Args:
        folder: being read.
        kind: of folder, one word for the message.
        writer: what makes such folders.
    """
    try:
        yield
    except (*UNREADABLE, SafetensorError) as error:
        raise CheckpointError(
            f"{kind} {folder}: not a complete {kind} folder ({str(error)[:300]}); "
            f"give a folder written by {writer}"
        ) from error


@contextmanager
def without_memory() -> Iterator[None]:
    """Let modules be made without memory for their weights, to see what a file should hold."""
    with torch.device("meta"), _Unfilled():
        yield


class _Unfilled(TorchFunctionMode):
    """Skips what changes tensors in place: filling those without memory would load a compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__
        if name.endswith("_") and not name.endswith("__"):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def check_fit(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Compare names, shapes and kinds of numbers with those of a model.

    Raises:
        ValueError: naming the first tensor that does not fit.
    """
    for name in sorted(expected.keys() - tensors.keys()):
        raise ValueError(f"weights do not fit: tensor {name} is missing")
    for name in sorted(tensors.keys() - expected.keys()):
        raise ValueError(f"weights do not fit: unknown tensor {name}")
    for name, tensor in tensors.items():
        wanted = expected[name]
        if tensor.shape != wanted.shape:
            raise ValueError(
                f"weights do not fit: tensor {name} has shape {tuple(tensor.shape)}, "
                f"expected {tuple(wanted.shape)}"
            )
        if tensor.is_floating_point() != wanted.is_floating_point():
            raise ValueError(
                f"weights do not fit: tensor {name} is {tensor.dtype}, expected {wanted.dtype}"
            )


def cpu_copy(tensor: Tensor) -> Tensor:
    """Return a contiguous copy on the CPU without graph, as safetensors takes them."""
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
