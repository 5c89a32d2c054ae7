"""``modelyard env repair`` and ``remove``: a new build beside the old one, proved before anything changes to it."""

from __future__ import annotations

from pathlib import Path

from modelyard.environment import building
from modelyard.environment.building import Tools, stage
from modelyard.environment.choose import choose
from modelyard.environment.probes import take
from modelyard.environment.sources import read_sources
from modelyard.environment.store import Environment, Store, remove_tree
from modelyard.errors import InputError


def repair(name: str, *, tools: Tools | None = None, folder: Path | None = None) -> Environment:
    """Build the environment anew for the machine as it is now, prove it, and change to it at once.

    Versions stay where they still fit. The build that was in use until then is kept; older ones are removed, which
    the listener is told. Raises InputError and MachineError; then the environment is as it was before.
    """
    tools = tools or Tools()
    store = Store(folder, tools.host.environ)
    _require_made(store.open(name))
    with store.changing(name):
        before = store.open(name)
        _require_made(before)
        number = before.next_build
        environment = building.clean(before, tools.listener)
        if environment.current != before.current:  # an interrupted repair was all but done
            return _tidied(environment, before, tools)
        with stage(tools.listener, "choose"):
            snapshot = take(tools.host, ask="never", network=False)
            sources = read_sources(tools.host)
            accelerator = environment.asked.get("accelerator") or environment.accelerator
            python = environment.asked.get("python") or environment.python or None
            build = choose(environment.framework, accelerator, python, snapshot, sources)
            building.tell_choices(build, tools.listener)
        kept = environment.build or next((each for each in reversed(environment.builds) if each != number), None)
        building.make(number, build, sources, snapshot, tools, keep_versions_of=kept)
        return _tidied(environment.using(number), environment, tools)


def remove(name: str, *, only_old: bool = False, tools: Tools | None = None, folder: Path | None = None) -> list[str]:
    """Remove an environment, or only those of its builds that are not in use; the paths that were removed.

    Raises InputError when there is none of that name, MachineError while another process changes it.
    """
    tools = tools or Tools()
    store = Store(folder, tools.host.environ)
    if not store.exists(name):
        store.open(name)  # raises, with the nearest name
    with store.changing(name) as place:
        if not only_old:
            store.delete(name)
            return [str(place)]
        environment = store.open(name)
        if environment.build is None:
            raise InputError(
                f"no build of the environment {name!r} is in use, so none is old",
                hint=f"modelyard env repair {name}, or modelyard env remove {name}",
            )
        old = [each.path for each in environment.builds if each != environment.build]
        for path in old:
            remove_tree(path)
        return [str(path) for path in old]


def _tidied(environment: Environment, before: Environment, tools: Tools) -> Environment:
    """Keep the build in use and the one before it."""
    kept = {environment.current, before.current}
    for each in environment.builds:
        if each.path.name not in kept:
            remove_tree(each.path)
            tools.listener({"kind": "note", "text": f"removed an older build: {each.path}"})
    return environment


def _require_made(environment: Environment) -> None:
    if not environment.framework:
        raise InputError(
            f"the environment {environment.name!r} was never finished, so there is nothing to repair",
            hint=f"modelyard env create --name {environment.name}",
        )
