"""A lock of the operating system on a file: it goes with the process that holds it, however that ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from modelyard.errors import ModelyardError


@contextmanager
def held(file: Path, busy: Callable[[str], ModelyardError]) -> Iterator[None]:
    """Hold the lock of `file`, which then says who holds it and since when.

    Raises what `busy` makes of the holder's own words when another process has it.
    """
    with file.open("a+", encoding="utf-8") as opened:
        if not _try_lock(opened.fileno()):
            opened.seek(0)
            raise busy(opened.read().strip() or "unknown")
        opened.truncate(0)
        opened.write(f"pid {os.getpid()} since {datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC")
        opened.flush()
        yield


def _try_lock(descriptor: int) -> bool:
    """Take the operating system's lock on an open file without waiting."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
