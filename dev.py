"""Set-up and checks with nothing but Python: ``python dev.py demo`` and ``python dev.py test``; ``make`` calls them.

``python dev.py test-install`` is the longer check of what installs.

Makes a virtual environment in ``.venv``, installs modelyard into it with the tested versions (constraints.txt in
the package), and runs.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent
CONSTRAINTS = ROOT / "src" / "modelyard" / "constraints.txt"
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / ("python.exe" if os.name == "nt" else "python")

# Exit code 0 if torch is in this Python (after `test`) or in an environment that modelyard made.
HAS_TORCH = """
import importlib.util, sys
from modelyard.environment.store import Store
sys.exit(importlib.util.find_spec("torch") is None and Store().find_ready("torch") is None)
"""


def set_up(extra: str) -> None:
    """Install modelyard[extra] into .venv, unless the same was installed before."""
    made_from = [file.read_bytes() for file in (ROOT / "pyproject.toml", CONSTRAINTS)]
    key = hashlib.sha256(b"\0".join([*made_from, extra.encode(), sys.version.encode()])).hexdigest()
    mark = VENV / f"installed-{extra or 'modelyard'}"
    if PYTHON.exists() and mark.exists() and mark.read_text() == key:
        return
    print(f"Setting up {VENV}; the first time this takes a little.", flush=True)
    if not PYTHON.exists():
        venv.create(VENV, with_pip=True)
    subprocess.run(
        [PYTHON, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         "--constraint", CONSTRAINTS, "--editable", f"{ROOT}[{extra}]" if extra else ROOT],
        check=True,
    )  # fmt: skip
    mark.write_text(key)


def demo(arguments: list[str]) -> int:
    """The five stages on short reviews; `long-documents` on the chapters of six novels.

    The package alone is installed; modelyard then makes and proves the environment that fits this machine.
    """
    set_up("")
    if subprocess.run([PYTHON, "-c", HAS_TORCH]).returncode:
        made = subprocess.run([PYTHON, "-m", "modelyard", "env", "create"]).returncode
        if made:
            return made
    return subprocess.run([PYTHON, "-m", "modelyard", "demo", *arguments]).returncode


def test(arguments: list[str]) -> int:
    """All checks, the quick ones first; the first that fails ends it."""
    set_up("test")
    if not (ROOT / ".git").exists():
        print(
            "note: this is not a git checkout; checks that list tracked files look at the folder instead",
            flush=True,
        )
    checks: list[list[str | Path]] = [
        [PYTHON, "-m", "ruff", "check", "."],
        [PYTHON, "-m", "ruff", "format", "--check", "."],
        [PYTHON, "-m", "mypy"],
        [BIN / "lint-imports", "--no-cache"],
        [PYTHON, "-m", "modelyard.recipe.document", "--check"],
        [PYTHON, "-m", "pytest", "--durations=10", *arguments],
    ]
    for command in checks:
        started = time.monotonic()
        print("$", *(Path(part).name if Path(part).is_absolute() else part for part in command), flush=True)
        code = subprocess.run(command, cwd=ROOT).returncode
        print(f"  {time.monotonic() - started:.0f} s", flush=True)
        if code:
            return code
    return 0


def test_install(arguments: list[str]) -> int:
    """The longer check: environments of every framework, really made, proved and used; downloads gigabytes."""
    set_up("test")
    return subprocess.run([PYTHON, "-m", "pytest", "-m", "install", *arguments, "tests/install"], cwd=ROOT).returncode


def main() -> int:
    """Run one of the commands."""
    commands = {"demo": demo, "test": test, "test-install": test_install}
    if sys.version_info < (3, 11):  # noqa: UP036 - the person may start this with an older Python
        print(f"modelyard needs Python 3.11 or newer; this is {sys.version.split()[0]}", file=sys.stderr)
        return 3
    if len(sys.argv) < 2 or sys.argv[1] not in commands:
        print(
            "usage: python dev.py demo [long-documents] [--open] | python dev.py test|test-install [pytest arguments]",
            file=sys.stderr,
        )
        return 2
    try:
        return commands[sys.argv[1]](sys.argv[2:])
    except subprocess.CalledProcessError as error:
        print(f"error: set-up failed ({error.returncode}); the lines above say why", file=sys.stderr)
        return 3


if __name__ == "__main__":
    raise SystemExit(main())
