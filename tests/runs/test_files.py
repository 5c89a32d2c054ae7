"""Files are written whole or not at all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.errors import InputError, MachineError
from modelyard.runs.events import EventLog, read_events
from modelyard.runs.files import folder_sha256, write_folder, write_json, write_text, write_with
from modelyard.runs.folder import RunFolder


def test_a_failing_writer_leaves_the_old_file(tmp_path: Path) -> None:
    target = write_text(tmp_path / "a.txt", "old")

    def fail(path: Path) -> None:
        path.write_text("half")
        raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        write_with(target, fail)
    assert target.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    write_folder(target, lambda folder: (folder / "old").write_text("1") and None)
    write_folder(target, lambda folder: (folder / "new").write_text("2") and None)
    assert list(folder_sha256(target)) == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0 or sys.platform != "linux", reason="mounts a tmpfs")
def test_a_full_disk_is_an_error_that_leaves_what_was_there(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting is not permitted here")
    try:
        target = write_text(small / "kept.txt", "whole")
        with pytest.raises(MachineError, match="No space left") as caught:
            write_text(target, "x" * 4_000_000)
        assert "--resume" in caught.value.hint
        assert target.read_text() == "whole"
        assert [p.name for p in small.iterdir()] == ["kept.txt"]
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_events_survive_a_line_cut_in_half(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).append("step", step=1, loss=float("nan"))
    with path.open("a") as file:
        file.write('{"kind": "st')
    EventLog(path).append("step", step=2, loss=0.5)
    events = list(read_events(path))
    assert [(event["step"], event["loss"]) for event in events] == [(1, None), (2, 0.5)]


def test_json_refuses_what_json_cannot_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not (tmp_path / "a.json").exists()


def test_a_stage_is_current_until_a_file_changes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    write_folder(run.model, lambda folder: (folder / "weights").write_text("1") and None)
    run.record_stage("training", "key", {"model": run.model})
    assert run.stage_is_current("training", "key")
    assert not run.stage_is_current("training", "other")
    (run.model / "weights").write_text("2")
    assert run.changed_artefact("training") == "model/weights"


def test_two_processes_do_not_work_in_one_run(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path; from modelyard.runs.folder import RunFolder\n"
        "with RunFolder(Path(sys.argv[1])).locked(): print('held', flush=True); sys.stdin.readline()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "held\n"
        with pytest.raises(InputError, match=f"pid {other.pid}"), run.locked():
            pass
        other.kill()
    with run.locked():  # the lock went with the process
        pass


def test_what_is_no_run_is_named(tmp_path: Path) -> None:
    write_json(tmp_path / "good" / "recipe.yaml", {})
    with pytest.raises(InputError, match="runs beside it: good"):
        RunFolder.open(tmp_path / "bad")


def test_a_run_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"format": 99, "stages": {}})
    with pytest.raises(InputError, match="newer modelyard"):
        RunFolder(tmp_path).read_manifest()
    (tmp_path / "manifest.json").write_text(json.dumps({"stages": {}}))
    with pytest.raises(InputError, match="damaged"):
        RunFolder(tmp_path).read_manifest()
