"""From "torch on this machine" to one exact build: packages, index, Python, floors and the reasons for each.

Nothing is downloaded here and nothing asked of the network. What cannot work is refused with what would.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass

from modelyard.environment.compatibility import (
    FRAMEWORKS,
    constraints,
    floor,
    normalised,
    platform_name,
    pythons,
    tables,
    tested,
    version_key,
)
from modelyard.environment.hardware import asked, automatic, builds, check_platform, kind
from modelyard.environment.reasons import Reason, reason
from modelyard.environment.snapshot import Snapshot
from modelyard.environment.sources import Sources
from modelyard.environment.torch_index import OWN_FOLDER, Index, torch_index
from modelyard.errors import InputError

LOWEST_PYTHON = "3.11"  # modelyard's own
FLOORS = {
    "torch": ("torch", "transformers", "tokenizers", "numpy"),
    "tensorflow": ("tensorflow", "tensorflow-cpu", "keras", "numpy"),
    "jax": ("jax", "jaxlib", "keras", "numpy"),
}


@dataclass(frozen=True)
class Build:
    """What one environment is made of."""

    framework: str
    accelerator: str
    python: str  # "3.12"
    requirements: tuple[str, ...]
    index: Index | None  # None: everything comes from the person's usual indexes
    packages_from_index: tuple[str, ...]
    constraints: tuple[str, ...]  # exact versions for whatever else the resolver brings in
    min_versions: Mapping[str, str]  # checked after locking: an index may settle for something old without a word
    proof_device: str  # cpu | cuda (ROCm calls itself so too) | mps | xpu | tpu
    variables: Mapping[str, str]  # set for the proof and for use
    reasons: tuple[Reason, ...]
    download_bytes: int  # estimates
    disk_bytes: int


def choose(framework: str, accelerator: str, python: str | None, snapshot: Snapshot, sources: Sources) -> Build:
    """The build for this machine.

    Raises InputError for a name that does not exist or a combination that there is no build of, MachineError where
    this machine cannot run it.
    """
    check_name("framework", framework, FRAMEWORKS)
    check_name("accelerator", accelerator, accelerators())
    version = tested(framework)
    check_platform(framework, snapshot)
    if accelerator == "auto":
        chosen, reasons = automatic(framework, version, snapshot)
    else:
        chosen, reasons = accelerator, asked(framework, version, accelerator, snapshot)
    python, why = choose_python(framework, version, python, snapshot)
    reasons += [why, reason("version-tested", package=framework, version=version)]
    index: Index | None = None
    if framework == "torch":
        index, version, why = torch_index(chosen, version, python, snapshot, sources)
        reasons.append(why)
    requirements = _requirements(framework, chosen, version, snapshot)
    download, disk = tables()["sizes"][framework][kind(chosen)]
    return Build(
        framework=framework,
        accelerator=chosen,
        python=python,
        requirements=requirements,
        index=index,
        packages_from_index=_from_index(index),
        constraints=_constraints(requirements, python),
        min_versions={package: floor(package) for package in FLOORS[framework]},
        proof_device={"rocm": "cuda"}.get(kind(chosen), kind(chosen)),
        variables=_variables(framework, kind(chosen)),
        reasons=tuple(reasons),
        download_bytes=round(download * 1e9),
        disk_bytes=round(disk * 1e9),
    )


def accelerators() -> tuple[str, ...]:
    """Every name that `--accelerator` takes."""
    every = [each for framework in FRAMEWORKS for each in builds(framework, tested(framework))]
    return ("auto", *dict.fromkeys(every))


def check_name(what: str, name: str, names: tuple[str, ...]) -> None:
    """InputError with the nearest name and all names."""
    if name in names:
        return
    # People write pytorch, tf, gpu and cuda for these; the rest is a matter of spelling.
    meant = {"pytorch": "torch", "tf": "tensorflow", "gpu": "auto", "cuda": "auto", "nvidia": "auto", "rocm": "auto"}
    wanted = name.strip().lower()[:40]
    near = meant.get(wanted, "")
    if near not in names:
        likeness = {each: difflib.SequenceMatcher(None, wanted, each).ratio() for each in names}
        near = max(names, key=likeness.__getitem__)  # the first of equals: cu130 before cu132
        near = near if likeness[near] >= 0.5 else ""
    raise InputError(
        f"unknown {what} {name!r}; there are: {', '.join(names)}",
        hint=f"--{what} {near}" if near else f"give one of these with --{what}",
    )


def choose_python(framework: str, version: str, python: str | None, snapshot: Snapshot) -> tuple[str, Reason]:
    """The Python of an environment: the one asked for, else the one in use, else the nearest that is supported."""
    supported = tuple(each for each in pythons(framework, version) if version_key(each) >= version_key(LOWEST_PYTHON))
    if python is not None:
        if not re.fullmatch(r"3\.\d{1,3}", python):
            raise InputError(
                f"--python takes a version such as {supported[-1]}, not {python!r}", hint=f"--python {supported[-1]}"
            )
        if python not in supported:
            nearest = _nearest(python, supported)
            raise InputError(
                f"{framework} {version} has no wheels for Python {python}; it has for {', '.join(supported)}",
                hint=f"--python {nearest}, which is fetched if it is not installed",
            )
        return python, reason("python-asked", python=python)
    key = version_key(snapshot.python.version) or sys.version_info[:2]
    running = f"{key[0]}.{key[1]}"
    if running in supported:
        return running, reason("python-running", python=running, framework=framework, version=version)
    nearest = _nearest(running, supported)
    return nearest, reason("python-nearest", python=nearest, running=running, framework=framework, version=version)


def _nearest(python: str, supported: tuple[str, ...]) -> str:
    wanted = version_key(python)
    below = [each for each in supported if version_key(each) <= wanted]
    return below[-1] if below else supported[0]


def _from_index(index: Index | None) -> tuple[str, ...]:
    if index is None:
        return ()
    return ("torch",) if index.name == OWN_FOLDER else tuple(tables()["indexes"]["pytorch_packages"])


def _requirements(framework: str, accelerator: str, version: str, snapshot: Snapshot) -> tuple[str, ...]:
    of, keras = kind(accelerator), f"keras=={tested('keras')}"
    if framework == "torch":
        # Named, so that they too are taken from the PyTorch index: PyPI does not have them.
        triton = {"rocm": ("triton-rocm",), "xpu": ("triton-xpu",)}.get(of, ())
        return (f"torch=={version}", *triton, "modelyard[all]")
    if framework == "tensorflow":
        small = of == "cpu" and platform_name(snapshot.system) in ("linux-x86_64", "windows-x86_64")
        name = "tensorflow-cpu" if small else "tensorflow[and-cuda]" if of == "cuda" else "tensorflow"
        return (f"{name}=={version}", keras, "modelyard")
    extra = "" if accelerator == "cpu" else f"[{accelerator}]"
    return (f"jax{extra}=={version}", keras, f"numpy=={tested('numpy')}", "modelyard")


def _constraints(requirements: tuple[str, ...], python: str) -> tuple[str, ...]:
    """The tested versions, less those that the requirements pin themselves or that this Python has no wheels of."""
    without = {normalised(re.split(r"[\[=<>~! ]", each, maxsplit=1)[0]) for each in requirements}
    for since, packages in tables()["unpinned"].items():
        if version_key(since) and version_key(python) >= version_key(since):
            without.update(packages)
    return tuple(f"{name}=={version}" for name, version in constraints().items() if name not in without)


def _variables(framework: str, of: str) -> dict[str, str]:
    """Settings that turn a silent fall back to the processor into an error, and leave memory to others."""
    if framework == "torch":
        return {"PYTORCH_ENABLE_MPS_FALLBACK": "0"} if of == "mps" else {}
    if framework == "tensorflow":
        return {"KERAS_BACKEND": "tensorflow"} | ({"TF_FORCE_GPU_ALLOW_GROWTH": "true"} if of == "cuda" else {})
    platform = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": of}
    return platform | ({"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if of == "cuda" else {})
