"""Machines that do not exist: a `Host` whose files, programs, driver and network are given."""

from __future__ import annotations

import fnmatch
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from types import ModuleType, SimpleNamespace
from typing import Any

from modelyard.environment.host import Answer, Host, Ran

GIB = 1 << 30
PYTHON_FACTS = {
    "executable": "/usr/bin/python3",
    "version": "3.12.4",
    "bits": 64,
    "prefix": "/home/ann/venv",
    "base_prefix": "/usr",
    "conda": False,
    "externally_managed": True,
    "pip": "25.0",
    "uv": "",
}


@dataclass
class FakeHost(Host):
    """A small Linux machine with nothing special; every field changes one side of it.

    `files` are texts by path (every parent is a folder), `folders` more folders, `links` where a path really lies.
    `commands` are outputs by the whole command or by its first word; `answers` what addresses say, by their start.
    """

    files: dict[str, str] = field(default_factory=dict)
    folders: set[str] = field(default_factory=set)
    links: dict[str, str] = field(default_factory=dict)
    commands: dict[str, Ran | str] = field(default_factory=dict)
    answers: dict[str, Answer] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)
    name: str = "linux"
    release: str = "6.1.0"
    machine: str = "x86_64"
    home_folder: str = "/home/ann"
    current_folder: str = "/home/ann/work"
    python_path: str = "/home/ann/venv/bin/python"
    python_facts: dict[str, Any] | None = field(default_factory=lambda: dict(PYTHON_FACTS))
    nvml_module: ModuleType | None = None
    memory: tuple[int, int, int] | None = (32 * GIB, 20 * GIB, 8 * GIB)
    num_cores: tuple[int | None, int | None, int | None] = (8, 4, 8)
    libc_name: tuple[str, str] = ("glibc", "2.39")
    disks: dict[str, tuple[int, int]] = field(default_factory=lambda: {"/": (500 * GIB, 200 * GIB)})
    unwritable: dict[str, str] = field(default_factory=dict)
    denied: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)  # addresses that were fetched

    @property
    def environ(self) -> Mapping[str, str]:
        return self.variables

    @property
    def system(self) -> str:
        return self.name

    @property
    def home(self) -> str:
        return self.home_folder

    @property
    def here(self) -> str:
        return self.current_folder

    @property
    def python(self) -> str:
        return self.python_path

    @property
    def prefix(self) -> str:
        return "/home/ann/venv"

    def read_text(self, path: str) -> str | None:
        return self.files.get(path)

    def exists(self, path: str) -> bool:
        plain = path.rstrip("/") or "/"
        return plain == "/" or any(
            each == plain or each.startswith(f"{plain}/") for each in (*self.files, *self.folders, *self.links)
        )

    def glob(self, folder: str, pattern: str) -> list[str]:
        depth = len(PurePosixPath(folder, pattern).parts)
        known = {
            str(PurePosixPath(*PurePosixPath(each).parts[:depth])) for each in (*self.files, *self.folders, *self.links)
        }
        wanted = PurePosixPath(pattern).parts
        return sorted(each for each in known if each.startswith(f"{folder}/") and self._fits(folder, wanted, each))

    @staticmethod
    def _fits(folder: str, wanted: Sequence[str], path: str) -> bool:
        parts = PurePosixPath(path).relative_to(folder).parts
        return len(parts) == len(wanted) and all(map(fnmatch.fnmatchcase, parts, wanted))

    def resolve(self, path: str) -> str:
        return self.links.get(path, path)

    def accessible(self, path: str) -> bool | None:
        return path not in self.denied if self.exists(path) else None

    def disk_bytes(self, path: str) -> tuple[int, int] | None:
        return next((self.disks[str(each)] for each in self._upwards(path) if str(each) in self.disks), None)

    def try_write(self, folder: str) -> str:
        return next((self.unwritable[str(each)] for each in self._upwards(folder) if str(each) in self.unwritable), "")

    @staticmethod
    def _upwards(path: str) -> tuple[PurePosixPath, ...]:
        return (PurePosixPath(path), *PurePosixPath(path).parents)

    def run(self, command: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> Ran | None:
        if command[-1].endswith("interpreter.py") and self.python_facts is not None:
            return Ran(0, json.dumps(self.python_facts), "", 0.02)
        found = self.commands.get(" ".join(command), self.commands.get(command[0]))
        return Ran(0, found, "", 0.01) if isinstance(found, str) else found

    def nvml(self) -> ModuleType | None:
        return self.nvml_module

    def memory_bytes(self) -> tuple[int, int, int] | None:
        return self.memory

    def cores(self) -> tuple[int | None, int | None, int | None]:
        return self.num_cores

    def uname(self) -> tuple[str, str]:
        return self.release, self.machine

    def libc(self) -> tuple[str, str]:
        return self.libc_name

    def library_path(self, name: str) -> str:
        return ""

    def fetch(self, address: str, seconds: float, method: str = "GET", max_bytes: int = 1 << 18) -> Answer:
        self.asked.append(address)
        starts = sorted((each for each in self.answers if address.startswith(each)), key=len)
        return self.answers[starts[-1]] if starts else Answer(None, problem="Name or service not known")


class NvmlError(Exception):
    """As NVML's binding raises it: a number in `value`."""

    def __init__(self, value: int, text: str = "") -> None:
        super().__init__(text or f"NVML error {value}")
        self.value = value


@dataclass
class FakeGpu:
    """One GPU behind `fake_nvml`; a field that is an exception is raised when it is asked for."""

    name: Any = "NVIDIA GeForce RTX 4090"
    total: int = 24 * GIB
    used: int = GIB
    capability: Any = (8, 9)
    mig: Any = field(default_factory=lambda: NvmlError(3, "Not Supported"))
    nvlinks: Any = field(default_factory=lambda: NvmlError(3, "Not Supported"))  # or a list of link states
    handle: Any = None  # or the error that asking for its handle raises


def fake_nvml(
    *gpus: FakeGpu, driver: Any = "580.82.07", cuda: Any = 13000, init: Exception | None = None, count: Any = None
) -> ModuleType:
    """A module that answers like NVIDIA's binding of NVML."""

    def give(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value

    def handle(index: int) -> FakeGpu:
        if gpus[index].handle is not None:
            raise gpus[index].handle
        return gpus[index]

    def memory(gpu: FakeGpu, version: int | None = None) -> Any:
        return SimpleNamespace(total=gpu.total, free=gpu.total - gpu.used, used=gpu.used)

    module = ModuleType("pynvml")
    answers: dict[str, Any] = {
        "NVMLError": NvmlError,
        "NVML_NVLINK_MAX_LINKS": 18,
        "nvmlMemory_v2": 2,
        "nvmlInit": lambda: give(init),
        "nvmlShutdown": lambda: None,
        "nvmlSystemGetDriverVersion": lambda: give(driver),
        "nvmlSystemGetCudaDriverVersion_v2": lambda: give(cuda),
        "nvmlDeviceGetCount": lambda: give(len(gpus) if count is None else count),
        "nvmlDeviceGetHandleByIndex": handle,
        "nvmlDeviceGetName": lambda gpu: give(gpu.name),
        "nvmlDeviceGetMemoryInfo": memory,
        "nvmlDeviceGetCudaComputeCapability": lambda gpu: give(gpu.capability),
        "nvmlDeviceGetMigMode": lambda gpu: give(gpu.mig),
        "nvmlDeviceGetNvLinkState": lambda gpu, link: give(gpu.nvlinks)[link],
    }
    for name, value in answers.items():
        setattr(module, name, value)
    return module
