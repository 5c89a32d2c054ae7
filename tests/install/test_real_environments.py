"""The longer check (``python dev.py test-install``): environments are really made, proved, verified and handed over to.

Everything is downloaded as the person's own pip is set up to do; it takes minutes, so the usual tests leave it out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.install, pytest.mark.timeout(1800)]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def light(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A Python with modelyard and nothing else, as ``pip install modelyard`` leaves it, and its variables."""
    folder = tmp_path_factory.mktemp("light")
    python = folder / "venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    constraints = ROOT / "src/modelyard/constraints.txt"
    subprocess.run([python, "-m", "pip", "install", "-q", "-c", constraints, ROOT], check=True)
    return python, {**os.environ, "MODELYARD_ENVIRONMENTS": str(folder / "environments"), "MODELYARD_LANG": "en"}


def command(light: tuple[Path, Mapping[str, str]], *arguments: str, code: int = 0) -> Any:
    """What ``modelyard ARGUMENTS --json`` says; the text goes to this test's output."""
    python, variables = light
    started = time.monotonic()
    done = subprocess.run(
        [python, "-m", "modelyard", *arguments, "--json"], env=variables, stdout=subprocess.PIPE, text=True
    )
    print(f"modelyard {' '.join(arguments)}: {done.returncode}, {time.monotonic() - started:.1f} s", file=sys.stderr)
    assert done.returncode == code
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else None


@pytest.mark.parametrize("framework", ["torch", "tensorflow", "jax"])
def test_made_proved_verified_exported(
    light: tuple[Path, dict[str, str]], framework: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with capfd.disabled():
        command(light, "env", "create", "--framework", framework, "--accelerator", "cpu", "--name", framework)
        command(light, "env", "verify", framework)
        listed = command(light, "env", "list")
        command(light, "env", "export", framework, "--format", "requirements", "--output", str(tmp_path / "export"))
    assert framework in [each["name"] for each in listed["environments"] if each["state"] == "ready"]
    requirements = tmp_path / "export" / "requirements.txt"
    assert "--hash=sha256:" in requirements.read_text()
    dry = [sys.executable, "-m", "pip", "install", "-q", "--dry-run", "--no-deps", "--ignore-installed"]
    subprocess.run([*dry, "--require-hashes", "-r", requirements], cwd=requirements.parent, check=True)


def test_a_bare_machine_runs_a_recipe(
    light: tuple[Path, dict[str, str]], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The light package alone, then one command: the stages run in the environment that was made for them."""
    with capfd.disabled():
        said = command(light, "run", str(ROOT / "recipes/reviews-from-scratch.yaml"), "--run", str(tmp_path / "run"),
                       "--set", "training.num_epochs=1", "--set", "training.steps_per_epoch=5")  # fmt: skip
    assert Path(said["report"]).is_file()
