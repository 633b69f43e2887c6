"""Reading what the original HRM and TRM save, without executing anything.

They save state dicts by `torch.save`, pickles in a zip file, beside an `all_config.yaml`. Of a
pickle only tensors are read; one that asks for anything else is refused. Sizes are checked before
memory is taken.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from latent_reason.errors import CheckpointError, first_line

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MAX_PICKLE_BYTES = 2**20
_GLOBALS = re.compile(
    r"torch\._utils _rebuild_(tensor_v2|parameter)|torch \w+Storage|collections OrderedDict"
)
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "BINPERSID", "REDUCE", "BUILD", "SETITEM", "SETITEMS"),
    *("EMPTY_DICT", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINUNICODE", "NONE"),
    *("NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1"),
    *("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
}
"""What torch.save writes for a dict of tensors."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read a checkpoint of the originals without executing anything.

    Returns:
        Tensors on the CPU by names without prefix, and the prefix.

    Raises:
        CheckpointError: the file is missing, damaged, or holds something else than such tensors.
    """
    try:
        with open(path, "rb") as file:
            is_zip = file.read(4) == b"PK\x03\x04"
        content = _load_zip(path) if is_zip else load_file(path)
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: neither safetensors nor a zip file of torch.save ({error}); nothing in it "
            "was executed"
        ) from error
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); give a checkpoint") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a state dict")
    for name, tensor in content.items():
        _check_tensor(path, name, tensor)
    starts = [name.removesuffix("H_init") for name in content if name.endswith("H_init")]
    if len(starts) != 1 or (starts[0] and not starts[0].endswith(".")):
        raise CheckpointError(f"{path}: tensor H_init is missing; give a checkpoint of HRM or TRM")
    prefix = starts[0]
    for name in content:
        if not name.startswith(prefix):
            raise CheckpointError(f"{path}: unknown tensor {name}, all start with {prefix!r}")
    return {name.removeprefix(prefix): tensor for name, tensor in content.items()}, prefix


def _load_zip(path: Path) -> Any:
    """Unpickle tensors and containers, nothing else."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise ValueError("its parts are compressed, which torch.save never does")
            pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
            if len(pickles) != 1 or pickles[0].file_size > MAX_PICKLE_BYTES:
                raise ValueError(f"expected one data.pkl of at most {MAX_PICKLE_BYTES:,} bytes")
            _check_pickle(archive.read(pickles[0]))
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a damaged or hostile file makes of the reader
        reason = first_line(error)
        raise CheckpointError(
            f"{path}: refused, since it is damaged or holds more than tensors ({reason}); nothing "
            "in it was executed"
        ) from error


def _check_pickle(data: bytes) -> None:
    """Raise ValueError unless a pickle only puts tensors into dicts, in memory of its own size.

    An OrderedDict is made empty, and state is set once (`_metadata` of a state dict): many copies
    of one large dict could fill the memory.
    """
    before, states = ["", ""], 0  # opcodes without those that only number an object
    for opcode, argument, _ in pickletools.genops(data):
        name = opcode.name
        if name not in _OPCODES:
            raise ValueError(f"opcode {name}, which torch.save writes for no dict of tensors")
        if name == "GLOBAL" and not _GLOBALS.fullmatch(str(argument)):
            raise ValueError(f"it asks for {str(argument).replace(' ', '.')}")
        rebuilt = before[0] == "REDUCE" and before[1] in ("TUPLE", "TUPLE3")
        if name == "REDUCE" and before[1] != "EMPTY_TUPLE" and not rebuilt:
            raise ValueError("a call that rebuilds no tensor")
        states += name == "BUILD"
        if states > 1:
            raise ValueError("state of more than one object")
        if "PUT" not in name:
            before = [before[1], name]


def _check_tensor(path: Path, name: Any, tensor: Any) -> None:
    if not isinstance(name, str) or not isinstance(tensor, Tensor):
        kind = type(tensor).__name__
        raise CheckpointError(f"{path}: {str(name)[:80]!r} is a {kind}, expected a tensor")
    if tensor.dtype not in DTYPES.values():
        raise CheckpointError(f"{path}: tensor {name} is {tensor.dtype}, expected {[*DTYPES]}")
    if tensor.numel() * tensor.element_size() > path.stat().st_size:
        raise CheckpointError(f"{path}: tensor {name} claims to be larger than the file")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{path}: tensor {name} holds NaN or infinity")
