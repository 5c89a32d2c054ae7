"""Writing: what was written is read back equal, whatever the values are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import RecipeError
from modelyard.recipe.load import load_recipe
from modelyard.recipe.schema import Recipe
from modelyard.recipe.write import ResolvedRecipe, recipe_text, set_values, write_recipe

MINIMAL = {"task": "sentiment", "data": {"train": "/a.csv"}, "design": {"model": "org/name"}}
TRAPS = [
    "no",
    "yes",
    "null",
    "~",
    "",
    "1",
    "1e5",
    "0x1f",
    ".nan",
    "true",
    "a: b",
    "- a",
    "#",
    "a #b",
    "[a]",
    "{",
    "*a",
    "&a",
    "!a",
    "%",
    "@",
    "`",
    "'",
    '"',
    "a\nb",
    "a\r\nb\n",
    " a ",
    "\t",
    "\x85",
    "\u2028",
    "\ufeff",
    "中文",
    "=",
    "<<",
    "?",
    "|",
    ">",
    "---",
    "...",
    "\x00",
    "\x1b",
    "😀",
    "a\u0301",
    "a" * 200 + " b" * 200,
]
texts = st.one_of(st.sampled_from(TRAPS), st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
seeds = st.integers(min_value=0, max_value=2**63)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    """Recipes as the loader leaves them: paths are absolute."""
    tree: dict[str, Any] = {
        "task": draw(st.sampled_from(["sentiment", "text-classification"])),
        "data": {
            "train": "/data/" + draw(texts.filter(lambda text: "/" not in text and "\x00" not in text)) + "x",
            "text": draw(texts),
            "labels": draw(st.none() | st.lists(texts)),
            "label_names": draw(st.none() | st.dictionaries(texts, texts)),
            "split": {
                "test": draw(st.floats(0, 0.99)),
                "seed": draw(seeds),
                "group": draw(st.none() | texts),
            },
        },
        "design": {"model": "org/name", "max_length": draw(st.none() | st.integers(4, 10**6))},
        "training": {
            "learning_rate": draw(st.floats(1e-12, 10.0)),
            "max_gradient_norm": draw(st.none() | st.floats(1e-9, 1e300)),
            "freeze": draw(st.lists(st.sampled_from(["embeddings", "encoder"]))),
            "max_micro_batch_tokens": draw(st.just("auto") | st.integers(16, 10**9)),
        },
    }
    return Recipe.model_validate(tree)


@settings(max_examples=150, deadline=None)
@given(recipe=recipes(), reason=texts)
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe, reason: str) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.yaml"
    write_recipe(recipe, path, {"design.max_length": reason, "training.precision": reason})
    assert load_recipe(path).recipe == recipe


@settings(max_examples=50, deadline=None)
@given(recipe=recipes())
def test_other_yaml_readers_understand_the_file(recipe: Recipe) -> None:
    """PyYAML's own loader reads YAML 1.1; numbers must be numbers there too."""
    tree = yaml.safe_load(recipe_text(recipe).replace("\ufeff", ""))
    assert tree["training"]["learning_rate"] == recipe.training.learning_rate
    assert tree["training"]["adam_epsilon"] == 1e-8


def test_reasons_stand_behind_their_values() -> None:
    resolved = ResolvedRecipe(Recipe.model_validate(MINIMAL))
    resolved = resolved.derive("design.max_length", 512, "the most that\nthe model takes")
    text = recipe_text(resolved.recipe, resolved.reasons)
    assert "  max_length: 512  # derived: the most that the model takes\n" in text
    assert text.count("# derived") == 1


def test_reason_for_a_name_that_does_not_exist_is_our_mistake() -> None:
    with pytest.raises(AssertionError, match=r"design\.length"):
        recipe_text(Recipe.model_validate(MINIMAL), {"design.length": "x"})


def test_set_values() -> None:
    recipe = Recipe.model_validate(MINIMAL)
    changed = set_values(recipe, {"training.seed": 3, "design.model": None, "design.architecture.family": "bert"})
    assert changed.training.seed == 3
    assert changed.design.architecture is not None
    assert recipe.training.seed == 42


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("training.batch_size", 0, "`training.batch_size` is `0`, must be a whole number at least 1"),
        ("training.batchsize", 2, "`training.batchsize` is not a key of a recipe"),
        ("design.model", None, "give exactly one of `model`"),
        ("data.train.x", 1, "`data.train` is"),
    ],
)
def test_set_values_that_do_not_fit(name: str, value: Any, words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        set_values(Recipe.model_validate(MINIMAL), {name: value})
    assert words in str(caught.value)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_recipe(Recipe.model_validate(MINIMAL), tmp_path / "recipe.yaml")
    before = path.read_text()

    def fail(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        write_recipe(set_values(Recipe.model_validate(MINIMAL), {"training.seed": 1}), path)
    assert path.read_text() == before
    assert [file.name for file in tmp_path.iterdir()] == ["recipe.yaml"]
