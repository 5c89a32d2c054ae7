"""Dividing examples into train, validation and test, so that nothing stands on both sides.

Identical texts, and rows of one group, form a unit; a unit goes to one part as a whole. The order in which
units are drawn follows from their content and the seed alone, so it is the same on every machine and in every
order of the rows.

Legend: N examples, U units, K classes, P parts (train, validation, test).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelyard.data.shuffle import random_keys
from modelyard.errors import DataError

TRAIN, VALIDATION, TEST = 0, 1, 2
SPLIT_NAMES = ("train", "validation", "test")


@dataclass(frozen=True)
class _Units:
    """of_row: (N,) the unit of each example. size: (U,) its examples. key: (U,) stands for its content.
    label: (U,) its most frequent class."""

    of_row: NDArray[np.int32]
    size: NDArray[np.int32]
    key: NDArray[np.uint64]
    label: NDArray[np.int32]


def divide(
    texts: NDArray[np.uint64],
    labels: NDArray[np.int32],
    groups: NDArray[np.uint64] | None,
    *,
    validation: float,
    test: float,
    seed: int,
    stratify: bool,
    class_names: tuple[str, ...],
) -> NDArray[np.int8]:
    """The part of each example, (N,) int8: 0 train, 1 validation, 2 test.

    texts: (N,) hash of each normalised text. labels: (N,) index into `class_names`. groups: (N,) hash of each
    group. validation: share of what is not test. test: share of all. A share of 0 makes no such part.
    With `stratify`, every class has its share in each part, and at least one example in each; with groups as
    nearly as whole groups allow.

    Raises DataError when there are too few examples, or too few of a class, for the parts.
    """
    shares = np.array([(1 - test) * (1 - validation), (1 - test) * validation, test])
    num_parts = int((shares > 0).sum())
    if num_parts == 1:
        return np.zeros(len(texts), dtype=np.int8)
    units = _units(texts, labels, groups)
    if len(units.size) < num_parts:
        raise DataError(_too_few(len(units.size), num_parts, groups is not None), hint=_FEWER_PARTS)
    strata = units.label if stratify else np.zeros(len(units.size), dtype=np.int32)
    if stratify and groups is None:
        _require_units_of_each_class(units, num_parts, class_names)
    part_of_unit = np.zeros(len(units.size), dtype=np.int8)
    quotas = _quotas(np.bincount(strata, weights=units.size).astype(np.int64), shares)
    for stratum, quota in enumerate(quotas):
        members = np.flatnonzero(strata == stratum)
        # The largest first: what is small fills the gaps.
        members = members[np.lexsort((random_keys(units.key[members], seed), -units.size[members]))]
        part_of_unit[members] = _fill(units.size[members], quota)
    parts = part_of_unit[units.of_row]
    empty = [SPLIT_NAMES[part] for part in range(3) if shares[part] > 0 and not (parts == part).any()]
    if empty:
        raise DataError(
            f"no example could be given to {' and '.join(empty)}: {len(units.size)} sets of examples that "
            f"belong together, the largest of {int(units.size.max())} of {len(texts)} examples, are too few",
            hint=_FEWER_PARTS,
        )
    return parts


_FEWER_PARTS = (
    "add examples, give a file as data.test or data.validation, "
    "or type --set data.split.validation=0 or --set data.split.test=0"
)


def _too_few(num_units: int, num_parts: int, grouped: bool) -> str:
    what = "groups" if grouped else "different texts"
    return f"{num_units} {what} cannot be divided into {num_parts} parts (train, validation, test)"


def _require_units_of_each_class(units: _Units, num_parts: int, class_names: tuple[str, ...]) -> None:
    counts = np.bincount(units.label, minlength=len(class_names))
    scarce = [f"{class_names[k]!r} has {counts[k]}" for k in np.flatnonzero((counts > 0) & (counts < num_parts))]
    if scarce:
        raise DataError(
            f"a stratified division into {num_parts} parts needs {num_parts} different texts "
            "of each class, but "
            + ", ".join(scarce[:10])
            + (f" and {len(scarce) - 10} more classes have fewer" if len(scarce) > 10 else ""),
            hint="add examples of these classes, remove the classes, or type --set data.split.stratify=false",
        )


def _units(texts: NDArray[np.uint64], labels: NDArray[np.int32], groups: NDArray[np.uint64] | None) -> _Units:
    of_row, key = _numbered(texts)
    if groups is not None:
        of_row, key = _connected(of_row, key, groups)
    size = np.bincount(of_row, minlength=len(key)).astype(np.int32)
    label = np.zeros(len(key), dtype=np.int32)
    label[of_row] = labels
    shared = np.flatnonzero(size[of_row] > 1)
    if len(shared):
        num_classes = int(labels.max()) + 1
        pairs, counts = np.unique(of_row[shared].astype(np.int64) * num_classes + labels[shared], return_counts=True)
        # Written in rising order of count, so that the most frequent class stays; of equals, the first class.
        order = np.lexsort((-(pairs % num_classes), counts))
        label[pairs[order] // num_classes] = pairs[order] % num_classes
    return _Units(of_row, size, key, label)


def _numbered(values: NDArray[np.uint64]) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Number the different values from 0: the number of each, and the values by number (rising).

    What `np.unique` does with half its memory, which counts at ten million examples.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_new = np.ones(len(values), dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    numbers = np.empty(len(values), dtype=np.int32)
    numbers[order] = np.cumsum(is_new, dtype=np.int32) - 1
    return numbers, ordered[is_new]


def _connected(
    of_row: NDArray[np.int32], key: NDArray[np.uint64], groups: NDArray[np.uint64]
) -> tuple[NDArray[np.int32], NDArray[np.uint64]]:
    """Join units that share a group, and groups that share a text."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    group_of_row, group_keys = _numbered(groups)
    num_nodes = len(key) + len(group_keys)
    edges = coo_array(
        (np.ones(len(of_row), dtype=np.int8), (of_row, group_of_row + len(key))), shape=(num_nodes, num_nodes)
    )
    num_components, component = connected_components(edges, directed=False)
    joined_key = np.full(num_components, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(joined_key, component[: len(key)], key)
    return component[of_row].astype(np.int32), joined_key


def _quotas(sizes: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """(K, P) examples wanted of each class in each part; whole numbers whose sums over classes keep the shares.

    Largest remainders get the examples that rounding down leaves over; each class has at least one in each
    part.
    """
    wanted = np.zeros((len(sizes), 3), dtype=np.int64)
    for part in (TEST, VALIDATION):
        if shares[part] > 0:
            exact = sizes * shares[part]
            floor = np.floor(exact).astype(np.int64)
            left_over = round(float(exact.sum())) - int(floor.sum())
            floor[np.argsort(floor - exact, kind="stable")[:left_over]] += 1
            wanted[:, part] = np.maximum(floor, np.minimum(sizes, 1))
    wanted[:, TRAIN] = np.maximum(sizes - wanted[:, VALIDATION] - wanted[:, TEST], np.minimum(sizes, 1))
    return wanted


def _fill(sizes: NDArray[np.int32], quota: NDArray[np.int64]) -> NDArray[np.int8]:
    """Give units, from the largest down, to the part that lacks most; no wanted part stays empty while units remain."""
    parts = np.zeros(len(sizes), dtype=np.int8)
    lacking = quota.copy()
    empty = set(np.flatnonzero(quota > 0).tolist())
    num_large = int((sizes > 1).sum())
    for at in range(num_large):
        candidates = sorted(empty) if len(sizes) - at <= len(empty) else [TRAIN, VALIDATION, TEST]
        part = max(candidates, key=lambda candidate: lacking[candidate])
        parts[at] = part
        lacking[part] -= int(sizes[at])
        empty.discard(part)
    at = num_large
    for part in (TEST, VALIDATION):
        # Train must keep one if it is still empty.
        reserve = int(TRAIN in empty) + int(part == TEST and VALIDATION in empty)
        count = max(min(int(max(lacking[part], part in empty)), len(sizes) - at - reserve), 0)
        parts[at : at + count] = part
        at += count
    return parts
