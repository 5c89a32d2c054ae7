"""The folders of environments: what is there, what state it is in, and who may change it.

<environments>/<name>/environment.json   what was asked for and which build is in use
<environments>/<name>/.lock              held by whoever changes the environment
<environments>/<name>/builds/<n>/        pyproject.toml uv.lock packages/ .venv/ build.json proof.json

A build never moves, because scripts of an environment hold its path. It is made beside the others, and the environment
changes to it by one atomic write of environment.json. A build without the state ``ready`` is of no use to anybody.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from modelyard.errors import InputError, MachineError
from modelyard.runs.files import remove_leftovers, write_json
from modelyard.runs.lock import held
from modelyard.runs.places import environments_folder

FORMAT = 1
LONGEST_NAME = 64
State = Literal["ready", "broken", "unfinished"]
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BuildFolder:
    """One build of an environment."""

    path: Path

    @property
    def number(self) -> int:
        return int(self.path.name)

    @property
    def pyproject(self) -> Path:
        return self.path / "pyproject.toml"

    @property
    def lock(self) -> Path:
        return self.path / "uv.lock"

    @property
    def packages(self) -> Path:
        return self.path / "packages"

    @property
    def record(self) -> Path:
        return self.path / "build.json"

    @property
    def proof(self) -> Path:
        return self.path / "proof.json"

    @property
    def virtual_environment(self) -> Path:
        return self.path / ".venv"

    @property
    def python(self) -> Path:
        """The environment's own Python, to be run directly."""
        inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
        return self.virtual_environment / inside

    @property
    def site_packages(self) -> Path:
        if os.name == "nt":
            return self.virtual_environment / "Lib" / "site-packages"
        found = sorted(self.virtual_environment.glob("lib/python3*/site-packages"))
        return found[0] if found else self.virtual_environment / "lib" / "site-packages"

    def read_record(self) -> dict[str, Any]:
        """build.json, empty when it is not there or not whole."""
        return _read_json(self.record)

    def read_proof(self) -> dict[str, Any]:
        """proof.json, empty when it is not there or not whole."""
        return _read_json(self.proof)

    @property
    def state(self) -> State:
        """ready: installed and its last proof passed. broken: its proof failed. unfinished: left by a kill."""
        state = self.read_record().get("state")
        if state == "broken":
            return "broken"
        if state != "ready" or not self.python.exists():
            return "unfinished" if state != "ready" else "broken"
        return "ready" if self.read_proof().get("passed") is True else "broken"

    @property
    def variables(self) -> dict[str, str]:
        """What must be set for programs that run in this build."""
        found = self.read_record().get("variables")
        return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


@dataclass(frozen=True)
class Environment:
    """One environment. `accelerator` and `python` are those of its build; `asked` what the person asked for."""

    folder: Path
    name: str
    framework: str = ""
    accelerator: str = ""
    python: str = ""
    created: str = ""  # UTC, ISO 8601
    modelyard: str = ""
    current: str = ""  # number of the build in use, "" if none was ever ready
    asked: dict[str, str] = field(default_factory=dict)  # accelerator, python: "auto" and "" stay open for a repair

    @property
    def builds(self) -> list[BuildFolder]:
        """All builds, oldest first."""
        folders = [each for each in (self.folder / "builds").glob("*") if each.name.isdecimal() and each.is_dir()]
        return [BuildFolder(each) for each in sorted(folders, key=lambda each: int(each.name))]

    @property
    def build(self) -> BuildFolder | None:
        """The build in use."""
        folder = self.folder / "builds" / self.current
        return BuildFolder(folder) if self.current and folder.is_dir() else None

    @property
    def state(self) -> State:
        """That of the build in use; without one, broken if a proof failed, else unfinished."""
        if self.build is not None:
            return self.build.state
        return "broken" if any(each.state == "broken" for each in self.builds) or self.current else "unfinished"

    @property
    def interpreter(self) -> Path | None:
        """The Python of the build in use."""
        return self.build.python if self.build is not None else None

    @property
    def next_build(self) -> BuildFolder:
        """A number that no build has. Also not one that is about to be removed: what wrote it may still be running."""
        return BuildFolder(self.folder / "builds" / str(max((each.number for each in self.builds), default=0) + 1))

    def using(self, build: BuildFolder) -> Environment:
        """Make `build` the one in use, at once."""
        record = build.read_record()
        changed = replace(
            self, current=build.path.name,
            accelerator=str(record.get("accelerator", self.accelerator)), python=str(record.get("python", self.python)),
        )  # fmt: skip
        changed.write()
        return changed

    def write(self) -> None:
        value = {"format": FORMAT, **asdict(self)}
        del value["folder"]
        write_json(self.folder / "environment.json", value)


class Store:
    """All environments of one folder."""

    def __init__(self, folder: Path | None = None, variables: Mapping[str, str] = os.environ) -> None:
        self.folder = folder or environments_folder(variables)

    def names(self) -> list[str]:
        """Names that are taken, finished or not."""
        if not self.folder.is_dir():
            return []
        return sorted(each.name for each in self.folder.iterdir() if _right(each.name) and each.is_dir())

    def environments(self) -> list[Environment]:
        """Every environment, also unfinished ones; one that cannot be read is among them by its name alone."""
        found = []
        for name in self.names():
            try:
                found.append(self.open(name))
            except InputError:
                found.append(Environment(self.folder / name, name))
        return found

    def open(self, name: str) -> Environment:
        """An environment that exists. Raises InputError: none of that name, damaged, or of a newer modelyard."""
        folder = self.folder / check_name(name)
        if not folder.is_dir():
            near = difflib.get_close_matches(name, self.names(), 1)
            meant = f"; did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"there is no environment {name!r} in {self.folder}{meant}",
                hint="modelyard env list, or make one: modelyard env create",
            )
        file = folder / "environment.json"
        if not file.exists():
            return Environment(folder, name)
        value = _read_json(file)
        written = value.get("format")
        if isinstance(written, int) and written > FORMAT:
            raise InputError(
                f"the environment {name!r} was made by a newer modelyard "
                f"({value.get('modelyard', 'unknown')}, format {written}; this one reads {FORMAT})",
                hint="pip install --upgrade modelyard",
            )
        if not isinstance(written, int):
            raise InputError(
                f"{file} is damaged", hint=f"modelyard env remove {name}, then modelyard env create --name {name}"
            )
        text = {key: str(value.get(key, "")) for key in ("framework", "accelerator", "python", "created", "modelyard")}
        asked = value.get("asked")
        return Environment(
            folder, name, current=str(value.get("current", "")),
            asked={str(key): str(each) for key, each in asked.items()} if isinstance(asked, dict) else {}, **text,
        )  # fmt: skip

    def exists(self, name: str) -> bool:
        return (self.folder / check_name(name)).is_dir()

    def find_ready(self, framework: str) -> Environment | None:
        """The newest environment of `framework` whose proof passed, for a command that needs one."""
        ready = [each for each in self.environments() if each.framework == framework and each.state == "ready"]
        return max(
            ready, key=lambda each: str(each.build.read_record().get("made", "")) if each.build else "", default=None
        )

    @contextmanager
    def changing(self, name: str) -> Iterator[Path]:
        """Hold the lock of an environment, whose folder is made if need be.

        Raises MachineError when another process changes it, and when the folder cannot be made.
        """
        folder = self.folder / check_name(name)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()
        except OSError as error:
            raise MachineError(
                f"cannot write {error.filename or folder}: {error.strerror}",
                hint="choose another folder: MODELYARD_ENVIRONMENTS=FOLDER modelyard env create",
            ) from error
        with held(folder / ".lock", lambda owner: _busy(name, owner)):
            if not (folder / ".lock").exists():  # `remove` took it away while we were opening it
                raise _busy(name, "unknown, just now")
            remove_leftovers(folder)
            yield folder

    def delete(self, name: str) -> None:
        """Remove an environment whose lock is held. Killed half-way, what is left counts as unfinished."""
        folder = self.folder / name
        (folder / "environment.json").unlink(missing_ok=True)
        for entry in folder.iterdir():
            if entry.name != ".lock":
                remove_tree(entry)
        if os.name != "nt":  # Windows does not remove a file that is open; an empty folder is left there
            (folder / ".lock").unlink(missing_ok=True)
            folder.rmdir()


def remove_tree(path: Path) -> None:
    """Remove a folder or file, first what makes it count as a build; what cannot be removed now is left."""
    if path.is_dir() and not path.is_symlink():
        (path / "build.json").unlink(missing_ok=True)
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def check_name(name: str) -> str:
    """`name` if it can be that of an environment. Raises InputError with a proposal."""
    if _right(name):
        return name
    proposal = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-._")[:LONGEST_NAME]
    proposal = re.sub(r"\.\.+", ".", proposal).strip("-._") or "my-environment"
    raise InputError(
        f"{name!r} cannot be the name of an environment: letters, digits, '.', '_' and '-', at most {LONGEST_NAME}, "
        "beginning with a letter or digit, not ending with a dot",
        hint=f"for example: --name {proposal}",
    )


def _right(name: str) -> bool:
    fits = len(name) <= LONGEST_NAME and _NAME.fullmatch(name) is not None
    return fits and ".." not in name and not name.endswith(".")


def _busy(name: str, owner: str) -> MachineError:
    return MachineError(
        f"the environment {name!r} is being changed by another process ({owner})",
        hint="wait until it is done, or choose another --name",
    )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
