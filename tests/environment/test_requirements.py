"""Is a machine enough for a recipe: what is missing is said, what is not known is passed over."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    LongformerConfig,
    LongformerForSequenceClassification,
)

from modelyard.environment.diagnose import LANGUAGES
from modelyard.environment.findings import Finding
from modelyard.environment.host import Host
from modelyard.environment.requirements import enough, parameters_from_scratch
from modelyard.environment.snapshot import Snapshot
from modelyard.recipe.schema import ArchitectureSection, Recipe

SNAPSHOTS = Path(__file__).parent / "snapshots"
SMALL = {"architecture": {"family": "bert", "preset": "small"}}


def recipe(**parts: Any) -> Recipe:
    return Recipe.model_validate(
        {"task": "sentiment", "data": {"train": "train.csv"}, **parts, "design": parts.get("design", SMALL)}
    )


def machine(base: str, **parts: Any) -> Snapshot:
    """A healthy snapshot in which whole parts are replaced, keys of nested mappings one by one."""
    root = json.loads((SNAPSHOTS / "healthy" / f"{base}.json").read_text(encoding="utf-8"))
    return Snapshot.model_validate(merged(root, parts))


def merged(old: Any, new: Any) -> Any:
    if isinstance(old, dict) and isinstance(new, dict):
        return {**old, **{name: merged(old.get(name), value) for name, value in new.items()}}
    return new


def with_gpu(**gpu: Any) -> dict[str, Any]:
    return {"accelerators": {"nvidia": {"gpus": [gpu]}}}


def rules(findings: list[Finding]) -> list[str]:
    return [each.rule for each in findings]


def model_folder(folder: Path, size_bytes: int) -> str:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(size_bytes)  # a file with a hole: it takes no space
    return str(folder)


@pytest.mark.parametrize("base", ["laptop-macos", "laptop-linux", "gpu-server", "container", "windows", "wsl"])
def test_a_healthy_machine_is_enough_for_a_small_model(base: str) -> None:
    assert enough(recipe(), machine(base), host=Host()) == []


def test_nothing_is_said_of_what_is_not_known() -> None:
    asked = recipe(environment={"device": "cuda:1"}, training={"precision": "bfloat16"}, design={"model": "a/b"})
    assert enough(asked, Snapshot()) == []


def test_a_missing_framework_is_one_command_away() -> None:
    snapshot = machine("laptop-linux", installed={"packages": [], "frameworks": []})
    found = enough(recipe(), snapshot)
    assert rules(found) == ["recipe-framework-missing"]
    assert found[0].severity == "error" and found[0].fix == ("modelyard env create --framework torch",)
    ready = {"name": "torch-cpu", "framework": "torch", "accelerator": "cpu", "state": "ready"}
    assert (
        enough(recipe(), snapshot.model_copy(update={"managed": machine("laptop-linux", managed=[ready]).managed}))
        == []
    )


@pytest.mark.parametrize(
    ("base", "device", "missing"),
    [
        ("laptop-linux", "cuda", True),
        ("laptop-macos", "cuda:0", True),
        ("laptop-linux", "auto", False),
        ("gpu-server", "cuda:7", False),
        ("gpu-server", "cuda:8", True),
        ("container", "cuda", False),
    ],
)
def test_the_device_that_was_asked_for_must_be_there(base: str, device: str, missing: bool) -> None:
    found = enough(recipe(environment={"device": device}), machine(base))
    assert rules(found) == ["recipe-device-missing"] * missing
    assert not missing or device in found[0].evidence


def test_a_gpu_that_torch_does_not_reach_is_not_there() -> None:
    server = machine("gpu-server")
    torch = server.installed.frameworks[0].model_copy(update={"devices": ("cpu",)})
    installed = server.installed.model_copy(update={"frameworks": (torch,)})
    found = enough(recipe(environment={"device": "cuda"}), server.model_copy(update={"installed": installed}))
    assert rules(found) == ["recipe-device-missing"] and "0" in found[0].evidence


@pytest.mark.parametrize(
    ("base", "parts", "device", "slow"),
    [
        ("gpu-server", {}, "auto", False),
        ("container", {}, "cuda", False),
        (
            "container",
            {"accelerators": {"nvidia": {"gpus": [{"name": "Tesla T4", "capability": "7.5"}]}}},
            "auto",
            True,
        ),
        ("laptop-linux", {}, "auto", True),  # AVX2 alone
        ("gpu-server", {}, "cpu", False),  # AMX
        ("laptop-linux", {"cpu": {"instructions": []}}, "auto", False),  # not known
        ("laptop-macos", {}, "cpu", False),
    ],
)
def test_bfloat16_where_nothing_computes_it(base: str, parts: dict[str, Any], device: str, slow: bool) -> None:
    asked = recipe(environment={"device": device}, training={"precision": "bfloat16"})
    found = enough(asked, machine(base, **parts))
    assert rules(found) == ["recipe-bfloat16-slow"] * slow
    assert all(each.severity == "warning" for each in found)
    assert enough(recipe(environment={"device": device}), machine(base, **parts)) == []


UNREACHED = [{"address": "https://huggingface.co", "purpose": "hub", "problem": "name not known"}]


def test_a_model_of_the_hub_without_the_hub(tmp_path: Path) -> None:
    asked = recipe(design={"model": "google-bert/bert-base-uncased@main"})
    snapshot = machine("laptop-linux", reach=UNREACHED, configuration={"hub_home": str(tmp_path)})
    found = enough(asked, snapshot, host=Host(), path="film.yaml")
    assert rules(found) == ["recipe-model-not-here"]
    assert "google-bert/bert-base-uncased" in found[0].evidence and "name not known" in found[0].evidence
    assert "modelyard run film.yaml --set design.model=FOLDER" in found[0].fix
    assert enough(asked, machine("laptop-linux", configuration={"hub_home": str(tmp_path)}), host=Host()) == []
    assert enough(asked, snapshot) == []  # another machine's snapshot: its cache is not here

    cached = tmp_path / "hub/models--google-bert--bert-base-uncased/snapshots/0a1b"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    assert enough(asked, snapshot, host=Host()) == []


def test_a_cache_at_a_place_of_its_own_is_looked_into(tmp_path: Path) -> None:
    cached = tmp_path / "models--bert/snapshots/0a1b"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    variables = {"HF_HUB_CACHE": str(tmp_path)}
    snapshot = machine("laptop-linux", reach=UNREACHED, configuration={"hub_home": "/no", "variables": variables})
    assert enough(recipe(design={"model": "bert"}), snapshot, host=Host()) == []
    assert rules(enough(recipe(design={"model": "bart"}), snapshot, host=Host())) == ["recipe-model-not-here"]


@pytest.mark.parametrize("model", ["package:some_package/model", "./folder", "/folder", "~/folder"])
def test_a_model_that_is_not_of_the_hub_needs_no_hub(model: str) -> None:
    assert enough(recipe(design={"model": model}), machine("laptop-linux", reach=UNREACHED), host=Host()) == []


def test_space_for_checkpoints_model_and_bundle(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", 500_000_000)
    asked = recipe(design={"model": model}, training={"keep_checkpoints": 2})

    def with_free(free_bytes: float) -> Snapshot:
        disk = {"purpose": "here", "path": str(tmp_path), "total_bytes": 10**11, "free_bytes": int(free_bytes)}
        return machine("laptop-linux", disks=[disk])

    # two, the best and one that is being written, three times the weights each; the model and the bundle
    needed = 500e6 * (4 * 3 + 2)
    assert enough(asked, with_free(needed), host=Host()) == []
    found = enough(asked, with_free(needed - 1), host=Host())
    assert rules(found) == ["recipe-disk-too-small"] and "7.0 GB" in found[0].evidence
    assert enough(asked, with_free(1)) == []  # without a host nothing is known of the folder


def test_memory_has_a_floor(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", 3_000_000_000)
    asked = recipe(design={"model": model})
    assert enough(asked, machine("container"), host=Host()) == []
    small = {
        "accelerators": {"nvidia": {"gpus": [{"name": "Tesla P4", "capability": "6.1", "total_bytes": 8 * 10**9}]}}
    }
    found = enough(asked, machine("container", **small), host=Host())
    assert rules(found) == ["recipe-memory-too-small"]
    assert "Tesla P4 has 8.0 GB" in found[0].evidence and "12.0 GB" in found[0].evidence
    assert "floor" in found[0].explanation and "750,000,000" in found[0].explanation

    on_cpu = recipe(design={"model": model}, environment={"device": "cpu"})
    assert enough(on_cpu, machine("container", **small), host=Host()) == []
    limited = machine("container", memory={"limit_bytes": 10 * 10**9})
    assert rules(enough(on_cpu, limited, host=Host())) == ["recipe-memory-too-small"]


def test_parameters_from_scratch_are_counted_within_a_few_percent() -> None:
    """Against the library's own models, without their head."""
    size = {"num_hidden_layers": 4, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    bert = BertForSequenceClassification(BertConfig(**size, vocab_size=8192, max_position_embeddings=512))
    section = ArchitectureSection(family="bert", preset="small")
    assert parameters_from_scratch(section) == pytest.approx(bert.num_parameters(), rel=0.03)

    window = {"attention_window": 64, "max_position_embeddings": 4098}
    longformer = LongformerForSequenceClassification(LongformerConfig(**size, **window, vocab_size=8192))
    section = ArchitectureSection(family="longformer", preset="small", vocab_size=8192)
    assert parameters_from_scratch(section) == pytest.approx(longformer.num_parameters(), rel=0.03)


@pytest.mark.parametrize("language", LANGUAGES)
def test_texts_are_filled_in_both_languages(language: str, tmp_path: Path) -> None:
    design = {"architecture": {"family": "bert", "preset": "base", "hidden_size": 16384, "num_layers": 96}}
    here = {"purpose": "here", "path": str(tmp_path), "free_bytes": 10**9}
    lacking = {"installed": {"packages": [], "frameworks": []}, "disks": [here], "reach": UNREACHED}
    everything = [
        *enough(
            recipe(design=design, training={"precision": "bfloat16"}), machine("laptop-linux", **lacking), language
        ),
        *enough(recipe(environment={"device": "cuda:3"}), machine("laptop-linux"), language),
        *enough(recipe(design={"model": "a/b"}), machine("laptop-linux", **lacking), language, host=Host()),
    ]
    catalogue = yaml.safe_load((SNAPSHOTS.parents[2] / "src/modelyard/environment/failures.yaml").read_text("utf-8"))
    assert set(rules(everything)) == {each["id"] for each in catalogue if each.get("group") == "recipe"}
    for each in everything:
        texts = (each.title, each.evidence, each.explanation, *each.fix)
        assert all(text and "{" not in text and "None" not in text for text in texts), texts
        assert any("\u4e00" <= letter <= "\u9fff" for letter in each.title) is (language == "zh")


def test_the_worst_comes_first() -> None:
    snapshot = machine("laptop-linux", installed={"packages": [], "frameworks": []})
    found = enough(recipe(training={"precision": "bfloat16"}), snapshot)
    assert [each.severity for each in found] == ["error", "warning"]
