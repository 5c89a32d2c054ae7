"""The bundle: one folder with everything that a deployment needs.

    bundle/
      bundle.json      `BundleInfo`: task, labels, preprocessing, limits, metrics, parity, versions
      manifest.json    SHA-256 of every other file; verified when the bundle is loaded
      README.md        the model card
      model/           Hugging Face folder: config.json, model.safetensors, tokenizer files

The manifest finds damage and forgotten edits. It is not signed: who can change a file can change it too.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from modelyard.data.examples import text_cleaner
from modelyard.deployment.card import model_card
from modelyard.deployment.info import FORMAT_VERSION, BundleInfo, ModelFacts
from modelyard.deployment.parity import ParityRecord, require_parity
from modelyard.errors import InputError
from modelyard.recipe.schema import DeploymentSection
from modelyard.runs.files import folder_sha256, write_folder, write_json, write_text

INFO_FILE = "bundle.json"
MANIFEST_FILE = "manifest.json"
MODEL_FOLDER = "model"
# What a Hugging Face folder needs for use; optimiser states, pickles and code stay behind.
MODEL_FILE_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model"})
EXPORT_AGAIN = "make the bundle again with `modelyard export RUN`"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle on disk."""

    folder: Path
    info: BundleInfo

    @property
    def model_folder(self) -> Path:
        """The Hugging Face folder inside the bundle."""
        return self.folder / MODEL_FOLDER


def write_bundle(
    folder: Path,
    *,
    model_folder: Path,
    labels: Sequence[str],
    max_length: int,
    remove: str | None,
    task_name: str,
    limits: DeploymentSection,
    metrics_summary: Mapping[str, Any],
    parity: ParityRecord | Mapping[str, Any],
    versions: Mapping[str, str],
    name: str | None = None,
    examples: Sequence[str] = (),
) -> Bundle:
    """Write a bundle to `folder` at once or not at all, replacing the one that was there.

    model_folder: Hugging Face folder with ``config.json``, ``model.safetensors`` and ``tokenizer.json``.
    labels: class names in the order of the logits.
    max_length: tokens, special tokens included.
    metrics_summary: see `MetricsSummary`. parity: what `check_parity` returned. name: title; else the task.

    Raises InputError when the parity check did not pass, a file is missing, or the labels do not fit.
    """
    require_parity(ParityRecord.model_validate(parity))
    text_cleaner(remove)  # raises when the expression is wrong
    facts = _model_facts(model_folder, labels)
    info = BundleInfo.model_validate(
        {
            "name": name or task_name,
            "task": task_name,
            "labels": tuple(labels),
            "preprocessing": {"remove": remove, "max_length": max_length},
            "limits": limits,
            "model": facts,
            "metrics": dict(metrics_summary),
            "parity": parity,
            "versions": dict(versions),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "examples": tuple(examples),
        }
    )

    def write(temporary: Path) -> None:
        (temporary / MODEL_FOLDER).mkdir()
        for file in sorted(model_folder.iterdir()):
            if file.is_file() and file.suffix in MODEL_FILE_SUFFIXES:
                shutil.copyfile(file, temporary / MODEL_FOLDER / file.name)
        write_json(temporary / INFO_FILE, info.model_dump(mode="json"))
        write_text(temporary / "README.md", model_card(info))
        write_json(temporary / MANIFEST_FILE, {"files": folder_sha256(temporary)})

    write_folder(folder, write)
    return Bundle(folder, info)


def load_bundle(folder: Path) -> Bundle:
    """Open a bundle and verify every file of it.

    Raises InputError when `folder` is no bundle, was made by a newer modelyard, or any file was changed,
    removed or added since it was written.
    """
    content = _read_json(folder / INFO_FILE)
    version = content.get("format_version")
    if not isinstance(version, int) or version < 1:
        raise InputError(
            f"{folder / INFO_FILE} has the format version {version!r}; "
            f"expected a whole number from 1 to {FORMAT_VERSION}",
            hint=EXPORT_AGAIN,
        )
    if version > FORMAT_VERSION:
        raise InputError(
            f"{folder} was made by a newer modelyard: its format version is {version}, "
            f"this one reads up to {FORMAT_VERSION}",
            hint="update with `pip install --upgrade modelyard`",
        )
    _verify_files(folder)
    try:
        info = BundleInfo.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise InputError(f"{folder / INFO_FILE}: {place}: {first['msg']}", hint=EXPORT_AGAIN) from error
    return Bundle(folder, info)


def _verify_files(folder: Path) -> None:
    expected = _read_json(folder / MANIFEST_FILE).get("files")
    if not isinstance(expected, dict):
        raise InputError(f"{folder / MANIFEST_FILE} has no `files`", hint=EXPORT_AGAIN)
    found = folder_sha256(folder)
    found.pop(MANIFEST_FILE, None)
    changed = {name for name in expected.keys() & found.keys() if found[name] != expected[name]}
    for what, names in (
        ("is missing", expected.keys() - found.keys()),
        ("was changed after the bundle was made", changed),
        ("does not belong to the bundle", found.keys() - expected.keys()),
    ):
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            hint = EXPORT_AGAIN if what != "does not belong to the bundle" else "move it out of the folder"
            raise InputError(f"{folder / min(names)} {what}{more}", hint=hint)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(
            f"{path.parent} is not a bundle: it has no {path.name}",
            hint="make one with `modelyard export RUN`, then give the folder RUN/bundle",
        ) from None
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}", hint=EXPORT_AGAIN) from error
    if not isinstance(content, dict):
        raise InputError(f"{path} holds {type(content).__name__}; expected an object", hint=EXPORT_AGAIN)
    return content


def _model_facts(model_folder: Path, labels: Sequence[str]) -> ModelFacts:
    """Read the model's own files; raises InputError when one is missing or the labels do not fit."""
    for file_name in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (model_folder / file_name).is_file():
            raise InputError(
                f"{model_folder} has no {file_name}",
                hint="give the folder of a trained model, or train one with `modelyard train RECIPE`",
            )
    config = json.loads((model_folder / "config.json").read_text(encoding="utf-8"))
    names = config.get("id2label")
    if names is not None and [names.get(str(number)) for number in range(len(names))] != list(labels):
        raise InputError(
            f"the labels {list(labels)} are not those of {model_folder / 'config.json'}: {list(names.values())}",
            hint="train the run again with `modelyard train RECIPE`, then export it",
        )
    weights = model_folder / "model.safetensors"
    return ModelFacts(
        architecture=(config.get("architectures") or [config.get("model_type", "unknown")])[0],
        num_layers=config.get("num_hidden_layers"),
        hidden_size=config.get("hidden_size"),
        num_parameters=_num_parameters(weights),
        weights_bytes=weights.stat().st_size,
    )


def _num_parameters(weights: Path) -> int:
    """Elements of all tensors, from a safetensors file's header: 8 bytes of its length, then JSON."""
    with weights.open("rb") as file:
        try:
            header_bytes = min(int.from_bytes(file.read(8), "little"), weights.stat().st_size)
            header = json.loads(file.read(header_bytes))
        except ValueError:
            raise InputError(f"{weights} is not a safetensors file", hint="train the run again") from None
    return sum(math.prod(tensor["shape"]) for key, tensor in header.items() if key != "__metadata__")
