"""The running modelyard as a wheel, so that a new environment gets exactly the modelyard that made it, from no index.

The files are those of the package folder and the metadata those of the installation, so an editable one packs too.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from modelyard.errors import MachineError
from modelyard.runs.files import TEMPORARY_MARK, write_with

NAME = "modelyard"
_TAG = "py3-none-any"
_WHEEL = f"Wheel-Version: 1.0\nGenerator: modelyard\nRoot-Is-Purelib: true\nTag: {_TAG}\n"
_DATE = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can say; the same bytes whenever it is written
_MODE = 0o100644 << 16


def write_own_wheel(folder: Path) -> Path:
    """Write ``modelyard-<version>-py3-none-any.whl`` into `folder` and return its path.

    The same installation gives the same bytes every time. Raises MachineError when modelyard runs from a folder
    without being installed, and when `folder` cannot be written.
    """
    distribution = _distribution()
    version = distribution.version
    members = dict(_package_files())
    information = f"{NAME}-{version}.dist-info"
    members |= {f"{information}/{name}": content for name, content in _metadata_files(distribution)}
    members[f"{information}/RECORD"] = _record(members, f"{information}/RECORD")
    content = _zipped(members)
    return write_with(folder / f"{NAME}-{version}-{_TAG}.whl", lambda path: _write_bytes(path, content))


def _distribution() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(NAME)
    except importlib.metadata.PackageNotFoundError:
        raise MachineError(
            f"modelyard runs from {_package_folder()} without being installed, so it cannot put itself into an "
            "environment",
            hint="pip install modelyard, or in a checkout: pip install -e .",
        ) from None


def _package_folder() -> Path:
    return Path(__file__).resolve().parent.parent


def _package_files() -> Iterator[tuple[str, bytes]]:
    """Every file of the package except compiled, hidden and half-written ones."""
    root = _package_folder()
    for file in root.rglob("*"):
        inside = file.relative_to(root)
        left_out = any(part == "__pycache__" or part.startswith(".") or TEMPORARY_MARK in part for part in inside.parts)
        if file.is_file() and not left_out and file.suffix != ".pyc":
            yield f"{NAME}/{inside.as_posix()}", file.read_bytes()


def _metadata_files(distribution: importlib.metadata.Distribution) -> Iterator[tuple[str, bytes]]:
    """What belongs into the dist-info folder; a licence that an editable installation did not copy is not named."""
    metadata = distribution.read_text("METADATA") or ""
    head, separator, description = metadata.replace("\r\n", "\n").partition("\n\n")
    lines = []
    for line in head.split("\n"):
        if named := re.match(r"License-File: *(.+)", line):
            content = distribution.read_text(f"licenses/{named[1]}")
            if content is None:
                continue
            yield f"licenses/{named[1]}", content.encode()
        lines.append(line)
    yield "METADATA", ("\n".join(lines) + separator + description).encode()
    yield "WHEEL", _WHEEL.encode()
    if entry_points := distribution.read_text("entry_points.txt"):
        yield "entry_points.txt", entry_points.replace("\r\n", "\n").encode()


def _record(members: dict[str, bytes], own_name: str) -> bytes:
    rows = []
    for name, content in sorted(members.items()):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        rows.append(f"{_quoted(name)},sha256={digest},{len(content)}\n")
    return ("".join(rows) + f"{own_name},,\n").encode()


def _quoted(name: str) -> str:
    """A field of CSV."""
    return '"' + name.replace('"', '""') + '"' if re.search('[",]', name) else name


def _zipped(members: dict[str, bytes]) -> bytes:
    """Stored, not compressed: compressed bytes differ between versions of zlib, and with them the hash in the lock."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name, content in sorted(members.items()):
            member = zipfile.ZipInfo(name, _DATE)
            member.create_system = 3  # Unix, on whatever system it is written
            member.external_attr = _MODE
            archive.writestr(member, content)
    return buffer.getvalue()


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
