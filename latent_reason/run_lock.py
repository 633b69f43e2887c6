"""The lock that keeps a run folder to one run."""

from __future__ import annotations

import json
import logging
import os
import socket
from pathlib import Path

from latent_reason.errors import ConfigError

logger = logging.getLogger(__name__)


class RunLock:
    """Context manager that holds an output folder for this process by a file `.lock`.

    A lock left by a process of this host that is gone is taken over.
    """

    def __init__(self, folder: Path) -> None:
        """Nothing is written yet; `folder` is made on entry if it is missing."""
        self.folder, self.path = folder, folder / ".lock"
        self.pid, self.host = os.getpid(), socket.gethostname()
        start = _process_start(self.pid)
        self._content = json.dumps(
            {"pid": self.pid, "host": self.host, "start_time": start}
        ).encode()

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            ConfigError: Another run uses the folder, or the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.path.exists():
                self._refuse_if_in_use()
                self.path.unlink()
            with open(self.path, "xb") as file:
                file.write(self._content)
        except OSError as error:
            message = f"cannot lock output folder {self.folder}: {error}"
            raise ConfigError(f"{message}; choose another --output-dir") from error
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Release the lock if it is still ours; it is not in a forked child."""
        try:
            if self.pid == os.getpid() and self.path.read_bytes() == self._content:
                self.path.unlink()
        except OSError as error:
            logger.warning("could not release %s: %s", self.path, error)

    def _refuse_if_in_use(self) -> None:
        try:
            owner = json.loads(self.path.read_bytes())
            pid, host, start = int(owner["pid"]), str(owner["host"]), str(owner["start_time"])
            owner_text = f"process {pid} on {host}"
            if host == self.host and not _is_running(pid, start):
                logger.warning("took over %s: %s is gone", self.path, owner_text)
                return
        except (ValueError, KeyError, TypeError):
            owner_text = "an unknown process (the lock file is unreadable)"
        raise ConfigError(
            f"output folder {self.folder} is in use by {owner_text}; choose another --output-dir, "
            f"or delete {self.path} if that run is over"
        )


def _process_start(pid: int) -> str:
    """Clock ticks from boot to the start of the process, "zombie" or "unknown"."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return "unknown"
    return "zombie" if fields[0] == "Z" else fields[19]


def _is_running(pid: int, start: str) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return _process_start(pid) in (start, "unknown")
