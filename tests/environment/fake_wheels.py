"""Wheels made on the fly, and environments with nothing in them, for tests of what is installed."""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import subprocess
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path

import uv


def make_wheel(folder: Path, name: str, version: str, files: Mapping[str, bytes | str]) -> Path:
    """A wheel as the specification asks, with exactly `files` (a script: ``{name}-{version}.data/scripts/x``)."""
    escaped = name.replace("-", "_")
    information = f"{escaped}-{version}.dist-info"
    contents = {path: text.encode() if isinstance(text, str) else text for path, text in files.items()} | {
        f"{information}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{information}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = io.StringIO()
    rows = [(path, f"sha256={_hash(content)}", len(content)) for path, content in contents.items()]
    csv.writer(record, lineterminator="\n").writerows([*rows, (f"{information}/RECORD", "", "")])
    wheel = folder / f"{escaped}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, content in contents.items():
            archive.writestr(path, content)
        archive.writestr(f"{information}/RECORD", record.getvalue())
    return wheel


def _hash(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()


def make_environment(folder: Path) -> tuple[Path, Path]:
    """An empty virtual environment made by uv: its Python and its site-packages."""
    run_uv("venv", "--quiet", "--python", sys.executable, str(folder))
    if sys.platform == "win32":
        return folder / "Scripts" / "python.exe", folder / "Lib" / "site-packages"
    return folder / "bin" / "python", next(folder.glob("lib/python3*/site-packages"))


def install(python: Path, *wheels: Path) -> None:
    """Install wheels with uv, one after the other, so that the last one wins; no index is asked."""
    for wheel in wheels:
        run_uv("pip", "install", "--quiet", "--no-index", "--no-deps", "--python", str(python), str(wheel))


def run_uv(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [uv.find_uv_bin(), "--no-config", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60)
