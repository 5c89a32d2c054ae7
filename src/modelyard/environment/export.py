"""An environment in the forms that other tools read: requirements, pylock, conda, Docker, dev container, Slurm module.

Every form comes from the lock, with its hashes, and names nothing of this machine.
"""

from __future__ import annotations

import difflib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelyard.environment import locked
from modelyard.environment.locked import Locked
from modelyard.errors import UsageError
from modelyard.runs import files

FORMATS = ("requirements", "pylock", "conda", "dockerfile", "devcontainer", "slurm-module")
USER = "modelyard"  # of the container; its number 1000 is the first person of most hosts, whose files /work holds


@dataclass(frozen=True)
class Exported:
    """What one form needs: texts by their relative path, and wheels that belong into ``packages/`` beside them.

    `notes` are what the reader must know or set; they stand as comments in the texts too.
    """

    texts: dict[str, str]
    wheels: tuple[Path, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Subject:
    """The environment that is exported."""

    name: str
    accelerator: str
    locked: Locked
    uv: str | None

    @property
    def kind(self) -> str:
        """cuda | rocm | tpu | xpu | cpu, from the accelerator's name (``cu130``, ``rocm6.4``)."""
        found = re.match(r"(cuda|cu(?=\d)|rocm|tpu|xpu)", self.accelerator)
        return {"cu": "cuda"}.get(found[1], found[1]) if found else "cpu"

    def notes(self) -> tuple[str, ...]:
        result = []
        if self.locked.variables:
            names = ", ".join(self.locked.variables)
            result.append(f"Set these variables first, the index asks for a login: {names}")
        if self.locked.missing_files:
            names = ", ".join(self.locked.missing_files)
            result.append(f"Put these files into packages/, they came from a folder that is gone: {names}")
        return tuple(result)

    def head(self, *lines: str) -> str:
        """A comment that says where the file comes from and how it is used."""
        first = f"Environment '{self.name}' of modelyard, from its lock, for Python {self.locked.python}."
        return "".join(f"# {line}".rstrip() + "\n" for line in (first, *lines, *self.notes()))


def export(build: Path, form: str, *, name: str = "", accelerator: str = "", uv: str | None = None) -> Exported:
    """The environment in `build` as `form` (one of FORMATS).

    `name` and `accelerator` come from ``environment.json`` where they are not given. Raises UsageError for an unknown
    form, InputError for a build that is not finished.
    """
    if form not in FORMATS:
        near = difflib.get_close_matches(form.lower(), FORMATS, n=1, cutoff=0.4)
        raise UsageError(
            f"there is no export format {form!r}" + (f"; did you mean {near[0]!r}?" if near else ""),
            hint="modelyard env export NAME --format " + "|".join(FORMATS),
        )
    about = _about(build)
    subject = _Subject(
        name=name or str(about.get("name") or "modelyard"),
        accelerator=accelerator or str(about.get("accelerator") or "cpu"),
        locked=locked.read(build, uv=uv),
        uv=uv,
    )
    wheels = () if form == "slurm-module" else (subject.locked.own_wheel, *subject.locked.local_files)
    return Exported(_WRITERS[form](subject), wheels, subject.notes())


def write(exported: Exported, directory: Path) -> list[Path]:
    """Write texts and wheels into `directory` (made if it is not there); each file appears whole or not at all."""
    written = [files.write_text(directory / name, text) for name, text in exported.texts.items()]
    for wheel in exported.wheels:
        target = directory / "packages" / wheel.name
        written.append(files.write_with(target, lambda temporary, wheel=wheel: _copy(wheel, temporary)))  # type: ignore[misc]
    return written


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _about(build: Path) -> dict[str, Any]:
    """``environment.json`` of the environment that `build` belongs to, empty where it cannot be read."""
    try:
        value = json.loads((build.parent.parent / "environment.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _requirements(subject: _Subject) -> dict[str, str]:
    head = subject.head(
        "Keep packages/ beside this file, and install from this folder:",
        "    python -m pip install --require-hashes -r requirements.txt",
    )
    return {"requirements.txt": head + "\n".join(subject.locked.requirement_lines()) + "\n"}


def _pylock(subject: _Subject) -> dict[str, str]:
    text = locked.portable_pylock(locked.export_text(subject.locked.folder, "pylock.toml", uv=subject.uv))
    head = subject.head("Keep packages/ beside this file:", "    uv pip sync pylock.toml")
    return {"pylock.toml": head + text}


def _conda(subject: _Subject) -> dict[str, str]:
    # Every line of a pip section goes into one requirements file, so hashes and options keep their meaning. A `+` of
    # a local version or an environment marker is no trouble there, unlike in conda's own specifications.
    lines = [line.replace(" \\\n   ", "") for line in subject.locked.requirement_lines()]
    value = {
        "name": subject.name,
        "channels": ["conda-forge", "nodefaults"],
        "dependencies": [f"python={subject.locked.python}", "pip", {"pip": lines}],
    }
    head = subject.head("Keep packages/ beside this file:", "    conda env create --file environment.yml")
    return {"environment.yml": head + yaml.safe_dump(value, sort_keys=False, width=1 << 20, allow_unicode=True)}


_RUN_OPTIONS = {
    "cuda": ("--gpus", "all"),
    "rocm": ("--device", "/dev/kfd", "--device", "/dev/dri", "--group-add", "video"),
    "xpu": ("--device", "/dev/dri"),
    "tpu": ("--privileged", "--network", "host"),
}


def _dockerfile(subject: _Subject) -> dict[str, str]:
    tag = re.sub(r"[^a-z0-9._-]+", "-", f"modelyard-{subject.name.lower()}").strip("-._")
    secrets = "".join(f" --secret id={each},env={each}" for each in subject.locked.variables)
    mounts = "".join(f"--mount=type=secret,id={each},env={each} \\\n    " for each in subject.locked.variables)
    options = " ".join(("docker run --rm --shm-size 2g", *_RUN_OPTIONS.get(subject.kind, ()), '-v "$PWD":/work'))
    head = subject.head(
        f"    docker build -t {tag}{secrets} .",
        f"    {options} {tag} modelyard run recipe.yaml",
        *(["The wheels bring CUDA's libraries; the host needs its driver and the NVIDIA container toolkit."]
          if subject.kind == "cuda" else []),
    )  # fmt: skip
    # The two variables are what NVIDIA's runtime reads where --gpus is not given but the runtime is the default one.
    cuda = "ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility\n"
    text = f"""\
# syntax=docker/dockerfile:1
{head}FROM python:{subject.locked.python}-slim

ENV PYTHONUNBUFFERED=1 PATH=/opt/environment/bin:$PATH
{cuda if subject.kind == "cuda" else ""}\
RUN useradd --create-home --uid 1000 {USER}

WORKDIR /opt/packages
COPY requirements.txt ./
COPY packages/ packages/
RUN {mounts}python -m venv /opt/environment \\
    && /opt/environment/bin/python -m pip install --no-cache-dir --require-hashes -r requirements.txt

USER 1000:1000
WORKDIR /work
HEALTHCHECK NONE
CMD ["modelyard"]
"""
    return {"Dockerfile": text, ".dockerignore": "*\n!requirements.txt\n!packages\n", **_requirements(subject)}


def _devcontainer(subject: _Subject) -> dict[str, str]:
    value: dict[str, Any] = {
        "name": f"modelyard {subject.name}",
        "build": {"dockerfile": "Dockerfile", "context": "."},
        "remoteUser": USER,
        "customizations": {
            "vscode": {
                "extensions": ["ms-python.python"],
                "settings": {"python.defaultInterpreterPath": "/opt/environment/bin/python"},
            }
        },
    }
    if subject.locked.variables:
        options = [part for each in subject.locked.variables for part in ("--secret", f"id={each},env={each}")]
        value["build"]["options"] = options
    options = [*_RUN_OPTIONS.get(subject.kind, ()), "--shm-size=2g"]
    value["runArgs"] = options
    if subject.kind == "cuda":
        value["hostRequirements"] = {"gpu": True}
    return {"devcontainer.json": json.dumps(value, indent=2, ensure_ascii=False) + "\n", **_dockerfile(subject)}


_MODULEFILE = """\
#%Module1.0
{head}#
# Put this file into a folder of MODULEPATH as modelyard/{name}, then: module load modelyard/{name}
# The environment is looked for where modelyard keeps it; MODELYARD_ENVIRONMENTS names another folder.

proc ModulesHelp {{ }} {{
    puts stderr "modelyard's environment '{name}'. Then: modelyard doctor"
}}
module-whatis "modelyard's environment '{name}' (Python {python}, {accelerator})"
conflict modelyard

if {{[info exists ::env(MODELYARD_ENVIRONMENTS)] && $::env(MODELYARD_ENVIRONMENTS) ne ""}} {{
    set folder $::env(MODELYARD_ENVIRONMENTS)
}} elseif {{[info exists ::env(XDG_DATA_HOME)] && $::env(XDG_DATA_HOME) ne ""}} {{
    set folder [file join $::env(XDG_DATA_HOME) modelyard environments]
}} else {{
    set folder [file join $::env(HOME) .local share modelyard environments]
}}

# environment.json says which build is in use, so a repair needs no new modulefile.
set current ""
set about [file join $folder {{{name}}} environment.json]
if {{[file readable $about]}} {{
    set opened [open $about r]
    regexp {{"current"\\s*:\\s*"([^"]+)"}} [read $opened] all current
    close $opened
}}
set prefix [file join $folder {{{name}}} builds $current .venv]
if {{$current eq "" || ![file isdirectory $prefix]}} {{
    if {{[module-info mode load]}} {{
        puts stderr "modelyard: there is no environment '{name}' in $folder. Make it: {create}"
        break
    }}
}}

prepend-path PATH [file join $prefix bin]
setenv VIRTUAL_ENV $prefix
unsetenv PYTHONHOME
"""

_JOB = """\
#!/bin/bash
{head}#
# sbatch job.sbatch recipe.yaml        (change the numbers to what your cluster and recipe need)
#SBATCH --job-name=modelyard
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=04:00:00
{resources}# A checkpoint is written when the time is nearly over; submit again with --resume to go on.
#SBATCH --signal=TERM@120
#SBATCH --output=modelyard-%j.log

set -euo pipefail
module use "$SLURM_SUBMIT_DIR/modulefiles"
module load modelyard/{name}
export OMP_NUM_THREADS="${{SLURM_CPUS_PER_TASK:-1}}"
srun modelyard run "${{1:-recipe.yaml}}" "${{@:2}}"
"""


def _slurm_module(subject: _Subject) -> dict[str, str]:
    framework = str(_about(subject.locked.folder).get("framework") or "torch")
    create = (
        f"modelyard env create --framework {framework} --accelerator {subject.accelerator}"
        f" --python {subject.locked.python} --name {subject.name}"
    )
    module = _MODULEFILE.format(
        head=subject.head(), name=subject.name, python=subject.locked.python, accelerator=subject.accelerator,
        create=create,
    )  # fmt: skip
    resources = "#SBATCH --gpus=1\n" if subject.kind in ("cuda", "rocm", "xpu") else ""
    job = _JOB.format(head=subject.head(), name=subject.name, resources=resources)
    return {f"modulefiles/modelyard/{subject.name}": module, "job.sbatch": job}


_WRITERS: dict[str, Callable[[_Subject], dict[str, str]]] = {
    "requirements": _requirements,
    "pylock": _pylock,
    "conda": _conda,
    "dockerfile": _dockerfile,
    "devcontainer": _devcontainer,
    "slurm-module": _slurm_module,
}
