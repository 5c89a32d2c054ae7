"""Which values make an example, and what is said of those that do not."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.data.examples import Example, ExampleReader, label_text, normalised, text_cleaner
from modelyard.data.sources import BadRow, Row
from modelyard.errors import RecipeError

NAMES = {"0": "negative"}
READER = ExampleReader("text", "label")


def read(reader: ExampleReader = READER, **values: Any) -> Example | BadRow:
    return reader.read(Row("a.csv", 7, values))


def test_a_sound_row() -> None:
    assert read(text=" a b ", label=" pos ") == Example(" a b ", "pos", -1, "", "a.csv", 7)


@pytest.mark.parametrize(
    ("value", "label"),
    [(1, "1"), (1.0, "1"), (-2.0, "-2"), (0.5, "0.5"), (True, "true"), (False, "false"), (None, "")],
)
def test_labels_of_every_type(value: Any, label: str) -> None:
    assert label_text(value) == label


@pytest.mark.parametrize(
    ("values", "column", "reason"),
    [
        ({"text": None, "label": "a"}, "text", "the text is empty"),
        ({"text": " \n", "label": "a"}, "text", "the text is empty"),
        ({"text": 3, "label": "a"}, "text", "the text is not a string"),
        ({"text": ["a"], "label": "a"}, "text", "the text is not a string"),
        ({"text": "a\udce9", "label": "a"}, "text", "the bytes are not UTF-8"),
        ({"text": "a", "label": None}, "label", "the label is empty"),
        ({"text": "a", "label": " "}, "label", "the label is empty"),
        ({"text": "a", "label": float("nan")}, "label", "the label is empty"),
        ({"text": "a", "label": ["x"]}, "label", "the label is neither a string nor a number"),
        ({"text": "a", "Label": "x"}, "label", "there is no such column"),
    ],
)
def test_unusable_values(values: dict[str, Any], column: str, reason: str) -> None:
    bad = READER.read(Row("a.csv", 7, values))
    assert isinstance(bad, BadRow)
    assert (bad.source, bad.number, bad.column, bad.reason) == ("a.csv", 7, column, reason)
    assert str(bad.error()).startswith(f"a.csv:7: column {column!r}: {reason}")


def test_a_missing_column_lists_the_others() -> None:
    bad = read(body="a", Label="x")
    assert isinstance(bad, BadRow) and "'body', 'Label'" in bad.value
    bad = read(text="a", Label="x")
    assert isinstance(bad, BadRow) and "'Label'" in bad.hint


def test_labels_that_are_not_allowed() -> None:
    reader = ExampleReader("text", "label", labels=frozenset({"negative", "1"}), label_names=NAMES)
    assert isinstance(read(reader, text="a", label=0), Example)
    assert isinstance(read(reader, text="a", label="1"), Example)
    bad = read(reader, text="a", label="2")
    assert isinstance(bad, BadRow) and "1, negative" in bad.hint
    assert bad.reason == "the label is not in data.labels"


@pytest.mark.parametrize(
    ("value", "part"), [("train", 0), ("Training", 0), ("val", 1), ("valid", 1), ("dev", 1), (" TEST ", 2)]
)
def test_parts(value: str, part: int) -> None:
    example = read(ExampleReader("text", "label", part="split"), text="a", label="b", split=value)
    assert isinstance(example, Example) and example.part == part


@pytest.mark.parametrize("value", ["tests", None, 1])
def test_unknown_parts(value: Any) -> None:
    bad = read(ExampleReader("text", "label", part="split"), text="a", label="b", split=value)
    assert isinstance(bad, BadRow) and bad.reason == "the part is unknown" and "validation" in bad.hint


def test_groups() -> None:
    reader = ExampleReader("text", "label", group="author")
    example = read(reader, text="a", label="b", author=12)
    assert isinstance(example, Example) and example.group == "12"
    bad = read(reader, text="a", label="b", author=None)
    assert isinstance(bad, BadRow) and bad.reason.startswith("the group is empty")


def test_what_is_removed() -> None:
    clean = text_cleaner(r"\b[A-Z]\w*")
    assert clean is not None and clean("Emma was here") == " was here"
    assert text_cleaner(None) is None
    bad = read(ExampleReader("text", "label", remove="[a-z]+"), text="abc", label="b")
    assert isinstance(bad, BadRow) and "abc" in bad.value
    assert bad.reason == "the text is empty after data.remove"
    with pytest.raises(RecipeError, match=r"data\.remove is no regular expression: '\('"):
        text_cleaner("(")


def test_texts_that_count_as_the_same() -> None:
    assert normalised("  The\tSTRASSE \n") == normalised("the Straße")
    assert normalised("a b") != normalised("ab")
