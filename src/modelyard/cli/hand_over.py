"""A command that needs a framework, typed where there is none, goes on in an environment that has it.

So on a bare machine: install the light package, type ``modelyard run recipe.yaml``, agree, done. `doctor` and `env`
never hand over.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from modelyard.cli.run import TYPED, own_command
from modelyard.errors import MachineError, RecipeError

if TYPE_CHECKING:
    from modelyard.environment.store import Environment

MARK = "MODELYARD_IN_ENVIRONMENT"  # name of the environment that this process was started in; it starts no other


def hand_over(given: list[str], parsed: argparse.Namespace) -> int | None:
    """Start `given` in an environment with the framework that it needs.

    Comes back with None when this Python has the framework, and with an exit code where a process cannot be replaced
    (Windows). Raises MachineError when there is no such environment and nobody agrees to make one, RecipeError for a
    recipe that cannot be used, because no framework would help it.
    """
    framework = needed_framework(parsed)
    if _importable(framework):
        return None
    if MARK in os.environ:
        raise MachineError(
            f"`{framework}` is not installed in {sys.executable}, the Python of the environment {os.environ[MARK]!r}",
            hint=f"modelyard env verify {os.environ[MARK]}",
        )
    from modelyard.environment.store import Store

    return _start(Store().find_ready(framework) or _made(framework), given)


def needed_framework(parsed: argparse.Namespace) -> str:
    """What the recipe asks for, else torch. A recipe that is wrong is reported here only if torch is missing."""
    recipe = getattr(parsed, "recipe", None)
    if recipe is None:
        return "torch"
    from modelyard.recipe.load import load_recipe

    try:
        return load_recipe(recipe, parsed.overrides).recipe.environment.framework
    except RecipeError:
        if _importable("torch"):
            return "torch"
        raise


def _importable(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a module of that name that is half loaded
        return False


def _made(framework: str) -> Environment:
    """Make an environment if the person who types agrees; else an error whose hint is the command that makes it."""
    from modelyard.cli.environment_messages import say
    from modelyard.cli.main import language
    from modelyard.cli.page import agreed, interactive

    command = f"modelyard env create --framework {framework}"
    missing = MachineError(
        f"`{framework}` is not installed in {sys.executable}, and no environment that modelyard made has it",
        hint=command,
    )
    if not interactive():
        raise missing
    spoken = language()
    print(say("missing", spoken, framework=framework, python=sys.executable), file=sys.stderr)
    if not agreed(say("make_now", spoken, command=command), otherwise=True):
        raise missing
    from modelyard.cli.env_prove import make

    return make(framework)


def _start(environment: Environment, given: list[str]) -> int:
    """Replace this process by the same command in `environment`; on Windows, which cannot, wait for it."""
    from modelyard.cli.environment_messages import say
    from modelyard.cli.main import language
    from modelyard.cli.page import Page

    build = environment.build
    assert build is not None  # or it would not be ready
    Page(sys.stderr).line(say("in_environment", language(), name=environment.name, what=summary(environment)), "dim")
    command = [str(build.python), "-m", "modelyard", *given]
    variables = child_variables(environment.name, build.variables, os.environ)
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    if os.name != "nt":
        os.execve(command[0], command, variables)
    return subprocess.run(command, env=variables, check=False).returncode


def summary(environment: Environment) -> str:
    """``torch 2.13.0, cpu``, as far as it is known."""
    proof = environment.build.read_proof() if environment.build else {}
    framework = proof.get("framework")
    version = framework.get("version", "") if isinstance(framework, dict) else ""
    return ", ".join(part for part in (f"{environment.framework} {version}".strip(), environment.accelerator) if part)


def child_variables(name: str, own: Mapping[str, str], variables: Mapping[str, str]) -> dict[str, str]:
    """The variables of the process in the environment: those given, its own, and no path into another Python."""
    kept = {key: value for key, value in variables.items() if key not in ("PYTHONHOME", "PYTHONPATH")}
    return {**kept, **own, MARK: name, TYPED: own_command()}
