"""Operating systems, C libraries, processors, AMD, Apple and Pythons (lines 13, 20 to 23 and 31)."""

from __future__ import annotations

from modelyard.environment import compatibility
from modelyard.environment.rules import Rule, Values, commands, facts
from modelyard.environment.snapshot import Gpu, Snapshot

# Since torch 2.9 (https://github.com/pytorch/pytorch/pull/163515); JAX and TensorFlow have no Metal of their own.
METAL_MACOS = "14"
# The last TensorFlow with GPU support on native Windows: https://www.tensorflow.org/install/pip
WINDOWS_GPU_TENSORFLOW = "2.11"
LOWEST_PYTHON = "3.11"
AMD_CHOICES = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")


def on_intel_mac(snapshot: Snapshot) -> bool:
    system = snapshot.system
    return system.name == "darwin" and system.machine == "x86_64" and not system.translated


def glibc_too_old(snapshot: Snapshot) -> Values | None:
    system = snapshot.system
    floor = compatibility.platform_floor("torch", system) if system.name == "linux" else None
    if floor is None or system.libc != "glibc" or not facts.older(system.libc_version, floor):
        return None
    return {"version": system.libc_version, "floor": floor, "distribution": system.distribution or "Linux"}


def musl(snapshot: Snapshot) -> Values | None:
    system = snapshot.system
    if system.name != "linux" or system.libc != "musl":
        return None
    return {"version": system.libc_version, "distribution": system.distribution or "Linux"}


def tensorflow_native_windows(snapshot: Snapshot) -> Values | None:
    version, gpus = facts.installed_tensorflow(snapshot), snapshot.accelerators.nvidia.gpus
    if snapshot.system.name != "windows" or not gpus or not facts.at_least(version, WINDOWS_GPU_TENSORFLOW):
        return None
    return {"version": version, "gpu": gpus[0].name}


def amd_gfx_unsupported(snapshot: Snapshot) -> list[Values]:
    torch, amd = snapshot.installed.framework("torch"), snapshot.accelerators.amd
    if not amd.rocm_version and (torch is None or torch.built_for != "rocm"):
        return []  # nobody asked for it: a graphics card for the screen
    compiled = torch.architectures if torch is not None and torch.built_for == "rocm" else ()
    # The torch that is installed knows best; "gfx90a:sramecc+" is gfx90a with options.
    known = {each.partition(":")[0] for each in compiled} or compatibility.rocm_gfx()
    return [
        {"gpu": each.name or each.capability, "gfx": each.capability, "known": ", ".join(sorted(known))}
        for each in facts.by_name(amd.gpus)
        if each.capability and not each.integrated and each.capability not in known and not amd.override
    ]


def amd_integrated_visible(snapshot: Snapshot) -> Values | None:
    torch, amd = snapshot.installed.framework("torch"), snapshot.accelerators.amd
    if torch is None or torch.built_for != "rocm":
        return None
    if any(name in snapshot.configuration.variables for name in AMD_CHOICES):
        return None
    integrated = [each for each in amd.gpus if each.integrated]
    discrete = [str(each.index) for each in amd.gpus if not each.integrated]
    if not integrated or not discrete:
        return None
    return {
        "integrated": integrated[0].name or integrated[0].capability,
        "index": integrated[0].index,
        "command": commands.set_variable(snapshot, "HIP_VISIBLE_DEVICES", ",".join(discrete)),
    }


def amd_override(snapshot: Snapshot) -> Values | None:
    override = snapshot.accelerators.amd.override
    if not override:
        return None
    real = ", ".join(each.capability for each in facts.by_name(snapshot.accelerators.amd.gpus) if each.capability)
    return {
        "value": override,
        "gfx": real or "?",
        "command": commands.unset_variable(snapshot, "HSA_OVERRIDE_GFX_VERSION"),
    }


def kfd_denied(snapshot: Snapshot) -> Values | None:
    amd, torch = snapshot.accelerators.amd, snapshot.installed.framework("torch")
    if not amd.kfd_exists or amd.kfd_accessible is not False:
        return None
    # A laptop's integrated graphics has a /dev/kfd too, and needs no rights on it for the screen.
    if not (torch is not None and torch.built_for == "rocm") and not any(map(_computes, amd.gpus)):
        return None
    return {"gpu": next((each.name for each in amd.gpus if each.name), "AMD GPU")}


def _computes(gpu: Gpu) -> bool:
    return not gpu.integrated and gpu.capability in compatibility.rocm_gfx()


def translated_python(snapshot: Snapshot) -> Values | None:
    system = snapshot.system
    if system.name != "darwin" or not system.translated:
        return None
    return {"python": snapshot.python.executable or "python", "machine": system.machine or "x86_64"}


def macos_too_old(snapshot: Snapshot) -> Values | None:
    system = snapshot.system
    if system.name != "darwin" or system.machine != "arm64" or not facts.older(system.release, METAL_MACOS):
        return None
    return {"release": system.release, "floor": METAL_MACOS}


def mps_not_available(snapshot: Snapshot) -> Values | None:
    torch, system = snapshot.installed.framework("torch"), snapshot.system
    if torch is None or not facts.works(torch) or not torch.devices or facts.reaches_accelerator(torch):
        return None
    if system.name != "darwin" or system.machine != "arm64" or not facts.at_least(system.release, METAL_MACOS):
        return None
    reason = facts.last_lines(torch.device_error)
    return {"version": torch.version, "release": system.release, "reason": reason}


def python_too_old(snapshot: Snapshot) -> Values | None:
    if not facts.older(snapshot.python.version, LOWEST_PYTHON):
        return None
    executable = snapshot.python.executable or "python"
    return {"version": snapshot.python.version, "python": executable, "floor": LOWEST_PYTHON}


def python_32_bit(snapshot: Snapshot) -> Values | None:
    if snapshot.python.bits != 32:
        return None
    return {"python": snapshot.python.executable or "python", "version": snapshot.python.version or "?"}


def externally_managed(snapshot: Snapshot) -> Values | None:
    python = snapshot.python
    if not python.externally_managed or python.environment:
        return None
    return {"python": python.executable or "python", "kind": python.kind or "system"}


RULES: dict[str, Rule] = {
    "glibc-too-old": glibc_too_old,
    "musl": musl,
    "tensorflow-native-windows": tensorflow_native_windows,
    "amd-gfx-unsupported": amd_gfx_unsupported,
    "amd-integrated-visible": amd_integrated_visible,
    "amd-override": amd_override,
    "kfd-denied": kfd_denied,
    "translated-python": translated_python,
    "macos-too-old": macos_too_old,
    "mps-not-available": mps_not_available,
    "python-too-old": python_too_old,
    "python-32-bit": python_32_bit,
    "externally-managed": externally_managed,
}
