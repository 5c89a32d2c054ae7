"""``modelyard env verify``: is the environment still what was locked, installed and proved?"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from modelyard.environment import building, integrity, proving
from modelyard.environment.building import Tools
from modelyard.environment.own_wheel import NAME
from modelyard.environment.store import BuildFolder, Environment, Store
from modelyard.environment.uv import Uv
from modelyard.errors import InputError, MachineError
from modelyard.runs.files import file_sha256

# What makes an environment unusable until it is repaired (or found whole by another look). The rest is worth knowing.
DAMAGE = ("files", "conflicts", "requirements", "proof")
SHOWN = 5  # facts in a detail; all of them are in the item


@dataclass(frozen=True)
class Item:
    """One thing that was looked at. `detail` is one line for people, `facts` every single finding."""

    name: str  # lock | installed | files | conflicts | requirements | proof
    passed: bool
    detail: str = ""
    facts: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class Verification:
    """All items, in the order in which they were looked at."""

    environment: str
    build: str
    items: tuple[Item, ...]
    taken: str = ""  # UTC, ISO 8601

    @property
    def passed(self) -> bool:
        return all(item.passed for item in self.items)

    def as_json(self) -> dict[str, Any]:
        return {"passed": self.passed, **asdict(self)}


def verify(name: str, *, tools: Tools | None = None, folder: Path | None = None) -> Verification:
    """Check the lock, what is installed, every file's hash, requirements, and prove again.

    The new proof takes the old one's place, and a damaged environment is marked as broken, so that no command is
    started in it. Raises InputError when there is nothing to verify, MachineError while another process changes it.
    """
    tools = tools or Tools()
    store = Store(folder, tools.host.environ)
    store.open(name)
    with store.changing(name):
        environment = store.open(name)
        build = environment.build
        if build is None:
            raise InputError(
                f"the environment {name!r} was never finished, so there is nothing to verify",
                hint=f"modelyard env repair {name}, or modelyard env remove {name}",
            )
        items = tuple(_timed(check, tools) for check in _checks(environment, build, tools))
        sound = all(item.passed for item in items if item.name in DAMAGE)
        building.write_record(build, {**build.read_record(), "state": "ready" if sound else "broken"})
        return Verification(name, build.path.name, items, building.now())


Check = tuple[str, Callable[[], Item]]


def _checks(environment: Environment, build: BuildFolder, tools: Tools) -> Iterator[Check]:
    uv = Uv(tools.uv, environ=tools.host.environ)
    damages: list[integrity.Damage] = []

    def files() -> Item:
        damages.extend(integrity.check(build.site_packages))
        return _damages("files", [each for each in damages if each.kind != "conflict"], "every file has its hash")

    def conflicts() -> Item:
        found = [each for each in damages if each.kind == "conflict"]
        return _damages("conflicts", found, "no two packages claim one file with different contents")

    def proof() -> Item:
        device = str(build.read_record().get("proof_device") or "cpu")
        failed = proving.failures(proving.prove(build, environment.framework, device, tools.proof))
        return _item("proof", failed, f"it computes on {device} what the formulas say")

    yield "lock", lambda: _lock(build)
    yield "installed", lambda: _installed(build, uv)
    yield "files", files
    yield "conflicts", conflicts
    yield "requirements", lambda: _requirements(build, uv)
    yield "proof", proof


def _timed(check: Check, tools: Tools) -> Item:
    seconds = 0.0

    def listener(event: dict[str, Any]) -> None:
        nonlocal seconds
        seconds = float(event.get("seconds", 0.0))
        tools.listener(event)

    name, look = check
    with building.stage(listener, name):
        item = look()
    return replace(item, seconds=seconds)


def _lock(build: BuildFolder) -> Item:
    """pyproject.toml, uv.lock and modelyard's wheel are those of the installation, which checked that they fit.

    Not ``uv lock --check``: that also fails when the person has changed index, or removed a folder of wheels, since.
    """
    recorded = build.read_record().get("files")
    changed = []
    for name, expected in (recorded if isinstance(recorded, dict) else {"build.json": ""}).items():
        file = build.path / name
        if not file.is_file():
            changed.append(f"{name} is missing")
        elif file_sha256(file) != expected:
            changed.append(f"{name} was changed after the installation")
    return _item("lock", changed, "it is the one that was installed")


def _installed(build: BuildFolder, uv: Uv) -> Item:
    """Exactly the locked packages, no other and none missing."""
    said, failed = _try(uv, ["sync", "--check", "--frozen", "--offline", "--python", str(build.python)], build)
    lines = [found for found in map(re.compile(r" ([+~-]) ([\w.-]+)((?:==[^ ]+)?)").match, said) if found]
    gone = {found[2] for found in lines if found[1] == "-"}
    # uv wants its wheel installed again when the wheel's file has another date, as after a backup was put back. What
    # the wheel and the installed files hold is checked by their hashes.
    again = {NAME} if NAME in gone and any(found[1] == "+" and found[2] == NAME for found in lines) else set()
    words = {"+": "missing", "-": "not in the lock", "~": "of another version"}
    facts = [f"{found[2]}{found[3]}: {words[found[1]]}" for found in lines if found[2] not in again]
    return _item("installed", facts if lines else failed, "the locked packages, no other and none missing")


def _requirements(build: BuildFolder, uv: Uv) -> Item:
    """Every package finds the versions that it asks for."""
    said, failed = _try(uv, ["pip", "check", "--python", str(build.python)], build)
    found = [line for line in said if line.startswith("The package")]
    return _item("requirements", (found or failed) if failed else [], "every package has what it requires")


def _try(uv: Uv, arguments: list[str], build: BuildFolder) -> tuple[list[str], list[str]]:
    """(what uv said, why it failed)."""
    said: list[str] = []
    try:
        uv.run(arguments, build.path, lambda event: said.append(str(event["raw"])))
    except MachineError as error:
        return said, [error.problem]
    return said, []


def _damages(name: str, damages: list[integrity.Damage], fine: str) -> Item:
    facts = [f"{each.file} ({each.distribution or 'of no package'}): {each.detail}" for each in damages]
    return _item(name, facts, fine)


def _item(name: str, facts: list[str], fine: str) -> Item:
    more = f"; and {len(facts) - SHOWN} more" if len(facts) > SHOWN else ""
    return Item(name, not facts, "; ".join(facts[:SHOWN]) + more if facts else fine, tuple(facts))
