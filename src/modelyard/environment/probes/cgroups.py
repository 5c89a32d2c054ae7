"""What the control groups of this process allow: processor time and memory, version 1 and 2.

A limit may stand on the process's own group or on any of its parents, so the least of them counts. In a container the
group's path is the host's while only the container's part is mounted; the root field of the mount says which part.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from modelyard.environment.host import Host

NO_LIMIT_BYTES = 1 << 60  # version 1 writes a number near 2**63 where there is no limit
MAX_DEPTH = 32
ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One control group file system: which part of the tree (`root`) is seen at `point`."""

    root: str
    point: str
    controllers: frozenset[str]  # empty: version 2


def quota_cores(host: Host) -> float | None:
    """Processors that the control groups pay for, None without a limit."""
    found = [_quota_v2(host.read_text(f"{folder}/cpu.max")) for folder in _folders(host, "")]
    for folder in _folders(host, "cpu"):
        quota, period = (_number(host.read_text(f"{folder}/cpu.cfs_{name}_us")) for name in ("quota", "period"))
        found.append(quota / period if quota and period else None)
    return min((each for each in found if each), default=None)


def memory_limit_bytes(host: Host) -> int | None:
    """Bytes that the control groups allow, None without a limit."""
    found = [_number(host.read_text(f"{folder}/memory.max")) for folder in _folders(host, "")]
    found += [_number(host.read_text(f"{folder}/memory.limit_in_bytes")) for folder in _folders(host, "memory")]
    return min((each for each in found if each and each < NO_LIMIT_BYTES), default=None)


def _quota_v2(text: str | None) -> float | None:
    """`cpu.max` is "max 100000" or "150000 100000": microseconds in each period."""
    words = (text or "").split()
    quota, period = (_number(words[0]), _number(words[1])) if len(words) == 2 else (None, None)
    return quota / period if quota and period else None


def _number(text: str | None) -> int | None:
    """A positive number of at most 20 digits, None for "max", -1 and everything else."""
    word = (text or "").strip()
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 20 else None


def _folders(host: Host, controller: str) -> Iterator[str]:
    """The folder of the own group and of each parent that can be seen; `controller` "" is version 2."""
    group = _own_groups(host.read_text("/proc/self/cgroup") or "").get(controller)
    for mount in _mounts(host.read_text("/proc/self/mountinfo") or ""):
        if (controller in mount.controllers) if controller else not mount.controllers:
            inside = _below(group or "/", mount.root)
            yield from (f"{mount.point}{part}" for part in _upwards(inside))
            return


def _own_groups(text: str) -> dict[str, str]:
    """Path of the own group by controller, from lines "4:cpu,cpuacct:/path" and, for version 2, "0::/path"."""
    groups: dict[str, str] = {}
    for line in text.splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            for controller in fields[1].split(","):
                groups.setdefault(controller, fields[2])
    return groups


def _mounts(text: str) -> Iterator[Mount]:
    for line in text.splitlines():
        before, found, after = line.partition(" - ")
        fields, options = before.split(), after.split()
        if not found or len(fields) < 5 or not options or options[0] not in ("cgroup", "cgroup2"):
            continue
        controllers = options[-1].split(",") if options[0] == "cgroup" else []
        yield Mount(_unescaped(fields[3]), _unescaped(fields[4]).rstrip("/"), frozenset(controllers))


def _unescaped(path: str) -> str:
    return ESCAPED.sub(lambda match: chr(int(match[1], 8)), path)


def _below(group: str, root: str) -> str:
    """The group's path as seen in a mount of `root`; the mount itself if the group lies elsewhere."""
    if root == "/":
        inside = group
    elif group == root or group.startswith(f"{root}/"):
        inside = group[len(root) :]
    else:
        return ""
    return "" if ".." in inside.split("/") else inside.rstrip("/")


def _upwards(inside: str) -> Iterator[str]:
    """ "/a/b", "/a", ""."""
    for _ in range(MAX_DEPTH):
        yield inside
        if not inside:
            return
        inside = inside.rpartition("/")[0]
