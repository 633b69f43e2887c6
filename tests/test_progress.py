"""Sums of a training's progress where the accelerator has no fp64."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from latent_reason.progress import Progress, gather_numbers
from latent_reason.train_config import TrainConfig


def accelerator_on(device: str, num_processes: int = 1) -> Any:
    """Return what `Progress` needs of an Accelerator; gathering gives what one process has."""
    return SimpleNamespace(
        device=torch.device(device),
        num_processes=num_processes,
        process_index=0,
        is_main_process=True,
        project_dir=None,
        gather=lambda row: row,
    )


def state_after_steps(device: str, folder: Path) -> dict[str, Any]:
    """Return the state after three steps and a way through a checkpoint."""
    accelerator, config = accelerator_on(device), TrainConfig()
    progress = Progress(accelerator, config, folder, print)
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (4, 6)).masked_fill(torch.rand(4, 6) < 0.3, -100)
    for _ in range(3):
        output = SimpleNamespace(
            loss=torch.rand(()),
            logits=torch.randn(4, 6, 5),
            correct=torch.rand(4) < 0.5,
            carry=SimpleNamespace(refinement_steps=torch.randint(1, 5, (4,))),
        )
        progress.add(output, labels, 1e-3, 4)
    resumed = Progress(accelerator, config, folder, print)
    resumed.load(progress.state())
    return resumed.state()


def test_sums_of_a_run_on_mps_are_those_of_one_on_cpu(tmp_path: Path) -> None:
    assert state_after_steps("mps", tmp_path) == state_after_steps("cpu", tmp_path)


@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_numbers_are_gathered_in_fp64(device: str) -> None:
    numbers = gather_numbers(accelerator_on(device, num_processes=2), 1 / 3, 7)
    assert numbers.dtype == torch.float64 and numbers.tolist() == [[1 / 3, 7.0]]


def test_a_tracker_gets_the_lines_of_the_run_but_not_of_its_controls(tmp_path: Path) -> None:
    accelerator, steps = accelerator_on("cpu"), []
    accelerator.project_dir = str(tmp_path)
    accelerator.log = lambda row, step: steps.append(step)
    for step, folder in enumerate((tmp_path, tmp_path / "controls" / "lora"), start=1):
        folder.mkdir(parents=True, exist_ok=True)
        progress = Progress(accelerator, TrainConfig(), folder, print)
        with progress.open(0):
            progress.write_metrics(step, {"val/accuracy": 0.5})
        assert (folder / "metrics.jsonl").read_text().count("\n") == 1
    assert steps == [1]
