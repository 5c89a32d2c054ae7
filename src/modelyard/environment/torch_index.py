"""Where torch comes from: every build of it has the same name and version, so the place decides which one it is.

PyPI's package is one build for each platform (on Linux the one with CUDA). The PyTorch wheel index has a folder for
each build, and its wheels say which in their local version: ``2.13.0+cpu``. A folder of the person's may hold one too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import unquote

from modelyard.environment.compatibility import default_torch_variant, platform_name, tables, version_key
from modelyard.environment.reasons import Reason, reason
from modelyard.environment.redaction import plain_address
from modelyard.environment.snapshot import Snapshot, System
from modelyard.environment.sources import Sources, as_address, local_path

OWN_FOLDER = "own-folder"  # name of the index that is a folder of the person's
FLAT = "flat+"  # before the address of a mirror that has one list of files instead of an index


@dataclass(frozen=True)
class Index:
    """A place that the framework's packages, and no others, must come from."""

    name: str
    url: str
    format: Literal["simple", "flat"] = "simple"


def torch_index(
    variant: str, version: str, python: str, snapshot: Snapshot, sources: Sources
) -> tuple[Index | None, str, Reason]:
    """(index or None for the usual ones, exact version to require, why)."""
    exact = f"{version}+{variant}"
    plain = variant == pypi_variant(version, snapshot.system)
    if snapshot.system.name == "darwin":  # one build, on PyPI, without a local version
        return None, version, reason("from-pypi")
    found = own_wheel_of_torch(sources, exact, python, snapshot.system)
    if found is not None:
        why = reason("from-folder", folder=plain_address(str(found.parent)), wheel=found.name)
        return (None if sources.no_index else Index(OWN_FOLDER, as_address(str(found.parent)), "flat")), exact, why
    if sources.no_index:
        return None, exact, reason("no-index", version=exact)
    if plain and not sources.find_links and not sources.extra_index_urls:
        return None, version, reason("from-pypi")
    base = snapshot.configuration.pytorch_mirror or str(tables()["indexes"]["pytorch"])
    flat = base.startswith(FLAT)
    url = f"{base.removeprefix(FLAT).rstrip('/')}/{variant}"
    index = Index(f"pytorch-{variant.replace('.', '-')}", url, "flat" if flat else "simple")
    return index, exact, reason("from-index-exact" if plain else "from-index", index=plain_address(url))


def pypi_variant(version: str, system: System) -> str:
    """The build that PyPI's wheel is on this platform."""
    if system.name == "linux":
        return default_torch_variant(version)
    return "mps" if platform_name(system) == "darwin-arm64" else "cpu"


def own_wheel_of_torch(sources: Sources, exact: str, python: str, system: System) -> Path | None:
    """A wheel of exactly this build, for this Python and platform, in a folder where the person's pip looks."""
    for each in sources.find_links:
        path = local_path(each)
        if path is None:
            continue
        try:
            wheels = sorted(Path(path).expanduser().glob("torch-*.whl"))
        except (OSError, ValueError):
            continue
        for wheel in wheels:
            if fits(unquote(wheel.name), exact, python, system):
                return wheel
    return None


def fits(wheel: str, exact: str, python: str, system: System) -> bool:
    """Whether a wheel's name says this version, CPython and platform."""
    parts = wheel.removesuffix(".whl").split("-")
    if len(parts) != 5 or parts[1] != exact:
        return False
    tag = "cp" + python.replace(".", "")
    return parts[2] == tag and parts[3] in (tag, "abi3") and any(_runs(each, system) for each in parts[4].split("."))


def _runs(tag: str, system: System) -> bool:
    platform = platform_name(system)
    if platform == "windows-x86_64":
        return tag == "win_amd64"
    machine = platform.partition("-")[2]
    if system.name != "linux" or not tag.endswith(f"_{machine}"):
        return False
    glibc = re.fullmatch(rf"manylinux_(\d+)_(\d+)_{machine}", tag)
    if glibc is None:
        return tag == f"linux_{machine}"
    return not system.libc_version or version_key(".".join(glibc.groups())) <= version_key(system.libc_version)
