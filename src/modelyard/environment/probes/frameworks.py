"""Frameworks of one Python: what their files say, and what they reach when they are asked.

The files answer in milliseconds. Importing a framework takes seconds, so it happens only when there is a reason to,
each in a process of its own with a time limit: one that hangs or crashes is a fact and not our end.
"""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard.environment.host import Host, Ran
from modelyard.environment.probes.packages import (
    TENSORFLOWS,
    Distribution,
    conflicts,
    distributions,
    marked,
    search_path,
    that_matter,
)
from modelyard.environment.snapshot import Conflict, Framework, Installed

ASK_SECONDS = 60.0
PROGRAM = Path(__file__).with_name("ask_framework.py")

# First releases that were built against NumPy 2; an older one beside NumPy 2 fails at import, or later without a word.
# From their release notes: PyTorch 2.3, TensorFlow 2.18, jaxlib 0.4.26.
FIRST_FOR_NUMPY_2 = {"torch": (2, 3), "tensorflow": (2, 18), "jax": (0, 4, 26)}

MAX_WARNINGS = 4000
# Lines of stderr that explain a failure, kept when there is more than fits.
TELLING = re.compile(
    r"error|warn|fail|cannot|could not|not found|no such|unable|unsupported|compatible|dlopen|_ARRAY_API|NumPy|OMP:",
    re.IGNORECASE,
)
NO_TENSORFLOW_GPU = re.compile(
    r"Cannot dlopen|Could not find cuda drivers|failed call to cuInit|kernel version .* does not match|"
    r"CUDA_ERROR_\w+|was not built with CUDA kernel binaries",
    re.IGNORECASE,
)


def installed(host: Host, python: str, *, ask: str = "auto", gpu: bool, seconds: float = ASK_SECONDS) -> Installed:
    """The packages of `python` that a diagnosis needs, files in conflict, and the frameworks among them.

    `ask` is ``always``, ``never`` or ``auto``: import the frameworks when a GPU is there (`gpu`) or when their files or
    the variables look suspicious. A Python that does not start has nothing installed.
    """
    sites = search_path(host, python)
    found = distributions(host, sites)
    clashes = conflicts(host, found)
    frameworks = _from_files(host, sites, found)
    if ask == "always" or (ask == "auto" and (gpu or _suspicious(host, found, clashes, frameworks))):
        frameworks = _asked(host, python, frameworks, seconds)
    return Installed(packages=that_matter(found), conflicts=clashes, frameworks=tuple(frameworks))


# What the files say ---------------------------------------------------------------------------------------------------


def _from_files(host: Host, sites: list[str], found: list[Distribution]) -> list[Framework]:
    versions = {each.name: each.version for each in found}
    frameworks = []
    if "torch" in versions:
        frameworks.append(_torch(_read(host, sites, "torch/version.py"), versions["torch"]))
    if tensorflows := sorted(TENSORFLOWS & versions.keys()):
        build = _read(host, sites, "tensorflow/python/platform/build_info.py")
        frameworks.append(_tensorflow(build, versions[tensorflows[0]]))
    if "jax" in versions:
        frameworks.append(_jax(versions))
    if "keras" in versions:
        frameworks.append(
            Framework(name="keras", version=versions["keras"], backend=_keras_backend(host, versions["keras"]))
        )
    if "transformers" in versions:
        frameworks.append(Framework(name="transformers", version=versions["transformers"]))
    return frameworks


def _read(host: Host, sites: list[str], file: str) -> str:
    """The text of a module's file, where Python would find it: in the first folder of the search path that has it."""
    for site in sites:
        if (text := host.read_text(f"{site}/{file}")) is not None:
            return text
    return ""


def _torch(text: str, distribution_version: str) -> Framework:
    """`text` is torch/version.py: assignments of texts or None, with or without annotations."""
    said = dict(re.findall(r"""^(\w+)(?::[^=\n]*)?\s*=\s*['"]([^'"\n]*)['"]""", text, re.MULTILINE))
    version = said.get("__version__", distribution_version)
    tag = version.partition("+")[2]
    if said.get("cuda"):
        build = ("cuda", said["cuda"])
    elif said.get("hip"):  # "7.2.26015-fc0010cf6a", the number of HIP, begins with that of ROCm
        hip = ".".join(said["hip"].split(".")[:2])
        build = ("rocm", tag.removeprefix("rocm") if tag.startswith("rocm") else hip)
    elif said.get("xpu"):
        build = ("xpu", said["xpu"])
    else:
        build = ("cpu", "") if "__version__" in said else ("", "")
    return Framework(name="torch", version=version, built_for=build[0], built_version=build[1])


def _tensorflow(text: str, version: str) -> Framework:
    """`text` is build_info.py: one dictionary in a single line."""

    def value(key: str) -> str:
        match = re.search(rf"""['"]{key}['"]\s*,\s*(True|'[^']*'|"[^"]*"|\[[^\]]*\])""", text)
        return match.group(1).strip("'\"") if match else ""

    kind = "cuda" if value("is_cuda_build") else "rocm" if value("is_rocm_build") else "cpu" if text else ""
    return Framework(
        name="tensorflow",
        version=version,
        built_for=kind,
        built_version=value(f"{kind}_version") if kind in ("cuda", "rocm") else "",
        architectures=tuple(re.findall(r"\w+_\w+", value("cuda_compute_capabilities"))),
    )


def _jax(versions: Mapping[str, str]) -> Framework:
    """What jax is built for is decided by the plugin beside it: jax-cuda13-plugin, jax-rocm7-plugin, libtpu."""
    plugins = [match for each in sorted(versions) if (match := re.fullmatch(r"jax-(cuda|rocm)(\d+)-plugin", each))]
    build = plugins[-1].groups() if plugins else ("tpu", "") if "libtpu" in versions else ("cpu", "")
    return Framework(name="jax", version=versions["jax"], built_for=build[0], built_version=build[1])


def _keras_backend(host: Host, version: str) -> str:
    """As Keras decides it: the variable, then keras.json, then TensorFlow. Keras 2 knows nothing but TensorFlow."""
    if version.startswith("2."):
        return "tensorflow"
    if chosen := host.environ.get("KERAS_BACKEND"):
        return chosen
    folder = host.environ.get("KERAS_HOME") or f"{host.home}/.keras"
    try:
        settings = json.loads(host.read_text(f"{folder}/keras.json") or "{}")
    except (ValueError, RecursionError):
        settings = {}
    chosen = settings.get("backend") if isinstance(settings, dict) else None
    return chosen if isinstance(chosen, str) else "tensorflow"


# Whether to ask -------------------------------------------------------------------------------------------------------


def _suspicious(
    host: Host, found: list[Distribution], clashes: tuple[Conflict, ...], frameworks: list[Framework]
) -> bool:
    """Whether the files or variables hint at a failure that only an import shows."""
    versions = {each.name: each.version for each in found}
    numpy_2 = _numbers(versions.get("numpy", "")) >= (2,)
    too_old = any(
        _numbers(each.version) < FIRST_FOR_NUMPY_2[each.name] for each in frameworks if each.name in FIRST_FOR_NUMPY_2
    )
    # torch for Linux and macOS brings an OpenMP of its own, so Intel's makes two.
    two_openmps = "intel-openmp" in versions and "torch" in versions and host.system != "windows"
    return bool(
        clashes
        or (numpy_2 and too_old)
        or two_openmps
        or re.search("cuda|cudnn", host.environ.get("LD_LIBRARY_PATH", ""), re.IGNORECASE)
        or _mixed_builds(versions, frameworks)
    )


def _mixed_builds(versions: Mapping[str, str], frameworks: list[Framework]) -> bool:
    """Whether torchvision or torchaudio carry another build's mark, such as +cpu, than torch."""
    torch = next((each for each in frameworks if each.name == "torch"), None)
    marks = [versions[each].partition("+")[2] for each in ("torchvision", "torchaudio") if each in versions]
    return torch is not None and any(each != torch.version.partition("+")[2] for each in marks)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each[:9]) for each in re.findall(r"\d+", version.partition("+")[0])[:3])


# Asking ---------------------------------------------------------------------------------------------------------------


def _asked(host: Host, python: str, frameworks: list[Framework], seconds: float) -> list[Framework]:
    """All frameworks asked at the same time, each in its own process with the person's variables."""
    from concurrent.futures import ThreadPoolExecutor

    def ask(each: Framework) -> Framework:
        # Not -I: a package of the user's site folder, or one that PYTHONPATH puts in front, is what the person gets.
        command = [python, "-X", "faulthandler", str(PROGRAM), each.name]
        return merged(each, host.run(command, seconds, host.environ), seconds)

    with ThreadPoolExecutor(max(1, len(frameworks))) as pool:
        return list(pool.map(ask, frameworks))


def merged(known: Framework, ran: Ran | None, seconds: float) -> Framework:
    """What the files said, with what the framework's own process answered on top."""
    if ran is None:
        return known.model_copy(update={"asked": True, "outcome": "failed", "error": "the Python does not start"})
    answer = marked(ran.output)
    said: dict[str, Any] = answer if isinstance(answer, dict) else {}
    step = _text(said.get("step")) or "starting"
    outcome, error = _text(said.get("outcome")), _text(said.get("error"))
    if outcome not in ("ok", "failed"):  # it did not get to its end
        last = _last_words(ran.errors)
        if ran.code is None:
            outcome, error = "timeout", f"no answer within {seconds:.0f} s while {step}"
        elif name := _signal(ran.code):
            outcome, error = "crashed", f"{last}\n{name} while {step}".strip()
        else:
            outcome, error = "failed", f"{last}\nended with code {ran.code} while {step}".strip()
    facts: dict[str, Any] = {
        "asked": True, "outcome": outcome, "error": error, "warnings": _shortened(ran.errors),
        "seconds": round(ran.seconds, 3), "device_error": _text(said.get("device_error")),
        "devices": _texts(said.get("devices")), "libraries": _texts(said.get("libraries")),
        "problems": _texts(said.get("problems")),
    }  # fmt: skip
    for field in ("version", "built_for", "backend"):
        if value := _text(said.get(field)):
            facts[field] = value
    if architectures := _texts(said.get("architectures")):
        facts["architectures"] = architectures
    if isinstance(threads := said.get("num_threads"), int):
        facts["num_threads"] = threads
    if known.name == "tensorflow" and known.built_for != "cpu" and facts["devices"] == ("cpu",):
        # Only TensorFlow's stderr says why it has no GPU.
        why = [line for line in facts["warnings"].splitlines() if NO_TENSORFLOW_GPU.search(line)]
        facts["device_error"] = facts["device_error"] or "\n".join(why)
    return known.model_copy(update=facts)


def _signal(code: int) -> str:
    """The name of the signal that ended a process, "" if none did."""
    number = -code if code < 0 else code - 128 if code in (132, 134, 135, 136, 137, 139) else 0  # through a shell
    if not number:
        # Windows: the status of an exception that nobody handled, such as 0xC0000005.
        return hex(code & 0xFFFFFFFF) if code >= 0xC0000000 else ""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _text(value: object) -> str:
    return value[:MAX_WARNINGS] if isinstance(value, str) else ""


def _texts(value: object) -> tuple[str, ...]:
    return tuple(_text(each) for each in value if isinstance(each, str)) if isinstance(value, list) else ()


def _shortened(errors: str) -> str:
    """stderr without passwords and repetitions; if it is long, the lines that explain a failure."""
    hidden = re.sub(r"(\w://)[^/\s@]+@", r"\1", errors)
    lines = list(dict.fromkeys(line.rstrip()[:400] for line in hidden.splitlines() if line.strip()))
    if sum(len(line) + 1 for line in lines) > MAX_WARNINGS:
        lines = [line for line in lines if TELLING.search(line)]
    room, kept = MAX_WARNINGS, []
    for line in lines:
        if len(line) < room:
            kept.append(line)
            room -= len(line) + 1
    return "\n".join(kept)


def _last_words(errors: str) -> str:
    """The lines that say why a process ended: from the interpreter's own message on, if it could still write one."""
    before, fatal, after = errors.partition("Fatal Python error")
    lines = [line for line in _shortened(fatal + after if fatal else before).splitlines() if line.strip()]
    return "\n".join(lines[:12] if fatal else lines[-12:])
