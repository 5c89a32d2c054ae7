"""One build, step by step: project, lock, space, installation, proof. `create` and `repair` both make theirs here.

Each step tells the listener when it starts and how long it took: ``{"kind": "stage", "name", "state": "started" |
"done" | "failed", "seconds"}``; between them come uv's own lines as ``progress``, choices with their reason, notes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from modelyard.environment import project, proving, space
from modelyard.environment.choose import Build
from modelyard.environment.host import Host
from modelyard.environment.own_wheel import NAME
from modelyard.environment.redaction import without_secrets
from modelyard.environment.snapshot import Snapshot
from modelyard.environment.sources import Sources, uv_arguments, uv_variables
from modelyard.environment.store import BuildFolder, Environment, remove_tree
from modelyard.environment.uv import Uv, ignore
from modelyard.runs.events import Listener
from modelyard.runs.files import file_sha256, flush_to_disk, space_errors, write_json
from modelyard.version import __version__

STAGES = ("choose", "project", "lock", "install", "proof")  # the names of the events, in order


@dataclass(frozen=True)
class Tools:
    """What builds are made with; a test passes others."""

    host: Host = field(default_factory=Host)
    listener: Listener = ignore
    uv: str | None = None  # the binary, else the one that is found
    proof: proving.ProofCommand = proving.proof_command


def make(folder: BuildFolder, build: Build, sources: Sources, snapshot: Snapshot, tools: Tools, *,
         keep_versions_of: BuildFolder | None = None) -> None:  # fmt: skip
    """Make and prove `build` in `folder`; with ``ready`` in its build.json it can be used.

    Raises MachineError. After a failed proof the build stays, marked ``broken``, with its proof.json; after any other
    failure, and after Ctrl-C, nothing stays.
    """
    uv = uv_for(build, sources, tools)
    python = interpreter(build.python, tools.host)
    record = _record(build, sources, snapshot)
    _check_space(folder, build, uv, tools.host)
    try:
        with space_errors(folder.record):
            folder.path.mkdir(parents=True)
            write_record(folder, {**record, "state": "building"})
            with stage(tools.listener, "project"):
                project.write_project(build, folder.path, tools.host)
            with stage(tools.listener, "lock"):
                _lock(folder, build, uv, python, tools.listener, keep_versions_of)
            _check_space(folder, build, uv, tools.host, python=python)
            with stage(tools.listener, "install"):
                warnings = uv.sync(folder.path, python, tools.listener)
            record |= {"conflicts": warnings, "files": _hashes(folder), "state": "proving"}
            write_record(folder, record)
            with stage(tools.listener, "proof"):
                proof = proving.prove(folder, build.framework, build.proof_device, tools.proof)
                if proof.get("passed") is not True:
                    write_record(folder, {**record, "state": "broken"})
                proving.require(proof, folder)
    except BaseException:
        if folder.read_record().get("state") != "broken":
            remove_tree(folder.path)
        raise
    flush_to_disk(folder.lock)
    write_record(folder, {**record, "state": "ready"})


@contextmanager
def stage(listener: Listener, name: str) -> Iterator[None]:
    """Tell the listener of a step's start and end."""
    started = time.monotonic()
    listener({"kind": "stage", "name": name, "state": "started"})
    try:
        yield
    except BaseException:
        listener({"kind": "stage", "name": name, "state": "failed", "seconds": _since(started)})
        raise
    listener({"kind": "stage", "name": name, "state": "done", "seconds": _since(started)})


def uv_for(build: Build, sources: Sources, tools: Tools) -> Uv:
    """uv, told where packages come from."""
    return Uv(
        tools.uv, arguments=uv_arguments(sources), environ=tools.host.environ,
        variables=uv_variables(sources) | project.index_login(build),
    )  # fmt: skip


def interpreter(python: str, host: Host) -> str:
    """What uv is asked for: the Python that runs modelyard where it has the wanted version, else the version alone.

    The running one is known to work; uv's own search could take a broken one from PATH, or fetch another.
    """
    running = host.run([host.python, "-I", "-c", "import sys; print('%d.%d' % sys.version_info[:2])"], 20)
    return host.python if running is not None and running.output.strip() == python else python


def clean(environment: Environment, listener: Listener) -> Environment:
    """What a kill left: unfinished builds go; one that was ready but not yet in use is put to use.

    To be called with the environment's lock held, and the number of a new build already taken.
    """
    for build in environment.builds:
        if build.read_record().get("state") not in ("ready", "broken") and build.path.name != environment.current:
            remove_tree(build.path)
            listener({"kind": "note", "text": f"removed what an interrupted command left: {build.path}"})
    newest = environment.builds[-1] if environment.builds else None
    in_use = int(environment.current) if environment.build is not None else 0
    if newest is not None and newest.number > in_use and newest.state == "ready":
        listener({"kind": "note", "text": f"finished an interrupted command: build {newest.number} is ready"})
        return environment.using(newest)
    return environment


def tell_choices(build: Build, listener: Listener) -> None:
    """Each choice with its reason as an event, in both languages; whoever renders it picks one."""
    for reason in build.reasons:
        listener({"kind": "choice", "what": "", "value": "", "reason": reason.english, "reason_zh": reason.chinese})


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _lock(folder: BuildFolder, build: Build, uv: Uv, python: str, listener: Listener,
          keep: BuildFolder | None) -> None:  # fmt: skip
    """Resolve. Versions and hashes of an earlier build stay where they still fit."""
    known: dict[str, str] = {}
    if keep is not None and keep.lock.is_file():
        known = project.wheel_hashes(keep.lock)
        # modelyard's own wheel may have changed under the same version; only then does uv look at it again.
        known.pop(next(folder.packages.glob("*.whl")).name, None)
        shutil.copyfile(keep.lock, folder.lock)
        uv.lock(folder.path, python, listener, upgrade=[NAME])
    else:
        uv.lock(folder.path, python, listener)
    project.add_missing_hashes(folder.lock, known)
    project.check_versions(folder.lock, build.min_versions)


def _check_space(folder: BuildFolder, build: Build, uv: Uv, host: Host, python: str = "") -> None:
    """Before locking only for the environment itself; with the lock (`python` given), also for what is downloaded."""
    download = 0
    if python:
        sizes = project.download_sizes(folder.lock)
        download = space.cache_bytes(uv.not_cached(folder.path, python), sizes, build.disk_bytes)
    what = f"{build.framework} for {build.accelerator}"
    space.check(what, folder.path, build.disk_bytes, uv.cache_folder(), download, host)


def _record(build: Build, sources: Sources, snapshot: Snapshot) -> dict[str, Any]:
    variables = {name: without_secrets(value) for name, value in uv_variables(sources).items()}
    return {
        "state": "",
        "made": now(),
        "modelyard": __version__,
        "framework": build.framework,
        "accelerator": build.accelerator,
        "python": build.python,
        "proof_device": build.proof_device,
        "variables": dict(build.variables),
        "requirements": list(build.requirements),
        "min_versions": dict(build.min_versions),
        "reasons": [{"en": each.english, "zh": each.chinese} for each in build.reasons],
        "sources": {"arguments": uv_arguments(sources), "variables": variables, "told_by": list(sources.told_by)},
        "machine": _machine(snapshot),
    }


def _machine(snapshot: Snapshot) -> Mapping[str, Any]:
    """What the choice stands on; the same build on another machine is another matter."""
    nvidia = snapshot.accelerators.nvidia
    gpus = [*nvidia.gpus, *snapshot.accelerators.amd.gpus, *snapshot.accelerators.intel]
    return {
        "system": f"{snapshot.system.name} {snapshot.system.machine}",
        "libc": f"{snapshot.system.libc} {snapshot.system.libc_version}".strip(),
        "cpu": snapshot.cpu.name,
        "driver": nvidia.driver_version,
        "gpus": [f"{gpu.name} {gpu.capability}".strip() for gpu in gpus],
    }


def _hashes(folder: BuildFolder) -> dict[str, str]:
    """Of the files that `verify` holds against what they are then."""
    own = next(folder.packages.glob(f"{NAME}-*.whl"))
    files = (folder.pyproject, folder.lock, own)
    return {file.relative_to(folder.path).as_posix(): file_sha256(file) for file in files}


def write_record(folder: BuildFolder, record: Mapping[str, Any]) -> None:
    write_json(folder.record, dict(record))


def _since(started: float) -> float:
    return round(time.monotonic() - started, 3)
