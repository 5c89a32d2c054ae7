"""Devices that PyTorch can compute on here, each tried before it is offered."""

from __future__ import annotations

import math
import os
import platform
from pathlib import Path

import psutil
import torch

from modelyard.engines.base import Device
from modelyard.errors import MachineError

CGROUP = Path("/sys/fs/cgroup")
# Instructions that multiply bfloat16 matrices: x86 (Intel AMX, AVX-512 BF16 of Intel and AMD) and Arm.
BFLOAT16_FLAGS = frozenset({"amx_bf16", "avx512_bf16", "bf16"})
FIRST_BFLOAT16_CAPABILITY = (8, 0)  # Ampere, NVIDIA A100 whitepaper (2020)


def find_devices() -> list[Device]:
    """GPUs that work, then the CPU."""
    gpus = [_cuda(index) for index in range(_cuda_count()) if _cuda_failure(index) is None]
    return [*gpus, _cpu()]


def require_device(name: str) -> torch.device:
    """PyTorch's device of that name (``cpu``, ``cuda``, ``cuda:N``); the CPU's threads are set to our share.

    Raises MachineError when it is not there or does not work.
    """
    torch.set_num_threads(num_threads())
    if name == "cpu":
        return torch.device("cpu")
    index = int(name.removeprefix("cuda").removeprefix(":") or 0)
    count = _cuda_count()
    if index >= count:
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise MachineError(
            f"the device {name} was asked for, but PyTorch {torch.__version__} ({built}) sees {count} such devices",
            hint="--set environment.device=cpu, or install a PyTorch built for the GPU's driver",
        )
    failure = _cuda_failure(index)
    if failure is not None:
        raise MachineError(
            f"the device {name} ({torch.cuda.get_device_name(index)}) does not work: {failure}",
            hint="--set environment.device=cpu, or see whether `nvidia-smi` shows a driver that fits",
        )
    return torch.device("cuda", index)


def num_threads() -> int:
    """Threads for the CPU: PyTorch's choice (cores, OMP_NUM_THREADS), within what this process may use."""
    allowed = [torch.get_num_threads(), _cgroup_cpus(_own_cgroups())]
    if hasattr(os, "sched_getaffinity"):
        allowed.append(len(os.sched_getaffinity(0)))
    return max(1, min(each for each in allowed if each is not None))


def _own_cgroups(root: Path = CGROUP, membership: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """Folders of this process's control group (version 2) and its parents; a limit of any of them holds."""
    try:
        own = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return []
    folder = root / own.strip("/")
    return [each for each in (folder, *folder.parents) if each.is_relative_to(root)]


def _cgroup_cpus(folders: list[Path]) -> int | None:
    """CPUs that the quota in ``cpu.max`` ("quota period", microseconds) pays for, or None without one."""
    quotas = [words for folder in folders if (words := _words(folder / "cpu.max")) and words[0] != "max"]
    return min((math.ceil(int(quota) / int(period)) for quota, period in quotas), default=None)


def _cgroup_bytes(folders: list[Path]) -> int | None:
    limits = [words for folder in folders if (words := _words(folder / "memory.max")) and words[0] != "max"]
    return min((int(limit) for (limit,) in limits), default=None)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []


def _cpu() -> Device:
    limit = _cgroup_bytes(_own_cgroups())
    memory = psutil.virtual_memory().total
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    named = {key.strip().lower(): value.strip() for key, value in fields.items()}
    flags = set(named.get("flags", named.get("features", "")).split())
    return Device(
        name="cpu",
        kind="cpu",
        description=named.get("model name") or platform.processor() or platform.machine(),
        memory_bytes=memory if limit is None else min(memory, limit),
        num_threads=num_threads(),
        fast_bfloat16=bool(flags & BFLOAT16_FLAGS),
    )


def _cuda_count() -> int:
    return torch.cuda.device_count() if torch.version.cuda else 0


def _cuda(index: int) -> Device:
    properties = torch.cuda.get_device_properties(index)
    return Device(
        name=f"cuda:{index}",
        kind="cuda",
        description=properties.name,
        memory_bytes=properties.total_memory,
        num_threads=num_threads(),
        fast_bfloat16=torch.cuda.get_device_capability(index) >= FIRST_BFLOAT16_CAPABILITY,
    )


def _cuda_failure(index: int) -> str | None:
    """Why a small matrix product fails on this GPU, or None when it gives the right answer."""
    try:
        ones = torch.ones(8, 8, device=f"cuda:{index}")
        answer = float((ones @ ones).sum())
    except RuntimeError as error:  # no kernel for this GPU, a driver too old, memory taken by others
        return str(error).splitlines()[0]
    return None if answer == 512.0 else f"8 x 8 ones squared sum to {answer:g}, not to 512"
