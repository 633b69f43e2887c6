"""The lock that keeps a run folder to one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from latent_reason.errors import ConfigError


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold an output folder, made if it is missing, for this process inside a `with` block.

    The system frees it when the process ends, however it ends; the empty file `.lock` stays.

    Raises:
        ConfigError: another run uses the folder, or the folder cannot be written.
    """
    lock = FileLock(folder / ".lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(
            f"output folder {folder} is in use by another run; wait for its end or choose another "
            "--output-dir"
        ) from error
    except (OSError, NotImplementedError) as error:
        message = f"cannot lock output folder {folder}: {error}"
        raise ConfigError(f"{message}; choose another --output-dir") from error
    try:
        yield
    finally:
        lock.release()
