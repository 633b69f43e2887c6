"""The frame around scripts: processes that did not form, one-line errors, the environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from accelerate import Accelerator
from tiny_runs import on_two_processes

from latent_reason import environment as module
from latent_reason.environment import (
    check_world,
    command,
    environment,
    peak_gpu_memory_gib,
    peak_memory_gib,
)
from latent_reason.errors import ConfigError

pytestmark = pytest.mark.usefixtures("one_process")
SCRIPT = """
import sys
from accelerate import Accelerator
from latent_reason.command_line import run_script
from latent_reason.environment import check_world

def main():
    accelerator = Accelerator()
    check_world(accelerator)
    print("formed", accelerator.num_processes)

run_script(main)
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "script.py"
    path.write_text(SCRIPT)
    return str(path)


def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parents[1])
    variables = {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | variables
    environment = os.environ | variables
    return subprocess.run(words, capture_output=True, text=True, env=environment, timeout=240)


def launcher(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


# Processes that did not form


def test_accelerate_launch_that_forms_one_process_is_refused(script: str) -> None:
    """On CPUs it starts one process without a word, whatever number is asked for."""
    result = run(launcher("accelerate"), "launch", "--cpu", "--num_processes", "2", script)
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert lines == [
        "error: 2 processes were asked for, 1 formed; on CPUs launch with "
        "ACCELERATE_USE_CPU=true torchrun --nproc_per_node 2 SCRIPT"
    ]
    assert "formed" not in result.stdout
    assert "exit status 2" in result.stderr


def test_a_world_size_without_a_group_is_refused(script: str) -> None:
    result = run(sys.executable, script, WORLD_SIZE="2")
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("error: 2 processes were asked for, 1 formed; ")
    assert result.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "cpu", "formed"),
    [
        (["accelerate", "launch", "--num_processes", "1"], "false", 1),
        (["torchrun", "--standalone", "--nproc_per_node", "2"], "true", 2),
    ],
)
def test_launches_that_work(script: str, words: list[str], cpu: str, formed: int) -> None:
    result = run(launcher(words[0]), *words[1:], script, ACCELERATE_USE_CPU=cpu)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(f"formed {formed}") == formed


@pytest.mark.slow
def test_torchrun_without_a_group_is_refused(script: str) -> None:
    words = [launcher("torchrun"), "--standalone", "--nproc_per_node", "2"]
    result = run(*words, script, ACCELERATE_USE_CPU="false", CUDA_VISIBLE_DEVICES="")
    assert result.returncode != 0
    assert "error: 2 processes were asked for, 1 formed; " in result.stderr
    assert "formed 1" not in result.stdout


def launched_by(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    parent = SimpleNamespace(cmdline=lambda: list(words))
    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=lambda: parent))


@pytest.mark.parametrize(
    "words",
    [
        ["python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "3", "x.py"],
        ["python", "/bin/accelerate", "launch", "--num_processes=3", "x.py"],
        ["python", "-m", "accelerate.commands.launch", "--num-processes", "3", "x.py"],
    ],
)
def test_a_number_asked_of_accelerate_is_found(
    monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    launched_by(monkeypatch, *words)
    with pytest.raises(ConfigError, match="3 processes were asked for, 1 formed"):
        check_world(Accelerator())


def test_a_parent_that_cannot_be_seen_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Any:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "Process", lambda: SimpleNamespace(parent=refuse))
    check_world(Accelerator())


@pytest.mark.parametrize(
    "words",
    [
        ["bash"],
        ["python", "/bin/accelerate", "launch", "--num_processes", "1", "x.py"],
        ["python", "/bin/accelerate", "launch", "x.py"],
        ["python", "other_launcher.py", "--num_processes", "3"],
        ["bash", "/home/me/accelerate-runs/go.sh", "--num_processes", "3"],
    ],
)
def test_one_process_passes(monkeypatch: pytest.MonkeyPatch, words: list[str]) -> None:
    launched_by(monkeypatch, *words)
    check_world(Accelerator())


def test_a_number_in_a_file_of_accelerate_is_found(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "cpu.yaml"
    file.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nnum_processes: 3\n"
    )
    for option in ([f"--config_file={file}"], ["--config_file", str(file)]):
        launched_by(monkeypatch, "python", "/bin/accelerate", "launch", *option, "x.py")
        with pytest.raises(ConfigError, match="3 processes were asked for, 1 formed"):
            check_world(Accelerator())
        number = ["--num_processes", "1"]
        launched_by(monkeypatch, "python", "/bin/accelerate", "launch", *option, *number, "x.py")
        check_world(Accelerator())


def check_two(folder: Path) -> None:
    accelerator = Accelerator()
    assert accelerator.num_processes == 2
    check_world(accelerator)
    (folder / str(accelerator.process_index)).touch()


def test_two_processes_pass(tmp_path: Path) -> None:
    on_two_processes(check_two, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


# The environment


def test_the_environment_is_json_and_names_the_commit() -> None:
    about = environment()
    assert json.loads(json.dumps(about, allow_nan=False)) == about
    assert about["packages"]["torch"]
    assert about["python"].startswith("3.")
    assert about["hardware"]
    assert about["command"] == command()
    head = subprocess.run(
        ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
    )
    if head.returncode == 0:
        assert about["commit"].removesuffix("+changes") == head.stdout.strip()[:12]


def test_a_package_that_is_not_there_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PACKAGES", ("torch", "no-such-package"))
    assert environment()["packages"]["no-such-package"] is None


def no_git(*words: Any, **options: Any) -> Any:
    raise FileNotFoundError("git")


def not_a_repository(*words: Any, **options: Any) -> Any:
    return SimpleNamespace(returncode=128, stdout="")


def not_our_repository(words: list[str], **options: Any) -> Any:
    return SimpleNamespace(returncode=int("ls-files" in words), stdout="a" * 40)


@pytest.mark.parametrize("git", [no_git, not_a_repository, not_our_repository])
def test_without_a_repository_the_commit_is_unknown(
    monkeypatch: pytest.MonkeyPatch, git: Callable[..., Any]
) -> None:
    monkeypatch.setattr(subprocess, "run", git)
    assert module.commit() == "unknown"


def test_the_command_can_be_pasted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["recipes/x.py", "--train-data", "my file.jsonl"])
    assert command() == "python recipes/x.py --train-data 'my file.jsonl'"


def test_memory_is_measured() -> None:
    assert 0.01 < peak_memory_gib() < 1000


def test_memory_of_a_gpu_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: 3 * 2**29)
    assert peak_gpu_memory_gib(torch.device("cuda")) == 1.5
    assert peak_gpu_memory_gib(torch.device("cpu")) is None
