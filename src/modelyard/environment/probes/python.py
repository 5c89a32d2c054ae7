"""The Python that was asked: its version, who put it there, and what installs into it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelyard.environment.host import Host
from modelyard.environment.probes import interpreter
from modelyard.environment.snapshot import Python

START_SECONDS = 5.0  # a Python on a slow network disk
UV_SECONDS = 1.0

# Where a Python lies says who put it there: (kind, pieces of the real path of its base)
HOMES = (
    ("pyenv", ("/.pyenv/", "/pyenv/versions/", "/pyenv-win/")),
    ("uv", ("/uv/python/",)),
    ("store", ("/windowsapps/", "/pythonsoftwarefoundation.python")),
    ("homebrew", ("/opt/homebrew/", "/cellar/", "/linuxbrew/")),
    ("system", ("/library/developer/commandlinetools/", "/applications/xcode.app/")),
    ("python.org", ("/library/frameworks/python.framework/", "/programs/python/python")),
)
WINDOWS_INSTALLER = re.compile(r"^[a-z]:/(program files( \(x86\))?/)?python3\d+")


def python(host: Host, asked: str | None = None) -> Python:
    """Facts of `asked`, else of the Python that runs modelyard.

    Raises RuntimeError when another Python does not answer, or not sensibly.
    """
    executable = asked or host.python
    own: dict[str, Any] = interpreter.facts() if host.python == sys.executable else {}
    facts = own if own and executable == host.python else _ask(host, executable)
    virtual = facts["prefix"] != facts["base_prefix"]
    return Python(
        executable=executable,
        version=facts["version"],
        bits=facts["bits"],
        kind=_kind(host, facts, virtual),
        externally_managed=facts["externally_managed"] and not virtual,
        environment=facts["prefix"] if virtual else "",
        pip=facts["pip"],
        # The uv that `modelyard env` uses: the package beside modelyard, else the one on PATH
        uv=own.get("uv") or _uv_on_path(host),
    )


def _ask(host: Host, executable: str) -> dict[str, Any]:
    """Run our small program in another Python, without its user's own modules."""
    ran = host.run([executable, "-I", str(Path(interpreter.__file__))], START_SECONDS)
    if ran is None:
        raise RuntimeError(f"{executable} cannot be started")
    if ran.code is None:
        raise RuntimeError(f"{executable} did not answer within {START_SECONDS:g} s")
    lines = ran.output.strip().splitlines()
    answer = json.loads(lines[-1]) if ran.code == 0 and lines else None
    if not isinstance(answer, dict):
        raise RuntimeError(f"{executable} ended with code {ran.code}: {ran.errors.strip()[-200:]}")
    return answer


def _kind(host: Host, facts: Mapping[str, Any], virtual: bool) -> str:
    if facts["conda"]:
        return "conda"
    if virtual:
        return "venv"
    base = str(facts["base_prefix"])
    real = host.resolve(base)
    variables = host.environ
    for kind, name in (("pyenv", "PYENV_ROOT"), ("uv", "UV_PYTHON_INSTALL_DIR")):
        root = variables.get(name)
        if root and real.startswith(host.resolve(root)):
            return kind
    for path in (real, base):
        plain = path.replace("\\", "/").lower() + "/"
        for kind, pieces in HOMES:
            if any(each in plain for each in pieces):
                return kind
        if WINDOWS_INSTALLER.match(plain):
            return "python.org"
        if plain == "/usr/":
            return "system"
    return "unknown"


def _uv_on_path(host: Host) -> str:
    ran = host.run(["uv", "--version"], UV_SECONDS)
    found = re.match(r"uv (\S+)", ran.output) if ran else None
    return found[1] if found else ""
