"""The data report: what is in the data, and what a person should know before trusting a result on it.

Legend: N examples over all splits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.splits import SPLIT_NAMES, TEST, TRAIN
from modelyard.errors import DataError

QUANTILES = (5, 25, 50, 75, 95, 99)
NUM_SHOWN = 5
# Guesses of when a person wants to hear of it: at 100 test examples a 95% interval of accuracy spans about 0.2.
FEW_TEST_EXAMPLES = 100
IMBALANCE = 10


@dataclass(frozen=True)
class LengthReport:
    """Lengths of one split in tokens before truncation, special tokens included.

    histogram: ``edges`` (powers of two) and ``counts`` of edges[i] <= length < edges[i + 1].
    num_truncated: documents longer than max_length; tokens_lost: their tokens beyond it.
    """

    num_documents: int
    num_tokens: int
    mean: float
    quantiles: Mapping[str, int]
    histogram: Mapping[str, Sequence[int]]
    num_truncated: int
    share_truncated: float
    tokens_lost: int
    share_lost: float


@dataclass(frozen=True)
class DataReport:
    """What the check found. classes: examples by split and class. Places are ``file:row``.

    num_rows = num_examples + num_skipped + num_unused (left out by data.max_examples).
    num_duplicates: examples whose text stood before; num_conflicting_texts: texts with more than one label;
    leakage: examples of validation and test whose text is also in train (case and white space aside).
    """

    sources: tuple[str, ...]
    labels: tuple[str, ...]
    max_length: int
    num_rows: int
    num_examples: int
    num_skipped: int
    num_unused: int
    skipped: Mapping[str, int]
    classes: Mapping[str, Mapping[str, int]]
    lengths: Mapping[str, LengthReport]
    num_duplicates: int
    duplicate_places: tuple[str, ...]
    num_conflicting_texts: int
    conflicting_places: tuple[str, ...]
    leakage: Mapping[str, int]
    leaking_places: Mapping[str, tuple[str, ...]]
    first_truncated: str | None
    warnings: tuple[str, ...] = field(default=())

    def to_json(self) -> dict[str, Any]:
        """A JSON value with the names of the fields."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataReport:
        """What `to_json` gave, also after a way through a file."""
        tuples = ("sources", "labels", "duplicate_places", "conflicting_places", "warnings")
        return cls(
            **{
                **value,
                **{name: tuple(value[name]) for name in tuples},
                "lengths": {name: LengthReport(**lengths) for name, lengths in value["lengths"].items()},
                "leaking_places": {name: tuple(places) for name, places in value["leaking_places"].items()},
            }
        )

    @property
    def num_truncated(self) -> int:
        return sum(lengths.num_truncated for lengths in self.lengths.values())


@dataclass(frozen=True)
class Repetition:
    """Texts that stand more than once, as positions into all examples (at most `NUM_SHOWN` each) and numbers."""

    num_duplicates: int
    duplicates: list[int]
    num_conflicting_texts: int
    conflicting: list[int]
    leakage: dict[str, int]
    leaking: dict[str, list[int]]


def require_learnable(
    labels: NDArray[np.int32], parts: NDArray[np.int8], class_names: Sequence[str], source: str
) -> None:
    """Refuse data that no classifier can learn from.

    labels: (N,) index into class_names. parts: (N,) index into SPLIT_NAMES.
    Raises DataError for a single class, or classes of validation or test that train has not.
    """
    in_train = np.bincount(labels[parts == TRAIN], minlength=len(class_names))
    if not in_train.any():
        raise DataError(
            "there is no training example",
            hint="check data.split.column: some rows must be marked `train`",
            where=source,
        )
    if (in_train > 0).sum() < 2:
        only = [class_names[int(index)] for index in np.flatnonzero(in_train)]
        raise DataError(
            f"all {int(in_train.sum())} training examples are of one class, {only[0]!r}; "
            "at least two classes are needed",
            hint="check that data.label names the right column, and that no sorted file was cut short",
            where=source,
        )
    for part, name in enumerate(SPLIT_NAMES[1:], start=1):
        counts = np.bincount(labels[parts == part], minlength=len(class_names))
        unseen = [class_names[int(index)] for index in np.flatnonzero((counts > 0) & (in_train == 0))]
        if unseen:
            listed = ", ".join(repr(label) for label in unseen[:10]) + (", …" if len(unseen) > 10 else "")
            raise DataError(
                f"{name} has {len(unseen)} label(s) that train has not: {listed}",
                hint="correct the labels, or add training examples of them; "
                "data.label_names can map one spelling to another",
                where=source,
            )


def find_repetition(texts: NDArray[np.uint64], labels: NDArray[np.int32], parts: NDArray[np.int8]) -> Repetition:
    """Look for equal texts by their hashes. texts: (N,) hash of each normalised text."""
    order = np.argsort(texts, kind="stable")
    ordered = texts[order]
    same_text = ordered[1:] == ordered[:-1]
    repeats, originals = order[1:][same_text], order[:-1][same_text]
    conflicts = repeats[labels[repeats] != labels[originals]]
    repeated = np.union1d(repeats, originals)
    train_texts = texts[repeated[parts[repeated] == TRAIN]]
    leaking = {}
    for part, name in enumerate(SPLIT_NAMES[1:], start=1):
        rows = repeated[parts[repeated] == part]
        leaking[name] = rows[np.isin(texts[rows], train_texts)]
    return Repetition(
        len(repeats),
        np.sort(repeats)[:NUM_SHOWN].tolist(),
        len(np.unique(texts[conflicts])),
        np.sort(conflicts)[:NUM_SHOWN].tolist(),
        {name: len(rows) for name, rows in leaking.items()},
        {name: rows[:NUM_SHOWN].tolist() for name, rows in leaking.items()},
    )


def length_report(full_lengths: NDArray[np.int32], max_length: int) -> LengthReport:
    """full_lengths: (N,) tokens of each text of a split before truncation, N >= 1."""
    lengths = full_lengths.astype(np.int64)
    over = lengths[lengths > max_length]
    edges = [0, *(2**power for power in range(3, max(int(lengths.max()).bit_length(), 3) + 1))]
    counts, _ = np.histogram(lengths, bins=edges)
    values = np.percentile(lengths, QUANTILES, method="inverted_cdf")
    lost = int((over - max_length).sum())
    total = int(lengths.sum())
    return LengthReport(
        num_documents=len(lengths),
        num_tokens=total,
        mean=round(total / len(lengths), 2),
        quantiles={
            **{str(q): int(value) for q, value in zip(QUANTILES, values, strict=True)},
            "max": int(lengths.max()),
        },
        histogram={"edges": edges, "counts": counts.tolist()},
        num_truncated=len(over),
        share_truncated=round(len(over) / len(lengths), 6),
        tokens_lost=lost,
        share_lost=round(lost / total, 6),
    )


def warnings_of(report: DataReport, notes: Sequence[str]) -> tuple[str, ...]:
    """What a person should read, in plain words, the gravest first."""
    found = [*_warnings_of_texts(report), *_warnings_of_classes(report)]
    if report.num_skipped:
        reasons = ", ".join(f"{reason} ({count})" for reason, count in report.skipped.items())
        found.append(f"{report.num_skipped} of {report.num_rows} rows were skipped: {reasons}.")
    for name, lengths in report.lengths.items():
        if lengths.num_truncated:
            found.append(
                f"{lengths.share_truncated:.1%} of the {name} documents ({lengths.num_truncated}) "
                f"are longer than max_length {report.max_length} tokens; cutting them loses "
                f"{lengths.share_lost:.1%} of its text (the longest has {lengths.quantiles['max']} tokens)."
            )
    return (*found, *notes)


def _warnings_of_texts(report: DataReport) -> list[str]:
    found = []
    for name, count in report.leakage.items():
        if count:
            found.append(
                f"{count} {name} examples stand in train too, so results on {name} are too good "
                f"(such as {_listed(report.leaking_places[name])})."
            )
    if report.num_conflicting_texts:
        found.append(
            f"{report.num_conflicting_texts} texts stand with more than one label "
            f"(such as {_listed(report.conflicting_places)})."
        )
    if report.num_duplicates:
        found.append(
            f"{report.num_duplicates} examples repeat an earlier text (such as {_listed(report.duplicate_places)})."
        )
    return found


def _warnings_of_classes(report: DataReport) -> list[str]:
    found = []
    train = report.classes[SPLIT_NAMES[TRAIN]]
    for name, counts in report.classes.items():
        absent = [label for label in report.labels if not counts.get(label)]
        if absent:
            found.append(f"{name} has no example of {_listed(absent)}.")
    present = [count for count in train.values() if count]
    if max(present) > IMBALANCE * min(present):
        largest, smallest = (
            max(train, key=lambda label: train[label]),
            min((label for label in train if train[label]), key=lambda label: train[label]),
        )
        found.append(
            f"the classes are unbalanced: train has {train[largest]} of {largest!r} and {train[smallest]} of "
            f"{smallest!r}; look at macro F1 rather than accuracy, or set training.class_weights=balanced."
        )
    tested = sum(report.classes.get(SPLIT_NAMES[TEST], {}).values())
    if not tested:
        found.append("there is no test split, so nothing will be judged on unseen data.")
    elif tested < FEW_TEST_EXAMPLES:
        found.append(f"the test has only {tested} examples, so every result will be uncertain.")
    return found


def _listed(places: Sequence[str]) -> str:
    return ", ".join(places[:NUM_SHOWN]) + (", …" if len(places) > NUM_SHOWN else "")
