"""Checkpoints are whole or not there: flipped bytes, full disks, too little room."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelyard.errors import InputError, MachineError
from modelyard.runs.files import file_sha256
from modelyard.training import checkpoints as checkpoints_module
from modelyard.training.checkpoints import Checkpoints, damage_of
from modelyard.training.progress import Progress


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def save(store: Checkpoints, learner: Any, *steps: int, best: int | None = None) -> None:
    for step in steps:
        store.save(learner, Progress(10, step, best_step=best))


def test_the_manifest_holds_what_sha256sum_says(tmp_path: Path, numpy_learner: Any) -> None:
    store = Checkpoints(tmp_path, keep=2)
    save(store, numpy_learner(), 5)
    if shutil.which("sha256sum") is None:
        pytest.skip("no sha256sum here")
    for name in ("learner.json", "progress.json"):
        output = subprocess.run(["sha256sum", tmp_path / "5" / name], capture_output=True, text=True, check=True)
        assert output.stdout.split()[0] in (tmp_path / "5" / "manifest.json").read_text()


def test_the_newest_and_the_best_are_kept(tmp_path: Path, numpy_learner: Any) -> None:
    store = Checkpoints(tmp_path, keep=2)
    save(store, numpy_learner(), 1)
    save(store, numpy_learner(), 2, 3, 4, 5, best=1)
    assert store.steps() == [1, 4, 5]
    assert store.pointed("last") == tmp_path / "5"
    assert store.pointed("best") == tmp_path / "1"
    save(store, numpy_learner(), 6, best=6)
    assert store.steps() == [5, 6] and store.pointed("best") == tmp_path / "6"


def test_pointers_of_nothing(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "none", keep=2)
    assert store.steps() == [] and store.pointed("best") is None
    assert store.newest_complete().checkpoint is None


@pytest.mark.parametrize("name", ["learner.json", "progress.json", "manifest.json"])
def test_a_flipped_byte_is_found_and_the_one_before_is_used(name: str, tmp_path: Path, numpy_learner: Any) -> None:
    store = Checkpoints(tmp_path, keep=3)
    save(store, numpy_learner(), 10, 20)
    flip_a_byte(tmp_path / "20" / name)
    found = store.newest_complete()
    assert found.checkpoint is not None and found.checkpoint.step == 10
    (note,) = found.notes
    assert str(tmp_path / "20") in note and "is damaged" in note and "the one before it is used" in note
    with pytest.raises(InputError, match=r"20 cannot be used: "):
        store.verified(20)
    assert store.verified(10) == tmp_path / "10"


@pytest.mark.parametrize("text", ["", "[]", "{}"])
def test_a_manifest_that_lists_nothing_is_damage(text: str, tmp_path: Path, numpy_learner: Any) -> None:
    save(Checkpoints(tmp_path, keep=3), numpy_learner(), 10)
    (tmp_path / "10" / "manifest.json").write_text(text)
    assert damage_of(tmp_path / "10") is not None


def test_a_missing_file_is_damage(tmp_path: Path, numpy_learner: Any) -> None:
    save(Checkpoints(tmp_path, keep=3), numpy_learner(), 10)
    (tmp_path / "10" / "learner.json").unlink()
    assert damage_of(tmp_path / "10") == "learner.json is missing"
    assert "cannot be read" in str(damage_of(tmp_path / "11"))


def test_too_little_room_is_said_before_anything_is_written(
    tmp_path: Path, numpy_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    learner = numpy_learner()
    learner.num_parameters = learner.num_trainable_parameters = 100_000_000
    usage = shutil.disk_usage(tmp_path)._replace(free=1_199_999_999)
    monkeypatch.setattr(checkpoints_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineError, match=r"a checkpoint takes 1\.20 GB and .* has 1\.20 GB free"):
        store.save(learner, Progress(10, 1))
    assert not store.folder.exists()


def test_leftovers_of_a_killed_process_are_cleared(tmp_path: Path, numpy_learner: Any) -> None:
    (tmp_path / "30.tmp-0123abcd").mkdir()
    (tmp_path / "30.tmp-0123abcd" / "learner.json").write_text("half")
    Checkpoints(tmp_path, keep=2).prepare(numpy_learner())
    assert list(tmp_path.iterdir()) == []


class _BigLearner:
    """Saves more than it says."""

    num_parameters = num_trainable_parameters = 1

    def save(self, folder: Path) -> None:
        (folder / "learner.bin").write_bytes(bytes(3 << 20))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    allowed = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount")
    if not allowed or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_fills_up_leaves_the_last_checkpoint_whole(small_disk: Path, numpy_learner: Any) -> None:
    store = Checkpoints(small_disk / "checkpoints", keep=2)
    save(store, numpy_learner(), 10)
    before = {file.name: file_sha256(file) for file in store.path(10).iterdir()}
    (small_disk / "other").write_bytes(bytes(2 << 20))
    with pytest.raises(MachineError, match="No space left on device") as caught:
        save(store, _BigLearner(), 20)
    assert "--resume" in caught.value.hint
    found = store.newest_complete()
    assert found.checkpoint is not None and found.checkpoint.step == 10 and found.notes == ()
    assert {file.name: file_sha256(file) for file in store.path(10).iterdir()} == before
    assert [entry.name for entry in store.folder.iterdir() if ".tmp-" in entry.name] == []
    (small_disk / "other").unlink()
    save(store, _BigLearner(), 20)
    assert store.steps() == [10, 20]


def test_a_disk_that_is_nearly_full_is_noticed_first(small_disk: Path, numpy_learner: Any) -> None:
    store = Checkpoints(small_disk / "checkpoints", keep=2)
    save(store, _BigLearner(), 10)
    with pytest.raises(MachineError, match="a checkpoint takes"):
        save(store, _BigLearner(), 20)


def test_a_disk_that_fills_up_under_a_torch_learner(
    small_disk: Path, child: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """safetensors has its own error for a full disk; the person sees the same one, and can resume."""
    store = Checkpoints(small_disk / "checkpoints", keep=2)
    learner = child.torch_learner()
    save(store, learner, 10)
    (small_disk / "other").write_bytes(bytes(shutil.disk_usage(small_disk).free - 8192))
    usage = shutil.disk_usage(small_disk)._replace(free=1 << 30)
    monkeypatch.setattr(checkpoints_module.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineError, match="No space left on device"):
        save(store, learner, 20)
    found = store.newest_complete()
    assert found.checkpoint is not None and found.checkpoint.step == 10 and found.notes == ()
    learner.load(found.checkpoint.path)
