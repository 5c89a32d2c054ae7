"""Folders of environments: names, states, who may change them, what a newer modelyard left."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelyard.environment.store import BuildFolder, Environment, Store, check_name
from modelyard.errors import InputError, MachineError


def made(
    store: Store, name: str, framework: str = "torch", *, made: str = "2026-01-01", passed: bool = True
) -> Environment:
    """An environment with one build, as `env create` leaves it."""
    environment = Environment(store.folder / name, name, framework, "cpu", "3.12", made, "0.1.0", "1")
    build = environment.folder / "builds" / "1"
    BuildFolder(build).python.parent.mkdir(parents=True, exist_ok=True)
    BuildFolder(build).python.touch()
    (build / "build.json").write_text(json.dumps({"state": "ready", "made": made, "variables": {"A": "1"}}))
    (build / "proof.json").write_text(json.dumps({"format": 1, "passed": passed}))
    environment.write()
    return environment


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "environments")


@pytest.mark.parametrize("name", ["torch", "torch-cu126", "a", "9", "A.b_c-d", "x" * 64])
def test_good_names(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    ("name", "proposal"),
    [("my env", "my-env"), ("../up", "up"), ("a..b", "a.b"), ("", "my-environment"), ("-rf", "rf"), ("end.", "end"),
     (".hidden", "hidden"), ("a/b", "a-b"), ("环境", "my-environment"), ("x" * 65, "x" * 64), ("a\0b", "a-b"),
     ("a\nb", "a-b")],
)  # fmt: skip
def test_odd_names_are_refused_with_a_proposal(name: str, proposal: str) -> None:
    with pytest.raises(InputError) as raised:
        check_name(name)
    assert repr(name) in raised.value.problem
    assert raised.value.hint == f"for example: --name {proposal}"
    assert check_name(proposal) == proposal


def test_nothing_made_yet(store: Store) -> None:
    assert store.environments() == []
    assert store.find_ready("torch") is None


def test_what_was_written_is_read(store: Store) -> None:
    environment = made(store, "torch")
    found = store.open("torch")
    assert found == environment
    assert found.state == "ready"
    assert found.build is not None
    assert found.interpreter == found.build.python
    assert found.build.variables == {"A": "1"}
    value = json.loads((environment.folder / "environment.json").read_text())
    assert (value["format"], value["current"]) == (1, "1")
    assert "folder" not in value, "an environment may be looked at from elsewhere"


def test_an_unknown_name_gets_the_nearest(store: Store) -> None:
    made(store, "torch-cpu")
    with pytest.raises(InputError, match=r"no environment 'torch-cpo'.*did you mean 'torch-cpu'"):
        store.open("torch-cpo")
    assert not (store.folder / "torch-cpo").exists()


def test_one_of_a_newer_modelyard_is_left_alone(store: Store) -> None:
    environment = made(store, "torch")
    file = environment.folder / "environment.json"
    file.write_text(json.dumps({"format": 2, "name": "torch", "modelyard": "9.1", "framework": "torch"}))
    with pytest.raises(InputError, match=r"newer modelyard \(9\.1, format 2; this one reads 1\)") as raised:
        store.open("torch")
    assert "upgrade" in raised.value.hint
    assert [each.name for each in store.environments()] == ["torch"], "a list shows it all the same"
    assert store.find_ready("torch") is None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": "1"}', "\x00"])
def test_a_damaged_file_is_named(store: Store, content: str) -> None:
    environment = made(store, "torch")
    (environment.folder / "environment.json").write_text(content)
    with pytest.raises(InputError, match=r"environment\.json is damaged"):
        store.open("torch")
    assert len(store.environments()) == 1


def test_states(store: Store) -> None:
    environment = made(store, "torch")
    build = environment.build
    assert build is not None
    build.proof.write_text(json.dumps({"passed": False}))
    assert environment.state == "broken", "its proof failed"
    build.proof.unlink()
    assert environment.state == "broken", "it was never proved"
    made(store, "torch")
    build.python.unlink()
    assert environment.state == "broken", "its Python is gone"
    build.record.write_text(json.dumps({"state": "building"}))
    assert environment.state == "unfinished"
    build.record.write_text("half of a fi")
    assert environment.state == "unfinished"
    (store.folder / "begun").mkdir()
    assert store.open("begun").state == "unfinished"


def test_the_newest_proved_one_is_found(store: Store) -> None:
    made(store, "old", made="2026-01-01")
    made(store, "newer", made="2026-03-01")
    made(store, "newest-but-broken", made="2026-05-01", passed=False)
    made(store, "jax", "jax", made="2026-06-01")
    found = store.find_ready("torch")
    assert found is not None
    assert found.name == "newer"
    assert store.find_ready("tensorflow") is None


def test_builds_are_ordered_by_number_and_numbers_not_used_twice(store: Store) -> None:
    environment = made(store, "torch")
    for number in ("10", "9", "not-a-build"):
        (environment.folder / "builds" / number).mkdir()
    assert [each.number for each in environment.builds] == [1, 9, 10]
    assert environment.next_build.number == 11


HOLD = """
import sys, time
from pathlib import Path
from modelyard.environment.store import Store
with Store(Path(sys.argv[1])).changing("torch"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_holds_an_environment_is_said_with_pid_and_time(store: Store) -> None:
    made(store, "torch")
    with subprocess.Popen([sys.executable, "-c", HOLD, store.folder], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "held\n"
            owner = rf"being changed .*pid {other.pid} since 20..-..-.. ..:..:.. UTC"
            with pytest.raises(MachineError, match=owner), store.changing("torch"):
                pass
        finally:
            other.kill()
    with store.changing("torch") as folder:  # it went with its process
        assert folder == store.folder / "torch"


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(MachineError, match="cannot write") as raised, Store(tmp_path / "x").changing("torch"):
        pass
    assert "MODELYARD_ENVIRONMENTS" in raised.value.hint


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "environments").touch()
    with (
        pytest.raises(MachineError, match="cannot write") as raised,
        Store(tmp_path / "environments").changing("torch"),
    ):
        pass
    assert "MODELYARD_ENVIRONMENTS" in raised.value.hint
    assert Store(tmp_path / "environments").environments() == []


def test_deleting_takes_everything(store: Store) -> None:
    made(store, "torch")
    with store.changing("torch"):
        store.delete("torch")
    assert not (store.folder / "torch").exists()
    assert store.names() == []
