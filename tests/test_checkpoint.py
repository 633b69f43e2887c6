"""Checkpoints against kills, damage and a full disk; rotation."""

from __future__ import annotations

import json
import logging
import os
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
import torch
from tiny_runs import forked
from torch import Tensor

from latent_reason.checkpoint import (
    Checkpoint,
    latest_checkpoint,
    load_checkpoint,
    rotate_checkpoints,
    save_checkpoint,
)
from latent_reason.errors import CheckpointError

pytestmark = pytest.mark.usefixtures("no_fsync")
KILLED = 137
FILE_EVENTS = {"open", "os.mkdir", "os.rename", "os.chmod", "os.remove", "os.rmdir", "os.scandir"}

needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")


def _tensors(step: int, size: int = 64) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(step)
    groups = ("core", "ema", "optimizer", "rng")
    return {name: {"w": torch.randn(size, generator=generator)} for name in groups} | {"carry": {}}


def _save(folder: Path, *steps: int, size: int = 64) -> None:
    for step in steps:
        save_checkpoint(folder, step, _tensors(step, size), {"step": step, "lr": step / 3})


def _assert_is(checkpoint: Checkpoint | None, step: int) -> None:
    assert checkpoint is not None
    assert checkpoint.step == step
    assert checkpoint.state == {"step": step, "lr": step / 3}
    expected = _tensors(step)
    assert checkpoint.tensors.keys() == expected.keys()
    for group, named in expected.items():
        assert checkpoint.tensors[group].keys() == named.keys()
        assert all(torch.equal(checkpoint.tensors[group][name], named[name]) for name in named)


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _killed_at(event_number: int, action: Callable[[], None]) -> int:
    """Run `action` in a child that dies just before its n-th file operation."""

    def armed() -> None:
        numbers = count()

        def die(event: str, _: tuple) -> None:
            if event in FILE_EVENTS and next(numbers) == event_number:
                os._exit(KILLED)

        sys.addaudithook(die)
        action()

    return forked(armed)


def _outcomes(template: Path, scratch: Path, action: Callable[[Path], None]) -> list[int]:
    """Kill `action` before each of its file operations; the step found after each kill."""
    found = []
    for event_number in count():
        folder = scratch / str(event_number)
        shutil.copytree(template, folder)
        code = _killed_at(event_number, lambda folder=folder: action(folder))
        assert code in (0, KILLED)
        checkpoint = latest_checkpoint(folder)
        _assert_is(checkpoint, checkpoint.step if checkpoint else -1)
        found.append(checkpoint.step)
        # The relaunched run reaches step 2 again, goes on and cleans up.
        _save(folder, 2, 3)
        rotate_checkpoints(folder, 1, ())
        assert _names(folder) == ["step-00000003"]
        if code == 0:
            return found


def test_killed_at_any_point_of_a_save_or_rotation(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    template = tmp_path / "template"
    _save(template, 0, 1)

    def save_and_rotate(folder: Path) -> None:
        _save(folder, 2)
        rotate_checkpoints(folder, 1, ())

    found = _outcomes(template, tmp_path, save_and_rotate)
    num_before, num_after = found.count(1), found.count(2)
    assert found == [1] * num_before + [2] * num_after
    # Seven files, two folders and a rename come before; two deleted checkpoints after.
    assert num_before >= 10
    assert num_after >= 10
    assert not caplog.records


def test_killed_while_replacing_the_only_checkpoint(tmp_path: Path) -> None:
    template = tmp_path / "template"
    _save(template, 2)
    found = _outcomes(template, tmp_path, lambda folder: _save(folder, 2))
    assert set(found) == {2}
    assert len(found) >= 12


@needs_proc
def test_everything_is_synced_before_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    rename = os.rename
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: done.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )

    def record(source: Path, target: Path) -> None:
        done.append("rename")
        rename(source, target)

    monkeypatch.setattr(os, "rename", record)
    _save(tmp_path, 2)
    *files, manifest, folder, renamed, parent = [Path(path).name for path in done]
    assert (manifest, folder, renamed) == ("manifest.json", ".tmp-step-00000002", "rename")
    assert sorted([*files, manifest]) == _names(tmp_path / "step-00000002")
    assert parent == tmp_path.name


def test_replacing_a_step(tmp_path: Path) -> None:
    _save(tmp_path, 4)
    save_checkpoint(tmp_path, 4, {"core": {}}, {"again": True})
    assert _names(tmp_path) == ["step-00000004"]
    assert latest_checkpoint(tmp_path).state == {"again": True}


def test_foreign_folder_with_the_name_of_a_step_is_moved_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "step-00000004").mkdir()
    (tmp_path / "step-00000004" / "thesis.txt").write_text("x")
    _save(tmp_path, 4)
    _assert_is(latest_checkpoint(tmp_path), 4)
    rotate_checkpoints(tmp_path, 1, ())
    assert _names(tmp_path) == ["step-00000004", "step-00000004.old"]
    assert (tmp_path / "step-00000004.old" / "thesis.txt").read_text() == "x"


def test_round_trip_is_bit_exact(tmp_path: Path) -> None:
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    base = torch.randn(6, 4)
    tensors = {
        "core": {
            "bf16": bits.view(torch.bfloat16),
            "fp16": bits.view(torch.float16),
            "fp32": torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e-45, 1 / 3]),
            "fp64": torch.randn(5, dtype=torch.float64),
            "int64": torch.tensor([-(2**63), 2**63 - 1]),
            "bool": torch.tensor([[True, False]]),
            "scalar": torch.tensor(3.5),
            "empty": torch.zeros(0, 7),
        },
        "ema": {
            "transposed": base.t(),
            "shared": base,
            "part": base[1:3, ::2],
            "expanded": torch.tensor([2.0]).expand(3, 5),
            "parameter": torch.nn.Parameter(base),
        },
        "carry": {},
        "rng": {"torch": torch.get_rng_state()},
    }
    state = {"lr": 0.1 + 0.2, "tiny": 5e-324, "big": 2**80, "list": [1, None, "\u00e9"], "d": {}}
    path = save_checkpoint(tmp_path / "new" / "checkpoints", 123456789, tensors, state)
    checkpoint = load_checkpoint(path)
    assert (checkpoint.path, checkpoint.step, checkpoint.state) == (path, 123456789, state)
    assert checkpoint.tensors.keys() == tensors.keys()
    for group, named in tensors.items():
        assert checkpoint.tensors[group].keys() == named.keys()
        for name, tensor in named.items():
            loaded = checkpoint.tensors[group][name]
            assert (loaded.dtype, loaded.shape) == (tensor.dtype, tensor.shape)
            assert loaded.is_contiguous()
            raw = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (loaded, tensor)]
            assert torch.equal(*raw), name
    assert checkpoint.tensors["ema"]["shared"].data_ptr() != (
        checkpoint.tensors["ema"]["parameter"].data_ptr()
    )


def test_files_follow_the_umask(tmp_path: Path) -> None:
    def save() -> None:
        os.umask(0o027)
        _save(tmp_path, 1)

    assert forked(save) == 0
    path = tmp_path / "step-00000001"
    assert path.stat().st_mode & 0o777 == 0o750
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o640}


def test_bad_arguments_leave_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_checkpoint(folder, 1, {}, {"best": float("inf")})
    with pytest.raises(TypeError):
        save_checkpoint(folder, 1, {}, {"best": torch.zeros(1)})
    with pytest.raises(ValueError, match="'../core'"):
        save_checkpoint(folder, 1, {"../core": {}}, {})
    with pytest.raises(ValueError, match="got -1"):
        save_checkpoint(folder, -1, {}, {})
    assert _names(tmp_path) == []
    with pytest.raises(KeyError):
        save_checkpoint(folder, 1, {"core": {"w": torch.zeros(3, dtype=torch.complex128)}}, {})
    assert _names(folder) == []


def _flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _swap_with_older(path: Path) -> None:
    older = path.parent.parent / "step-00000001" / path.name
    content = path.read_bytes()
    path.write_bytes(older.read_bytes())
    older.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "name", "expected"),
    [
        (_flip_bit, "optimizer.safetensors", "optimizer.safetensors is corrupt"),
        (_flip_bit, "state.json", "state.json is corrupt"),
        (_truncate, "core.safetensors", r"core.safetensors has \d+ bytes, manifest.json says \d+"),
        (_truncate, "manifest.json", "manifest.json cannot be read"),
        (_empty, "state.json", "state.json has 0 bytes"),
        (_empty, "manifest.json", "manifest.json cannot be read"),
        (Path.unlink, "ema.safetensors", "ema.safetensors is missing"),
        (Path.unlink, "state.json", "state.json is missing"),
        (Path.unlink, "manifest.json", "manifest.json cannot be read"),
        (_swap_with_older, "core.safetensors", "core.safetensors is corrupt"),
        (_swap_with_older, "manifest.json", "state.json is corrupt"),
    ],
)
def test_damage_is_named_and_the_older_checkpoint_used(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    damage: Callable[[Path], None],
    name: str,
    expected: str,
) -> None:
    _save(tmp_path, 0, 1, 2)
    path = tmp_path / "step-00000002"
    damage(path / name)
    message = rf"{re.escape(str(path))}: {expected}.*; restore it or resume from another"
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(path)
    assert "\n" not in str(error.value)
    _assert_is(latest_checkpoint(tmp_path), 0 if damage is _swap_with_older else 1)
    assert str(error.value) in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_one_flipped_bit_in_any_byte_is_found(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 7, {"core": {"w": torch.ones(1)}}, {})
    for file in path.iterdir():
        content = file.read_bytes()
        for index in range(len(content)):
            damaged = bytearray(content)
            damaged[index] ^= 1 << index % 8
            file.write_bytes(damaged)
            with pytest.raises(CheckpointError):
                load_checkpoint(path)
        file.write_bytes(content)
    assert load_checkpoint(path).step == 7


def test_whole_folders_swapped_or_misnamed(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2)
    (tmp_path / "step-00000002").rename(tmp_path / "best")
    (tmp_path / "step-00000001").rename(tmp_path / "step-00000002")
    with pytest.raises(CheckpointError, match="step-00000002: state.json is of step 1"):
        load_checkpoint(tmp_path / "step-00000002")
    _assert_is(load_checkpoint(tmp_path / "best"), 2)


@pytest.mark.parametrize(
    ("manifest", "reason"),
    [
        ({}, "KeyError"),
        ([], "TypeError"),
        ({"schema_version": 1, "files": ["core"]}, "AttributeError"),
        (
            {"schema_version": 1, "files": {"state.json": {"bytes": None, "sha256": ""}}},
            "TypeError",
        ),
        ({"schema_version": 2, "files": {}}, "schema_version 2, expected 1"),
        ({"schema_version": 1, "files": {}}, "must list state.json"),
    ],
)
def test_manifest_of_another_kind(tmp_path: Path, manifest: object, reason: str) -> None:
    _save(tmp_path, 1)
    path = tmp_path / "step-00000001"
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=f"manifest.json.*{reason}"):
        load_checkpoint(path)


def test_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    path = tmp_path / "step-00000001"
    shutil.move(path / "core.safetensors", tmp_path / "core.safetensors")
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["files"]["../core.safetensors"] = manifest["files"].pop("core.safetensors")
    (path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="../core.safetensors is missing"):
        load_checkpoint(path)


def test_unlisted_file_and_missing_folder(tmp_path: Path) -> None:
    _save(tmp_path, 1)
    (tmp_path / "step-00000001" / "extra.pkl").write_bytes(b"")
    with pytest.raises(CheckpointError, match="extra.pkl is not listed"):
        load_checkpoint(tmp_path / "step-00000001")
    with pytest.raises(CheckpointError, match="step-00000009: manifest.json cannot be read"):
        load_checkpoint(tmp_path / "step-00000009")


def test_latest_ignores_what_is_not_a_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert latest_checkpoint(tmp_path / "absent") is None
    assert latest_checkpoint(tmp_path) is None
    _save(tmp_path, 5)
    shutil.copytree(tmp_path / "step-00000005", tmp_path / ".tmp-step-00000009")
    shutil.copytree(tmp_path / "step-00000005", tmp_path / "best")
    (tmp_path / "step-00000008").write_text("a file")
    _assert_is(latest_checkpoint(tmp_path), 5)
    assert not caplog.records


def test_disk_full_while_writing(tmp_path: Path) -> None:
    _save(tmp_path, 1)

    def save_with_small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        with pytest.raises(CheckpointError, match="step-00000002: .*File too large.*intact"):
            _save(tmp_path, 2, size=50_000)
        assert _names(tmp_path) == ["step-00000001"]
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 100_000))
        with pytest.raises(CheckpointError, match="File too large"):
            save_checkpoint(tmp_path, 2, {}, {"long": "x" * 300})

    assert forked(save_with_small_files) == 0
    assert _names(tmp_path) == ["step-00000001"]
    _assert_is(latest_checkpoint(tmp_path), 1)


def test_disk_known_to_be_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _save(tmp_path, 1)
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(CheckpointError, match=r"needs \d{7} bytes, the disk has 1000 free"):
        _save(tmp_path, 2, size=100_000)
    assert _names(tmp_path) == ["step-00000001"]


def test_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match="choose another --output-dir"):
        _save(tmp_path / "file" / "checkpoints", 1)


def _steps(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*"))


def test_rotation_keeps_last_and_protected(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3, 4, 5)
    rotate_checkpoints(tmp_path, 2, {1, 99})
    assert _steps(tmp_path) == [1, 4, 5]
    rotate_checkpoints(tmp_path, 1, [])
    assert _steps(tmp_path) == [5]
    rotate_checkpoints(tmp_path / "absent", 1, [])
    with pytest.raises(ValueError, match="keep_last: got 0"):
        rotate_checkpoints(tmp_path, 0, [])
    assert _steps(tmp_path) == [5]


def test_rotation_keeps_the_one_just_written_among_higher_steps(tmp_path: Path) -> None:
    _save(tmp_path, 1, 8, 9)
    for step in (8, 9):
        _flip_bit(tmp_path / f"step-0000000{step}" / "core.safetensors")
        manifest = tmp_path / f"step-0000000{step}" / "manifest.json"
        os.utime(manifest, ns=(0, 0))
    _save(tmp_path, 2)
    rotate_checkpoints(tmp_path, 2, ())
    assert _steps(tmp_path) == [2, 8, 9]
    _assert_is(latest_checkpoint(tmp_path), 2)


def test_rotation_touches_only_its_own_folders(tmp_path: Path) -> None:
    _save(tmp_path, 1, 2, 3)
    (tmp_path / "step-00000001" / "manifest.json").unlink()
    (tmp_path / "step-1").mkdir()
    (tmp_path / "notes").mkdir()
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "step-00000002").rename(elsewhere)
    (tmp_path / "step-00000002").symlink_to(elsewhere)
    (tmp_path / ".tmp-step-00000007").mkdir()
    (tmp_path / ".tmp-step-00000007" / "core.safetensors").write_text("half")
    before = _names(tmp_path)
    rotate_checkpoints(tmp_path, 1, ())
    assert _names(tmp_path) == [name for name in before if name != ".tmp-step-00000007"]
    assert (elsewhere / "manifest.json").exists()


def test_failed_delete_is_logged_and_rotation_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _save(tmp_path, 1, 2, 3)
    rename = os.rename

    def refuse(source: Path, target: Path) -> None:
        if Path(source).name == "step-00000002":
            raise PermissionError(13, "Permission denied")
        rename(source, target)

    monkeypatch.setattr(os, "rename", refuse)
    rotate_checkpoints(tmp_path, 1, ())
    assert _steps(tmp_path) == [2, 3]
    assert "step-00000002" in caplog.text and "Permission denied" in caplog.text
