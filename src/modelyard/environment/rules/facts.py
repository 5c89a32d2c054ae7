"""Questions about a snapshot that several rules ask."""

from __future__ import annotations

import math
import re

from modelyard.environment.compatibility import FRAMEWORKS, version_key
from modelyard.environment.snapshot import Framework, Gpu, Snapshot

# Values of CUDA_VISIBLE_DEVICES that leave no GPU: https://docs.nvidia.com/cuda/cuda-c-programming-guide/#cuda-environment-variables
# (an index that does not exist hides it and all after it; "none" and "NoDevFiles" are what containers and Slurm write).
HIDING = ("", "-1", "none", "nodevfiles")
PROCESSOR = ("cpu", "xla_cpu")
LINES_KEPT = 3
TEXT_KEPT = 300


def size(number: float) -> str:
    """Bytes as people read them: ``7.5 GB``, ``64 MB``, in powers of ten as disks are sold."""
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"


def last_lines(text: str) -> str:
    """The end of what a program said, on one line."""
    lines = [each.strip() for each in text.strip().splitlines() if each.strip()]
    return " / ".join(lines[-LINES_KEPT:])[-TEXT_KEPT:]


def works(framework: Framework | None) -> bool:
    """It was imported in a process of its own and answered."""
    return framework is not None and framework.asked and framework.outcome == "ok"


def reaches_accelerator(framework: Framework) -> bool:
    """It names a device besides the processor; said only of one that `works`."""
    return any(not each.lower().lstrip("/").startswith(PROCESSOR) for each in framework.devices)


def gpus_hidden(snapshot: Snapshot) -> bool:
    """The person took the NVIDIA GPUs away from every program of this shell."""
    value = snapshot.configuration.variables.get("CUDA_VISIBLE_DEVICES")
    return value is not None and value.strip().lower() in HIDING


def older(version: str, than: str) -> bool:
    """`version` is known and lower."""
    return bool(version_key(version)) and version_key(version) < version_key(than)


def at_least(version: str | None, least: str) -> bool:
    """`version` is known and not lower."""
    return bool(version_key(version or "")) and version_key(version or "") >= version_key(least)


def installed_tensorflow(snapshot: Snapshot) -> str | None:
    """The version of TensorFlow, under whichever of its many package names."""
    tensorflow = snapshot.installed.framework("tensorflow")
    return (tensorflow.version or None) if tensorflow is not None else snapshot.installed.version("tensorflow")


def environment_for(package: str) -> str:
    """The framework whose environment holds a package: itself, else torch."""
    return package if package in FRAMEWORKS else "torch"


def said(snapshot: Snapshot) -> str:
    """All that the frameworks said at import and of their devices."""
    parts = [part for each in snapshot.installed.frameworks for part in (each.error, each.warnings, each.device_error)]
    return "\n".join(parts)


def by_name(gpus: tuple[Gpu, ...]) -> list[Gpu]:
    """One GPU of each name and capability: eight equal ones are one finding."""
    return list({(each.name, each.capability): each for each in gpus}.values())


def usable_cores(snapshot: Snapshot) -> int | None:
    """Cores that threads can really use at once. A quota of 3.5 cores is taken as 4: a little too many costs little."""
    cpu = snapshot.cpu
    known = [each for each in (cpu.logical_cores, cpu.affinity_cores, cpu.quota_cores) if each is not None]
    return max(1, math.ceil(min(known))) if known else None


def whole_number(text: str) -> int | None:
    """The first number of ``8`` or ``8,4`` (OpenMP's levels), None of anything else."""
    found = re.match(r"\s*(\d{1,9})\s*(,|$)", text)
    return int(found[1]) if found else None
