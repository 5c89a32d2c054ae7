"""Verifying finds each kind of damage by name, and proves again."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import uv
from tests.environment.fake_wheels import install, make_wheel
from tests.environment.workshop import Workshop, make_workshop

from modelyard.environment.store import BuildFolder
from modelyard.environment.verify import Item, Verification, verify
from modelyard.errors import InputError


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """One environment for all tests; each mends what it broke, or leaves it to `workshop`, which copies."""
    workshop = make_workshop(tmp_path_factory.mktemp("workshop"))
    workshop.wheel("needy", "1.0", "widget>=1")
    workshop.create("torch", workshop.build(requirements=("widget>=1", "needy")))
    return workshop


@pytest.fixture
def workshop(made: Workshop) -> Workshop:
    """With a fresh copy of the build's folder put back after the test."""
    build = build_of(made)
    kept = made.folder / "kept"
    shutil.copytree(build.path, kept, symlinks=True)
    yield made
    shutil.rmtree(build.path)
    kept.rename(build.path)
    for each in made.control.iterdir():
        each.unlink()


def build_of(workshop: Workshop) -> BuildFolder:
    build = workshop.store.open("torch").build
    assert build is not None
    return build


def verified(workshop: Workshop) -> Verification:
    return verify("torch", tools=workshop.tools, folder=workshop.store.folder)


def failed(workshop: Workshop) -> dict[str, Item]:
    return {each.name: each for each in verified(workshop).items if not each.passed}


def test_a_good_one_passes_in_every_item(workshop: Workshop) -> None:
    before = build_of(workshop).read_proof()
    verification = verified(workshop)
    assert [each.name for each in verification.items] == [
        "lock", "installed", "files", "conflicts", "requirements", "proof",
    ]  # fmt: skip
    assert verification.passed, verification
    assert verification.items[-1].seconds > 0
    assert workshop.stages()[-1] == ("proof", "done")
    assert json.loads(json.dumps(verification.as_json()))["passed"] is True
    assert build_of(workshop).read_proof() == before


def test_it_needs_no_network_and_no_index(workshop: Workshop) -> None:
    workshop.wheels.rename(workshop.folder / "elsewhere")
    (workshop.folder / "cache").rename(workshop.folder / "old-cache")
    workshop.variables = {"UV_DEFAULT_INDEX": "https://nowhere.invalid/simple"}
    try:
        assert verified(workshop).passed
    finally:
        workshop.variables = {}
        (workshop.folder / "elsewhere").rename(workshop.wheels)
        shutil.rmtree(workshop.folder / "cache")
        (workshop.folder / "old-cache").rename(workshop.folder / "cache")


def test_a_tampered_file_is_named(workshop: Workshop) -> None:
    with (build_of(workshop).site_packages / "widget.py").open("a") as file:
        file.write("import os\n")
    found = failed(workshop)
    assert list(found) == ["files"]
    assert found["files"].detail.startswith("widget.py (widget 1.0): ")


def test_a_changed_lock_is_named(workshop: Workshop) -> None:
    with build_of(workshop).lock.open("a") as file:
        file.write("# a line more\n")
    assert failed(workshop)["lock"].detail == "uv.lock was changed after the installation"


def test_a_missing_wheel_of_modelyard_is_named(workshop: Workshop) -> None:
    next(build_of(workshop).packages.iterdir()).unlink()
    assert "packages/modelyard-" in failed(workshop)["lock"].detail


def test_a_package_that_is_gone_or_was_added(workshop: Workshop, tmp_path: Path) -> None:
    build = build_of(workshop)
    install(build.python, make_wheel(tmp_path, "stranger", "3.0", {"stranger.py": ""}))
    command = [uv.find_uv_bin(), "--no-config", "pip", "uninstall", "--quiet", "--python", build.python, "widget"]
    subprocess.run(command, check=True)
    found = failed(workshop)
    assert set(found["installed"].facts) == {"stranger==3.0: not in the lock", "widget==1.0: missing"}
    assert "widget" in found["requirements"].detail
    assert "ModuleNotFoundError" in found["proof"].detail


def test_two_packages_that_claim_one_file(workshop: Workshop, tmp_path: Path) -> None:
    install(build_of(workshop).python, make_wheel(tmp_path, "rival", "3.0", {"widget.py": "VERSION = 'rival'\n"}))
    found = failed(workshop)
    assert "rival 3.0" in found["conflicts"].detail
    assert "widget.py" in found["conflicts"].detail


def test_an_environment_that_computes_wrongly_is_not_used_any_more(workshop: Workshop) -> None:
    (workshop.control / "proof-fails").touch()
    found = failed(workshop)
    assert list(found) == ["proof"]
    assert "gradients" in found["proof"].detail
    assert workshop.store.open("torch").state == "broken"
    assert workshop.store.find_ready("torch") is None
    (workshop.control / "proof-fails").unlink()
    assert verified(workshop).passed
    assert workshop.store.open("torch").state == "ready"


def test_a_python_that_was_removed_under_it(workshop: Workshop) -> None:
    build_of(workshop).python.unlink()
    found = failed(workshop)
    assert {"installed", "proof"} <= set(found)
    assert "cannot be started" in found["proof"].detail


def test_many_findings_are_counted_in_the_detail_and_all_in_the_facts(workshop: Workshop) -> None:
    for file in (build_of(workshop).site_packages / "modelyard" / "environment").glob("*.py"):
        file.write_text("")
    item = failed(workshop)["files"]
    assert len(item.facts) > 5
    assert item.detail.endswith(f"and {len(item.facts) - 5} more")


def test_nothing_to_verify(workshop: Workshop) -> None:
    (workshop.store.folder / "begun").mkdir()
    with pytest.raises(InputError, match="never finished"):
        verify("begun", tools=workshop.tools, folder=workshop.store.folder)
    with pytest.raises(InputError, match="no environment 'troch'"):
        verify("troch", tools=workshop.tools, folder=workshop.store.folder)
