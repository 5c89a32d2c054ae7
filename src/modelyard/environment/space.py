"""Whether the disks have room for a build, asked before anything is written there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from modelyard.environment.host import Host
from modelyard.errors import MachineError

# A guess from torch's CPU wheel, which becomes 3.7 times as large when it is unpacked; CUDA's become twice as large.
UNPACKED = 4
TEMPORARY_BYTES = 200_000_000  # a guess: what building a small source package and a proof may need


def cache_bytes(not_cached: list[str] | None, sizes: Mapping[str, int], disk_bytes: int) -> int:
    """What uv's cache grows by: unpacked packages that are not in it. Never more than the whole environment."""
    if not_cached is None or any(name not in sizes for name in not_cached):
        return disk_bytes if not_cached is None or disk_bytes else 0
    estimate = UNPACKED * sum(sizes[name] for name in not_cached)
    return min(estimate, disk_bytes) if disk_bytes else estimate


def check(what: str, environments: Path, disk_bytes: int, cache: Path, cache_bytes: int, host: Host) -> None:
    """Raises MachineError with the needed and the free amount when a disk has too little room for `what`.

    Places on one file system share its free bytes.
    """
    needs = [
        (environments, disk_bytes, "the environment"),
        (cache, cache_bytes, "uv's cache"),
        (Path(host.environ.get("TMPDIR") or tempfile.gettempdir()), TEMPORARY_BYTES, "temporary files"),
    ]
    by_disk: dict[int, list[tuple[Path, int, str]]] = {}
    for need in needs:
        by_disk.setdefault(_device(need[0]), []).append(need)
    for together in by_disk.values():
        found = host.disk_bytes(str(together[0][0]))
        needed = sum(amount for _, amount, _ in together)
        if found is None or found[1] >= needed:
            continue
        parts = ", ".join(f"{_shown(amount)} for {purpose}" for _, amount, purpose in together if amount)
        raise MachineError(
            f"not enough disk space for {what}: {_shown(needed)} are needed ({parts}), {_shown(found[1])} are free "
            f"under {together[0][0]}",
            hint=_hint(together[0][2]),
        )


def _hint(purpose: str) -> str:
    if purpose == "temporary files":
        return "free some space, or choose another disk: TMPDIR=FOLDER"
    if purpose == "uv's cache":
        return "free some space (`uv cache prune`), or choose another disk: UV_CACHE_DIR=FOLDER"
    return (
        "free some space (`modelyard env remove --old NAME` removes builds that are not used any more), or choose "
        "another disk: MODELYARD_ENVIRONMENTS=FOLDER, UV_CACHE_DIR=FOLDER"
    )


def _device(path: Path) -> int:
    """The file system of a path or of its nearest parent that exists."""
    for each in (path, *path.parents):
        try:
            return each.stat().st_dev
        except OSError:
            continue
    return 0


def _shown(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.0f} MB"
