"""Divisions keep shares, classes and groups, and put no text on two sides."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from modelyard.data.shuffle import mixed, random_keys, random_order
from modelyard.data.splits import divide
from modelyard.errors import DataError

NAMES = ("a", "b", "c", "d", "e")


def split(texts: Any, labels: Any, groups: Any = None, **changes: Any) -> NDArray[np.int8]:
    options: dict[str, Any] = {
        "validation": 0.1,
        "test": 0.2,
        "seed": 7,
        "stratify": True,
        "class_names": NAMES,
    }
    return divide(
        np.asarray(texts, dtype=np.uint64),
        np.asarray(labels, dtype=np.int32),
        None if groups is None else np.asarray(groups, dtype=np.uint64),
        **{**options, **changes},
    )


def test_splitmix_gives_the_published_numbers() -> None:
    # The first outputs for seed 1234567, from the reference implementation of SplitMix64 (Vigna, splitmix64.c).
    golden = 0x9E3779B97F4A7C15
    states = np.array([(1234567 + step * golden) % 2**64 for step in range(3)], dtype=np.uint64)
    assert mixed(states).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_random_numbers_depend_on_every_part_of_the_seed() -> None:
    values = np.arange(100, dtype=np.uint64)
    seeds = [(0,), (1,), (0, 0), (0, 1), (1, 0)]
    assert len({random_keys(values, *seed).tobytes() for seed in seeds}) == len(seeds)
    assert sorted(random_order(100, 3)) == list(range(100))


def test_class_counts_are_those_of_scikit_learn() -> None:
    labels = np.repeat([0, 1, 2], [500, 150, 37]).astype(np.int32)
    parts = split(range(len(labels)), labels, validation=0.0)
    _, test = train_test_split(labels, test_size=0.2, stratify=labels, random_state=0)
    assert abs(np.bincount(labels[parts == 2]) - np.bincount(test)).max() <= 1
    assert (parts == 2).sum() == round(0.2 * len(labels))


def test_validation_is_a_share_of_what_is_not_test() -> None:
    parts = split(range(1000), np.arange(1000) % 2)
    assert np.bincount(parts).tolist() == [720, 80, 200]
    assert not split(range(10), [0] * 10, validation=0.0, test=0.0).any()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(0, 2)), min_size=30, max_size=120),
    st.integers(0, 2**31),
    st.randoms(use_true_random=False),
)
def test_equal_texts_stay_together_in_any_order(rows: list[tuple[int, int]], seed: int, random: Any) -> None:
    texts, labels = zip(*rows, strict=True)
    try:
        parts = split(texts, labels, seed=seed)
    except DataError:
        return
    part_of = dict(zip(texts, parts, strict=True))
    assert [part_of[text] for text in texts] == parts.tolist()
    assert set(parts) == {0, 1, 2}
    order = list(range(len(rows)))
    random.shuffle(order)
    again = split(np.array(texts)[order], np.array(labels)[order], seed=seed)
    assert again.tolist() == parts[order].tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2), st.integers(0, 12)), min_size=20, max_size=120))
def test_groups_and_texts_stay_together(rows: list[tuple[int, int, int]]) -> None:
    texts, labels, groups = zip(*rows, strict=True)
    try:
        parts = split(texts, labels, groups)
    except DataError:
        return
    for keys in (texts, groups):
        assert len({(key, part) for key, part in zip(keys, parts.tolist(), strict=True)}) == len(set(keys))


def test_groups_of_all_sizes_come_near_the_shares() -> None:
    random = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), random.integers(1, 60, 60))
    parts = split(range(len(groups)), groups % 2, groups)
    shares = np.bincount(parts) / len(groups)
    assert abs(shares - [0.72, 0.08, 0.2]).max() < 0.03


def test_seeds_give_different_divisions() -> None:
    labels = np.arange(300) % 3
    assert split(range(300), labels).tolist() == split(range(300), labels).tolist()
    assert split(range(300), labels).tolist() != split(range(300), labels, seed=8).tolist()


def test_every_class_is_in_every_part() -> None:
    labels = np.repeat([0, 1, 2], [300, 4, 3])
    parts = split(range(len(labels)), labels)
    for part in range(3):
        assert set(labels[parts == part]) == {0, 1, 2}


def test_too_few_examples_of_a_class() -> None:
    with pytest.raises(
        DataError,
        match=r"needs 3 different texts of each class, but 'b' has "
        r"2\n.*stratify=false",
    ):
        split(range(20), [0] * 18 + [1] * 2)
    with pytest.raises(DataError, match="'b' has 1"):
        split([*range(18), 99, 99, 99], [0] * 18 + [1] * 3)
    assert set(split(range(20), [0] * 18 + [1] * 2, stratify=False)) == {0, 1, 2}


def test_too_few_examples_at_all() -> None:
    with pytest.raises(DataError, match=r"2 different texts cannot be divided into 3 parts.*\n.*data\.test"):
        split([1, 2, 2], [0, 1, 1])
    with pytest.raises(DataError, match="1 groups cannot be divided"):
        split(range(9), [0, 1, 2] * 3, [5] * 9)
