"""A bundle is whole, checked, and needs nothing but its folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from modelyard.deployment.bundle import Bundle, load_bundle, write_bundle
from modelyard.errors import InputError
from modelyard.recipe.schema import DeploymentSection


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "run" / "model"
    folder.mkdir(parents=True)
    weights = {"a": np.zeros((10, 4), np.float32), "b": np.zeros(3, np.float32)}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["BertForSequenceClassification"],
        "num_hidden_layers": 2,
        "hidden_size": 4,
        "id2label": {"0": "even", "1": "odd"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "optimizer.pt").write_bytes(b"a pickle")
    return folder


@pytest.fixture
def arguments(model_folder: Path, fake: ModuleType) -> dict[str, Any]:
    facts = fake.facts()
    return {
        "model_folder": model_folder,
        "labels": ("even", "odd"),
        "max_length": 50,
        "remove": r"<[^>]+>",
        "task_name": "text-classification",
        "limits": DeploymentSection(max_texts=3),
        "metrics_summary": facts["metrics"],
        "parity": facts["parity"],
        "versions": {"torch": "2.13.0"},
        "examples": ["short"],
    }


def test_it_needs_nothing_but_its_folder(tmp_path: Path, arguments: dict[str, Any]) -> None:
    written = write_bundle(tmp_path / "run" / "bundle", **arguments)
    moved = tmp_path / "elsewhere" / "bundle"
    shutil.copytree(written.folder, moved)
    shutil.rmtree(tmp_path / "run")
    bundle = load_bundle(moved)
    assert bundle == Bundle(moved, written.info)
    assert sorted(path.name for path in bundle.model_folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]  # no pickle
    assert bundle.info.labels == ("even", "odd")
    assert bundle.info.preprocessing.model_dump() == {"remove": r"<[^>]+>", "max_length": 50}
    assert bundle.info.limits.max_texts == 3
    assert (bundle.info.model.num_parameters, bundle.info.model.num_layers) == (43, 2)
    assert bundle.info.name == "text-classification"


def test_its_model_card_says_what_counts(tmp_path: Path, arguments: dict[str, Any]) -> None:
    card = (write_bundle(tmp_path / "b", **arguments | {"name": "A *bold* name"}).folder / "README.md").read_text()
    assert card.startswith("# A \\*bold\\* name\n")
    for part in (
        "| Accuracy | 92.3% (90.5–93.8%) | 51.2% (48.1–54.3%) |",
        "| F1 (macro) | 92.1% (90.2–93.7%) | – |",
        "On 1,000 test examples",
        "95% confidence intervals",
        "The first 50 tokens",
        "`<[^>]+>`",
        "43 parameters",
        "modelyard serve .",
        "at most 2e-06 (allowed: 0.0001)",
        "torch 2.13.0",
    ):
        assert part in card


def damage(bundle: Bundle, how: str) -> None:
    folder = bundle.folder
    if how == "weights":
        file = bundle.model_folder / "model.safetensors"
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(content)
    elif how == "labels":
        file = folder / "bundle.json"
        file.write_text(file.read_text().replace("even", "EVEN"))
    elif how == "missing":
        (bundle.model_folder / "tokenizer.json").unlink()
    elif how == "added":
        (bundle.model_folder / "tokenizer_config.json").write_text("{}")
    elif how == "newer":
        content_json = json.loads((folder / "bundle.json").read_text()) | {"format_version": 2, "new_key": 1}
        (folder / "bundle.json").write_text(json.dumps(content_json))
    elif how == "version":
        content_json = json.loads((folder / "bundle.json").read_text()) | {"format_version": "one"}
        (folder / "bundle.json").write_text(json.dumps(content_json))
    elif how == "json":
        (folder / "bundle.json").write_text("{")
    elif how == "list":
        (folder / "bundle.json").write_text("[]")
    elif how == "manifest":
        (folder / "manifest.json").write_text("{}")
    elif how == "none":
        (folder / "bundle.json").unlink()


@pytest.mark.parametrize(
    ("how", "problem", "hint"),
    [
        ("weights", "model/model.safetensors was changed after the bundle was made", "modelyard export RUN"),
        ("labels", "bundle.json was changed", "modelyard export RUN"),
        ("missing", "model/tokenizer.json is missing", "modelyard export RUN"),
        ("added", "model/tokenizer_config.json does not belong to the bundle", "move it out"),
        ("newer", "its format version is 2, this one reads up to 1", "pip install --upgrade"),
        ("version", "has the format version 'one'", "modelyard export RUN"),
        ("json", "is not valid JSON", "modelyard export RUN"),
        ("list", "holds list; expected an object", "modelyard export RUN"),
        ("manifest", "has no `files`", "modelyard export RUN"),
        ("none", "is not a bundle: it has no bundle.json", "RUN/bundle"),
    ],
)
def test_damage_is_named(tmp_path: Path, arguments: dict[str, Any], how: str, problem: str, hint: str) -> None:
    bundle = write_bundle(tmp_path / "bundle", **arguments)
    damage(bundle, how)
    with pytest.raises(InputError) as caught:
        load_bundle(bundle.folder)
    assert problem in caught.value.problem
    assert hint in caught.value.hint


def test_a_folder_that_is_not_there_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is not a bundle"):
        load_bundle(tmp_path / "nothing")


def test_a_key_that_is_not_known_is_named(tmp_path: Path, arguments: dict[str, Any]) -> None:
    bundle = write_bundle(tmp_path / "bundle", **arguments)
    content = json.loads((bundle.folder / "bundle.json").read_text()) | {"labels": ["even", "even"]}
    (bundle.folder / "bundle.json").write_text(json.dumps(content))
    manifest = json.loads((bundle.folder / "manifest.json").read_text())
    from modelyard.runs.files import file_sha256, write_json

    manifest["files"]["bundle.json"] = file_sha256(bundle.folder / "bundle.json")
    write_json(bundle.folder / "manifest.json", manifest)
    with pytest.raises(InputError, match="two labels have the same name"):
        load_bundle(bundle.folder)


def refused(arguments: dict[str, Any], how: str) -> dict[str, Any]:
    folder: Path = arguments["model_folder"]
    if how == "parity":
        return arguments | {"parity": arguments["parity"] | {"passed": False, "reason": "a logit differs by 0.5"}}
    if how == "labels":
        return arguments | {"labels": ("odd", "even")}
    if how == "pattern":
        return arguments | {"remove": "(["}
    if how == "weights":
        (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    else:
        (folder / how).unlink()
    return arguments


@pytest.mark.parametrize(
    ("how", "problem"),
    [
        ("parity", "not published, because its answers are not the trained model's: a logit differs by 0.5"),
        ("labels", "the labels ['odd', 'even'] are not those of"),
        ("pattern", "data.remove is no regular expression: '(['"),
        ("weights", "is not a safetensors file"),
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no model.safetensors"),
        ("tokenizer.json", "has no tokenizer.json"),
    ],
)
def test_what_is_wrong_is_refused_and_the_old_bundle_stays(
    tmp_path: Path, arguments: dict[str, Any], how: str, problem: str
) -> None:
    old = write_bundle(tmp_path / "place" / "bundle", **arguments)
    with pytest.raises(InputError) as caught:
        write_bundle(old.folder, **refused(arguments, how))
    assert problem in caught.value.problem
    assert load_bundle(old.folder) == old
    assert [path.name for path in old.folder.parent.iterdir()] == ["bundle"]


def test_a_metric_without_interval_is_refused(tmp_path: Path, arguments: dict[str, Any]) -> None:
    summary = arguments["metrics_summary"] | {"metrics": {"accuracy": {"value": 0.9}}}
    with pytest.raises(ValueError, match="low"):
        write_bundle(tmp_path / "bundle", **arguments | {"metrics_summary": summary})
    assert not (tmp_path / "bundle").exists()
