"""Stands for NVIDIA's binding of NVML: written as ``pynvml.py`` beside an ``nvml.json`` that says what it plays."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

MESSAGES = {12: "NVML Shared Library Not Found", 15: "GPU is lost", 999: "Unknown Error"}
played = Path(__file__).with_name("nvml.json")
MACHINE: dict[str, Any] = json.loads(played.read_text()) if played.exists() else {}


class NVMLError(Exception):
    """As the real binding raises it: a number in `value`, a text of its own."""

    def __init__(self, value: int) -> None:
        super().__init__(value)
        self.value = value

    def __str__(self) -> str:
        return MESSAGES[self.value]


def nvmlInit() -> None:
    if MACHINE["error"]:
        raise NVMLError(MACHINE["error"])


def nvmlShutdown() -> None:
    pass


def nvmlSystemGetDriverVersion() -> str:
    return str(MACHINE["driver"])


def nvmlSystemGetCudaDriverVersion_v2() -> int:
    return int(MACHINE["cuda"])


def nvmlDeviceGetCount() -> int:
    return 1


def nvmlDeviceGetHandleByIndex(index: int) -> int:
    return index


def nvmlDeviceGetName(handle: int) -> str:
    return str(MACHINE["name"])


def nvmlDeviceGetMemoryInfo(handle: int, version: int = 1) -> SimpleNamespace:
    total, used = MACHINE["total"], MACHINE["used"]
    return SimpleNamespace(total=total, used=used, free=total - used)


def nvmlDeviceGetCudaComputeCapability(handle: int) -> list[int]:
    return list(MACHINE["capability"])
