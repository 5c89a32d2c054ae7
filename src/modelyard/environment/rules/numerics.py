"""Numbers that are wrong without an error, and environments whose proof says so (lines 30 and 33)."""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from modelyard.environment.compatibility import suggest_accelerator
from modelyard.environment.rules import Rule, Values, commands, facts
from modelyard.environment.rules.packages import OPENMP_SIGN
from modelyard.environment.snapshot import Gpu, Managed, Snapshot

# gomp is GNU's, iomp Intel's, omp LLVM's. Two copies of GNU's are common (torch and scikit-learn each bring one) and
# start without complaint; two of Intel's or LLVM's, or two makes, do not.
OPENMP = re.compile(r"lib(gomp|iomp5|omp)(?:5md|140)?[-.\w]*\.(?:so|dylib|dll)", re.ASCII)
CUBLAS_PACKAGES = ("nvidia-cublas", "nvidia-cublas-cu12", "libcublas")
CUBLAS_FILE = re.compile(r"libcublas(?:Lt)?\.so\.(\d+(?:\.\d+){3})$", re.ASCII)
FALSE = ("", "0", "false", "no", "off")


def two_openmp_runtimes(snapshot: Snapshot) -> list[Values]:
    found: list[Values] = []
    for each in snapshot.installed.frameworks:
        runtimes = sorted({path for path in each.libraries if OPENMP.match(path.replace("\\", "/").rpartition("/")[2])})
        makes = [_make(path) for path in runtimes]
        aborted = OPENMP_SIGN in each.error
        if aborted or len(set(makes)) > 1 or sum(make != "gomp" for make in makes) > 1:
            said = next((line for line in each.error.splitlines() if OPENMP_SIGN in line), "")
            found.append(
                {
                    "package": each.name,
                    "libraries": ", ".join(runtimes) or said.strip(),
                    "framework": facts.environment_for(each.name),
                }
            )
    return found


def _make(path: str) -> str:
    found = OPENMP.match(path.replace("\\", "/").rpartition("/")[2])
    return found[1] if found else ""


def duplicate_openmp_allowed(snapshot: Snapshot) -> Values | None:
    value = snapshot.configuration.variables.get("KMP_DUPLICATE_LIB_OK", "")
    if value.strip().lower() in FALSE:
        return None
    return {"value": value, "command": commands.unset_variable(snapshot, "KMP_DUPLICATE_LIB_OK")}


@cache
def _known_cublas() -> dict[str, list[dict[str, Any]]]:
    text = (files("modelyard.environment.rules") / "cublas.yaml").read_text(encoding="utf-8")
    return dict(yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def known_bad_cublas(snapshot: Snapshot) -> list[Values]:
    return _cublas(snapshot, "broken")


def cublas_concurrent_streams(snapshot: Snapshot) -> list[Values]:
    return _cublas(snapshot, "concurrent")


def _cublas(snapshot: Snapshot, list_name: str) -> list[Values]:
    gpus = facts.by_name(snapshot.accelerators.nvidia.gpus)
    versions = _cublas_versions(snapshot) if gpus else set()
    if not versions:
        return []
    return [
        {
            "version": bad["version"],
            "good": bad["good"],
            "gpu": gpu.name,
            "capability": gpu.capability,
            "accelerator": suggest_accelerator(snapshot),
            "command": _replace_cublas(snapshot, bad["good"]),
        }
        for bad in _known_cublas()[list_name]
        for gpu in gpus
        if bad["version"] in versions and _concerned(gpu, bad)
    ]


def _concerned(gpu: Gpu, bad: dict[str, Any]) -> bool:
    return gpu.capability in bad["capabilities"] and bad.get("gpu", "") in gpu.name


def _cublas_versions(snapshot: Snapshot) -> set[str]:
    """By the packages, and by the names of the files that were mapped (conda's end in the whole version)."""
    packages = {each.version for each in snapshot.installed.packages if each.name in CUBLAS_PACKAGES}
    paths = [path for each in snapshot.installed.frameworks for path in each.libraries]
    return packages | {found[1] for found in map(CUBLAS_FILE.search, paths) if found}


def _replace_cublas(snapshot: Snapshot, good: str) -> str:
    if snapshot.python.kind == "conda":
        return f'conda install -c conda-forge "libcublas={".".join(good.split(".")[:2])}"'
    return commands.pip(snapshot, f'install "nvidia-cublas=={good}"')


def tensorflow_onednn_half(snapshot: Snapshot) -> list[Values]:
    """Seen on one processor with TensorFlow 2.21; older versions carry the same kernels."""
    version = facts.installed_tensorflow(snapshot)
    switched_off = snapshot.configuration.variables.get("TF_ENABLE_ONEDNN_OPTS") == "0"
    if (
        version is None
        or switched_off
        or snapshot.accelerators.nvidia.gpus
        or "avx512_fp16" not in snapshot.cpu.instructions
    ):
        return []
    return [{"version": version, "processor": snapshot.cpu.name}] if not facts.at_least(version, "2.22") else []


def proof_failed(snapshot: Snapshot) -> list[Values]:
    return [
        _what(each) | {"failures": ", ".join(each.proof_failures[:5]) or "-"}
        for each in snapshot.managed
        if each.proved is False and each.state in ("ready", "broken")
    ]


def environment_broken(snapshot: Snapshot) -> list[Values]:
    return [
        # Without its description nobody knows what to build anew.
        _what(each) | {"command": _repair(each) if each.framework else f"modelyard env remove {each.name}"}
        for each in snapshot.managed
        if each.state == "broken" and each.proved is not False
    ]


def environment_unfinished(snapshot: Snapshot) -> list[Values]:
    return [
        _what(each) | {"command": _repair(each) if each.framework else f"modelyard env create --name {each.name}"}
        for each in snapshot.managed
        if each.state == "unfinished"
    ]


def _repair(managed: Managed) -> str:
    return f"modelyard env repair {managed.name}"


def _what(managed: Managed) -> Values:
    return {
        "name": managed.name,
        "framework": managed.framework or "?",
        "accelerator": managed.accelerator or "?",
    }


RULES: dict[str, Rule] = {
    "two-openmp-runtimes": two_openmp_runtimes,
    "duplicate-openmp-allowed": duplicate_openmp_allowed,
    "known-bad-cublas": known_bad_cublas,
    "tensorflow-onednn-half": tensorflow_onednn_half,
    "cublas-concurrent-streams": cublas_concurrent_streams,
    "proof-failed": proof_failed,
    "environment-broken": environment_broken,
    "environment-unfinished": environment_unfinished,
}
