from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from modelyard.evaluation.predictions import Outcomes
from modelyard.evaluation.slices import describe_split, length_slices, truncation_slices


def _outcomes(correct: list[bool]) -> Outcomes:
    n = len(correct)
    return Outcomes(
        np.arange(n),
        np.zeros(n, dtype=np.int64),
        1 - np.array(correct, dtype=np.int64),
        np.ones(n),
        np.zeros(n),
        np.zeros(n),
        ("a", "b"),
    )


def test_long_documents_are_cut_at_fixed_edges_and_empty_buckets_left_out() -> None:
    lengths = np.array([100] * 40 + [128] * 5 + [600] * 10 + [9000] * 32)
    correct = [True] * 45 + [False] * 10 + [True] * 16 + [False] * 16
    found = length_slices(lengths, {"model": _outcomes(correct)}, 0.95)
    bounds = [(part["over_tokens"], part["up_to_tokens"], part["n"], part["too_few"]) for part in found]
    assert bounds == [(0, 128, 45, False), (512, 1024, 10, True), (4096, None, 32, False)]
    assert [part["accuracy"]["model"]["value"] for part in found] == [1.0, 0.0, 0.5]


def test_short_documents_are_cut_at_their_quartiles() -> None:
    lengths = np.arange(1, 201)
    found = length_slices(lengths, {"model": _outcomes([True] * 200)}, 0.95)
    assert [part["n"] for part in found] == [50, 50, 50, 50]
    assert found[-1]["up_to_tokens"] is None


@pytest.mark.parametrize("lengths", [[], [7], [5] * 40])
def test_lengths_that_do_not_differ_are_one_slice_at_most(lengths: list[int]) -> None:
    found = length_slices(np.array(lengths), {"model": _outcomes([True] * len(lengths))}, 0.95)
    assert [part["n"] for part in found] == ([len(lengths)] if lengths else [])


def test_truncated_documents_are_set_against_whole_ones() -> None:
    systems = {"model": _outcomes([True, True, False, True])}
    assert truncation_slices(np.zeros(4, dtype=bool), systems, 0.95) == []
    found = truncation_slices(np.array([False, False, True, True]), systems, 0.95)
    assert [(part["part"], part["n"], part["accuracy"]["model"]["value"]) for part in found] == [
        ("whole", 2, 1.0),
        ("truncated", 2, 0.5),
    ]
    assert [part["part"] for part in truncation_slices(np.ones(4, dtype=bool), systems, 0.95)] == ["truncated"]


def test_a_split_is_described_with_what_truncation_loses(make_split: Callable[..., Any]) -> None:
    split = make_split(["x"] * 4, [0, 0, 2, 0], full_lengths=[10, 20, 30, 100], max_length=40)
    found = describe_split(split, 3)
    assert found["class_counts"] == [3, 0, 1]
    assert (found["n"], found["num_truncated"], found["read_tokens"], found["max_tokens"]) == (4, 1, 40, 100)
    assert found["lost_token_share"] == pytest.approx(60 / 160)
    assert sum(found["histogram"]["counts"]) == 4
    assert describe_split(make_split([], []), 3) == {"n": 0, "class_counts": [0, 0, 0]}
