"""The recipe that a person starts from loads as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.recipe.load import LoadedRecipe, load_recipe
from modelyard.recipe.schema import TaskName
from modelyard.recipe.template import render_template


def load(tmp_path: Path, text: str) -> LoadedRecipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


@pytest.mark.parametrize("task", ["text-classification", "sentiment"])
def test_loads_without_notices(tmp_path: Path, task: TaskName) -> None:
    loaded = load(tmp_path, render_template(task))
    assert loaded.notices == ()
    assert loaded.recipe.task == task
    assert loaded.recipe.training.learning_rate == 2e-5


def test_guesses_stand_with_their_reasons(tmp_path: Path) -> None:
    text = render_template(
        "sentiment",
        "reviews.tsv",
        ["id", "body", "stars"],
        text="body",
        label="stars",
        reasons={"data.text": "the longest texts", "data.label": "5 values in 900 rows"},
    )
    assert "  # columns there: id, body, stars\n" in text
    assert "  text: body  # the longest texts\n" in text
    assert "  label: stars  # 5 values in 900 rows\n" in text
    data = load(tmp_path, text).recipe.data
    assert (data.text, data.label, data.train) == ("body", "stars", str(tmp_path / "reviews.tsv"))


@pytest.mark.parametrize("name", ["no", "1", "a: b", "# x", "{y}", "null", "a\nb", "中文", "'", "\x07"])
def test_names_of_any_kind(tmp_path: Path, name: str) -> None:
    text = render_template("sentiment", "x.csv", [name, "b"], text=name, label=name, reasons={"data.text": name})
    data = load(tmp_path, text).recipe.data
    assert (data.text, data.label) == (name, name)
