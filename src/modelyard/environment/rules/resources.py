"""Cores, memory and disks (lines 24 to 27)."""

from __future__ import annotations

import posixpath

from modelyard.environment import compatibility
from modelyard.environment.rules import Rule, Values, commands, facts
from modelyard.environment.snapshot import Disk, Snapshot

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
# A guess: torch alone takes half a gigabyte, a small model with its optimiser as much, the system the rest.
LEAST_MEMORY_BYTES = 2 << 30
# docker and Kubernetes give 64 MB; a batch that workers hand over through /dev/shm has tens of them. A guess.
LEAST_SHARED_MEMORY_BYTES = 256 << 20
FULL_BYTES = 200 << 20  # hardly a log file and the unpacking of a small wheel
LEAST_TEMPORARY_BYTES = 10**9  # pip unpacks a framework's wheel there


def cpu_quota_threads(snapshot: Snapshot) -> Values | None:
    """Nobody told the libraries how many threads to start, and they do not see the quota."""
    cpu, usable = snapshot.cpu, facts.usable_cores(snapshot)
    seen = cpu.affinity_cores or cpu.logical_cores
    if cpu.quota_cores is None or seen is None or usable is None or usable >= seen:
        return None
    if any(facts.whole_number(value) for _, value in _thread_variables(snapshot)):
        return None
    asked = [each.num_threads for each in snapshot.installed.frameworks if each.asked and each.num_threads]
    threads = max(asked, default=seen)
    if threads <= usable:
        return None
    return {
        "threads": threads,
        "paid": f"{cpu.quota_cores:g}",
        "machine": cpu.logical_cores or seen,
        "command": commands.set_variable(snapshot, "OMP_NUM_THREADS", str(usable)),
    }


def thread_variables_too_large(snapshot: Snapshot) -> list[Values]:
    usable = facts.usable_cores(snapshot)
    found: list[Values] = []
    for name, value in _thread_variables(snapshot):
        threads = facts.whole_number(value)
        if usable is None or threads is None or threads <= usable:
            continue
        command = commands.set_variable(snapshot, name, str(usable))
        found.append({"variable": name, "threads": threads, "usable": usable, "command": command})
    return found


def _thread_variables(snapshot: Snapshot) -> list[tuple[str, str]]:
    variables = snapshot.configuration.variables
    return [(name, variables[name]) for name in THREAD_VARIABLES if name in variables]


def memory_too_small(snapshot: Snapshot) -> Values | None:
    memory = snapshot.memory
    usable = memory.usable_bytes
    if usable is None or usable >= LEAST_MEMORY_BYTES:
        return None
    return {
        "usable": facts.size(usable),
        "total": facts.size(memory.total_bytes) if memory.total_bytes is not None else "?",
        "least": facts.size(LEAST_MEMORY_BYTES),
    }


def small_shared_memory(snapshot: Snapshot) -> Values | None:
    disk = snapshot.disk("shared-memory")
    if disk is None or disk.total_bytes is None or disk.total_bytes >= LEAST_SHARED_MEMORY_BYTES:
        return None
    command = commands.start_with_shared_memory(snapshot)
    return {"path": disk.path, "size": facts.size(disk.total_bytes), "command": command}


def disk_full(snapshot: Snapshot) -> list[Values]:
    return [
        {"path": disks[0].path, "free": facts.size(disks[0].free_bytes or 0)} | _elsewhere(snapshot, disks[0])
        for disks in _by_file_system(snapshot, ("environments", "cache", "hub", "temporary"))
        if _is_full(disks[0])
    ]


def disk_low(snapshot: Snapshot) -> list[Values]:
    """Enough for small files, not for the installation that comes next. Silent where that is done already."""
    if any(each.state == "ready" for each in snapshot.managed):
        return []
    accelerator = compatibility.suggest_accelerator(snapshot)
    kind = "cuda" if accelerator.startswith("cu") else "rocm" if accelerator.startswith("rocm") else accelerator
    sizes = compatibility.tables()["sizes"]["torch"]
    download, installed = sizes.get(kind, sizes["cpu"])
    needs = {"environments": installed * 1e9, "cache": download * 1e9, "temporary": LEAST_TEMPORARY_BYTES}
    found: list[Values] = []
    for disks in _by_file_system(snapshot, tuple(needs)):
        free, needed = disks[0].free_bytes, sum(needs[each.purpose] for each in disks)
        if free is None or _is_full(disks[0]) or free >= needed:
            continue
        values = {"path": disks[0].path, "free": facts.size(free), "needed": facts.size(needed)}
        found.append({**values, "accelerator": accelerator, **_elsewhere(snapshot, disks[0])})
    return found


def _is_full(disk: Disk) -> bool:
    return (disk.free_bytes is not None and disk.free_bytes < FULL_BYTES) or "no space" in disk.problem.lower()


def _by_file_system(snapshot: Snapshot, purposes: tuple[str, ...]) -> list[list[Disk]]:
    """Places with the same size and free space are on one disk, as environments and caches mostly are."""
    found: dict[tuple[object, ...], list[Disk]] = {}
    for each in snapshot.disks:
        if each.purpose in purposes:
            known = each.total_bytes is not None and each.free_bytes is not None
            key = (each.total_bytes, each.free_bytes) if known else (each.path,)
            found.setdefault(key, []).append(each)
    return list(found.values())


def _elsewhere(snapshot: Snapshot, disk: Disk) -> Values:
    """How this place is moved to another disk."""
    name = {
        "environments": "MODELYARD_ENVIRONMENTS",
        "cache": "MODELYARD_CACHE",
        "hub": "HF_HOME",
        "temporary": "TEMP" if snapshot.system.name == "windows" else "TMPDIR",
    }[disk.purpose]
    folder = _large_folder(snapshot, disk)
    command = commands.set_variable(snapshot, name, folder)
    if name == "TMPDIR":  # one that is not there is passed over without a word
        command = f"mkdir -p {commands.quoted(folder)} && {command}"
    return {"command": command}


def _large_folder(snapshot: Snapshot, disk: Disk) -> str:
    """A folder on the disk with the most space, if that is another one, else an example."""
    others = [
        each for purpose in ("here", "cache", "environments") for each in snapshot.disks if each.purpose == purpose
    ]
    best = max(others, key=lambda each: each.free_bytes or 0, default=None)
    if best is not None and (best.free_bytes or 0) > (disk.free_bytes or 0) and best.writable is not False:
        separator = "\\" if "\\" in best.path else "/"
        return f"{best.path.rstrip(separator)}{separator}modelyard-{disk.purpose}"
    return "D:\\modelyard" if snapshot.system.name == "windows" else f"/path/with/space/modelyard-{disk.purpose}"


def hub_cache_not_writable(snapshot: Snapshot) -> Values | None:
    disk = snapshot.disk("hub")
    if disk is None or disk.writable is not False or _is_full(disk):
        return None
    if snapshot.configuration.hub_offline:  # a cache that was filled by someone else is only read then
        return None
    cache = snapshot.disk("cache")
    path = posixpath.join(cache.path, "huggingface") if cache is not None and cache.writable else "~/huggingface"
    command = commands.set_variable(snapshot, "HF_HOME", path)
    return {"path": disk.path, "problem": disk.problem or "?", "command": command}


def folder_not_writable(snapshot: Snapshot) -> list[Values]:
    return [
        {"path": each.path, "problem": each.problem or "?"} | _elsewhere(snapshot, each)
        for each in snapshot.disks
        if each.purpose in ("environments", "cache", "temporary") and each.writable is False and not _is_full(each)
    ]


RULES: dict[str, Rule] = {
    "cpu-quota-threads": cpu_quota_threads,
    "thread-variables-too-large": thread_variables_too_large,
    "memory-too-small": memory_too_small,
    "small-shared-memory": small_shared_memory,
    "disk-full": disk_full,
    "disk-low": disk_low,
    "hub-cache-not-writable": hub_cache_not_writable,
    "folder-not-writable": folder_not_writable,
}
