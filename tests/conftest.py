"""Real reviews in small pieces, and one small run that many tests look at."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Prepared data of tests stay out of the person's cache, and nothing waits for a network."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELYARD_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("MODELYARD_LANG", "en")
        yield


def demo_reviews(count: int) -> list[dict[str, str]]:
    """The first `count` reviews of the sentiment demo."""
    path = Path(str(files("modelyard") / "demos" / "sentiment" / "reviews.jsonl.gz"))
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [{"text": row["text"], "label": ("negative", "positive")[row["label"]]} for row in rows[:count]]


def write_csv(path: Path, rows: list[dict[str, str]]) -> Path:
    """Rows as a CSV file with a header."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="session")
def reviews_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """160 reviews with the columns text and label."""
    return write_csv(tmp_path_factory.mktemp("reviews") / "reviews.csv", demo_reviews(160))


RECIPE = """\
task: sentiment
data:
  train: {train}
design:
  architecture:
    {{family: longformer, preset: tiny, hidden_size: 16, num_layers: 1, num_attention_heads: 2, vocab_size: 400}}
  max_length: 48
  attention_window: 16
training: {{num_epochs: 2, batch_size: 16, learning_rate: 1.0e-3}}
evaluation: {{num_resamples: 100}}
"""


@pytest.fixture
def recipe_file(tmp_path: Path, reviews_csv: Path) -> Path:
    """A recipe that trains in a second."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(train=reviews_csv), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, reviews_csv: Path) -> Path:
    """All five stages of that recipe, done once; tests must not change it."""
    import modelyard

    folder = tmp_path_factory.mktemp("runs")
    recipe = folder / "small.yaml"
    recipe.write_text(RECIPE.format(train=reviews_csv), encoding="utf-8")
    modelyard.run(modelyard.load_recipe(recipe), folder / "small")
    return folder / "small"
