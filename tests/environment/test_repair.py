"""Repairing makes a new build beside the old one and changes to it only when it is proved; killed, nothing is lost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.environment.workshop import Workshop, make_workshop

from modelyard.environment import create as creating
from modelyard.environment import repair as repairing
from modelyard.environment.choose import Build
from modelyard.environment.repair import remove
from modelyard.environment.store import Environment
from modelyard.errors import InputError, MachineError


@pytest.fixture
def workshop(tmp_path: Path) -> Workshop:
    workshop = make_workshop(tmp_path)
    workshop.create()
    return workshop


@pytest.fixture(autouse=True)
def choice(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """`choose` answers with the workshop's build; what it was asked."""
    asked: list[tuple[object, ...]] = []

    def choose(framework: str, accelerator: str, python: str | None, *_: object) -> Build:
        asked.append((framework, accelerator, python))
        return workshop.build()

    monkeypatch.setattr(repairing, "choose", choose)
    monkeypatch.setattr(repairing, "read_sources", lambda _: workshop.sources)
    return asked


def repair(workshop: Workshop) -> Environment:
    return repairing.repair("torch", tools=workshop.tools, folder=workshop.store.folder)


# The same in a process that will be killed.
REPAIR = """
from modelyard.environment import repair
repair.choose = lambda *_: workshop.build()
repair.read_sources = lambda _: workshop.sources
repair.repair("torch", tools=workshop.tools, folder=workshop.store.folder)
"""


def numbers(environment: Environment) -> list[int]:
    return [each.number for each in environment.builds]


def test_a_spoilt_environment_is_whole_again_and_the_old_build_is_kept(
    workshop: Workshop, choice: list[tuple[object, ...]]
) -> None:
    old = workshop.store.open("torch").build
    assert old is not None
    (old.site_packages / "widget.py").write_text("VERSION = 'spoilt'")
    environment = repair(workshop)
    assert choice == [("torch", "auto", environment.python)]
    assert (environment.state, environment.current, numbers(environment)) == ("ready", "2", [1, 2])
    assert environment.build is not None
    assert "1.0" in (environment.build.site_packages / "widget.py").read_text()
    assert "spoilt" in (old.site_packages / "widget.py").read_text()


def test_versions_stay_where_they_fit(workshop: Workshop) -> None:
    workshop.wheel("widget", "1.5")
    environment = repair(workshop)
    assert environment.build is not None
    assert 'name = "widget"\nversion = "1.0"' in environment.build.lock.read_text()
    workshop.create("new")
    assert 'name = "widget"\nversion = "1.5"' in workshop.store.open("new").builds[0].lock.read_text()


def test_a_wheel_that_changed_under_its_version_is_refused_by_name(workshop: Workshop) -> None:
    workshop.wheel("widget", "1.0", text="import os\n")
    (workshop.folder / "cache").rename(workshop.folder / "old-cache")
    with pytest.raises(MachineError, match=r"widget==1\.0 is not the file that was locked"):
        repair(workshop)
    environment = workshop.store.open("torch")
    assert (environment.state, environment.current, numbers(environment)) == ("ready", "1", [1])


def test_another_modelyard_of_the_same_version_is_taken(workshop: Workshop, monkeypatch: pytest.MonkeyPatch) -> None:
    from modelyard.environment import own_wheel

    files = own_wheel._package_files
    monkeypatch.setattr(own_wheel, "_package_files", lambda: [*files(), ("modelyard/added.py", b"ADDED = 1\n")])
    environment = repair(workshop)
    assert environment.build is not None
    assert (environment.build.site_packages / "modelyard" / "added.py").exists()


def test_a_proof_that_fails_changes_nothing(workshop: Workshop) -> None:
    (workshop.control / "proof-fails").touch()
    with pytest.raises(MachineError, match="gradients"):
        repair(workshop)
    environment = workshop.store.open("torch")
    assert (environment.state, environment.current) == ("ready", "1")
    assert environment.builds[1].state == "broken"
    (workshop.control / "proof-fails").unlink()
    environment = repair(workshop)
    assert (environment.current, numbers(environment)) == ("3", [1, 3])


def test_only_the_build_before_is_kept_and_that_is_said(workshop: Workshop) -> None:
    repair(workshop)
    environment = repair(workshop)
    assert numbers(environment) == [2, 3]
    assert [each["text"] for each in workshop.events if each["kind"] == "note"] == [
        f"removed an older build: {environment.folder / 'builds' / '1'}"
    ]


def test_an_environment_whose_first_proof_failed_can_be_repaired(workshop: Workshop) -> None:
    (workshop.control / "proof-fails").touch()
    with pytest.raises(MachineError):
        workshop.create("other")
    (workshop.control / "proof-fails").unlink()
    environment = repairing.repair("other", tools=workshop.tools, folder=workshop.store.folder)
    assert (environment.state, environment.current, numbers(environment)) == ("ready", "2", [2])


@pytest.mark.parametrize("point", ["before-lock", "after-lock", "before-sync", "after-sync", "proof-waits"])
def test_killed_at_any_point_the_environment_works_and_the_next_call_repairs(workshop: Workshop, point: str) -> None:
    (workshop.control / "proof-started").unlink()
    workshop.waiting_uv()
    workshop.killed(REPAIR, point)
    environment = workshop.store.open("torch")
    assert (environment.state, environment.current) == ("ready", "1")
    assert workshop.store.find_ready("torch") == environment
    environment = repair(workshop)
    assert (environment.state, environment.current) == ("ready", "3")
    workshop.without_leftovers(environment, ["1", "3"])


def test_killed_before_the_swap_the_next_call_finishes(workshop: Workshop) -> None:
    environment = repair(workshop)
    value = json.loads((environment.folder / "environment.json").read_text())
    (environment.folder / "environment.json").write_text(json.dumps({**value, "current": "1"}))
    environment = repair(workshop)
    assert (environment.current, numbers(environment)) == ("2", [1, 2])
    assert workshop.stages() == [], "nothing is built again"


def test_what_was_never_finished_cannot_be_repaired(workshop: Workshop) -> None:
    (workshop.store.folder / "begun").mkdir()
    with pytest.raises(InputError, match="never finished") as raised:
        repairing.repair("begun", tools=workshop.tools, folder=workshop.store.folder)
    assert "env create --name begun" in raised.value.hint
    with pytest.raises(InputError, match=r"no environment 'toch'.*'torch'"):
        repairing.repair("toch", tools=workshop.tools, folder=workshop.store.folder)


def test_remove(workshop: Workshop) -> None:
    environment = repair(workshop)
    places = {"tools": workshop.tools, "folder": workshop.store.folder}
    assert remove("torch", only_old=True, **places) == [str(environment.folder / "builds" / "1")]
    assert numbers(environment) == [2]
    assert remove("torch", only_old=True, **places) == []
    assert workshop.store.open("torch").state == "ready"
    assert remove("torch", **places) == [str(environment.folder)]
    assert workshop.store.environments() == []
    with pytest.raises(InputError, match="no environment 'torch'"):
        remove("torch", **places)
    assert creating.Store(workshop.store.folder).names() == []


def test_remove_takes_what_was_never_finished_and_what_is_damaged(workshop: Workshop) -> None:
    (workshop.store.folder / "begun" / "builds" / "1").mkdir(parents=True)
    (workshop.store.folder / "torch" / "environment.json").write_text("{")
    for name in ("begun", "torch"):
        remove(name, tools=workshop.tools, folder=workshop.store.folder)
    assert workshop.store.environments() == []


def test_old_builds_of_what_is_not_in_use_are_not_removed(workshop: Workshop) -> None:
    (workshop.store.folder / "begun").mkdir()
    with pytest.raises(InputError, match=r"no build .* is in use"):
        remove("begun", only_old=True, tools=workshop.tools, folder=workshop.store.folder)
