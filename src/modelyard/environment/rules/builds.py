"""Builds of frameworks that do not fit the GPU, the driver or the Python (lines 1 to 5, 11, 12, 14 and 15)."""

from __future__ import annotations

import re

from modelyard.environment import compatibility
from modelyard.environment.compatibility import version_key
from modelyard.environment.rules import Rule, Values, facts
from modelyard.environment.rules.drivers import cuda_error_802, cuda_error_804
from modelyard.environment.rules.platforms import kfd_denied, on_intel_mac
from modelyard.environment.snapshot import Gpu, Snapshot

BUILD = re.compile(r"cpu|xpu|cu\d+|rocm[\d.]+")
ARCHITECTURE = re.compile(r"(sm|compute)_(\d{1,3})(\d)([af]?)")


def torch_cpu_build(snapshot: Snapshot) -> Values | None:
    torch, gpus = snapshot.installed.framework("torch"), snapshot.accelerators.nvidia.gpus
    if torch is None or torch.built_for != "cpu" or not gpus:
        return None
    if compatibility.suggest_accelerator(snapshot) == "cpu":  # no build of torch would run on this GPU
        return None
    return {"version": torch.version, "gpu": gpus[0].name, "count": len(gpus)}


def torch_no_rocm_build(snapshot: Snapshot) -> Values | None:
    torch = snapshot.installed.framework("torch")
    accelerator = compatibility.suggest_accelerator(snapshot)
    if torch is None or torch.built_for not in ("cpu", "cuda") or not accelerator.startswith("rocm"):
        return None
    gpu = next(each for each in snapshot.accelerators.amd.gpus if each.capability in compatibility.rocm_gfx())
    return {"version": torch.version, "gpu": gpu.name or gpu.capability, "built_for": torch.built_for}


def driver_too_old(snapshot: Snapshot) -> list[Values]:
    nvidia, system = snapshot.accelerators.nvidia, snapshot.system
    # Under WSL the driver, and the version that NVML tells, is that of Windows.
    floors = "windows" if system.wsl else system.name
    found: list[Values] = []
    for each in snapshot.installed.frameworks:
        floor = compatibility.driver_floor(each.built_version, floors) if each.built_for == "cuda" else None
        if floor is None or not nvidia.gpus or not facts.older(nvidia.driver_version, floor):
            continue
        if facts.works(each) and facts.reaches_accelerator(each):  # NVIDIA's compatibility libraries bridge it
            continue
        accelerator = compatibility.suggest_accelerator(snapshot, facts.environment_for(each.name))
        found.append(
            {
                "framework": each.name,
                "version": each.version,
                "cuda": each.built_version,
                "floor": floor,
                "driver": nvidia.driver_version,
                "accelerator": accelerator,
            }
        )
    return found


def gpu_architecture_missing(snapshot: Snapshot) -> list[Values]:
    torch = snapshot.installed.framework("torch")
    if torch is None or torch.built_for != "cuda":
        return []
    compiled = torch.architectures
    if not compiled and snapshot.python.kind != "conda":  # conda's builds have lists of their own
        variant = "cu" + "".join(torch.built_version.split(".")[:2])
        compiled = tuple(
            "sm_" + each.replace(".", "") for each in compatibility.architectures(variant, snapshot.system.machine)
        )
    return [
        {
            "version": torch.version,
            "gpu": each.name,
            "capability": each.capability,
            "compiled": ", ".join(compiled),
            "cuda": torch.built_version,
        }
        for each in facts.by_name(snapshot.accelerators.nvidia.gpus)
        if compiled and version_key(each.capability) and not runs_on(compiled, each.capability)
    ]


def runs_on(compiled: tuple[str, ...], capability: str) -> bool:
    """Whether a list such as ``sm_80 sm_90a compute_120`` has code for a GPU. True where the list is not understood."""
    found = [ARCHITECTURE.fullmatch(each) for each in compiled]
    if not any(found):
        return True
    gpu = version_key(capability)[:2]
    for each in found:
        if each is None:
            continue
        code = (int(each[2]), int(each[3]))
        if each[4] == "a":  # for exactly this GPU
            if code == gpu:
                return True
        elif each[1] == "compute":  # intermediate code, translated for every later GPU
            if code <= gpu:
                return True
        elif compatibility.covers([f"{code[0]}.{code[1]}"], capability):
            return True
    return False


def tensorflow_blackwell(snapshot: Snapshot) -> list[Values]:
    tensorflow = snapshot.installed.framework("tensorflow")
    if tensorflow is None or tensorflow.built_for != "cuda" or not version_key(tensorflow.version):
        return []
    if version_key(tensorflow.version)[:2] > (2, 21) or facts.gpus_hidden(snapshot):
        return []
    return [
        {"version": tensorflow.version, "gpu": each.name, "capability": each.capability}
        for each in facts.by_name(snapshot.accelerators.nvidia.gpus)
        if facts.at_least(each.capability, "10.0")
    ]


def torchvision_mismatch(snapshot: Snapshot) -> Values | None:
    torch, torchvision = snapshot.installed.version("torch"), snapshot.installed.version("torchvision")
    if not torch or not torchvision:
        return None
    said = [each for one in snapshot.installed.frameworks for each in one.problems if each.startswith("torchvision")]
    one, other = version_key(torch), version_key(torchvision)
    # torch 2.N and torchvision 0.(N + 15) belong together: https://github.com/pytorch/vision#installation
    own = f"0.{one[1] + 15}" if one[:1] == (2,) and one[1] <= 14 else ""
    builds = [_build(each, torch, snapshot) for each in (torch, torchvision)]
    problem = ""
    if said:
        problem = said[0]
    elif own and other[:1] == (0,) and own != compatibility.minor(torchvision):
        problem = f"torch {compatibility.minor(torch)} ↔ torchvision {own}"
    elif all(builds) and builds[0] != builds[1]:
        problem = f"{builds[0]} ≠ {builds[1]}"
    return {"torch": torch, "torchvision": torchvision, "problem": problem} if problem else None


def _build(version: str, torch: str, snapshot: Snapshot) -> str:
    """``cu130`` of ``0.28.0+cu130`` and of PyPI's ``0.28.0`` on Linux; "" where it is not known."""
    local = version.partition("+")[2]
    if local:
        return local if BUILD.fullmatch(local) else ""
    linux = snapshot.system.name == "linux" and snapshot.python.kind != "conda"
    return compatibility.default_torch_variant(torch) if linux else ""


def framework_below_floor(snapshot: Snapshot) -> list[Values]:
    # transformers is left to the line of its own (TensorFlow code of transformers 4 needs the old one).
    names = ("torch", "tensorflow", "jax", "keras", "transformers")
    found: list[Values] = []
    for each in snapshot.installed.frameworks:
        floor = compatibility.floor(each.name)
        if each.name not in names or not floor or not facts.older(each.version, floor):
            continue
        if each.name == "torch" and on_intel_mac(snapshot):
            continue
        if each.name == "transformers" and facts.installed_tensorflow(snapshot):
            continue
        framework = facts.environment_for(each.name)
        found.append({"package": each.name, "version": each.version, "floor": floor, "framework": framework})
    return found


def torch_on_intel_mac(snapshot: Snapshot) -> Values | None:
    torch = snapshot.installed.framework("torch")
    if torch is None or not on_intel_mac(snapshot) or not facts.older(torch.version, compatibility.floor("torch")):
        return None
    return {"version": torch.version, "floor": compatibility.floor("torch")}


def prerelease_framework(snapshot: Snapshot) -> list[Values]:
    return [
        {
            "package": each.name,
            "version": each.version,
            "python": snapshot.python.version,
            "framework": facts.environment_for(each.name),
        }
        for each in snapshot.installed.frameworks
        # NVIDIA's containers call their tested builds "2.9.0a0+….nv25.10".
        if version_key(each.version) and version_key(each.version)[-2] < 0 and "nv" not in each.version
    ]


def python_without_wheels(snapshot: Snapshot) -> Values | None:
    releases = compatibility.tables()["torch"]["releases"]
    newest = max((each["pythons"][1] for each in releases.values()), key=version_key)
    if snapshot.installed.frameworks or version_key(snapshot.python.version)[:2] <= version_key(newest)[:2]:
        return None
    return {"python": snapshot.python.version, "newest": newest}


def jax_cpu_fallback(snapshot: Snapshot) -> Values | None:
    jax, gpus = snapshot.installed.framework("jax"), _gpus_for(snapshot)
    if jax is None or not gpus or not facts.works(jax) or not jax.devices or facts.reaches_accelerator(jax):
        return None
    if snapshot.configuration.variables.get("JAX_PLATFORMS", "").startswith("cpu") or snapshot.system.name != "linux":
        return None
    accelerator = compatibility.suggest_accelerator(snapshot, "jax")
    if accelerator == "cpu" or driver_too_old(snapshot) or _cuda_refuses(snapshot):
        return None
    return {
        "version": jax.version,
        "gpu": gpus[0].name,
        "accelerator": accelerator,
        "reason": facts.last_lines(jax.device_error or jax.warnings),
    }


def tensorflow_no_gpu(snapshot: Snapshot) -> Values | None:
    tensorflow, gpus = snapshot.installed.framework("tensorflow"), _gpus_for(snapshot)
    if tensorflow is None or not gpus or not facts.works(tensorflow) or snapshot.system.name != "linux":
        return None
    if not tensorflow.devices or facts.reaches_accelerator(tensorflow) or tensorflow.built_for == "cpu":
        return None
    if tensorflow_blackwell(snapshot) or driver_too_old(snapshot) or _cuda_refuses(snapshot):
        return None
    return {
        "version": tensorflow.version,
        "gpu": gpus[0].name,
        "accelerator": compatibility.suggest_accelerator(snapshot, "tensorflow"),
        "reason": facts.last_lines(tensorflow.device_error or tensorflow.warnings),
    }


def torch_no_gpu(snapshot: Snapshot) -> Values | None:
    """A GPU build that reaches no GPU, for a reason that no other rule names."""
    torch = snapshot.installed.framework("torch")
    if torch is None or not facts.works(torch) or not torch.devices or facts.reaches_accelerator(torch):
        return None
    gpus = _gpus_for(snapshot) if torch.built_for == "cuda" else ()
    if torch.built_for == "rocm":
        gpus = tuple(each for each in snapshot.accelerators.amd.gpus if each.capability in compatibility.rocm_gfx())
    if not gpus or driver_too_old(snapshot) or gpu_architecture_missing(snapshot) or kfd_denied(snapshot):
        return None
    if _cuda_refuses(snapshot):
        return None
    return {"version": torch.version, "gpu": gpus[0].name, "reason": facts.last_lines(torch.device_error)}


def _gpus_for(snapshot: Snapshot) -> tuple[Gpu, ...]:
    """NVIDIA's GPUs that the person has not hidden."""
    return () if facts.gpus_hidden(snapshot) else snapshot.accelerators.nvidia.gpus


def _cuda_refuses(snapshot: Snapshot) -> bool:
    return bool(cuda_error_804(snapshot) or cuda_error_802(snapshot))


RULES: dict[str, Rule] = {
    "torch-cpu-build": torch_cpu_build,
    "torch-no-rocm-build": torch_no_rocm_build,
    "driver-too-old": driver_too_old,
    "gpu-architecture-missing": gpu_architecture_missing,
    "tensorflow-blackwell": tensorflow_blackwell,
    "torchvision-mismatch": torchvision_mismatch,
    "framework-below-floor": framework_below_floor,
    "torch-on-intel-mac": torch_on_intel_mac,
    "prerelease-framework": prerelease_framework,
    "python-without-wheels": python_without_wheels,
    "jax-cpu-fallback": jax_cpu_fallback,
    "tensorflow-no-gpu": tensorflow_no_gpu,
    "torch-no-gpu": torch_no_gpu,
}
