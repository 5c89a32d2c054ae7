"""Collections for machines without a network, installed for real with the network cut off."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import uv
from tests.environment.fake_wheels import make_environment, make_wheel
from tests.environment.workshop import PYTHON, Workshop, make_workshop

from modelyard.environment import airgap
from modelyard.environment.airgap_text import Subject, install_text
from modelyard.errors import InputError, MachineError, UsageError

USE = "modelyard-torch/bin/python -c 'import widget, modelyard; print(widget.VERSION)'"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    return make_workshop(tmp_path_factory.mktemp("airgap"))


@pytest.fixture(scope="module")
def build(workshop: Workshop) -> Path:
    """The folder of a finished build, made by uv from fake wheels."""
    made = workshop.create().build
    assert made is not None
    return made.path


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """What pip is told here does not count, and it asks no index."""
    for name in list(os.environ):
        if name.startswith(("PIP_", "UV_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")


@pytest.fixture
def collected(build: Path, tmp_path: Path, offline: None) -> Path:
    return airgap.collect(build, tmp_path / "air", name="torch", framework="torch")


def without_network(folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    """A shell command in a namespace of its own, which has no network."""
    cut = ["unshare", "--net"] if os.name == "posix" and os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]
    if shutil.which("unshare") is None or subprocess.run([*cut, "true"], capture_output=True).returncode != 0:
        pytest.skip("no network namespace can be made here")
    bin_folder = folder / "bin"
    bin_folder.mkdir(exist_ok=True)
    for name, target in ((f"python{PYTHON}", sys.executable), ("uv", uv.find_uv_bin())):
        (bin_folder / name).unlink(missing_ok=True)
        (bin_folder / name).write_text(f'#!/bin/sh\nexec "{target}" "$@"\n')
        (bin_folder / name).chmod(0o755)
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "UV_", "VIRTUAL_"))}
    environ |= {"PATH": f"{bin_folder}:{environ['PATH']}", "PIP_CONFIG_FILE": os.devnull}
    environ |= {"UV_CACHE_DIR": str(folder / "cache"), "PIP_NO_CACHE_DIR": "1"}  # nothing comes out of a cache
    return subprocess.run(
        [*cut, "sh", "-ec", command], cwd=folder / "air", env=environ, capture_output=True, text=True, timeout=300
    )


def commands(folder: Path) -> list[str]:
    """The English half of INSTALL.md: check, pip, uv, proof."""
    text = (folder / "INSTALL.md").read_text(encoding="utf-8").split("\n# ", 2)[0]
    return [re.sub(r"(?m)^   ", "", each) for each in re.findall(r"(?s)```\n(.*?)```", text)]


# What is collected ----------------------------------------------------------------------------------------------------


def test_everything_is_there_and_has_its_sum(collected: Path) -> None:
    names = {each.relative_to(collected).as_posix() for each in collected.rglob("*") if each.is_file()}
    assert {"INSTALL.md", "SHA256SUMS", "requirements.txt", "wheels/widget-1.0-py3-none-any.whl"} <= names
    assert any(name.startswith("wheels/modelyard-") for name in names)
    sums = dict(line.split("  ")[::-1] for line in (collected / "SHA256SUMS").read_text().splitlines())
    assert set(sums) == names - {"SHA256SUMS"}
    assert all(hashlib.sha256((collected / name).read_bytes()).hexdigest() == each for name, each in sums.items())
    wheels = len([name for name in names if name.startswith("wheels/")])
    assert (collected / "requirements.txt").read_text().count("==") == wheels
    assert list(collected.parent.iterdir()) == [collected]


def test_nothing_of_this_machine_gets_out(collected: Path, workshop: Workshop, tmp_path: Path) -> None:
    for name in ("INSTALL.md", "requirements.txt"):
        text = (collected / name).read_text(encoding="utf-8")
        assert all(word not in text for word in (str(workshop.folder), str(tmp_path), "file://"))


def test_both_languages_have_the_same_commands(collected: Path) -> None:
    english, chinese = (collected / "INSTALL.md").read_text(encoding="utf-8").split("# 离线安装")
    blocks = [re.findall(r"(?s)```\n(.*?)```", half) for half in (english, chinese)]
    assert blocks[0] == blocks[1] and len(blocks[0]) == 4
    assert "modelyard.engines.torch.proof --device cpu" in blocks[0][3]


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "jax"])
def test_the_proof_that_is_named_exists(framework: str) -> None:
    text = install_text(Subject("x", framework, "cpu", "linux-x86_64", "3.12", False))
    found = re.search(r"-I -m (\S+)", text)
    assert found is not None
    source = Path(airgap.__file__).parents[2] / (found[1].replace(".", "/") + ".py")
    assert source.is_file()


def test_windows_gets_its_own_commands() -> None:
    text = install_text(Subject("torch", "torch", "cpu", "windows-x86_64", "3.12", True))
    assert "py -3.12 -m venv" in text and "\\Scripts\\python" in text and "Get-FileHash" in text


# Installing without a network -----------------------------------------------------------------------------------------


def test_the_printed_pip_commands_install_without_a_network(collected: Path, tmp_path: Path) -> None:
    check, pip, _, _ = commands(collected)
    ended = without_network(
        tmp_path, check + pip + "modelyard-torch/bin/python -c 'import widget; print(widget.VERSION)'"
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "1.0"


def test_the_printed_uv_commands_install_without_a_network(collected: Path, tmp_path: Path) -> None:
    _, _, fast, _ = commands(collected)
    ended = without_network(tmp_path, fast + USE)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "1.0"


@pytest.mark.parametrize("tool", [1, 2], ids=["pip", "uv"])
def test_a_changed_wheel_is_refused_by_name(collected: Path, tmp_path: Path, tool: int) -> None:
    make_wheel(collected / "wheels", "widget", "1.0", {"widget.py": "VERSION = 'evil'\n"})
    ended = without_network(tmp_path, commands(collected)[tool])
    assert ended.returncode != 0
    assert "widget" in ended.stdout + ended.stderr and "hash" in (ended.stdout + ended.stderr).lower()
    sums = without_network(tmp_path, commands(collected)[0])
    assert sums.returncode != 0 and "wheels/widget-1.0-py3-none-any.whl: FAILED" in sums.stdout


# From PyPI ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def from_pypi(tmp_path: Path) -> Path:
    """A build whose lock has a package in pure Python and one with a wheel for each platform."""
    folder = tmp_path / "torch" / "builds" / "1"
    (folder / "packages").mkdir(parents=True)
    wheel = make_wheel(folder / "packages", "modelyard", "0.1.0", {"modelyard/__init__.py": ""})
    here = airgap._here().marker
    (folder / "pyproject.toml").write_text(f"""\
[project]
name = "modelyard-environment"
version = "0"
requires-python = "=={PYTHON}.*"
dependencies = ["modelyard", "idna==3.10", "markupsafe==3.0.2", "colorama==0.4.6; sys_platform == 'win32'"]

[tool.uv]
package = false
environments = [
  "{here}",
]

[tool.uv.sources]
modelyard = {{ path = "packages/{wheel.name}" }}
""")
    locked = subprocess.run([uv.find_uv_bin(), "lock", "--quiet"], cwd=folder, capture_output=True, text=True)
    if locked.returncode != 0:
        pytest.skip("PyPI is not reached")
    return folder


def test_a_package_from_pypi_installs_without_a_network(from_pypi: Path, tmp_path: Path) -> None:
    folder = airgap.collect(from_pypi, tmp_path / "air", name="torch")
    check, pip, _ = commands(folder)
    code = "import idna, markupsafe; print(idna.__version__, markupsafe.escape('<'))"
    ended = without_network(tmp_path, check + pip + f'modelyard-torch/bin/python -c "{code}"')
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines()[-1] == "3.10 &lt;"


@pytest.mark.parametrize(
    ("platform", "tag"),
    [
        ("linux-x86_64", "manylinux_2_17_x86_64"),
        ("linux-aarch64", "manylinux_2_17_aarch64"),
        ("macos-arm64", "macosx_11_0_arm64"),
        ("windows-x86_64", "win_amd64"),
    ],
)
def test_another_platform_gets_its_own_wheels(from_pypi: Path, tmp_path: Path, platform: str, tag: str) -> None:
    folder = airgap.collect(from_pypi, tmp_path / "air", platform, name="torch")
    names = sorted(each.name for each in (folder / "wheels").iterdir())
    assert "idna-3.10-py3-none-any.whl" in names
    assert [name for name in names if name.startswith("markupsafe") and tag in name.lower()] or [
        name for name in names if name.startswith("MarkupSafe") and tag in name
    ]
    assert any(name.startswith("colorama") for name in names) == platform.startswith("windows")
    lock = (from_pypi / "uv.lock").read_text()
    assert "colorama" not in lock.split("[package.metadata]")[0]  # the build's own lock is as it was
    assert platform in (folder / "INSTALL.md").read_text(encoding="utf-8")


# Bad input ------------------------------------------------------------------------------------------------------------


def test_an_unknown_platform_names_the_nearest(build: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'linux-arm64'; did you mean '") as caught:
        airgap.collect(build, tmp_path / "air", "linux-arm64")
    assert "linux-aarch64" in caught.value.hint


def test_a_folder_with_other_files_is_left_alone(build: Path, tmp_path: Path, offline: None) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="would be replaced"):
        airgap.collect(build, tmp_path)
    with pytest.raises(InputError, match="is a file"):
        airgap.collect(build, tmp_path / "thesis.txt")
    assert [each.name for each in tmp_path.iterdir()] == ["thesis.txt"]


def test_collecting_again_replaces_and_cleans_what_a_kill_left(collected: Path, build: Path, offline: None) -> None:
    left = collected.with_name("air.tmp-1234abcd")
    (left / "wheels").mkdir(parents=True)
    (collected / "wheels" / "old-1-py3-none-any.whl").touch()
    airgap.collect(build, collected)
    assert not left.exists() and not (collected / "wheels" / "old-1-py3-none-any.whl").exists()
    assert list(collected.parent.iterdir()) == [collected]


def test_a_wheel_that_is_gone_is_named(build: Path, workshop: Workshop, tmp_path: Path, offline: None) -> None:
    copy = tmp_path / "builds" / "1"
    shutil.copytree(build, copy, ignore=shutil.ignore_patterns(".venv"))
    lock = (copy / "uv.lock").read_text()
    (copy / "uv.lock").write_text(lock.replace(str(workshop.wheels), str(tmp_path / "gone")))
    with pytest.raises(MachineError, match=r"a folder that is gone: .*widget-1\.0-py3-none-any\.whl"):
        airgap.collect(copy, tmp_path / "out" / "air")
    assert not (tmp_path / "out").exists()


def test_an_interrupted_download_leaves_no_folder(
    build: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(airgap, "_describe", interrupted)
    with pytest.raises(KeyboardInterrupt):
        airgap.collect(build, tmp_path / "out" / "air")
    assert list((tmp_path / "out").iterdir()) == []


def test_what_pip_says_is_passed_on(from_pypi: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(MachineError, match=r"No matching distribution found for idna==3\.10"):
        airgap.collect(from_pypi, tmp_path / "out" / "air")
    assert list((tmp_path / "out").iterdir()) == []


def test_too_little_space_is_said_before_anything_is_fetched(
    build: Path, tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=10_000_000))
    with pytest.raises(MachineError, match=r"0\.01 GB free") as caught:
        airgap.collect(build, tmp_path / "air")
    assert "another disk" in caught.value.hint and not (tmp_path / "air").exists()


def test_a_python_without_pip_is_named(build: Path, tmp_path: Path) -> None:
    python, _ = make_environment(tmp_path / "bare")
    with pytest.raises(MachineError, match="has none") as caught:
        airgap.collect(build, tmp_path / "air", python=str(python))
    assert str(python) in caught.value.problem and "ensurepip" in caught.value.hint


def test_a_place_that_cannot_be_written_is_named(build: Path, tmp_path: Path, offline: None) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(MachineError, match="cannot write"):
        airgap.collect(build, tmp_path / "file" / "air")
