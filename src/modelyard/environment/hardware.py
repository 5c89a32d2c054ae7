"""Which accelerator an environment is made for: what was asked for, or what suits the machine, and why.

Asking for what the machine cannot do is refused here, before anything is downloaded.
"""

from __future__ import annotations

from modelyard.environment.compatibility import (
    Verdict,
    cuda_version,
    driver_floor,
    driver_runs,
    judge,
    nvidia_broken,
    platform_floor,
    platform_name,
    rocm_gfx,
    runs_on,
    tables,
    torch_variants,
    version_key,
)
from modelyard.environment.reasons import Reason, reason
from modelyard.environment.snapshot import Gpu, Snapshot
from modelyard.errors import InputError, MachineError

DOCTOR = "modelyard doctor"
ON_CPU = "or use the processor: --accelerator cpu"


def builds(framework: str, version: str) -> tuple[str, ...]:
    """Accelerators that a framework has builds for, on any platform."""
    if framework == "torch":
        return torch_variants(version)
    return ("cpu", "cuda12") if framework == "tensorflow" else ("cpu", *tables()["jax"]["plugins"], "tpu")


def kind(accelerator: str) -> str:
    """``cuda``, ``rocm`` or the accelerator itself: what decides packages, proof device and size."""
    if cuda_version(accelerator):
        return "cuda"
    return "rocm" if accelerator.startswith("rocm") else accelerator


def check_platform(framework: str, snapshot: Snapshot) -> None:
    """Raise MachineError where the framework has no wheels: musl, an old glibc or macOS, an Intel Mac …"""
    system, platform = snapshot.system, platform_name(snapshot.system)
    if system.translated:
        raise MachineError(
            f"this Python is for {system.machine}, translated on Apple silicon; {framework} has no wheels for it",
            hint="install modelyard into an arm64 Python, for example: uv tool install --python 3.12 modelyard",
        )
    if system.libc == "musl":
        raise MachineError(
            f"{framework} has no wheels for musl, which {system.distribution or 'this system'} uses",
            hint="use a system or a container with glibc, for example Debian or Ubuntu",
        )
    needed = platform_floor(framework, system)
    if needed is None:
        intel_mac = platform == "darwin-x86_64"
        raise MachineError(
            f"{framework} has no current wheels for {platform}" + (" (Intel Macs ended with torch 2.2)" * intel_mac),
            hint=f"{framework} runs on {', '.join(sorted(tables()['platforms'][framework]))}",
        )
    name = {"linux": "glibc", "darwin": "macOS"}.get(system.name, "")
    found = system.libc_version if system.name == "linux" else system.release
    if name and version_key(found) and version_key(found) < version_key(needed):
        raise MachineError(
            f"{name} is {found}; the wheels of {framework} need {name} {needed} or newer",
            hint=f"upgrade the system, or use a container with {name} {needed} or newer"
            if name == "glibc"
            else f"upgrade to macOS {needed} or newer",
        )


def automatic(framework: str, version: str, snapshot: Snapshot) -> tuple[str, list[Reason]]:
    """The accelerator that suits the machine. Raises MachineError where one step would make its GPU work."""
    verdict = judge(snapshot, framework, version)
    if verdict.outcome == "driver-old":
        raise MachineError(
            f"the NVIDIA driver is {verdict.found or 'of unknown version'}; {framework} {version} for "
            f"{_names(snapshot)} needs {verdict.needed} or newer",
            hint=f"update the driver to {verdict.needed} or newer ({DOCTOR} shows how), {ON_CPU}",
        )
    if verdict.outcome == "mixed":
        choices = verdict.needed.split(", ")
        raise MachineError(
            f"no {framework} {version} build has code for all GPUs here (compute capabilities {verdict.found})",
            hint=f"choose the one for the GPU you want to use: --accelerator {' or '.join(choices)}, {ON_CPU}",
        )
    return verdict.accelerator, [_why(verdict, framework, version, snapshot)]


def _why(verdict: Verdict, framework: str, version: str, snapshot: Snapshot) -> Reason:
    platform, maker = platform_name(snapshot.system), verdict.maker
    key: str = verdict.outcome
    if verdict.outcome in ("fits", "none"):
        key = f"{verdict.outcome}-{maker}"
        if key == "none-nvidia" and framework == "tensorflow" and snapshot.system.name == "windows":
            key = "none-nvidia-windows"
    elif verdict.outcome == "gpu-old" and maker == "amd":
        key = "gpu-old-amd"
    rocm = next((each for each in builds(framework, version) if each.startswith("rocm")), "")
    return reason(
        key, accelerator=verdict.accelerator, found=verdict.found, needed=verdict.needed, framework=framework,
        version=version, platform=platform, rocm=rocm, driver=verdict.found or "?",
        capabilities=_capabilities(snapshot.accelerators.nvidia.gpus),
    )  # fmt: skip


def asked(framework: str, version: str, accelerator: str, snapshot: Snapshot) -> list[Reason]:
    """Check that what was asked for exists for the framework and platform, and that the machine has the hardware."""
    offered = builds(framework, version)
    if accelerator not in offered:
        instead = _instead(accelerator, offered)
        raise InputError(
            f"there is no {framework} build for {accelerator!r}; for {framework} there are: auto, {', '.join(offered)}",
            hint=f"--accelerator {instead}" if instead else "--accelerator auto takes what suits this machine",
        )
    _check_offered_here(framework, accelerator, snapshot)
    reasons = [reason("accelerator-asked", accelerator=accelerator)]
    of = kind(accelerator)
    if of == "cuda":
        reasons += _check_cuda(framework, version, accelerator, snapshot)
    elif of == "rocm":
        gpus = snapshot.accelerators.amd.gpus
        _need(bool(gpus) or snapshot.accelerators.amd.driver, "an AMD GPU", accelerator)
        unproven = [each.capability or each.name for each in gpus if each.capability not in rocm_gfx()]
        if len(unproven) == len(gpus):
            reasons.append(reason("gfx-unproven", found=", ".join(unproven) or "?"))
    elif of == "xpu":
        _need(bool(snapshot.accelerators.intel), "an Intel GPU", accelerator)
    elif of == "tpu":
        _need(bool(snapshot.accelerators.tpu), "a TPU", accelerator)
    return reasons


def _instead(accelerator: str, offered: tuple[str, ...]) -> str:
    """The build of the same maker that this framework has: cuda13 for cu130, cu126 for cuda12."""
    wanted = cuda_version(accelerator)
    same = [each for each in offered if wanted and (cuda_version(each) or "").split(".")[0] == wanted.split(".")[0]]
    return next(iter(same or [each for each in offered if wanted and cuda_version(each)]), "")


def _check_offered_here(framework: str, accelerator: str, snapshot: Snapshot) -> None:
    platform, of = platform_name(snapshot.system), kind(accelerator)
    here = {
        "cpu": ("",),
        "cuda": {"torch": ("linux-", "windows-"), "tensorflow": ("linux-x86_64",), "jax": ("linux-",)}[framework],
        "rocm": ("linux-x86_64",),
        "xpu": ("linux-x86_64", "windows-x86_64"),
        "mps": ("darwin-arm64",),
        "tpu": ("linux-x86_64",),
    }[of]
    if platform.startswith(here):
        if of == "tpu":
            check_platform("tpu", snapshot)
        return
    wsl = snapshot.system.name == "windows" and of == "cuda"
    raise MachineError(
        f"{framework} with {accelerator} has no packages for this platform ({platform})",
        hint="use it inside WSL2, where Linux packages run"
        if wsl
        else "--accelerator auto takes what suits this machine",
    )


def _check_cuda(framework: str, version: str, accelerator: str, snapshot: Snapshot) -> list[Reason]:
    nvidia, system = snapshot.accelerators.nvidia, snapshot.system
    if nvidia_broken(nvidia):
        raise MachineError(
            f"{accelerator} was asked for, but no NVIDIA GPU answers: "
            f"{nvidia.nvml_message or 'the driver is there without a GPU'}",
            hint=f"{DOCTOR} says what mends it, {ON_CPU}",
        )
    _need(bool(nvidia.gpus), "an NVIDIA GPU", accelerator)
    driver = nvidia.driver_version or nvidia.kernel_module_version
    if not driver_runs(accelerator, driver, system.name):
        needed = driver_floor(cuda_version(accelerator) or "", system.name)
        raise MachineError(
            f"the NVIDIA driver is {driver}; {accelerator} needs {needed} or newer",
            hint=f"update the driver ({DOCTOR} shows how), or --accelerator auto takes what suits this one",
        )
    without = [each for each in nvidia.gpus if not runs_on(framework, accelerator, each, system.machine)]
    if not without:
        return []
    missing = _capabilities(tuple(without))
    newer = min(version_key(each.capability) for each in without) >= version_key("9.0")
    if framework == "tensorflow" and newer:
        return [reason("compiled-at-start", framework=framework, version=version, missing=missing)]
    if len(without) == len(nvidia.gpus):
        raise MachineError(
            f"{accelerator} of {framework} {version} has no code for {_names(snapshot)} (compute capability {missing})",
            hint=f"--accelerator auto takes what suits this machine, {ON_CPU}",
        )
    return [reason("some-gpus", missing=missing)]


def _need(there: bool, what: str, accelerator: str) -> None:
    if not there:
        raise MachineError(
            f"{accelerator} needs {what}, and none is seen on this machine; an environment is proved where it is made",
            hint=f"make it on the machine that has {what}, {ON_CPU}; {DOCTOR} shows what is seen",
        )


def _names(snapshot: Snapshot) -> str:
    return ", ".join(dict.fromkeys(each.name or "the NVIDIA GPU" for each in snapshot.accelerators.nvidia.gpus))


def _capabilities(gpus: tuple[Gpu, ...]) -> str:
    return ", ".join(dict.fromkeys(each.capability or "?" for each in gpus))
