"""The generated project is TOML that uv locks, and its lock is held to floors, releases and hashes."""

from __future__ import annotations

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tests.environment.workshop import PYTHON, Workshop, make_workshop

from modelyard.environment import project
from modelyard.environment.host import Host
from modelyard.environment.torch_index import Index
from modelyard.environment.uv import Uv, ignore
from modelyard.errors import InputError, MachineError
from modelyard.runs.files import file_sha256


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    workshop = make_workshop(tmp_path_factory.mktemp("workshop with blanks"))
    workshop.wheel("gadget", "2.0rc1")
    return workshop


def locked(workshop: Workshop, folder: Path, **changes: object) -> Path:
    """The uv.lock of a build in `folder`."""
    tools = workshop.tools
    project.write_project(workshop.build(**changes), folder, tools.host)
    Uv(arguments=arguments(workshop), environ=tools.host.environ).lock(folder, PYTHON, ignore)
    return folder / "uv.lock"


def arguments(workshop: Workshop) -> list[str]:
    """Only the folder of wheels. Not --no-index: the project's own index would not be asked then."""
    nothing = workshop.folder / "nothing"
    nothing.mkdir(exist_ok=True)
    return ["--default-index", nothing.as_uri(), "--find-links", workshop.wheels.as_uri()]


def test_what_the_project_says(workshop: Workshop) -> None:
    build = workshop.build(
        requirements=("widget[more]>=1", "modelyard[torch]"), python="3.12", constraints=("numpy==2.4.6",),
        index=Index("pytorch-cpu", "https://ann:secret@mirror.example/whl/cpu"), packages_from_index=("widget",),
    )  # fmt: skip
    text = project.project_text(build, "modelyard-1-py3-none-any.whl", "sys_platform == 'linux'")
    said = tomllib.loads(text)
    assert said["project"]["requires-python"] == "==3.12.*"
    assert said["project"]["dependencies"] == ["widget[more]>=1", "modelyard[torch]"]
    uv = said["tool"]["uv"]
    assert (uv["package"], uv["prerelease"], uv["constraint-dependencies"]) == (False, "disallow", ["numpy==2.4.6"])
    assert uv["environments"] == ["sys_platform == 'linux'"]
    assert uv["index"] == [{"name": "pytorch-cpu", "url": "https://mirror.example/whl/cpu", "explicit": True}]
    assert uv["sources"] == {
        "modelyard": {"path": "packages/modelyard-1-py3-none-any.whl"}, "widget": {"index": "pytorch-cpu"}
    }  # fmt: skip
    assert "secret" not in text
    assert project.index_login(build) == {
        "UV_INDEX_PYTORCH_CPU_USERNAME": "ann", "UV_INDEX_PYTORCH_CPU_PASSWORD": "secret"
    }  # fmt: skip


@given(some.text(some.characters(exclude_categories=["Cs"])))
def test_any_text_survives_toml(text: str) -> None:
    assert tomllib.loads(f"value = {project.quoted(text)}") == {"value": text}


def test_uv_locks_it_for_this_platform_alone(workshop: Workshop, tmp_path: Path) -> None:
    lock = tomllib.loads(locked(workshop, tmp_path).read_text())
    assert lock["requires-python"] == f"=={PYTHON}.*"
    assert len(lock["supported-markers"]) == 1
    assert project.locked_versions(tmp_path / "uv.lock")["widget"] == ("1.0",)


def test_a_workspace_of_the_person_above_is_not_joined(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "home"\nversion = "1"\n[tool.uv.workspace]\nmembers = ["**"]\n'
    )
    assert locked(workshop, tmp_path / "inside").is_file()
    assert not (tmp_path / "uv.lock").exists()


@pytest.mark.parametrize("through_index", [True, False])
def test_files_of_a_folder_get_the_hash_that_uv_leaves_out(
    workshop: Workshop, tmp_path: Path, through_index: bool
) -> None:
    changes = {"index": workshop.index(), "packages_from_index": ("widget",)} if through_index else {}
    lock = locked(workshop, tmp_path, **changes)
    wheel = workshop.wheels / "widget-1.0-py3-none-any.whl"
    assert wheel.name not in project.wheel_hashes(lock), "uv writes it now: add_missing_hashes is not needed any more"
    assert wheel.name in project.add_missing_hashes(lock)
    assert project.wheel_hashes(lock)[wheel.name] == f"sha256:{file_sha256(wheel)}"
    assert project.add_missing_hashes(lock) == []
    before = lock.read_bytes()
    Uv(arguments=arguments(workshop), environ=workshop.tools.host.environ).run(["lock", "--check"], tmp_path, ignore)
    assert lock.read_bytes() == before


def test_an_earlier_hash_wins_over_the_file(workshop: Workshop, tmp_path: Path) -> None:
    lock = locked(workshop, tmp_path)
    known = {"widget-1.0-py3-none-any.whl": "sha256:" + "0" * 64}
    project.add_missing_hashes(lock, known)
    assert project.wheel_hashes(lock)["widget-1.0-py3-none-any.whl"] == "sha256:" + "0" * 64


def test_an_old_version_is_refused_with_name_version_and_floor(workshop: Workshop, tmp_path: Path) -> None:
    lock = locked(workshop, tmp_path)
    project.check_versions(lock, {"widget": "1.0", "not-in-the-lock": "7"})
    with pytest.raises(MachineError, match=r"newest widget .* is 1\.0; modelyard needs 2\.4 or newer"):
        project.check_versions(lock, {"Widget": "2.4"})


def test_a_prerelease_is_refused(tmp_path: Path) -> None:
    lock = tmp_path / "uv.lock"
    lock.write_text('version = 1\n[[package]]\nname = "gadget"\nversion = "2.0rc1"\n')
    with pytest.raises(MachineError, match=r"pre-release of gadget fits here: 2\.0rc1"):
        project.check_versions(lock, {})


def test_uv_does_not_settle_for_a_prerelease(workshop: Workshop, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="gadget"):
        locked(workshop, tmp_path, requirements=("gadget",))


@pytest.mark.parametrize(
    ("version", "is_one"),
    [("2.0rc1", True), ("2.0.dev20260101", True), ("2.0a0+git1", True), ("1.0b2.post1", True), ("2.0", False),
     ("2.0.post1", False), ("2.13.0+cpu", False), ("2.0+rc1", False), ("2.0+cu130.dev", False)],
)  # fmt: skip
def test_what_a_prerelease_is(version: str, is_one: bool) -> None:
    assert project.is_prerelease(version) == is_one


def test_sizes_of_what_would_be_downloaded(workshop: Workshop, tmp_path: Path) -> None:
    sizes = project.download_sizes(locked(workshop, tmp_path))
    assert sizes["widget"] == (workshop.wheels / "widget-1.0-py3-none-any.whl").stat().st_size


@pytest.mark.parametrize("content", ["[[package", "package = 3", "\udcff"])
def test_a_damaged_lock_is_named(tmp_path: Path, content: str) -> None:
    lock = tmp_path / "uv.lock"
    lock.write_bytes(content.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=r"uv\.lock") as raised:
        project.locked_versions(lock)
    assert "repair" in raised.value.hint


def test_the_marker_is_true_here() -> None:
    import platform
    import sys

    assert project.marker(Host()) == f"sys_platform == '{sys.platform}' and platform_machine == '{platform.machine()}'"


def test_a_build_without_constraints_and_index_is_still_a_project(workshop: Workshop) -> None:
    build = replace(workshop.build(), requirements=("modelyard",))
    said = tomllib.loads(project.project_text(build, "m.whl", "a == 'b'"))
    assert said["project"]["dependencies"] == ["modelyard"]
    assert "index" not in said["tool"]["uv"]
