"""GPUs that are there but cannot be used: drivers, containers, WSL, memory (lines 16 to 19 and 32)."""

from __future__ import annotations

from modelyard.environment.rules import Rule, Values, commands, facts
from modelyard.environment.snapshot import Snapshot

# Return codes of NVML: https://docs.nvidia.com/deploy/nvml-api/group__nvmlDeviceEnumvs.html
DRIVER_NOT_LOADED, NO_LIBRARY, GPU_IS_LOST, BLOCKED, VERSIONS_DIFFER, UNKNOWN = 9, 12, 15, 17, 18, 999
# What JAX takes at its first operation: https://docs.jax.dev/en/latest/201/gpu-memory.html
JAX_SHARE = 0.75
JAX_SHARE_NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
MOSTLY = 0.5


def driver_library_mismatch(snapshot: Snapshot) -> Values | None:
    nvidia = snapshot.accelerators.nvidia
    if nvidia.nvml_error != VERSIONS_DIFFER:
        return None
    return {"kernel": nvidia.kernel_module_version or "?", "message": nvidia.nvml_message or "NVML 18"}


def cuda_error_804(snapshot: Snapshot) -> Values | None:
    said = facts.said(snapshot)
    if "Error 804" not in said and "forward compatibility was attempted" not in said:
        return None
    folders = snapshot.configuration.variables.get("LD_LIBRARY_PATH", "").split(":")
    kept = [each for each in folders if each and "compat" not in each.split("/")]
    command = commands.unset_variable(snapshot, "LD_LIBRARY_PATH")
    if kept:
        command = commands.set_variable(snapshot, "LD_LIBRARY_PATH", ":".join(kept))
    return {"libcuda": snapshot.accelerators.nvidia.libcuda_path or "libcuda", "command": command} | _gpu(snapshot)


def cuda_error_802(snapshot: Snapshot) -> Values | None:
    said = facts.said(snapshot)
    if "Error 802" not in said and "system not yet initialized" not in said:
        return None
    return _gpu(snapshot)


def _gpu(snapshot: Snapshot) -> Values:
    nvidia = snapshot.accelerators.nvidia
    return {"gpu": nvidia.gpus[0].name if nvidia.gpus else "GPU", "driver": nvidia.driver_version or "?"}


def container_lost_gpu(snapshot: Snapshot) -> Values | None:
    nvidia = snapshot.accelerators.nvidia
    if not snapshot.system.container or nvidia.nvml_error not in (BLOCKED, UNKNOWN) or nvidia.gpus:
        return None
    return {
        "container": snapshot.system.container,
        "nodes": ", ".join(nvidia.device_nodes) or "/dev/nvidia*",
        "command": commands.start_with_gpu(snapshot),
    }


def container_without_gpu(snapshot: Snapshot) -> Values | None:
    nvidia = snapshot.accelerators.nvidia
    if not snapshot.system.container or not nvidia.kernel_module_version or nvidia.gpus or nvidia.device_nodes:
        return None
    return {
        "container": snapshot.system.container,
        "kernel": nvidia.kernel_module_version,
        "command": commands.start_with_gpu(snapshot),
    }


def wsl_linux_driver(snapshot: Snapshot) -> Values | None:
    path = snapshot.accelerators.nvidia.libcuda_path
    # Only a full path says which library the loader takes. "stubs" and "compat" come with the toolkit, no driver.
    if not snapshot.system.wsl or not path.startswith("/"):
        return None
    if any(each in path for each in ("/wsl/", "/stubs/", "/compat/")):
        return None
    return {"libcuda": path}


def driver_not_loaded(snapshot: Snapshot) -> Values | None:
    nvidia, system = snapshot.accelerators.nvidia, snapshot.system
    if nvidia.nvml_error != DRIVER_NOT_LOADED or system.name != "linux" or system.container or system.wsl:
        return None
    if nvidia.kernel_module_version or nvidia.bus_devices == 0:  # another matter; libraries without a GPU
        return None
    return {"message": nvidia.nvml_message or "Driver Not Loaded"}


def driver_missing(snapshot: Snapshot) -> Values | None:
    """A GPU is on the bus and no driver is installed; without the bus's word, a machine has no NVIDIA GPU."""
    nvidia, system = snapshot.accelerators.nvidia, snapshot.system
    if not nvidia.bus_devices or nvidia.gpus or nvidia.nvml_error != NO_LIBRARY or nvidia.kernel_module_version:
        return None
    if system.container or system.wsl:
        return None
    command = "sudo ubuntu-drivers install" if "ubuntu" in system.distribution.lower() else ""
    return {"count": nvidia.bus_devices, "command": command, "distribution": system.distribution or "Linux"}


def gpu_lost(snapshot: Snapshot) -> Values | None:
    nvidia = snapshot.accelerators.nvidia
    return {"message": nvidia.nvml_message or "GPU is lost"} if nvidia.nvml_error == GPU_IS_LOST else None


def gpus_hidden(snapshot: Snapshot) -> Values | None:
    gpus = snapshot.accelerators.nvidia.gpus
    if not gpus or not facts.gpus_hidden(snapshot):
        return None
    return {
        "count": len(gpus),
        "value": snapshot.configuration.variables["CUDA_VISIBLE_DEVICES"],
        "command": commands.unset_variable(snapshot, "CUDA_VISIBLE_DEVICES"),
    }


def gpu_memory_used_by_others(snapshot: Snapshot) -> list[Values]:
    found: list[Values] = []
    for each in snapshot.accelerators.nvidia.gpus + snapshot.accelerators.amd.gpus:
        if each.others_bytes is None or not each.total_bytes or each.others_bytes <= MOSTLY * each.total_bytes:
            continue
        found.append(
            {"index": each.index, "gpu": each.name, "used": facts.size(each.others_bytes)}
            | {"total": facts.size(each.total_bytes)}
        )
    return found


def jax_preallocates(snapshot: Snapshot) -> list[Values]:
    jax, variables = snapshot.installed.framework("jax"), snapshot.configuration.variables
    if jax is None or jax.built_for != "cuda" or facts.gpus_hidden(snapshot):
        return []
    if variables.get("XLA_PYTHON_CLIENT_PREALLOCATE", "").lower() in ("false", "0"):
        return []
    if variables.get("XLA_PYTHON_CLIENT_ALLOCATOR", "").lower() == "platform":
        return []
    share = _jax_share(variables)
    found: list[Values] = []
    for each in snapshot.accelerators.nvidia.gpus:
        if each.free_bytes is None or not each.total_bytes or each.free_bytes >= share * each.total_bytes:
            continue
        found.append(
            {
                "index": each.index,
                "gpu": each.name,
                "free": facts.size(each.free_bytes),
                "wanted": facts.size(share * each.total_bytes),
                "command": commands.set_variable(snapshot, "XLA_PYTHON_CLIENT_PREALLOCATE", "false"),
            }
        )
    return found


def _jax_share(variables: dict[str, str]) -> float:
    for name in JAX_SHARE_NAMES:
        try:
            return float(variables[name])
        except (KeyError, ValueError):
            continue
    return JAX_SHARE


RULES: dict[str, Rule] = {
    "driver-library-mismatch": driver_library_mismatch,
    "cuda-error-804": cuda_error_804,
    "cuda-error-802": cuda_error_802,
    "container-lost-gpu": container_lost_gpu,
    "container-without-gpu": container_without_gpu,
    "wsl-linux-driver": wsl_linux_driver,
    "driver-not-loaded": driver_not_loaded,
    "driver-missing": driver_missing,
    "gpu-lost": gpu_lost,
    "gpus-hidden": gpus_hidden,
    "gpu-memory-used-by-others": gpu_memory_used_by_others,
    "jax-preallocates": jax_preallocates,
}
