"""``modelyard env create``: from a framework's name to an environment that is proved to work on this machine."""

from __future__ import annotations

import re
from pathlib import Path

from modelyard.environment import building
from modelyard.environment.building import Tools, stage
from modelyard.environment.choose import Build, choose
from modelyard.environment.probes import take
from modelyard.environment.snapshot import Snapshot
from modelyard.environment.sources import Sources, read_sources
from modelyard.environment.store import Environment, Store, check_name
from modelyard.errors import InputError
from modelyard.version import __version__


def create(
    framework: str = "torch",
    accelerator: str = "auto",
    python: str | None = None,
    name: str | None = None,
    *,
    tools: Tools | None = None,
    folder: Path | None = None,
) -> Environment:
    """Choose, lock, install and prove an environment; `folder` is where environments are kept.

    Raises InputError for names and choices that do not exist and for a `name` that is taken, MachineError for what
    the machine cannot do, a proof that fails among them. Killed at any time, the next call cleans up.
    """
    tools = tools or Tools()
    store = Store(folder, tools.host.environ)
    name = check_name(default_name(framework, accelerator) if name is None else name)
    with stage(tools.listener, "choose"):
        snapshot = take(tools.host, ask="never", network=False)
        sources = read_sources(tools.host)
        build = choose(framework, accelerator, python, snapshot, sources)
        building.tell_choices(build, tools.listener)
    asked = {"accelerator": accelerator, "python": python or ""}
    return install(store, name, build, sources, snapshot, tools, asked=asked)


def install(
    store: Store, name: str, build: Build, sources: Sources, snapshot: Snapshot, tools: Tools, *, asked: dict[str, str]
) -> Environment:
    """Make the first build of the environment `name`. Raises what `create` raises."""
    with store.changing(name) as folder:
        environment = store.open(name)
        number = environment.next_build
        began = environment.current
        environment = building.clean(environment, tools.listener)
        same = (environment.framework, environment.accelerator) == (build.framework, build.accelerator)
        if environment.current != began and same:  # an interrupted command was all but done
            return environment
        if environment.current or environment.state == "broken":
            raise _taken(name, environment)
        environment = Environment(
            folder, name, build.framework, build.accelerator, build.python, building.now(), __version__,
            asked=asked,
        )  # fmt: skip
        try:
            environment.write()
            building.make(number, build, sources, snapshot, tools)
        except BaseException:
            if not environment.builds:  # nothing to look at: as if it had never been asked for
                store.delete(name)
            raise
        return environment.using(number)


def default_name(framework: str, accelerator: str) -> str:
    """``torch``, or ``torch-cu126`` where the person chose the accelerator."""
    text = framework if accelerator == "auto" else f"{framework}-{accelerator}"
    return re.sub(r"[^A-Za-z0-9._-]", "-", text)[:64]


def _taken(name: str, environment: Environment) -> InputError:
    what = f"{environment.framework} for {environment.accelerator}" if environment.framework else "of unknown content"
    return InputError(
        f"there is an environment {name!r} already ({what}, {environment.state})",
        hint=f"`modelyard env repair {name}` builds it anew beside the old one, `modelyard env remove {name}` removes "
        "it, and --name NAME makes another",
    )
