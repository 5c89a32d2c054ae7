"""Which distributions a Python has, and which of them claim the same file, read from the names of folders and RECORD.

Nothing is imported and no METADATA is opened: a hundred distributions take a few hundredths of a second.
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import dataclass

from modelyard.environment.host import Host
from modelyard.environment.snapshot import Conflict, Package

PATHS_SECONDS = 20.0  # a Python on a cold network disk takes a few seconds to start
MARK = "@modelyard@"  # before the one line that is ours: a .pth file or a framework may print as well

TENSORFLOWS = frozenset({
    "tensorflow", "tensorflow-cpu", "tensorflow-cpu-aws", "tensorflow-gpu", "tensorflow-intel", "tensorflow-macos",
    "tensorflow-rocm", "intel-tensorflow", "tf-nightly", "tf-nightly-cpu",
})  # fmt: skip
WANTED = TENSORFLOWS | {
    "torch", "torchvision", "torchaudio", "torch-xla", "triton", "pytorch-triton-rocm", "tensorflow-metal", "tf-keras",
    "keras", "jax", "jaxlib", "jax-metal", "libtpu", "transformers", "tokenizers", "accelerate", "peft", "flash-attn",
    "xformers", "bitsandbytes", "datasets", "huggingface-hub", "safetensors", "numpy", "scipy", "intel-openmp", "mkl",
    "modelyard", "pip", "uv", "setuptools",
}  # fmt: skip
WANTED_STARTS = ("nvidia-", "onnxruntime", "jax-cuda", "jax-rocm")

# Folders that wheels leave at the top of site-packages by mistake; nothing imports them.
STRAY_TOPS = ("test", "tests", "doc", "docs", "example", "examples", "benchmark", "benchmarks", "scripts", "tools")
CODE_ENDS = (".py", ".so", ".dll", ".pyd", ".dylib", ".h", ".cuh", ".hpp", ".exe", ".bc", ".a", ".lib")
SHARED_LIBRARY = re.compile(r"\.so(\.\d+)*$")

PATHS_PROGRAM = f"import json, sys; print({MARK!r} + json.dumps([each for each in sys.path if each]))"


@dataclass(frozen=True)
class Distribution:
    """One installed distribution: its folder of metadata lies in `site`, a folder of that Python's search path."""

    name: str  # normalised
    version: str
    site: str
    metadata: str  # path of the dist-info or egg-info


def search_path(host: Host, python: str) -> list[str]:
    """The folders in which `python` looks for modules, in its order; empty if it does not start."""
    if os.path.normcase(python) == os.path.normcase(host.python):
        return [each for each in sys.path if each]
    ran = host.run([python, "-c", PATHS_PROGRAM], PATHS_SECONDS)
    answer = marked(ran.output) if ran is not None else None
    return [each for each in answer if isinstance(each, str)] if isinstance(answer, list) else []


def marked(output: str) -> object:
    """The value of the last whole marked line of a program's output, or None."""
    for line in reversed(output.splitlines()):
        _, mark, text = line.partition(MARK)
        if mark:
            try:
                value: object = json.loads(text)
            except (ValueError, RecursionError):
                continue
            return value
    return None


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def distributions(host: Host, sites: list[str]) -> list[Distribution]:
    """All distributions of a search path; of two with one name, the first is what that Python imports."""
    found = [
        each
        for site in dict.fromkeys(sites)
        for ending in (".dist-info", ".egg-info")
        for path in host.glob(site, f"*{ending}")
        if (each := _distribution(host, site, path, ending)) is not None
    ]
    return list({each.name: each for each in reversed(found)}.values())[::-1]


def _distribution(host: Host, site: str, path: str, ending: str) -> Distribution | None:
    stem = re.split(r"[/\\]", path)[-1].removesuffix(ending)
    if ending == ".egg-info":  # name-1.0-py3.11[-linux-x86_64].egg-info, or name.egg-info with a PKG-INFO
        stem = re.sub(r"-py\d+\.\d+(-.*)?$", "", stem)
    name, dash, version = stem.rpartition("-")
    if not dash:
        name, version = stem, ""
        if normalised(name) in WANTED:
            line = re.search(r"^Version: *(\S+)", host.read_text(f"{path}/PKG-INFO") or "", re.MULTILINE)
            version = line.group(1) if line else ""
    # "~orch-2.9.0.dist-info" is what an interrupted pip leaves behind: Python cannot import it.
    return Distribution(normalised(name), version, site, path) if name and not name.startswith("~") else None


def that_matter(found: list[Distribution]) -> tuple[Package, ...]:
    """The packages that a diagnosis may need."""
    return tuple(
        Package(name=each.name, version=each.version)
        for each in sorted(found, key=lambda each: each.name)
        if each.name in WANTED or each.name.startswith(WANTED_STARTS)
    )


def conflicts(host: Host, found: list[Distribution]) -> tuple[Conflict, ...]:
    """Files that distributions of one folder claim with different contents: the one installed last has won.

    Equal contents do no harm and are common (``nvidia/__init__.py``, the script ``tensorboard``). A RECORD is read as
    far as the host reads a file, 1 MiB, which cuts off the end of torch's alone.
    """
    first: dict[tuple[str, str], tuple[str, str]] = {}  # (folder, file) -> (owner, hash)
    owners: dict[tuple[str, str], list[str]] = {}
    for each in found:
        text = host.read_text(f"{each.metadata}/RECORD") or ""
        for line in text[: text.rfind("\n") + 1].split("\n"):
            if ",sha256=" not in line:  # compiled files and RECORD itself
                continue
            rest, _, _size = line.rpartition(",")
            file, _, digest = rest.rpartition(",")
            owner, content = first.setdefault((each.site, file), (each.name, digest))
            if owner != each.name and content != digest:
                owners.setdefault((each.site, file), [owner]).append(each.name)
    return tuple(
        Conflict(file=file, owners=tuple(sorted(set(names))))
        for (_, file), names in sorted(owners.items(), key=lambda item: item[0][1])
        if _imported(file)
    )


def _imported(file: str) -> bool:
    """Whether a file in site-packages is code that someone imports, loads or starts."""
    parts = file.strip('"').split("/")
    if len(parts) == 1:
        return file.endswith(CODE_ENDS) and file != "setup.py"
    if parts[0] == "..":
        return parts[-2] in ("bin", "Scripts")
    if parts[0].lower() in STRAY_TOPS:
        return False
    return file.endswith(CODE_ENDS) or SHARED_LIBRARY.search(file) is not None
