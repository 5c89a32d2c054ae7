"""What runs with what: typed access to compatibility.yaml, and which build suits the hardware of a snapshot.

Versions are compared by `version_key`, a small part of PEP 440 that is enough for drivers, Pythons and frameworks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from modelyard.environment.snapshot import Gpu, Nvidia, Snapshot, System

FRAMEWORKS = ("torch", "tensorflow", "jax")
RELEASE_NUMBERS = 6  # compared; a longer version is cut
_PHASES = {"dev": -4, "a": -3, "alpha": -3, "b": -2, "beta": -2, "rc": -1, "c": -1, "pre": -1, "post": 1}
_VERSION = re.compile(
    r"v?(\d{1,9}(?:\.\d{1,9})*)(?:[._-]?(dev|alpha|a|beta|b|pre|rc|c|post)[._-]?(\d{0,9}))?", re.ASCII
)

Outcome = Literal["fits", "no-gpu", "driver-broken", "driver-old", "gpu-old", "gpu-new", "gpu-unknown", "mixed", "none"]


def version_key(text: str) -> tuple[int, ...]:
    """Sorts versions: releases number by number, pre-releases below their release, ``+cpu`` ignored, garbage lowest."""
    found = _VERSION.match(text.strip().lower())
    if found is None:
        return ()
    numbers = [int(each) for each in found[1].split(".")][:RELEASE_NUMBERS]
    numbers += [0] * (RELEASE_NUMBERS - len(numbers))
    return (*numbers, _PHASES.get(found[2] or "", 0), int(found[3] or 0))


def minor(version: str) -> str:
    """``2.13`` of ``2.13.0+cpu``, "" of what is no version."""
    key = version_key(version)
    return f"{key[0]}.{key[1]}" if key else ""


@cache
def tables() -> dict[str, Any]:
    """All of compatibility.yaml."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    text = (files("modelyard.environment") / "compatibility.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=loader))


def driver_floor(cuda: str, system: str = "linux") -> str | None:
    """Lowest NVIDIA driver for a version of CUDA (``13.0`` or ``13``), None where the table has none."""
    key = version_key(cuda)
    floors: dict[str, str] = tables()["drivers"][system] if system in ("linux", "windows") else {}
    return floors.get(str(key[0])) if key else None


def cuda_version(variant: str) -> str | None:
    """``12.6`` of ``cu126``; ``12.0`` of ``cuda12``, which stands for every 12.x."""
    if re.fullmatch(r"cu\d{3,4}", variant):
        return f"{variant[2:-1]}.{variant[-1]}"
    return f"{variant[4:]}.0" if re.fullmatch(r"cuda\d{1,2}", variant) else None


def architectures(variant: str, machine: str = "x86_64") -> tuple[str, ...]:
    """Compute capabilities that a CUDA build of torch is compiled for (``cu126``), empty for other builds."""
    table = tables()["architectures"]["aarch64" if machine in ("aarch64", "arm64") else "x86_64"]
    return tuple(table.get(variant, ()))


def covers(compiled: Iterable[str], capability: str) -> bool:
    """Whether code for these compute capabilities runs on a GPU of `capability`: same major, minor not above it."""
    exact = tables()["architectures"]["exact"]
    gpu = version_key(capability)[:2]
    for each in compiled:
        code = version_key(each)[:2]
        if code == gpu:
            return True
        if each not in exact and capability not in exact and code[:1] == gpu[:1] and code <= gpu:
            return True
    return False


def torch_variants(version: str) -> tuple[str, ...]:
    """Builds of a torch release (``2.13``), the plain ones first; empty for a release that is not in the table."""
    release = _release("torch", version)
    return ("cpu", *release["cuda"], *release["rocm"], "xpu", "mps") if release else ()


def default_torch_variant(version: str) -> str:
    """The build that PyPI's Linux wheel of this torch release is (``cu130``), "" if it is not in the table."""
    return str(_release("torch", version).get("default", ""))


def pythons(framework: str, version: str) -> tuple[str, ...]:
    """Python versions (``3.11``) that a release of torch, tensorflow or jax has wheels for, ascending."""
    span = _release(framework, version).get("pythons")
    if not span:
        return ()
    first, last = (version_key(each)[1] for each in span)
    return tuple(f"3.{number}" for number in range(first, last + 1))


def tensorflow_pythons(version: str) -> tuple[str, ...]:
    return pythons("tensorflow", version)


def jax_pythons(version: str) -> tuple[str, ...]:
    return pythons("jax", version)


def rocm_gfx() -> frozenset[str]:
    """AMD architectures that PyTorch's ROCm builds are compiled for."""
    return frozenset(tables()["rocm"]["gfx"])


def floor(package: str) -> str:
    """Lowest version of a package that is accepted after resolving, "" for any."""
    return str(tables()["floors"].get(package, "")) if package != "source" else ""


@cache
def constraints() -> dict[str, str]:
    """The versions that modelyard is tested with: constraints.txt as normalised name → exact version."""
    text = (files("modelyard") / "constraints.txt").read_text(encoding="utf-8")
    lines = (line.split("#")[0].strip().partition("==") for line in text.splitlines())
    return {normalised(name): version for name, _, version in lines if version}


def normalised(name: str) -> str:
    """A distribution's name as indexes compare it: lower case, one dash for every run of ``-_.``."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()


def tested(package: str) -> str:
    """The version of a package that modelyard is tested with, "" if it is not among them."""
    return constraints().get(normalised(package), "")


def platform_name(system: System) -> str:
    """``linux-x86_64``, ``darwin-arm64`` …: how the table of platforms calls a machine."""
    names = {"amd64": "x86_64", "x64": "x86_64", "arm64": "aarch64"}
    machine = system.machine.lower()
    machine = names.get(machine, machine)
    return f"{system.name}-{'arm64' if system.name == 'darwin' and machine == 'aarch64' else machine}"


def platform_floor(framework: str, system: System) -> str | None:
    """Lowest glibc or macOS for a framework (or ``tpu``) on this platform, None where it has no wheels at all."""
    found = tables()["platforms"][framework].get(platform_name(system))
    return None if found is None else str(found)


@dataclass(frozen=True)
class Verdict:
    """The build that suits a machine, and what decided. `accelerator` is ``cpu`` unless `outcome` is ``fits``."""

    accelerator: str
    outcome: Outcome
    maker: str = ""  # nvidia | amd | intel | apple | tpu | ""
    found: str = ""  # the fact that decided: a driver, capabilities, an architecture
    needed: str = ""  # what it would have to be


def suggest_accelerator(snapshot: Snapshot, framework: str = "torch") -> str:
    """The build that suits this machine: ``cu130``, ``cuda12``, ``rocm7.2``, ``mps``, ``tpu`` or ``cpu``."""
    return judge(snapshot, framework).accelerator


def judge(snapshot: Snapshot, framework: str = "torch", version: str = "") -> Verdict:
    """Which build of a framework suits the hardware. `version`: of the framework, else the one modelyard installs."""
    seen = snapshot.accelerators
    version = version or tested(framework)
    if framework == "jax" and seen.tpu and platform_floor("tpu", snapshot.system) is not None:
        return Verdict("tpu", "fits", "tpu", seen.tpu)
    if seen.nvidia.gpus:
        return _judge_nvidia(snapshot, framework, version)
    if nvidia_broken(seen.nvidia):
        return Verdict("cpu", "driver-broken", "nvidia", _what_nvml_says(seen.nvidia))
    if seen.amd.gpus or seen.amd.driver:
        return _judge_amd(snapshot, framework, version)
    if seen.apple is not None and platform_name(snapshot.system) == "darwin-arm64":
        if framework == "torch":
            return Verdict("mps", "fits", "apple", seen.apple.name)
        return Verdict("cpu", "none", "apple", seen.apple.name)
    if any(not each.integrated for each in seen.intel):
        return Verdict("cpu", "none", "intel", seen.intel[0].name)
    return Verdict("cpu", "no-gpu")


def nvidia_broken(nvidia: Nvidia) -> bool:
    """An NVIDIA driver is on the machine, but NVML reaches no GPU through it.

    NVML's code 12 (no library) alone is what every machine without NVIDIA says, 9 (no driver) likewise.
    """
    traces = bool(nvidia.kernel_module_version or nvidia.device_nodes)
    return not nvidia.gpus and (nvidia.nvml_error not in (None, 0, 9, 12) or (traces and nvidia.nvml_error != 0))


def candidates(framework: str, version: str, system: System) -> tuple[str, ...]:
    """CUDA builds that may be taken without being asked for, best first."""
    platform = platform_name(system)
    if framework == "torch":
        return tuple(_release("torch", version).get("automatic", ())) if not platform.startswith("darwin") else ()
    if framework == "tensorflow":  # CUDA in pip packages: Linux on x86 only; native Windows ended with 2.10
        return ("cuda12",) if platform == "linux-x86_64" else ()
    return tuple(tables()["jax"]["automatic"]) if platform.startswith("linux-") else ()


def runs_on(framework: str, variant: str, gpu: Gpu, machine: str) -> bool:
    """Whether a CUDA build has code for this GPU. True where the GPU does not say its capability."""
    if not version_key(gpu.capability):
        return True
    capability = version_key(gpu.capability)
    if framework == "torch":
        return covers(architectures(variant, machine), gpu.capability)
    if framework == "tensorflow":
        limits = tables()["tensorflow"]
        return version_key(limits["lowest_capability"]) <= capability < version_key(limits["below_capability"])
    return capability >= version_key(tables()["jax"]["plugins"][variant]["lowest_capability"])


def driver_runs(variant: str, driver: str, system: str) -> bool:
    """Whether a driver is new enough for a CUDA build. True where the driver does not say its version."""
    needed = driver_floor(cuda_version(variant) or "", system)
    return not version_key(driver) or needed is None or version_key(driver) >= version_key(needed)


def _judge_nvidia(snapshot: Snapshot, framework: str, version: str) -> Verdict:
    nvidia, system = snapshot.accelerators.nvidia, snapshot.system
    driver = nvidia.driver_version or nvidia.kernel_module_version
    offered = candidates(framework, version, system)
    if not offered:
        return Verdict("cpu", "none", "nvidia", nvidia.gpus[0].name)
    for_all = [each for each in offered if all(runs_on(framework, each, gpu, system.machine) for gpu in nvidia.gpus)]
    for each in for_all:
        if driver_runs(each, driver, system.name):
            return Verdict(each, "fits", "nvidia", driver, driver_floor(cuda_version(each) or "", system.name) or "")
    capabilities = ", ".join(dict.fromkeys(gpu.capability for gpu in nvidia.gpus))
    if for_all:  # a build has the code, but the driver is older than its CUDA
        floors = [driver_floor(cuda_version(each) or "", system.name) or "" for each in for_all]
        return Verdict("cpu", "driver-old", "nvidia", driver, min(floors, key=version_key))
    for_some = [each for each in offered if any(runs_on(framework, each, gpu, system.machine) for gpu in nvidia.gpus)]
    if for_some:
        return Verdict("cpu", "mixed", "nvidia", capabilities, ", ".join(for_some))
    newest = max((version_key(gpu.capability) for gpu in nvidia.gpus), default=())
    outcome: Outcome = "gpu-new" if newest >= version_key("9.0") else "gpu-old"
    return Verdict("cpu", outcome, "nvidia", capabilities, _lowest(framework, offered, system))


def _lowest(framework: str, offered: tuple[str, ...], system: System) -> str:
    if framework == "torch":
        every = {capability for each in offered for capability in architectures(each, system.machine)}
        return min(every, key=version_key, default="")
    if framework == "tensorflow":
        return str(tables()["tensorflow"]["lowest_capability"])
    return str(min((tables()["jax"]["plugins"][each]["lowest_capability"] for each in offered), key=version_key))


def _judge_amd(snapshot: Snapshot, framework: str, version: str) -> Verdict:
    amd = snapshot.accelerators.amd
    discrete = [each for each in amd.gpus if not each.integrated] or list(amd.gpus)
    names = ", ".join(dict.fromkeys(each.capability or each.name for each in discrete))
    builds = _release("torch", version).get("rocm", []) if framework == "torch" else []
    if not discrete or not builds or platform_name(snapshot.system) != "linux-x86_64":
        return Verdict("cpu", "none", "amd", names)
    if not any(each.capability for each in discrete):
        return Verdict("cpu", "gpu-unknown", "amd", names)
    if all(each.capability in rocm_gfx() for each in discrete):
        return Verdict(builds[-1], "fits", "amd", names)
    return Verdict("cpu", "gpu-old", "amd", names, ", ".join(sorted(rocm_gfx())))


def _what_nvml_says(nvidia: Nvidia) -> str:
    code = "" if nvidia.nvml_error is None else f" (NVML {nvidia.nvml_error})"
    return f"{nvidia.nvml_message or 'no GPU answers'}{code}"


def _release(framework: str, version: str) -> dict[str, Any]:
    return dict(tables()[framework]["releases"].get(minor(version), {}))
