"""Writing files so that a reader never sees half of one: temporary name, flush to disk, rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from modelyard.errors import MachineError

TEMPORARY_MARK = ".tmp-"


def temporary_path(path: Path) -> Path:
    """A name beside `path` that no reader takes for the real one."""
    return path.with_name(f"{path.name}{TEMPORARY_MARK}{uuid4().hex[:8]}")


@contextmanager
def space_errors(path: Path) -> Iterator[None]:
    """Turn "no space left", "read-only" and "not permitted" into an error that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        folder = path if path.is_dir() else path.parent
        free = ""
        with suppress(OSError):
            free = f" ({shutil.disk_usage(folder).free / 1e9:.1f} GB free)"
        raise MachineError(
            f"cannot write {path}: {error.strerror}{free}",
            hint="free some space or choose another folder, then type the same command again (a run: with --resume)",
        ) from error


def flush_to_disk(path: Path) -> None:
    """fsync a file or a folder (a folder's rename is durable only after that)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open folders
        return
    try:
        os.fsync(descriptor)
    except OSError:
        if path.is_file():
            raise
    finally:
        os.close(descriptor)


def write_with(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary file, then move it to `path`.

    Raises MachineError when the disk is full or not writable; the temporary file is removed then.
    """
    temporary = temporary_path(path)
    with space_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            flush_to_disk(temporary)
            temporary.replace(path)
            flush_to_disk(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    return path


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text at once or not at all."""
    return write_with(path, lambda temporary: _write_text(temporary, text))


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> Path:
    """Write readable JSON at once or not at all; NaN and infinities are refused, because JSON has none."""
    return write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_folder(path: Path, write: Callable[[Path], None]) -> Path:
    """Let `write` fill a temporary folder, then move it to `path`, replacing what was there.

    Raises MachineError when the disk is full or not writable; the temporary folder is removed then.
    """
    temporary = temporary_path(path)
    with space_errors(path):
        try:
            temporary.mkdir(parents=True)
            write(temporary)
            for file in sorted(temporary.rglob("*")):
                if file.is_file():
                    flush_to_disk(file)
            if path.exists():
                old = temporary_path(path)
                path.rename(old)
                temporary.rename(path)
                shutil.rmtree(old)
            else:
                temporary.rename(path)
            flush_to_disk(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return path


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files and folders that a killed process left directly in `folder`."""
    if folder.is_dir():
        for entry in folder.iterdir():
            if TEMPORARY_MARK in entry.name:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_sha256(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below `folder`, by its path relative to it (with forward slashes)."""
    return {
        file.relative_to(folder).as_posix(): file_sha256(file)
        for file in sorted(folder.rglob("*"))
        if file.is_file() and TEMPORARY_MARK not in file.name
    }


def value_sha256(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form (sorted keys, no spaces)."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
