"""The small project that uv locks and installs for one build, and what must hold for its lock.

``pyproject.toml`` names the build's requirements, the one index that serves its framework, and this platform alone, so
that the lock answers one question: what is installed here. modelyard itself comes from ``packages/``.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from modelyard.environment.compatibility import normalised, version_key
from modelyard.environment.host import Host
from modelyard.environment.own_wheel import NAME, write_own_wheel
from modelyard.errors import InputError, MachineError
from modelyard.runs.files import file_sha256, write_text

if TYPE_CHECKING:
    from modelyard.environment.choose import Build

PROJECT_NAME = "modelyard-environment"
_PLATFORMS = {"linux": "linux", "darwin": "darwin", "windows": "win32"}  # platform.system() → sys.platform
_PRERELEASE = re.compile(r"v?[\d!.]*\d[._-]?(?:a|b|c|rc|pre)|.*\.dev", re.IGNORECASE)  # a: alpha too, b: beta
_PATH_FILE = re.compile(r'(?m)^(\s*|sdist = )\{ path = ("(?:[^"\\]|\\.)*")((?:, size = \d+)?) \}')


def write_project(build: Build, folder: Path, host: Host) -> Path:
    """Write ``pyproject.toml`` and ``packages/`` of `build` into `folder`; the path of the former."""
    wheel = write_own_wheel(folder / "packages")
    return write_text(folder / "pyproject.toml", project_text(build, wheel.name, marker(host)))


def project_text(build: Build, wheel: str, platform_marker: str) -> str:
    """pyproject.toml of a build. `wheel` is modelyard's file in ``packages/``."""
    requirements = list(build.requirements)
    if NAME not in map(requirement_name, requirements):
        requirements.append(NAME)
    lines = [
        "# Written by modelyard. A change here is lost with the next `modelyard env repair`.",
        "[project]",
        f"name = {quoted(PROJECT_NAME)}",
        'version = "0"',
        f"requires-python = {quoted(f'=={build.python}.*')}",
        f"dependencies = {_array(requirements)}",
        "",
        "[tool.uv]",
        "package = false",
        'prerelease = "disallow"',
        f"environments = {_array([platform_marker])}",
    ]
    if build.constraints:
        lines.append(f"constraint-dependencies = {_array(build.constraints)}")
    # A workspace of its own: uv would otherwise look for one in the folders above, which are the person's.
    lines += ["", "[tool.uv.workspace]", "members = []"]
    if build.index is not None:
        lines += [
            "",
            "[[tool.uv.index]]",
            f"name = {quoted(build.index.name)}",
            f"url = {quoted(without_login(build.index.url))}",
        ]
        lines += ['format = "flat"'] if build.index.format == "flat" else []
        lines += ["explicit = true"]
    lines += ["", "[tool.uv.sources]", f"{NAME} = {{ path = {quoted(f'packages/{wheel}')} }}"]
    if build.index is not None:
        source = f"{{ index = {quoted(build.index.name)} }}"
        lines += [f"{quoted(name)} = {source}" for name in build.packages_from_index]
    return "\n".join(lines) + "\n"


def without_login(address: str) -> str:
    """An address without user name and password: the project is a file that people show each other."""
    return re.sub(r"(?<=://)[^/@]*@", "", address)


def index_login(build: Build) -> dict[str, str]:
    """The variables that tell uv the user name and password of the build's index."""
    parts = urlsplit(build.index.url) if build.index is not None else None
    if build.index is None or parts is None or parts.username is None:
        return {}
    stem = "UV_INDEX_" + re.sub(r"[^A-Z0-9]", "_", build.index.name.upper())
    return {f"{stem}_USERNAME": unquote(parts.username), f"{stem}_PASSWORD": unquote(parts.password or "")}


def marker(host: Host) -> str:
    """The marker that is true on this platform and nowhere else."""
    _, machine = host.uname()
    return f"sys_platform == '{_PLATFORMS.get(host.system, host.system)}' and platform_machine == '{machine}'"


def requirement_name(requirement: str) -> str:
    """``huggingface-hub`` of ``huggingface_hub>=1.0``."""
    return normalised(re.split(r"[^\w.-]", requirement.strip(), maxsplit=1)[0])


def quoted(text: str) -> str:
    """A TOML basic string. JSON's escapes are TOML's, except that TOML escapes DEL too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _array(values: Iterable[str]) -> str:
    return "[" + "".join(f"\n  {quoted(value)}," for value in values) + "\n]"


def locked_versions(lock: Path) -> dict[str, tuple[str, ...]]:
    """Name → versions that the lock holds; more than one only where markers divide them."""
    versions: dict[str, list[str]] = {}
    for package in _packages(lock):
        if package.get("name") != PROJECT_NAME and "version" in package:
            versions.setdefault(normalised(str(package["name"])), []).append(str(package["version"]))
    return {name: tuple(each) for name, each in versions.items()}


def check_versions(lock: Path, floors: Mapping[str, str]) -> None:
    """Refuse what a resolver may silently settle for: a version below its floor, or a pre-release.

    Raises MachineError with the name, the version and the floor.
    """
    locked = locked_versions(lock)
    for name, floor in floors.items():
        for version in locked.get(normalised(name), ()):
            if version_key(version) < version_key(floor):
                raise MachineError(
                    f"the newest {normalised(name)} that can be installed here is {version}; modelyard needs {floor} "
                    "or newer",
                    hint="an older Python, system or index often explains it; see `modelyard doctor`, or choose "
                    "another Python with --python",
                )
    for name, versions in locked.items():
        for version in versions:
            if is_prerelease(version):
                raise MachineError(
                    f"only a pre-release of {name} fits here: {version}; an environment is made of releases alone",
                    hint="choose another Python with --python, or another index; see `modelyard doctor`",
                )


def is_prerelease(version: str) -> bool:
    """``2.0rc1`` and ``2.0.dev3`` are; ``2.0``, ``2.0.post1`` and ``2.0+cu130`` are not."""
    return _PRERELEASE.match(version.split("+")[0]) is not None


def wheel_hashes(lock: Path) -> dict[str, str]:
    """File name → ``sha256:…`` of every wheel that the lock has a hash for."""
    hashes = {}
    for package in _packages(lock):
        for wheel in package.get("wheels", []):
            if "hash" in wheel:
                hashes[_file_name(wheel)] = str(wheel["hash"])
    return hashes


def download_sizes(lock: Path) -> dict[str, int]:
    """Name → bytes of the largest file that the lock names for a package; names without any size are missing."""
    sizes: dict[str, int] = {}
    for package in _packages(lock):
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        found = [int(each["size"]) for each in files if "size" in each]
        paths = [lock.parent / str(each["path"]) for each in files if "path" in each]
        found += [path.stat().st_size for path in paths if path.is_file()]
        if found:
            sizes[normalised(str(package["name"]))] = max(found)
    return sizes


def add_missing_hashes(lock: Path, known: Mapping[str, str] | None = None) -> list[str]:
    """Give every file from a local folder its SHA-256, and name those that got one.

    uv writes none for them, so it would install whatever lies there tomorrow under that name. `known` are hashes of
    an earlier lock: they win over the file, which then is refused if it has changed.
    """
    known = known or {}
    added = []

    def with_hash(found: re.Match[str]) -> str:
        indent, path, rest = found.groups()
        file = (lock.parent / json.loads(path)).resolve()
        digest = known.get(file.name)
        if digest is None:
            if not file.is_file():
                return found[0]
            digest = f"sha256:{file_sha256(file)}"
        added.append(file.name)
        return f"{indent}{{ path = {path}, hash = {quoted(digest)}{rest} }}"

    text = _read(lock)
    changed = _PATH_FILE.sub(with_hash, text)
    if changed != text:
        write_text(lock, changed)
    return added


def _file_name(wheel: Mapping[str, Any]) -> str:
    place = wheel.get("filename") or wheel.get("path") or unquote(urlsplit(str(wheel.get("url", ""))).path)
    return re.split(r"[/\\]", str(place))[-1]


def _packages(lock: Path) -> list[dict[str, Any]]:
    try:
        return list(tomllib.loads(_read(lock)).get("package", []))
    except (tomllib.TOMLDecodeError, TypeError) as error:
        raise InputError(
            f"{lock} is damaged: {error}", hint="modelyard env repair NAME builds the environment again"
        ) from error


def _read(lock: Path) -> str:
    try:
        return lock.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{lock} cannot be read: {error}", hint="modelyard env repair NAME builds the environment again"
        ) from error
