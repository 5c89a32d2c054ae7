from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelyard.errors import InputError
from modelyard.evaluation import predictions
from modelyard.evaluation.predictions import check_aligned, read_outcomes, write_predictions

LABELS = ("down", "up")


def _in_batches(logits: Any, size: int = 7) -> Iterator[tuple[Any, Any]]:
    order = np.random.default_rng(0).permutation(len(logits))  # batches come sorted by length, not by row
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, logits[rows]


def test_predictions_come_back_by_row(
    tmp_path: Path, make_split: Callable[..., Any], noisy_logits: Callable[..., Any]
) -> None:
    labels = np.arange(40) % 2
    split = make_split(["word " * (row + 1) for row in range(40)], labels, max_length=50)
    logits = noisy_logits(labels, 2, 1.0)
    path = write_predictions(_in_batches(logits), split, LABELS, tmp_path / "p.parquet")

    table = pq.read_table(path)
    assert table.column_names == [
        "row", "source", "label", "predicted", "correct", "loss", "num_tokens", "truncated",
        "probability_down", "probability_up",
    ]  # fmt: skip
    row = next(entry for entry in table.to_pylist() if entry["row"] == 12)
    assert (row["source"], row["label"], row["num_tokens"], row["truncated"]) == ("texts.csv:14", "down", 65, True)
    assert row["probability_down"] + row["probability_up"] == pytest.approx(1)
    assert row["loss"] == pytest.approx(-np.log(row["probability_down"]), rel=1e-5)

    outcomes = read_outcomes(path)
    assert outcomes.rows.tolist() == list(range(40))
    assert outcomes.labels.tolist() == labels.tolist()
    assert outcomes.predicted.tolist() == logits.argmax(axis=1).tolist()
    assert outcomes.class_names == LABELS


def test_rows_are_written_in_groups_while_they_come(
    tmp_path: Path, make_split: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predictions, "ROWS_PER_GROUP", 10)
    split = make_split(["x"] * 95, [0, 1] * 47 + [0])
    written: list[int] = []
    write_table = pq.ParquetWriter.write_table

    def watched(self: pq.ParquetWriter, table: pa.Table, *arguments: Any) -> None:
        written.append(len(table))
        write_table(self, table, *arguments)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", watched)
    most_ahead = 0

    def outputs() -> Iterator[tuple[Any, Any]]:
        nonlocal most_ahead
        for done, (rows, logits) in enumerate(_in_batches(np.zeros((95, 2)), size=3), start=1):
            most_ahead = max(most_ahead, 3 * done - sum(written))
            yield rows, logits

    path = write_predictions(outputs(), split, LABELS, tmp_path / "p.parquet")
    assert most_ahead <= 10 + 2 * 3  # rows held in memory: one group and the batch that completes it
    assert pq.ParquetFile(path).num_row_groups == len(written) == 8
    assert len(read_outcomes(path).rows) == 95


@pytest.mark.parametrize(
    ("rows", "logits", "message"),
    [
        ([0, 1], np.zeros((2, 2)), r"1 of 3 rows have no prediction, the first is 2"),
        ([0, 1, 1], np.zeros((3, 2)), r"a row of \[0, 1, 1\] was predicted twice"),
        ([0, 1, 3], np.zeros((3, 2)), r"row 3 was predicted, expected rows 0 to 2"),
        ([0, 1, 2], np.zeros((3, 5)), r"logits have the shape \(3, 5\), expected \(3, 2\)"),
        ([0, 1, 2], np.array([[0, 0], [0, np.nan], [0, 0]]), r"the model's output for row 1 is not finite"),
    ],
)
def test_wrong_outputs_are_named_and_leave_no_file(
    tmp_path: Path, make_split: Callable[..., Any], rows: list[int], logits: Any, message: str
) -> None:
    split = make_split(["a", "b", "c"], [0, 1, 0])
    with pytest.raises(InputError, match=message) as caught:
        write_predictions([(np.array(rows), logits)], split, LABELS, tmp_path / "p.parquet")
    assert caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_label_that_is_odd_as_a_column_name_is_kept(tmp_path: Path, make_split: Callable[..., Any]) -> None:
    odd = ("row", 'a,b\n"c"')
    split = make_split(["a", "b"], [1, 0])
    path = write_predictions([(np.arange(2), np.eye(2)[::-1])], split, odd, tmp_path / "p.parquet")
    outcomes = read_outcomes(path)
    assert outcomes.class_names == odd
    assert outcomes.correct.all()


def test_files_that_are_no_predictions_are_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"not parquet")
    with pytest.raises(InputError, match="cannot read predictions from"):
        read_outcomes(broken)
    with pytest.raises(InputError, match="cannot read predictions from"):
        read_outcomes(tmp_path / "missing.parquet")
    other = tmp_path / "other.parquet"
    pq.write_table(pa.table({"row": [1]}), other)
    with pytest.raises(InputError, match=r"is no predictions file: it lacks \['source'"):
        read_outcomes(other)


def test_an_empty_predictions_file_is_refused(tmp_path: Path, make_split: Callable[..., Any]) -> None:
    path = write_predictions([], make_split([], []), LABELS, tmp_path / "p.parquet")
    with pytest.raises(InputError, match="holds no predictions, expected at least one"):
        read_outcomes(path)


def test_systems_of_different_test_sets_are_not_compared(tmp_path: Path, make_split: Callable[..., Any]) -> None:
    def outcomes(name: str, labels: list[int], names: tuple[str, ...] = LABELS) -> Any:
        split = make_split(["text"] * len(labels), labels)
        logits = np.zeros((len(labels), len(names)))
        return read_outcomes(
            write_predictions([(np.arange(len(labels)), logits)], split, names, tmp_path / f"{name}.parquet")
        )

    base = outcomes("base", [0, 1, 0])
    with pytest.raises(InputError, match="a has 3 test rows, b 2, not the same ones"):
        check_aligned(base, outcomes("short", [0, 1]), "a", "b")
    with pytest.raises(InputError, match="test row 2 is 'down' for a but 'up' for b"):
        check_aligned(base, outcomes("other", [0, 1, 1]), "a", "b")
    with pytest.raises(InputError, match=r"a knows \['down', 'up'\], b knows \['down', 'left'\]"):
        check_aligned(base, outcomes("named", [0, 1, 0], ("down", "left")), "a", "b")
