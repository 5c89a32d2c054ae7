"""NVIDIA: what NVML says of driver and GPUs, and what the files of the driver say when NVML does not answer."""

from __future__ import annotations

import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

from modelyard.environment.host import Host
from modelyard.environment.snapshot import Gpu, Nvidia

# NVML answers in milliseconds. Without the persistence daemon a server wakes its GPUs first, which takes seconds; that
# is worth waiting for only where the kernel module shows that there is something to wake.
NVML_SECONDS = 1.5
NVML_WAKING_SECONDS = 10.0
COMMAND_SECONDS = 1.0
MAX_GPUS = 64
MAX_NVLINKS = 36

LIBCUDA = "libcuda.so.1"
LIBCUDA_FOLDERS = (
    "/usr/lib/wsl/lib", "/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib",
    "/run/opengl-driver/lib", "/usr/local/nvidia/lib64",
)  # fmt: skip


def likely(host: Host) -> bool:
    """Whether the system shows an NVIDIA driver: its kernel module, its device files, or the GPU device of WSL."""
    return any(host.exists(path) for path in ("/sys/module/nvidia", "/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg"))


def nvml_seconds(host: Host) -> float:
    """How long to wait for NVML."""
    return NVML_WAKING_SECONDS if host.exists("/sys/module/nvidia") else NVML_SECONDS


def files(host: Host) -> Nvidia:
    """What can be known without calling the driver."""
    if host.system == "windows":
        library = "C:\\Windows\\System32\\nvcuda.dll"
        return Nvidia(libcuda_path=library if host.exists(library) else "")
    if host.system != "linux":
        return Nvidia()
    return Nvidia(
        kernel_module_version=(host.read_text("/sys/module/nvidia/version") or "").strip(),
        device_nodes=tuple(host.glob("/dev", "nvidia*")),
        libcuda_path=_libcuda(host),
    )


def _libcuda(host: Host) -> str:
    """Where the loader finds libcuda: LD_LIBRARY_PATH first, then its cache, then the usual folders."""
    for folder in host.environ.get("LD_LIBRARY_PATH", "").split(":"):
        if folder and host.exists(f"{folder}/{LIBCUDA}"):
            return f"{folder}/{LIBCUDA}"
    for command in ("/sbin/ldconfig", "ldconfig"):
        ran = host.run([command, "-p"], COMMAND_SECONDS)
        if ran and ran.code == 0:
            found = re.search(rf"^\s*{re.escape(LIBCUDA)} .*=> (\S+)$", ran.output, re.MULTILINE)
            if found:
                return found[1]
            break
    return next((f"{each}/{LIBCUDA}" for each in LIBCUDA_FOLDERS if host.exists(f"{each}/{LIBCUDA}")), "")


def toolkit_version(host: Host) -> str:
    """The CUDA toolkit's version as nvcc says it, "" without nvcc on PATH."""
    ran = host.run(["nvcc", "--version"], COMMAND_SECONDS)
    found = re.search(r"release (\d+\.\d+)", ran.output) if ran else None
    return found[1] if found else ""


def driver(host: Host) -> Nvidia:
    """What NVML says. An error of NVML is a fact; every single question may fail without the others."""
    nvml = host.nvml()
    if nvml is None:
        return Nvidia(nvml_message="NVIDIA's Python binding of NVML (nvidia-ml-py) cannot be imported")
    try:
        nvml.nvmlInit()
    except Exception as error:
        number, message = _error(error)
        return Nvidia(nvml_error=number, nvml_message=message)
    try:
        return _read(nvml)
    finally:
        _ask(nvml, "nvmlShutdown")


def _read(nvml: ModuleType) -> Nvidia:
    cuda = _whole(_ask(nvml, "nvmlSystemGetCudaDriverVersion_v2") or _ask(nvml, "nvmlSystemGetCudaDriverVersion"))
    driver_version = _text(_ask(nvml, "nvmlSystemGetDriverVersion"))
    gpus: list[Gpu] = []
    problem: tuple[int | None, str] = (None, "")
    try:
        count = _whole(nvml.nvmlDeviceGetCount()) or 0
        for index in range(min(count, MAX_GPUS)):
            try:
                gpus.append(_gpu(nvml, index))
            except Exception as error:  # this GPU was lost, or may not be seen; the others may be well
                problem = problem if problem[1] else _error(error)
    except Exception as error:
        problem = _error(error)
    return Nvidia(
        driver_version=driver_version,
        cuda_version=f"{cuda // 1000}.{cuda % 1000 // 10}" if cuda else "",
        nvml_error=problem[0],
        nvml_message=problem[1],
        gpus=tuple(gpus),
    )


def _gpu(nvml: ModuleType, index: int) -> Gpu:
    """One GPU. Raises what NVML raises when it gives no handle."""
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    # Version 2 counts apart what the driver reserves; version 1 would call it used by others
    version = getattr(nvml, "nvmlMemory_v2", None)
    memory = _ask(nvml, "nvmlDeviceGetMemoryInfo", handle, version) if version else None
    memory = memory or _ask(nvml, "nvmlDeviceGetMemoryInfo", handle)
    capability = _pair(_ask(nvml, "nvmlDeviceGetCudaComputeCapability", handle))
    mig = _pair(_ask(nvml, "nvmlDeviceGetMigMode", handle))
    return Gpu(
        index=index,
        name=_text(_ask(nvml, "nvmlDeviceGetName", handle)),
        total_bytes=_whole(getattr(memory, "total", None)),
        free_bytes=_whole(getattr(memory, "free", None)),
        others_bytes=_whole(getattr(memory, "used", None)),  # this process holds no GPU memory, so all is others'
        capability=f"{capability[0]}.{capability[1]}" if capability else "",
        mig=bool(mig and mig[0] == 1),
        nvlinks=_nvlinks(nvml, handle),
    )


def _nvlinks(nvml: ModuleType, handle: object) -> int | None:
    """Active links, None where the GPU has none at all."""
    states = []
    for link in range(min(_whole(getattr(nvml, "NVML_NVLINK_MAX_LINKS", None)) or 18, MAX_NVLINKS)):
        state = _ask(nvml, "nvmlDeviceGetNvLinkState", handle, link)
        if state is None:
            break
        states.append(state)
    return sum(state == 1 for state in states) if states else None


def _ask(nvml: ModuleType, name: str, *arguments: object) -> Any:
    """The answer to one question, None if it cannot be answered on this GPU, driver or version of the binding."""
    question: Callable[..., Any] | None = getattr(nvml, name, None)
    try:
        return question(*arguments) if question else None
    except Exception:
        return None


def _error(error: Exception) -> tuple[int | None, str]:
    value = getattr(error, "value", None)
    return (_whole(value), str(error).strip()[:300] or type(error).__name__)


def _text(value: object) -> str:
    """NVML gives bytes in some versions of its binding and text in others."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace").strip("\0 \n")
    return value.strip("\0 \n") if isinstance(value, str) else ""


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 63 else None


def _pair(value: object) -> tuple[int, int] | None:
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    first, second = _whole(value[0]), _whole(value[1])
    return None if first is None or second is None else (first, second)
