"""Which Python it is, who put it there, and whether packages may be installed into it."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.environment.machines import PYTHON_FACTS, FakeHost

from modelyard.environment.host import Host, Ran
from modelyard.environment.probes.python import python


def machine(**facts: Any) -> FakeHost:
    return FakeHost(python_facts={**PYTHON_FACTS, "prefix": "/usr", **facts})


@pytest.mark.parametrize(
    ("base", "kind"),
    [
        ("/usr", "system"),
        ("/home/ann/.pyenv/versions/3.12.4", "pyenv"),
        ("/home/ann/.local/share/uv/python/cpython-3.12.4-linux-x86_64-gnu", "uv"),
        ("/opt/homebrew/opt/python@3.12/Frameworks/Python.framework/Versions/3.12", "homebrew"),
        ("/Library/Frameworks/Python.framework/Versions/3.12", "python.org"),
        ("/Applications/Xcode.app/Contents/Developer/Library/Frameworks/Python3.framework/Versions/3.9", "system"),
        ("C:\\Users\\ann\\AppData\\Local\\Programs\\Python\\Python312", "python.org"),
        ("C:\\Python312", "python.org"),
        ("C:\\Program Files\\WindowsApps\\PythonSoftwareFoundation.Python.3.12_3.12.1_x64__q", "store"),
        ("/srv/python", "unknown"),
    ],
)
def test_who_put_it_there(base: str, kind: str) -> None:
    found = python(machine(prefix=base, base_prefix=base))
    assert (found.kind, found.environment, found.externally_managed) == (kind, "", True)


def test_an_environment_is_no_one_elses_even_of_a_managed_python() -> None:
    found = python(machine(prefix="/home/ann/venv"))
    assert (found.kind, found.environment, found.externally_managed) == ("venv", "/home/ann/venv", False)
    assert python(machine(prefix="/opt/conda", base_prefix="/opt/conda", conda=True)).kind == "conda"


def test_pyenv_and_uv_in_other_places() -> None:
    host = machine(prefix="/srv/pythons/3.12", base_prefix="/srv/pythons/3.12")
    host.variables["UV_PYTHON_INSTALL_DIR"] = "/srv/pythons"
    assert python(host).kind == "uv"


def test_uv_of_the_path_where_the_package_is_not() -> None:
    host = machine()
    host.commands["uv --version"] = "uv 0.9.2 (abc 2026-01-01)\n"
    assert python(host).uv == "0.9.2"


def test_this_python() -> None:
    found = python(Host())
    assert found.version == platform.python_version() and found.executable == sys.executable and found.bits == 64
    in_environment = sys.prefix != sys.base_prefix
    assert (found.kind == "venv") == in_environment and found.environment == (sys.prefix if in_environment else "")
    assert found.uv


def test_another_python_says_the_same_as_itself(tmp_path: Path) -> None:
    """A bare environment, asked from here."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "e")], check=True, timeout=60)
    other = tmp_path / "e" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    found = python(Host(), str(other))
    assert (found.executable, found.version, found.kind) == (str(other), platform.python_version(), "venv")
    assert Path(found.environment).resolve() == (tmp_path / "e").resolve() and found.pip == ""


@pytest.mark.parametrize(
    ("ran", "said"),
    [
        (None, "cannot be started"),
        (Ran(None, "", "", 5.0), "did not answer within 5 s"),
        (Ran(1, "", "no encodings", 0.1), "ended with code 1: no encodings"),
        (Ran(0, "hello", "", 0.1), "Expecting value"),
    ],
)
def test_a_python_that_does_not_work_is_an_error_with_its_words(ran: Ran | None, said: str) -> None:
    host = FakeHost(python_facts=None)
    if ran is not None:
        host.commands["/other/python"] = ran
    with pytest.raises((RuntimeError, ValueError), match=said):
        python(host, "/other/python")
