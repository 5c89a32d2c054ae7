"""What is installed, by the names of folders and by RECORD; and files that two packages claim."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.environment.fake_pythons import Place
from tests.environment.fake_wheels import install, make_wheel, run_uv

from modelyard.environment.host import Host
from modelyard.environment.probes import packages


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "environment")


def test_names_of_all_kinds_of_metadata(place: Place) -> None:
    place.add("Huggingface.Hub", "2.4.0")
    (place.site / "numpy-1.26.4-py3.11.egg-info").mkdir()
    (place.site / "modelyard.egg-info").mkdir()
    (place.site / "modelyard.egg-info" / "PKG-INFO").write_text("Name: modelyard\nVersion: 0.1.0\n")
    (place.site / "~orch-2.9.0.dist-info").mkdir()  # what an interrupted pip leaves behind
    (place.site / ".dist-info").mkdir()
    found = {each.name: each.version for each in place.look().packages}
    assert found == {"huggingface-hub": "2.4.0", "numpy": "1.26.4", "modelyard": "0.1.0"}


def test_both_cudnn_wheels_own_one_file_and_installers_do_not_mind(tmp_path: Path) -> None:
    place = Place(tmp_path / "environment")
    library, shared = "nvidia/cudnn/lib/libcudnn.so.9", {"nvidia/__init__.py": "", "nvidia/cudnn/__init__.py": ""}
    wheels = [
        make_wheel(tmp_path, f"nvidia-cudnn-cu{cuda}", "9.10.0", {**shared, library: f"for CUDA {cuda}"})
        for cuda in (12, 13)
    ]
    install(Path(place.python), *wheels)
    conflicts = place.look().conflicts
    assert [(each.file, each.owners) for each in conflicts] == [(library, ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13"))]
    run_uv("pip", "check", "--python", place.python)  # raises if it finds anything
    pip = [sys.executable, "-m", "pip", "--python", place.python, "check", "--disable-pip-version-check"]
    assert "No broken requirements" in subprocess.run(pip, check=True, capture_output=True, text=True).stdout


def test_scripts_count_and_stray_files_do_not(tmp_path: Path) -> None:
    place = Place(tmp_path / "environment")
    for number, name in enumerate(("boat", "ship")):
        files = {
            f"{name}-1.0.data/scripts/sail": f"#!python\nprint({number})\n",
            "tests/test_sail.py": f"a = {number}",
            "README.md": f"{number}",
            "sailing.py": f"a = {number}",
        }
        install(Path(place.python), make_wheel(tmp_path, name, "1.0", files))
    found = place.look().conflicts
    assert [Path(each.file).name for each in found] == ["sail", "sailing.py"]
    assert {each.owners for each in found} == {("boat", "ship")}


def test_many_packages_are_read_quickly(place: Place) -> None:
    """A generous limit, for slow machines: it is a few hundredths of a second where it was measured."""
    for number in range(200):
        place.add(f"package{number}", "1.0")
        lines = [f"package{number}/module{each}.py,sha256=abc,1" for each in range(150)]
        (place.site / f"package{number}-1.0.dist-info" / "RECORD").write_text("\n".join(lines) + "\n")
    started = time.perf_counter()
    found = packages.distributions(Host(), [str(place.site)])
    assert packages.conflicts(Host(), found) == ()
    assert len(found) == 200
    assert time.perf_counter() - started < 1.0


@settings(max_examples=200, deadline=None)
@given(st.text(), st.lists(st.text(alphabet='a/.,"\n=sha256-_', max_size=60), max_size=4))
def test_whatever_lies_in_site_packages_is_read(name: str, records: list[str]) -> None:
    class Garbage(Host):
        def glob(self, folder: str, pattern: str) -> list[str]:
            return [f"{folder}/{name}{number}{pattern[1:]}" for number in range(len(records))]

        def read_text(self, path: str) -> str | None:
            return records[int(path[-1 - len(".dist-info/RECORD")]) % len(records)] if path.endswith("RECORD") else name

    found = packages.distributions(Garbage(), ["/site"])
    packages.conflicts(Garbage(), found)
    packages.that_matter(found)
