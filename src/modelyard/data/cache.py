"""The cache of prepared data: keyed by content, checked before use, safe against processes that prepare at once."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from modelyard.data.sources import Source
from modelyard.errors import DataError
from modelyard.runs.files import TEMPORARY_MARK, file_sha256, space_errors, write_json

MANIFEST = "cache.json"
EDGE_BYTES = 1024 * 1024
# A file changed within this time of being hashed could change again without its time showing it (coarse clocks).
SETTLED_SECONDS = 2.0


def content_hashes(sources: Iterable[Source], index_file: Path) -> list[list[str]]:
    """For each source, the SHA-256 of each of its files, in order.

    A file is hashed only when its path, size, time and inode are not in `index_file`, which is brought up to
    date.
    """
    index = _read_object(index_file)
    known = dict(index)
    result = []
    for source in sources:
        hashes = [_content_hash(file, known) for file in source.files]
        result.append(hashes or [source.identity])
    if known != index:
        with space_errors(index_file):
            index_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(index_file, known)
    return result


def _content_hash(file: Path, known: dict[str, Any]) -> str:
    try:
        stat = file.stat()
        state = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        name = str(file.resolve())
        match known.get(name):
            case [*known_state, str(sha256)] if known_state == state:
                return sha256
        sha256 = file_sha256(file)
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror or error})",
            hint=f"check it with `ls -l {file}`",
            where=file.name,
        ) from error
    if time.time() - stat.st_mtime > SETTLED_SECONDS:
        known[name] = [*state, sha256]
    return sha256


def _read_object(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # missing or damaged: both mean that nothing is known
        return {}
    return value if isinstance(value, dict) else {}


def seal(folder: Path) -> None:
    """Write the list of files by which `is_sound` knows a whole entry. It is the last file that is written."""
    files = {file.name: _trace(file) for file in sorted(folder.iterdir()) if file.is_file()}
    write_json(folder / MANIFEST, {"files": files})


def is_sound(folder: Path) -> bool:
    """Whether every file of the entry is there with its size and unchanged at both ends (the middle is not read)."""
    files = _read_object(folder / MANIFEST).get("files")
    if not isinstance(files, dict) or not files:
        return False
    try:
        return all(_trace(folder / name) == trace for name, trace in files.items())
    except OSError:
        return False


def _trace(file: Path) -> list[Any]:
    size = file.stat().st_size
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        digest.update(opened.read(EDGE_BYTES))
        opened.seek(max(size - EDGE_BYTES, 0))
        digest.update(opened.read(EDGE_BYTES))
    return [size, digest.hexdigest()]


@contextmanager
def locked(folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
    """Only one process at a time works on the entry `folder`; what a killed one left of it is removed.

    waiting: called once when another process holds the lock.
    """
    with space_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f"{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        for leftover in folder.parent.glob(f"{folder.name}{TEMPORARY_MARK}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        yield
    finally:
        lock.release()
