"""The lock of a run folder: against a second run, kills, other hosts and other processes."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_runs import forked

from latent_reason.errors import ConfigError
from latent_reason.run_lock import RunLock

KILLED = 137


def test_second_holder_is_refused_until_the_first_leaves(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with RunLock(folder) as lock:
        assert json.loads(lock.path.read_text())["pid"] == os.getpid()
        with pytest.raises(ConfigError) as error:
            RunLock(folder).__enter__()
        assert f"{folder} is in use by process {os.getpid()} on" in str(error.value)
        assert "choose another --output-dir" in str(error.value)
        # Another live process is refused as well, and its failure does not free the folder.
        assert forked(lambda: RunLock(folder).__enter__()) == 1
        assert lock.path.exists()
    assert list(folder.iterdir()) == []
    with RunLock(folder):
        pass


def test_lock_is_released_when_the_run_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyError), RunLock(tmp_path):
        raise KeyError("x")
    assert list(tmp_path.iterdir()) == []


def test_lock_of_a_killed_process_is_taken_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def die_holding() -> None:
        RunLock(tmp_path).__enter__()
        os._exit(KILLED)

    assert forked(die_holding) == KILLED
    left_by = json.loads((tmp_path / ".lock").read_text())["pid"]
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    assert f"process {left_by} on {socket.gethostname()} is gone" in caplog.text


def write_lock(folder: Path, **changes: object) -> None:
    with RunLock(folder) as lock:
        owner = json.loads(lock.path.read_text())
    (folder / ".lock").write_text(json.dumps(owner | changes))


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_reused_process_number_and_zombie_count_as_gone(tmp_path: Path) -> None:
    write_lock(tmp_path, start_time="1")
    with RunLock(tmp_path):
        pass
    with subprocess.Popen([sys.executable, "-c", ""]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        fields = Path(f"/proc/{zombie.pid}/stat").read_text().rpartition(")")[2].split()
        assert fields[0] == "Z"
        write_lock(tmp_path, pid=zombie.pid, start_time=fields[19])
        with RunLock(tmp_path):
            pass


def test_lock_of_another_host_or_unreadable_is_respected(tmp_path: Path) -> None:
    write_lock(tmp_path, host="elsewhere", pid=2**22 + 1)
    with pytest.raises(ConfigError, match=r"on elsewhere.*or delete .*\.lock"):
        RunLock(tmp_path).__enter__()
    (tmp_path / ".lock").write_bytes(b"")
    with pytest.raises(ConfigError, match="lock file is unreadable"):
        RunLock(tmp_path).__enter__()


def test_lock_taken_from_us_is_not_released_by_us(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        _ = lock.path.write_text("{}")
    assert lock.path.read_text() == "{}"


def test_forked_child_does_not_release_the_lock(tmp_path: Path) -> None:
    with RunLock(tmp_path) as lock:
        assert forked(lambda: lock.__exit__()) == 0
        assert lock.path.exists()


def test_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="cannot lock output folder"):
        RunLock(tmp_path / "file").__enter__()
