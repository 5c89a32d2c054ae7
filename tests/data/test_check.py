"""The report counts what it says, and warns in plain words."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from modelyard.data.check import (
    DataReport,
    find_repetition,
    length_report,
    require_learnable,
    warnings_of,
)
from modelyard.errors import DataError


def report(**changes: Any) -> DataReport:
    plain = DataReport(
        sources=("a.csv",),
        labels=("neg", "pos"),
        max_length=8,
        num_rows=400,
        num_examples=400,
        num_skipped=0,
        num_unused=0,
        skipped={},
        classes={"train": {"neg": 100, "pos": 100}, "test": {"neg": 100, "pos": 100}},
        lengths={"train": length_report(np.array([4, 8], np.int32), 8)},
        num_duplicates=0,
        duplicate_places=(),
        num_conflicting_texts=0,
        conflicting_places=(),
        leakage={"validation": 0, "test": 0},
        leaking_places={"validation": (), "test": ()},
        first_truncated=None,
    )
    return replace(plain, **changes)


def test_lengths() -> None:
    lengths = np.random.default_rng(0).integers(3, 900, 1001).astype(np.int32)
    found = length_report(lengths, 512)
    assert found.quantiles["50"] == int(np.median(lengths)) and found.quantiles["max"] == lengths.max()
    assert found.num_truncated == (lengths > 512).sum()
    assert found.tokens_lost == np.maximum(lengths - 512, 0).sum()
    assert found.share_lost == pytest.approx(found.tokens_lost / lengths.sum(), abs=1e-6)
    edges, counts = found.histogram["edges"], found.histogram["counts"]
    assert sum(counts) == 1001 and len(edges) == len(counts) + 1
    assert counts[edges.index(256)] == ((lengths >= 256) & (lengths < 512)).sum()


def test_histogram_of_a_length_that_is_an_edge() -> None:
    for length in (1, 7, 8, 16, 4096):
        histogram = length_report(np.array([length], np.int32), 10).histogram
        at = histogram["counts"].index(1)
        assert sum(histogram["counts"]) == 1 and histogram["edges"][at] <= length < histogram["edges"][at + 1]


def test_repetition() -> None:
    texts = np.array([1, 2, 1, 3, 2, 1, 4], dtype=np.uint64)
    labels = np.array([0, 0, 0, 1, 1, 0, 1], dtype=np.int32)
    parts = np.array([0, 0, 2, 1, 0, 2, 1], dtype=np.int8)
    found = find_repetition(texts, labels, parts)
    assert (found.num_duplicates, found.duplicates) == (3, [2, 4, 5])
    assert (found.num_conflicting_texts, found.conflicting) == (1, [4])
    assert found.leakage == {"validation": 0, "test": 2} and found.leaking["test"] == [2, 5]


def test_one_class_only() -> None:
    labels, parts = np.zeros(5, np.int32), np.zeros(5, np.int8)
    with pytest.raises(DataError, match=r"a\.csv: all 5 training examples are of one class, 'neg'"):
        require_learnable(labels, parts, ("neg", "pos"), "a.csv")


def test_no_training_example() -> None:
    with pytest.raises(DataError, match=r"a\.csv: there is no training example"):
        require_learnable(np.array([0, 1], np.int32), np.array([2, 2], np.int8), ("neg", "pos"), "a.csv")


def test_classes_that_train_has_not() -> None:
    labels = np.array([0, 1, 2, 3], np.int32)
    with pytest.raises(DataError, match=r"test has 2 label\(s\) that train has not: 'c', 'd'"):
        require_learnable(labels, np.array([0, 0, 2, 2], np.int8), ("a", "b", "c", "d"), "a.csv")


def test_a_plain_report_has_no_warnings() -> None:
    assert warnings_of(report(), ()) == ()


@pytest.mark.parametrize(
    ("changes", "warning"),
    [
        (
            {"leakage": {"test": 3}, "leaking_places": {"test": ("t.csv:4",)}},
            r"3 test examples stand in "
            r"train.*t\.csv:4",
        ),
        (
            {"num_conflicting_texts": 2, "conflicting_places": ("a.csv:9",)},
            r"2 texts .* more than one label "
            r".*a\.csv:9",
        ),
        ({"num_duplicates": 6, "duplicate_places": tuple("abcde")}, r"6 examples repeat .*a, b, c, d, e"),
        (
            {"num_skipped": 4, "skipped": {"the text is empty": 4}},
            r"4 of 400 rows were skipped: the text is "
            r"empty \(4\)",
        ),
        (
            {"classes": {"train": {"neg": 200, "pos": 3}, "test": {"neg": 99, "pos": 9}}},
            r"unbalanced.*'neg' "
            r"and 3 of 'pos'",
        ),
        (
            {"classes": {"train": {"neg": 9, "pos": 9}, "test": {"neg": 200, "pos": 0}}},
            "test has no example of pos",
        ),
        ({"classes": {"train": {"neg": 9, "pos": 9}}}, "there is no test split"),
        ({"classes": {"train": {"neg": 9, "pos": 9}, "test": {"neg": 20, "pos": 20}}}, "only 40 examples"),
        (
            {"lengths": {"train": length_report(np.array([4, 12], np.int32), 8)}},
            r"50\.0% of the train documents \(1\) .* 8 tokens; .* 25\.0% .* 12 tokens",
        ),
    ],
)
def test_warnings(changes: dict[str, Any], warning: str) -> None:
    (found,) = warnings_of(report(**changes), ())
    assert re.search(warning, found), found


def test_a_report_survives_json() -> None:
    full = report(warnings=warnings_of(report(), ("a note",)))
    assert DataReport.from_json(json.loads(json.dumps(full.to_json()))) == replace(
        full,
        lengths={name: replace(value) for name, value in full.lengths.items()},
    )
