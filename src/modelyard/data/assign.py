"""Which class and which split each example belongs to.

Legend: N usable examples of all sources, in the order of reading.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from modelyard.data.check import require_learnable
from modelyard.data.scan import ROLES, Scan
from modelyard.data.shuffle import random_keys
from modelyard.data.splits import TEST, TRAIN, VALIDATION, divide
from modelyard.errors import DataError
from modelyard.recipe.schema import DataSection
from modelyard.tasks.text_classification import TextClassification

UNUSED = -1


@dataclass(frozen=True)
class Assignment:
    """parts: (N,) int8 index into SPLIT_NAMES or UNUSED. classes: (N,) int32 index into labels (0 where unused)."""

    parts: NDArray[np.int8]
    classes: NDArray[np.int32]
    labels: tuple[str, ...]
    notes: tuple[str, ...]


def assign(found: Scan, data: DataSection, task: TextClassification) -> Assignment:
    """Give every example its class and its part.

    Parts that neither a file nor a column names are taken from train, by their shares.
    Raises DataError when the examples cannot be divided so or teach nothing (see `divide`,
    `require_learnable`).
    """
    used = _drawn(found, data)
    raw_used = [found.raw_labels[index] for index in np.unique(found.labels[used])]
    names, notes = _names_of_labels(raw_used, data, task)
    labels = _class_order(raw_used, data, names)
    numbers = {label: index for index, label in enumerate(labels)}
    strangers = sorted({names.get(raw, raw) for raw in raw_used} - set(labels))
    if strangers:
        raise DataError(
            f"labels that are not in data.labels ({', '.join(labels)}): {', '.join(map(repr, strangers[:10]))}",
            hint="name raw labels in data.label_names, or write data.labels as they stand in the file",
            where=data.train,
        )
    class_of_raw = np.array([numbers.get(names.get(raw, raw), 0) for raw in found.raw_labels], dtype=np.int32)
    classes = class_of_raw[found.labels]
    parts = np.where(found.roles == TRAIN, np.maximum(found.parts, TRAIN), found.roles).astype(np.int8)
    parts[~used] = UNUSED
    in_pool = parts == TRAIN
    # No copy when nothing is given apart, which is the case of most memory.
    pool = slice(None) if in_pool.all() else np.flatnonzero(in_pool)
    groups = found.groups
    if in_pool.any():
        parts[pool] = divide(
            found.texts[pool],
            classes[pool],
            None if groups is None else groups[pool],
            validation=0.0 if (parts == VALIDATION).any() else data.split.validation,
            test=0.0 if (parts == TEST).any() else data.split.test,
            seed=data.split.seed,
            stratify=data.split.stratify,
            class_names=labels,
        )
    require_learnable(classes[used], parts[used], labels, data.train)
    return Assignment(parts, classes, labels, notes)


def _drawn(found: Scan, data: DataSection) -> NDArray[np.bool_]:
    """(N,) bool: the examples that are used, at most data.max_examples of each source."""
    used = np.ones(len(found), dtype=np.bool_)
    if data.max_examples is not None:
        keys = random_keys(found.texts, data.split.seed, 1)
        for role in range(len(ROLES)):
            rows = np.flatnonzero(found.roles == role)
            used[rows[np.argsort(keys[rows], kind="stable")[data.max_examples :]]] = False
    return used


def _names_of_labels(
    raw_labels: list[str], data: DataSection, task: TextClassification
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    """Readable names: the recipe's, else the task's if it knows all labels, else none; and what is odd about them."""
    if data.label_names is None:
        return (task.label_names if set(raw_labels) <= set(task.label_names) else {}), ()
    idle = sorted(set(data.label_names) - set(raw_labels))
    if idle:
        return data.label_names, (f"data.label_names names labels that do not occur: {', '.join(idle)}.",)
    return data.label_names, ()


def _class_order(raw_labels: list[str], data: DataSection, names: Mapping[str, str]) -> tuple[str, ...]:
    """Class names as data.labels gives them, else sorted by raw label: by value if all are whole numbers."""
    if data.labels is not None:
        ordered = list(data.labels)
    elif all(re.fullmatch(r"-?\d+", raw) for raw in raw_labels):
        ordered = sorted(raw_labels, key=lambda raw: (int(raw), raw))
    else:
        ordered = sorted(raw_labels)
    return tuple(dict.fromkeys(names.get(raw, raw) for raw in ordered))
