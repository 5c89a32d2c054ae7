"""A person's terminal on this machine, in which the real command runs, and what it answered."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.environment.fake_wheels import install, make_environment, make_wheel, run_uv
from tests.environment.provoked import playing_nvml

GIB = 1 << 30
H100 = ("NVIDIA H100 80GB HBM3", (9, 0))
NEW_DRIVER = ("580.82.07", 13000)


@dataclass(frozen=True)
class Answer:
    """What one call of the command said."""

    code: int
    findings: list[dict[str, Any]]
    snapshot: dict[str, Any]

    @property
    def rules(self) -> set[str]:
        return {each["rule"] for each in self.findings}


def only(rule: str, clean: Answer, provoked: Answer, *fix: str) -> dict[str, Any]:
    """The one finding that the provocation adds. `fix`: its first commands; the exit code follows the severities."""
    assert provoked.rules - clean.rules == {rule}, provoked.findings
    [found] = [each for each in provoked.findings if each["rule"] == rule]
    assert tuple(found["fix"][: len(fix)]) == fix
    for answer in (clean, provoked):
        assert answer.code == (3 if any(each["severity"] == "error" for each in answer.findings) else 0)
    return dict(found)


@dataclass
class Shell:
    """Own home, own variables, nothing of those of the developer; `python` is the one that the command looks at."""

    folder: Path
    variables: dict[str, str] = field(default_factory=dict)
    python: Path | None = None

    def __post_init__(self) -> None:
        home = self.folder / "home"
        home.mkdir(parents=True)
        self.variables = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "MODELYARD_LANG": "en",
            "MODELYARD_ENVIRONMENTS": str(home / "environments"),
            "MODELYARD_CACHE": str(home / "cache"),
            "HF_HUB_OFFLINE": "1",  # the hub is asked only where a test is about it
            "PIP_CONFIG_FILE": os.devnull,
            "UV_NO_CONFIG": "1",
            **self.variables,
        }

    def doctor(self, *arguments: str, before: tuple[str, ...] = (), typed: str = "", **variables: str) -> Answer:
        """``python -m modelyard doctor --json``; `before` starts it, as ``taskset`` does.

        `typed` is what was typed before it in the same terminal: the fix of a finding, to see that it mends.
        """
        if typed:
            before = (*before, "sh", "-ec", f'{typed}\nexec "$@"', "sh")
        asked = () if self.python is None else ("--python", str(self.python))
        ran = subprocess.run(
            [*before, sys.executable, "-m", "modelyard", "doctor", "--json", *asked, *arguments],
            cwd=self.folder, env=self.variables | variables, capture_output=True, text=True, timeout=60,
        )  # fmt: skip
        assert ran.stderr == ""
        answer = json.loads(ran.stdout)
        assert all(each["problem"].startswith("no answer within") for each in answer["snapshot"]["unread"])
        return Answer(ran.returncode, answer["findings"], answer["snapshot"])

    def gpu(
        self,
        gpu: tuple[str, tuple[int, int]] = H100,
        driver: tuple[str, int] = NEW_DRIVER,
        used_gib: float = 0.5,
        error: int = 0,
    ) -> None:
        """From now on NVML's binding answers like a machine with this GPU, to every Python of this shell."""
        modules = self.folder / "modules"
        modules.mkdir(exist_ok=True)
        (modules / "pynvml.py").write_text(Path(playing_nvml.__file__).read_text())
        machine = {
            "error": error, "driver": driver[0], "cuda": driver[1], "name": gpu[0], "capability": gpu[1],
            "total": 80 * GIB, "used": int(used_gib * GIB),
        }  # fmt: skip
        (modules / "nvml.json").write_text(json.dumps(machine))
        self.variables["PYTHONPATH"] = str(modules)

    def environment(self) -> Path:
        """A new virtual environment, which the command looks at from now on: its site-packages."""
        self.python, site = make_environment(self.folder / "environment")
        return site

    def install(self, name: str, version: str, files: dict[str, bytes | str] | None = None) -> None:
        """Install a wheel with these files, as uv does it."""
        assert self.python is not None
        install(self.python, make_wheel(self.folder, name, version, files or {}))

    def uninstall(self, name: str) -> None:
        run_uv("pip", "uninstall", "--quiet", "--python", str(self.python), name)


def own_mounts(*commands: str) -> tuple[str, ...]:
    """What starts a command with mounts of its own, made by `commands`; skips where that is not permitted."""
    flags = "-m" if os.geteuid() == 0 else "-rm"
    start = ("unshare", flags, "sh", "-ec", "\n".join([*commands, 'exec "$@"']), "sh")
    if not shutil.which("unshare") or subprocess.run([*start, "true"], capture_output=True, timeout=20).returncode:
        pytest.skip("mounts of one's own are not permitted here")
    return start


def compiled(source: str, target: Path, *flags: str) -> Path:
    """A shared library of C; skips where nothing compiles."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler here")
    target.parent.mkdir(parents=True, exist_ok=True)
    command = [compiler, "-shared", "-fPIC", "-o", str(target), "-x", "c", "-", "-x", "none", *flags]
    subprocess.run(command, input=source, text=True, check=True, capture_output=True, timeout=60)
    return target
