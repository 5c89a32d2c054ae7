"""What the lock of one build says, in the words that pip understands, without anything of this machine.

A build folder holds ``pyproject.toml``, ``uv.lock`` and ``packages/`` with modelyard's own wheel. Paths of this machine
and passwords in addresses never leave it: files of a local folder become ``packages/FILE``, a password becomes the name
of a variable that the reader sets.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit, urlunsplit

from modelyard.environment.compatibility import normalised
from modelyard.environment.redaction import without_secrets
from modelyard.environment.uv import Uv
from modelyard.errors import InputError
from modelyard.runs.files import file_sha256


@dataclass(frozen=True)
class Index:
    """A remote index that the project names, without secrets; `variables` are to be set where it asks for a login."""

    name: str
    address: str
    default: bool
    variables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Locked:
    """One build's lock. `requirements` are logical lines, one a package, with hashes: ``name==1 --hash=sha256:…``."""

    folder: Path
    python: str  # "3.11"
    own_wheel: Path
    requirements: tuple[str, ...]
    indexes: tuple[Index, ...]
    local_files: tuple[Path, ...]  # wheels that came from a folder of this machine and are still there
    missing_files: tuple[str, ...]  # names of those that are not there any more

    def requirement_lines(self) -> list[str]:
        """The options and requirements of a requirements.txt that stands beside ``packages/``."""
        lines = [f"--{'' if each.default else 'extra-'}index-url {each.address}" for each in self.indexes]
        if self.local_files or self.missing_files:
            lines.append("--find-links packages")
        return lines + [each.replace(" --hash=", " \\\n    --hash=") for each in self.requirements]

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(name for each in self.indexes for name in each.variables)


def read(build: Path, *, uv: str | None = None) -> Locked:
    """Read the lock of `build`. Raises InputError when the folder is not a finished build."""
    check(build)
    wheels = sorted((build / "packages").glob("modelyard-*.whl"))
    project = _toml(build / "pyproject.toml")
    lock = _toml(build / "uv.lock")
    present, missing = _local_files(lock, build, wheels[-1])
    return Locked(
        folder=build, python=_python(build, lock), own_wheel=wheels[-1],
        requirements=_requirements(export_text(build, "requirements.txt", uv=uv), lock, present),
        indexes=(*_told(build), *_indexes(project)), local_files=present, missing_files=missing,
    )  # fmt: skip


def check(build: Path) -> None:
    """Raise InputError when the folder is not a finished build."""
    for name in ("pyproject.toml", "uv.lock"):
        if not (build / name).is_file():
            raise InputError(
                f"{build} is not a finished environment: {name} is not there",
                hint="modelyard env list shows which environments are ready",
            )
    if not any((build / "packages").glob("modelyard-*.whl")):
        raise InputError(
            f"{build / 'packages'} holds no wheel of modelyard",
            hint="modelyard env repair NAME builds the environment again",
        )


def export_text(build: Path, form: str, *, uv: str | None = None) -> str:
    """What ``uv export`` says of the lock as it is (no network, no change)."""
    command = ["export", "--frozen", "--offline", "--format", form, "--no-emit-project", "--no-header", "--quiet"]
    return Uv(uv).ask([*command, *(["--no-annotate"] if form == "requirements.txt" else [])], build)


def portable_pylock(text: str) -> str:
    """A pylock.toml without paths of this machine: files of a local folder are looked for in ``packages/``."""
    text = re.sub(r'(?m)^index = "(?:file:|/|[A-Za-z]:[\\/]|\.)[^"]*"\n', "", text)
    text = re.sub(
        r'\b(?:url|path) = "(?:file:|/|[A-Za-z]:[\\/])[^"]*?([^"/\\]+)"',
        lambda found: f'path = "packages/{unquote(found[1])}"',
        text,
    )
    return without_secrets(text)


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path} cannot be read: {error}", hint="modelyard env repair NAME builds the environment again"
        ) from error


def _python(build: Path, lock: dict[str, Any]) -> str:
    """The minor version: of the environment itself, else the lowest that the lock allows."""
    settings = build / ".venv" / "pyvenv.cfg"
    text = settings.read_text(encoding="utf-8", errors="replace") if settings.is_file() else ""
    found = re.search(r"(?m)^version(?:_info)?\s*=\s*(3\.\d+)", text)
    found = found or re.search(r"(3\.\d+)", str(lock.get("requires-python", "")))
    if not found:
        raise InputError(
            f"{build / 'uv.lock'} does not say which Python it is for",
            hint="modelyard env repair NAME builds the environment again",
        )
    return found[1]


def _requirements(text: str, lock: dict[str, Any], local_files: tuple[Path, ...]) -> tuple[str, ...]:
    """Logical lines. A marker that every line has is left out: with it, pip on another system would install nothing
    and say nothing."""
    lines = [" ".join(line.split()) for line in text.replace("\\\n", " ").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("#", "--"))]
    supported = lock.get("supported-markers", [])
    if len(supported) == 1:
        lines = [re.sub(rf" ; {re.escape(supported[0])}(?= --hash|$)", "", line) for line in lines]
    return tuple(_with_hashes(without_secrets(line), local_files) for line in lines)


def _with_hashes(line: str, local_files: tuple[Path, ...]) -> str:
    """uv's lock holds no hash of a file that came from a local folder: take it from the file."""
    if "--hash=" in line or "==" not in line:
        return line
    found = [file for file in local_files if wheel_name(file.name) == pin_of(line)]
    return line + "".join(f" --hash=sha256:{file_sha256(file)}" for file in found)


def pin_of(line: str) -> tuple[str, str]:
    """(name, version) of ``name==version --hash=…``, the name as indexes compare it."""
    name, _, version = line.split(" ")[0].partition("==")
    return normalised(name.split("[")[0]), version


def wheel_name(file: str) -> tuple[str, str]:
    """(name, version) that a wheel's file name says."""
    name, version, *_ = [*file.split("-", 2), ""]
    return normalised(name), unquote(version)


def _indexes(project: dict[str, Any]) -> tuple[Index, ...]:
    """The remote indexes that the project names. Where no index is a default one, pip's own configuration decides."""
    result = []
    for number, index in enumerate(project.get("tool", {}).get("uv", {}).get("index", []), start=1):
        address, name = str(index.get("url", "")), str(index.get("name", f"index{number}"))
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https"):
            continue
        variables: tuple[str, ...] = ()
        place = parts.hostname or ""
        place += f":{parts.port}" if parts.port else ""
        if parts.username is not None:
            # uv's own names for the login of an index; pip puts variables into addresses of a requirements file.
            stem = re.sub(r"[^A-Z0-9]", "_", name.upper())
            variables = (f"UV_INDEX_{stem}_USERNAME", f"UV_INDEX_{stem}_PASSWORD")
            place = f"${{{variables[0]}}}:${{{variables[1]}}}@{place}"
        clean = urlunsplit((parts.scheme, place, parts.path, "", ""))
        result.append(Index(name, clean, bool(index.get("default", False)), variables))
    return tuple(result)


def _told(build: Path) -> tuple[Index, ...]:
    """The remote indexes that uv was told in place of PyPI when the build was made: the person's mirror."""
    try:
        told = json.loads((build / "build.json").read_text(encoding="utf-8"))["sources"]["variables"]
        main, extra = str(told.get("UV_DEFAULT_INDEX", "")), str(told.get("UV_INDEX", "")).split()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ()
    found = [(main, True), *((each, False) for each in extra)]
    remote = [each for each in found if each[0].startswith(("http://", "https://"))]
    return tuple(Index("", without_secrets(address), default) for address, default in remote)


def _local_files(lock: dict[str, Any], build: Path, own: Path) -> tuple[tuple[Path, ...], tuple[str, ...]]:
    present, missing = [], []
    for package in lock.get("package", []):
        source = package.get("source", {})
        place = str(source.get("registry", source.get("path", "")))
        if not place or "://" in place.replace("file://", "", 1):
            continue
        folder = build / unquote(place.removeprefix("file://"))  # an absolute path replaces `build`
        for wheel in package.get("wheels", []):
            name = Path(str(wheel.get("path") or wheel.get("filename") or unquote(urlsplit(wheel.get("url", "")).path)))
            file = folder / name if "registry" in source else folder
            if file.name == own.name:
                continue
            if file.is_file():
                present.append(file)
            else:
                missing.append(file.name)
    return tuple(present), tuple(missing)
