"""Every change of an installed file is found, in environments that uv really made, and nothing else is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.environment.fake_wheels import install, make_environment, make_wheel

from modelyard.environment.integrity import Damage, check, environment_root

FILES = {
    "boat/__init__.py": "LENGTH = 12\n",
    "boat/empty.py": "",
    "boat/hull.bin": bytes(range(256)) * 64,
    "boat/keel.bin": bytes(range(256)) * 6000,  # large enough to be hashed in a thread
    "boat/with, comma.txt": "quoted in RECORD\n",
    "boat/größe.txt": "not only ASCII\n",
    "lonely.py": "ANSWER = 42\n",
    "boat-1.0.data/scripts/row": "#!python\nprint('row')\n",
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with two packages, never changed."""
    folder = tmp_path_factory.mktemp("pristine")
    python, _ = make_environment(folder / "environment")
    sail = make_wheel(folder, "sail-maker", "2.0", {"sail_maker/__init__.py": "AREA = 30\n"})
    install(python, make_wheel(folder, "boat", "1.0", FILES), sail)
    subprocess.run([python, "-m", "compileall", "-q", str(folder / "environment")], check=True)
    return folder / "environment"


@pytest.fixture
def site(pristine: Path, tmp_path: Path) -> Path:
    """The site-packages of a copy that a test may damage."""
    shutil.copytree(pristine, tmp_path / "copy", symlinks=True)
    return site_of(tmp_path / "copy")


def site_of(environment: Path) -> Path:
    return next(each for each in environment.rglob("site-packages"))


def only(damages: list[Damage]) -> Damage:
    assert len(damages) == 1, damages
    return damages[0]


def test_what_was_just_installed_is_whole(pristine: Path) -> None:
    assert check(site_of(pristine)) == []


def test_a_relative_path_and_one_through_a_link_say_the_same(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (site / "lonely.py").unlink()
    found = check(site)
    monkeypatch.chdir(site.parent)
    assert check(Path("site-packages")) == found
    link = site.parents[3] / "linked"
    link.symlink_to(site.parents[2], target_is_directory=True)
    assert check(link / site.relative_to(site.parents[2])) == found


@pytest.mark.parametrize("file", ["boat/__init__.py", "boat/hull.bin", "boat/with, comma.txt", "boat/größe.txt"])
def test_a_changed_byte_is_found_with_the_name_of_its_file(site: Path, file: str) -> None:
    content = bytearray((site / file).read_bytes())
    content[3] ^= 1
    (site / file).write_bytes(content)
    damage = only(check(site))
    assert (damage.file, damage.distribution, damage.kind) == (file, "boat 1.0", "changed")


def test_a_removed_a_longer_and_a_replaced_file(site: Path) -> None:
    (site / "lonely.py").unlink()
    (site / "boat/hull.bin").write_bytes(b"")
    (site / "boat/__init__.py").unlink()
    (site / "boat/__init__.py").mkdir()
    assert [(each.file, each.kind) for each in check(site)] == [
        ("boat/__init__.py", "missing"),
        ("boat/hull.bin", "changed"),
        ("lonely.py", "missing"),
    ]
    assert check(site)[1].detail == "0 bytes instead of 16,384"


@pytest.mark.skipif(sys.platform == "win32", reason="scripts are programs there")
def test_a_script_beside_site_packages_is_checked_too(site: Path) -> None:
    script = site.parents[2] / "bin" / "row"
    script.write_text(script.read_text() + "import os\n")
    damage = only(check(site))
    assert (damage.file, damage.kind) == ("../../../bin/row", "changed")


def test_compiled_files_do_not_count(site: Path) -> None:
    compiled = next((site / "boat").rglob("*.pyc"))
    compiled.write_bytes(b"other")
    assert check(site) == []


def record_of(site: Path) -> Path:
    return site / "boat-1.0.dist-info" / "RECORD"


def test_a_missing_record(site: Path) -> None:
    record_of(site).unlink()
    kinds = {each.file: each.kind for each in check(site)}
    assert kinds == {"boat-1.0.dist-info/RECORD": "missing", "lonely.py": "unowned"}


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff\xfe\x00", b"boat/__init__.py\n", b'"never closed', b"a,sha256=x,y\n", b"a,md5=xx,1\n", b"a\0b,,\n"],
)
def test_a_record_that_cannot_be_used(site: Path, content: bytes) -> None:
    record_of(site).write_bytes(content)
    damages = [each for each in check(site) if each.kind == "record"]
    assert damages
    assert {each.file for each in damages} == {"boat-1.0.dist-info/RECORD"}


def test_a_record_that_was_cut_off_anywhere_before_its_end(site: Path) -> None:
    whole = record_of(site).read_bytes()
    for length in range(0, len(whole) - 1, 7):
        record_of(site).write_bytes(whole[:length])
        assert check(site), whole[:length]


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
@pytest.mark.parametrize("place", ["../../../../outside.txt", "/etc/hostname", "boat/../../../../../outside.txt"])
def test_a_path_that_leaves_the_environment_is_damage_and_is_not_opened(site: Path, place: str) -> None:
    outside = site.parents[3] / "outside.txt"
    os.mkfifo(outside)  # to open it would wait for ever
    with record_of(site).open("a") as file:
        file.write(f"{place},sha256={'A' * 43},5\n")
    damage = only(check(site))
    assert (damage.file, damage.kind) == (place, "outside")


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes in folders")
def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(site: Path) -> None:
    (site / "lonely.py").unlink()
    os.mkfifo(site / "lonely.py")
    assert only(check(site)).detail == "is no regular file"


@pytest.mark.parametrize("name", ["evil.pth", "sitecustomize.py", "torch.py", "usercustomize.pyc"])
def test_a_planted_file_is_found(site: Path, name: str) -> None:
    (site / name).write_text("import os\n")
    damage = only(check(site))
    assert (damage.file, damage.distribution, damage.kind) == (name, "", "unowned")


def test_a_planted_folder_that_every_python_imports_is_found(site: Path) -> None:
    (site / "sitecustomize").mkdir()
    (site / "sitecustomize" / "__init__.py").write_text("import os\n")
    assert only(check(site)).file == "sitecustomize"


def test_two_packages_with_one_file(tmp_path: Path) -> None:
    """The last one won; the other is broken although every installer is content. Equal contents do no harm."""
    python, site = make_environment(tmp_path / "environment")
    shared = {"hull/__init__.py": "", "hull/both.py": "SAME = 1\n"}
    old = make_wheel(tmp_path, "hull-cu12", "1.0", {**shared, "hull/keel.so": b"twelve"})
    new = make_wheel(tmp_path, "hull-cu13", "1.0", {**shared, "hull/keel.so": b"thirteen"})
    install(python, old, new)
    damage = only(check(site))
    assert (damage.file, damage.distribution, damage.kind) == (
        "hull/keel.so",
        "hull_cu12 1.0, hull_cu13 1.0",
        "conflict",
    )
    assert damage.detail.endswith("that of hull_cu13 1.0")
    (site / "hull/keel.so").write_bytes(b"neither")
    assert only(check(site)).detail.endswith("that of none of them")


def test_an_installation_by_pip_is_whole_as_well(tmp_path: Path) -> None:
    python, site = make_environment(tmp_path / "environment")
    wheel = make_wheel(tmp_path, "boat", "1.0", FILES)
    command = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", str(wheel)]
    subprocess.run([*command, "--disable-pip-version-check"], check=True, timeout=60)
    assert check(site) == []
    (site / "boat" / "empty.py").write_text("#")
    assert only(check(site)).file == "boat/empty.py"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert only(check(tmp_path / "nothing")).kind == "missing"
    assert environment_root(tmp_path / "e" / "Lib" / "site-packages") == tmp_path / "e"
    assert environment_root(tmp_path / "e" / "lib" / "python3.12" / "site-packages") == tmp_path / "e"


def test_progress_ends_with_all_bytes(pristine: Path) -> None:
    seen: list[tuple[int, int]] = []
    check(site_of(pristine), lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 1_552_384


@pytest.fixture(scope="module")
def recorded(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """All files with a hash in a copy that the property below changes and restores."""
    copy = tmp_path_factory.mktemp("changed") / "environment"
    shutil.copytree(pristine, copy, symlinks=True)
    site = site_of(copy)
    entries = [line for record in site.glob("*.dist-info/RECORD") for line in record.read_text("utf-8").splitlines()]
    names = [line.partition(",sha256=")[0].strip('"') for line in entries if ",sha256=" in line]
    return [site, *(site / name for name in names)]


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_one_byte_in_any_recorded_file_is_found(recorded: list[Path], data: st.DataObject) -> None:
    site, files = recorded[0], recorded[1:]
    file = data.draw(st.sampled_from(files))
    before = file.read_bytes()
    changed = bytearray(before or b"\0")  # an empty file gets its first byte
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(changed)
    try:
        damages = check(site)
    finally:
        file.write_bytes(before)
    assert only(damages).file == os.path.relpath(file, site).replace(os.sep, "/")
    assert damages[0].kind == "changed"


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_one_byte_in_record_itself_is_found(recorded: list[Path], data: st.DataObject) -> None:
    """It has no hash, but what it then says of its files is no longer true, or it no longer lists itself."""
    site = recorded[0]
    before = record_of(site).read_bytes()
    changed = bytearray(before)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    record_of(site).write_bytes(changed)
    try:
        assert check(site)
    finally:
        record_of(site).write_bytes(before)
