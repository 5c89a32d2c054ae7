"""``predictions.parquet``: one row an example, written while the model predicts and read back by row.

Columns: ``row`` (position in the split), ``source`` (file:row it came from), ``label``, ``predicted``,
``correct``, ``loss`` (nats), ``num_tokens`` (of the whole text), ``truncated`` (the model saw only a part),
then ``probability_<label>`` for each class. The schema's metadata holds the labels in order.

Legend: N examples, B examples of a batch, C classes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from modelyard.errors import InputError
from modelyard.evaluation.metrics import Values, example_brier_scores, example_losses, log_probabilities
from modelyard.runs.files import write_with

ROWS_PER_GROUP = 8192
_COMMON = [
    ("row", pa.int64()),
    ("source", pa.string()),
    ("label", pa.string()),
    ("predicted", pa.string()),
    ("correct", pa.bool_()),
    ("loss", pa.float64()),
    ("num_tokens", pa.int32()),
    ("truncated", pa.bool_()),
]

Outputs = Iterable[tuple[NDArray[np.int64], NDArray[Any]]]


class EvaluatedSplit(Protocol):
    """What evaluation needs of a prepared split of N examples.

    lengths: (N,) tokens that the model reads; full_lengths: (N,) tokens before truncation; labels: (N,) in 0
    .. C-1.
    """

    @property
    def lengths(self) -> NDArray[Any]: ...
    @property
    def full_lengths(self) -> NDArray[Any]: ...
    @property
    def labels(self) -> NDArray[Any]: ...
    def __len__(self) -> int: ...
    def text(self, row: int) -> str: ...
    def source(self, row: int) -> str: ...


@dataclass(frozen=True)
class Outcomes:
    """What is kept in memory of a system's predictions, a few numbers an example; all (N,), in the order of
    the rows.

    confidence: probability of the predicted class. loss: nats. brier: 0 to 2.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    predicted: NDArray[np.int64]
    confidence: Values
    loss: Values
    brier: Values
    class_names: tuple[str, ...]

    @property
    def correct(self) -> NDArray[np.bool_]:
        return np.equal(self.labels, self.predicted)


def write_predictions(outputs: Outputs, split: EvaluatedSplit, labels: Sequence[str], path: Path) -> Path:
    """Write the predictions as they come, in row groups of 8,192; memory does not grow with the split.

    outputs: pairs of rows (B,) and logits (B, C), in any order, each row of the split exactly once.
    Raises InputError when rows are missing, repeated or unknown, or logits are not finite or not C wide; no
    file is left behind then.
    """
    schema = pa.schema(
        [*_COMMON, *((f"probability_{label}", pa.float32()) for label in labels)],
        metadata={"labels": json.dumps(list(labels), ensure_ascii=False)},
    )

    def write(temporary: Path) -> None:
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for rows, logits in _grouped(_checked(outputs, len(split), labels)):
                writer.write_table(_table(rows, logits, split, labels, schema))

    return write_with(path, write)


def _checked(outputs: Outputs, num_rows: int, labels: Sequence[str]) -> Iterator[tuple[NDArray[np.int64], Values]]:
    seen = np.zeros(num_rows, dtype=bool)
    hint = "this is a fault of the model or of the code that predicts, not of the data; please report it"
    for rows, logits in outputs:
        if logits.shape != (len(rows), len(labels)):
            raise InputError(
                f"logits have the shape {logits.shape}, expected {(len(rows), len(labels))}",
                hint="evaluate with the labels that the model was trained with",
            )
        unknown = rows[(rows < 0) | (rows >= num_rows)]
        if len(unknown):
            raise InputError(f"row {unknown[0]} was predicted, expected rows 0 to {num_rows - 1}", hint=hint)
        if seen[rows].any() or len(np.unique(rows)) < len(rows):
            raise InputError(f"a row of {rows.tolist()[:8]} was predicted twice, expected each once", hint=hint)
        broken = rows[~np.isfinite(logits).all(axis=1)]
        if len(broken):
            raise InputError(
                f"the model's output for row {broken[0]} is not finite",
                hint="training diverged: train again with a lower training.learning_rate or in float32",
            )
        seen[rows] = True
        yield rows, log_probabilities(logits)
    if not seen.all():
        raise InputError(
            f"{int((~seen).sum())} of {num_rows} rows have no prediction, the first is {int(seen.argmin())}",
            hint=hint,
        )


def _grouped(
    batches: Iterator[tuple[NDArray[np.int64], Values]],
) -> Iterator[tuple[NDArray[np.int64], Values]]:
    """Small batches joined to row groups of about `ROWS_PER_GROUP`."""
    rows: list[NDArray[np.int64]] = []
    logs: list[Values] = []
    waiting = 0
    for batch_rows, batch_logs in batches:
        rows.append(batch_rows)
        logs.append(batch_logs)
        waiting += len(batch_rows)
        if waiting >= ROWS_PER_GROUP:
            yield np.concatenate(rows), np.concatenate(logs)
            rows, logs, waiting = [], [], 0
    if waiting:
        yield np.concatenate(rows), np.concatenate(logs)


def _table(
    rows: NDArray[np.int64], logs: Values, split: EvaluatedSplit, labels: Sequence[str], schema: pa.Schema
) -> pa.Table:
    truth = np.asarray(split.labels)[rows].astype(np.int64)
    predicted = logs.argmax(axis=1)
    full_lengths = np.asarray(split.full_lengths)[rows].astype(np.int32)
    names = pa.array(list(labels))
    columns: list[Any] = [
        rows,
        [split.source(int(row)) for row in rows],
        names.take(pa.array(truth)),
        names.take(pa.array(predicted)),
        truth == predicted,
        example_losses(truth, logs),
        full_lengths,
        full_lengths > np.asarray(split.lengths)[rows],
        *np.exp(logs).T.astype(np.float32),
    ]
    arrays = [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)]
    return pa.Table.from_arrays(arrays, schema=schema)


def read_outcomes(path: Path) -> Outcomes:
    """Read a predictions file, row group by row group.

    Raises InputError when the file is not one that `write_predictions` wrote.
    """
    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(
            f"cannot read predictions from {path}: {error}",
            hint="evaluate that run again: modelyard evaluate RUN",
        ) from error
    with file:
        names = _class_names(file, path)
        parts = [_outcome_columns(file.read_row_group(group), names) for group in range(file.num_row_groups)]
    if not parts:
        raise InputError(f"{path} holds no predictions, expected at least one", hint="check data.test of the recipe")
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(columns[0], kind="stable")
    rows, labels, predicted, confidence, loss, brier = (column[order] for column in columns)
    return Outcomes(rows, labels, predicted, confidence, loss, brier, names)


def _class_names(file: pq.ParquetFile, path: Path) -> tuple[str, ...]:
    metadata = file.schema_arrow.metadata or {}
    missing = [name for name, _ in _COMMON if name not in file.schema_arrow.names]
    if missing or b"labels" not in metadata:
        raise InputError(
            f"{path} is no predictions file: it lacks {missing or 'the labels'}",
            hint="give the predictions.parquet of a run's evaluation folder",
        )
    return tuple(json.loads(metadata[b"labels"]))


def _outcome_columns(table: pa.Table, names: tuple[str, ...]) -> tuple[NDArray[Any], ...]:
    value_set = pa.array(list(names))
    labels, predicted = (
        pa.compute.index_in(table[column], value_set=value_set).to_numpy().astype(np.int64)
        for column in ("label", "predicted")
    )
    probabilities = np.stack([table[f"probability_{name}"].to_numpy() for name in names], axis=1).astype(np.float64)
    return (
        table["row"].to_numpy(),
        labels,
        predicted,
        probabilities[np.arange(len(labels)), predicted],
        table["loss"].to_numpy(),
        example_brier_scores(labels, probabilities),
    )


def check_aligned(a: Outcomes, b: Outcomes, name_a: str, name_b: str) -> None:
    """Raise InputError unless both systems predicted the same rows with the same true labels and classes."""
    hint = "compare runs that were evaluated on the same test set: the same data, data.split and labels"
    if a.class_names != b.class_names:
        raise InputError(f"{name_a} knows {list(a.class_names)}, {name_b} knows {list(b.class_names)}", hint=hint)
    if len(a.rows) != len(b.rows) or not np.array_equal(a.rows, b.rows):
        raise InputError(f"{name_a} has {len(a.rows)} test rows, {name_b} {len(b.rows)}, not the same ones", hint=hint)
    different = np.flatnonzero(a.labels != b.labels)
    if len(different):
        row = different[0]
        raise InputError(
            f"test row {a.rows[row]} is {a.class_names[a.labels[row]]!r} for {name_a} "
            f"but {b.class_names[b.labels[row]]!r} for {name_b}",
            hint=hint,
        )
