"""The packed modelyard is a wheel that installers accept, holds what is installed here, and is the same every time."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import os
import subprocess
import sys
import zipfile
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

import pytest
import uv

from modelyard.environment import own_wheel
from modelyard.errors import MachineError


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_wheel.write_own_wheel(tmp_path_factory.mktemp("packages"))


def test_its_name_says_version_and_that_it_is_pure(wheel: Path) -> None:
    assert wheel.name == f"modelyard-{version('modelyard')}-py3-none-any.whl"


def test_the_same_bytes_every_time(wheel: Path, tmp_path: Path) -> None:
    assert own_wheel.write_own_wheel(tmp_path / "new folder").read_bytes() == wheel.read_bytes()


def test_every_hash_of_record_is_right_and_nothing_is_unrecorded(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        record = next(name for name in names if name.endswith(".dist-info/RECORD"))
        rows = list(csv.reader(io.StringIO(archive.read(record).decode())))
        assert sorted(row[0] for row in rows) == sorted(names)
        for name, digest, size in rows:
            if name != record:
                content = archive.read(name)
                expected = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
                assert (digest, size) == (f"sha256={expected}", str(len(content))), name


def test_it_holds_the_package_and_no_compiled_files(wheel: Path) -> None:
    root = Path(str(files("modelyard")))
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert archive.read("modelyard/errors.py") == (root / "errors.py").read_bytes()
    assert {"modelyard/py.typed", "modelyard/demos/sentiment/reviews.jsonl.gz"} <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]


def test_an_installer_takes_it_and_its_command_works(wheel: Path, tmp_path: Path) -> None:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    subprocess.run(
        [uv.find_uv_bin(), "venv", "--quiet", "--python", sys.executable, tmp_path / "venv"], check=True, env=clean
    )
    python = tmp_path / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run(
        [uv.find_uv_bin(), "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheel],
        check=True,
        env=clean,
    )
    command = python.with_name("modelyard.exe" if os.name == "nt" else "modelyard")
    said = subprocess.run([command, "--version"], check=True, env=clean, capture_output=True, text=True, cwd=tmp_path)
    assert version("modelyard") in said.stdout
    where = subprocess.run(
        [python, "-c", "import modelyard; print(modelyard.__file__)"],
        check=True, env=clean, capture_output=True, text=True, cwd=tmp_path,
    ).stdout  # fmt: skip
    assert str(tmp_path / "venv") in where


def test_a_modelyard_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(own_wheel, "NAME", "modelyard-that-nobody-installed")
    with pytest.raises(MachineError, match="without being installed") as raised:
        own_wheel.write_own_wheel(tmp_path)
    assert "pip install" in raised.value.hint
    assert not list(tmp_path.iterdir())
