"""Packages that do not go together, and frameworks that do not start (lines 6 to 10)."""

from __future__ import annotations

import re

from modelyard.environment.compatibility import minor, version_key
from modelyard.environment.rules import Rule, Values, commands, facts
from modelyard.environment.rules.builds import gpu_architecture_missing
from modelyard.environment.snapshot import Framework, Snapshot

FAMILIES = ("nvidia-", "torch", "tensorflow", "jax", "keras", "tf-keras", "numpy", "triton", "pytorch-triton")
# A library's file name and the wheel that brings it.
WHEELS = {
    "libcudnn": "nvidia-cudnn",
    "libcublas": "nvidia-cublas",
    "libcudart": "nvidia-cuda-runtime",
    "libcufft": "nvidia-cufft",
    "libcusolver": "nvidia-cusolver",
    "libcusparse": "nvidia-cusparse",
    "libnccl": "nvidia-nccl",
    "libnvrtc": "nvidia-cuda-nvrtc",
    "libnvjitlink": "nvidia-nvjitlink",
}
NUMPY_SIGNS = ("_ARRAY_API not found", "compiled using NumPy 1.x", "numpy.dtype size changed")
OPENMP_SIGN = "OMP: Error #15"
# Lowest version that works with NumPy 2, from their release notes.
NUMPY_2_SINCE = {"tensorflow": "2.18", "tensorflow-cpu": "2.18", "torch": "2.3"}


def cuda_12_and_13_together(snapshot: Snapshot) -> Values | None:
    names = {each.name for each in snapshot.installed.packages}
    both = sorted(each[:-5] for each in names if each.endswith("-cu12") and f"{each[:-5]}-cu13" in names)
    shared = [each for each in snapshot.installed.conflicts if _of_two_cudas(each.owners)]
    if not both and not shared:
        return None
    packages = ", ".join(f"{each}-cu12, {each}-cu13" for each in both) or ", ".join(shared[0].owners)
    return {"packages": packages, "count": len(shared)}


def _of_two_cudas(owners: tuple[str, ...]) -> bool:
    return all(any(each.endswith(ending) for each in owners) for ending in ("-cu12", "-cu13"))


def files_owned_twice(snapshot: Snapshot) -> Values | None:
    found = [
        each
        for each in snapshot.installed.conflicts
        if not _of_two_cudas(each.owners) and any(owner.startswith(FAMILIES) for owner in each.owners)
    ]
    if not found:
        return None
    return {"file": found[0].file, "owners": ", ".join(found[0].owners), "count": len(found)}


def system_cuda_in_the_way(snapshot: Snapshot) -> Values | None:
    value = snapshot.configuration.variables.get("LD_LIBRARY_PATH", "")
    folders = [each.rstrip("/") for each in value.split(":") if each.strip("/")]
    names = [each.name for each in snapshot.installed.packages]
    for framework in snapshot.installed.frameworks:
        for path in framework.libraries:
            folder, _, file = path.rpartition("/")
            wheel = next((WHEELS[each] for each in WHEELS if file.lower().startswith(each)), None)
            if wheel is None or not any(each.startswith(wheel) for each in names) or "site-packages" in path:
                continue
            guilty = next((each for each in folders if folder == each or folder.startswith(each + "/")), None)
            if guilty is None:
                continue
            kept = ":".join(each for each in folders if each != guilty)
            command = commands.unset_variable(snapshot, "LD_LIBRARY_PATH")
            if kept:
                command = commands.set_variable(snapshot, "LD_LIBRARY_PATH", kept)
            return {"framework": framework.name, "library": path, "folder": guilty, "command": command}
    return None


def numpy_2_abi(snapshot: Snapshot) -> Values | None:
    numpy = snapshot.installed.version("numpy")
    said = [each for each in snapshot.installed.frameworks if _is_numpy(each)]
    if said:
        lines = (said[0].error + "\n" + said[0].warnings).splitlines()
        line = next(each for each in lines if any(sign in each for sign in NUMPY_SIGNS))
        return _numpy_values(snapshot, said[0].name, numpy or "?", line.strip()[:200])
    if not facts.at_least(numpy, "2"):
        return None
    for name, since in NUMPY_2_SINCE.items():
        version = snapshot.installed.version(name) or ""
        if facts.older(version, since):
            return _numpy_values(snapshot, name, numpy or "?", f"{name} {version} < {since}")
    return None


def _is_numpy(framework: Framework) -> bool:
    return any(each in framework.error + framework.warnings for each in NUMPY_SIGNS)


def _numpy_values(snapshot: Snapshot, framework: str, numpy: str, line: str) -> Values:
    return {
        "package": framework,
        "numpy": numpy,
        "line": line,
        "framework": facts.environment_for(framework.removesuffix("-cpu")),
        "command": commands.pip(snapshot, 'install "numpy<2"'),
    }


def transformers_5_without_torch(snapshot: Snapshot) -> Values | None:
    transformers = snapshot.installed.version("transformers")
    others = [name for name in ("tensorflow", "tensorflow-cpu", "jax") if snapshot.installed.version(name)]
    if not facts.at_least(transformers, "5") or not others or snapshot.installed.version("torch"):
        return None
    return {"version": transformers, "other": others[0], "framework": others[0].removesuffix("-cpu")}


def keras_3_with_transformers_tf(snapshot: Snapshot) -> Values | None:
    transformers, tensorflow = snapshot.installed.version("transformers"), facts.installed_tensorflow(snapshot)
    keras = snapshot.installed.version("keras")
    if not transformers or not tensorflow or not facts.at_least(keras, "3") or not facts.older(transformers, "5"):
        return None
    if snapshot.installed.version("tf-keras") or not version_key(tensorflow):
        return None
    return {
        "transformers": transformers,
        "keras": keras,
        "command": commands.pip(snapshot, f'install "tf-keras~={minor(tensorflow)}.0"'),
    }


def framework_crashed(snapshot: Snapshot) -> list[Values]:
    return _did_not_start(snapshot, "crashed")


def framework_hangs(snapshot: Snapshot) -> list[Values]:
    return _did_not_start(snapshot, "timeout")


def framework_import_failed(snapshot: Snapshot) -> list[Values]:
    return _did_not_start(snapshot, "failed")


def _did_not_start(snapshot: Snapshot, outcome: str) -> list[Values]:
    """Frameworks whose import ended so, for a reason that no other rule names."""
    found: list[Values] = []
    for each in snapshot.installed.frameworks:
        if not each.asked or each.outcome != outcome or _is_numpy(each) or OPENMP_SIGN in each.error:
            continue
        found.append(
            {
                "package": each.name,
                "version": each.version or "?",
                "last": facts.last_lines(each.error or each.warnings) or "-",
                "seconds": "?" if each.seconds is None else f"{each.seconds:.0f}",
                "framework": facts.environment_for(each.name),
                "command": commands.pip(snapshot, f'install --force-reinstall --no-deps "{_requirement(each)}"'),
            }
        )
    return found


def _requirement(framework: Framework) -> str:
    version = re.sub(r"\+.*", "", framework.version)
    return f"{framework.name}=={version}" if version else framework.name


def gpu_computation_failed(snapshot: Snapshot) -> list[Values]:
    """The smallest operation on the GPU fails, for a reason that no other rule names."""
    return [] if gpu_architecture_missing(snapshot) else _checks(snapshot, ("cuda-compute", "jax-compute"), True)


def framework_check_failed(snapshot: Snapshot) -> list[Values]:
    """Another named check that failed; torchvision's and NumPy's have rules of their own."""
    known = ("cuda-compute", "jax-compute", "torchvision")
    return _checks(snapshot, (*known, "torch-numpy") if numpy_2_abi(snapshot) else known, False)


def _checks(snapshot: Snapshot, starts: tuple[str, ...], wanted: bool) -> list[Values]:
    return [
        {
            "package": each.name,
            "version": each.version or "?",
            "problem": facts.last_lines(problem),
            "framework": facts.environment_for(each.name),
        }
        for each in snapshot.installed.frameworks
        for problem in each.problems
        if problem.startswith(starts) == wanted
    ]


RULES: dict[str, Rule] = {
    "cuda-12-and-13-together": cuda_12_and_13_together,
    "files-owned-twice": files_owned_twice,
    "system-cuda-in-the-way": system_cuda_in_the_way,
    "numpy-2-abi": numpy_2_abi,
    "transformers-5-without-torch": transformers_5_without_torch,
    "keras-3-with-transformers-tf": keras_3_with_transformers_tf,
    "framework-crashed": framework_crashed,
    "framework-hangs": framework_hangs,
    "framework-import-failed": framework_import_failed,
    "gpu-computation-failed": gpu_computation_failed,
    "framework-check-failed": framework_check_failed,
}
