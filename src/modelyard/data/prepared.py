"""Prepared examples: one Arrow file per split, read through a memory map, and all that the later stages need of them.

Legend: N examples of a split.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from modelyard.data.check import DataReport

SCHEMA = pa.schema(
    {
        "text": pa.large_string(),
        "label": pa.int32(),
        "input_ids": pa.large_list(pa.int32()),
        "num_tokens_full": pa.int32(),
        "source": pa.string(),
    }
)


def example_block(
    texts: Sequence[str],
    labels: Sequence[int] | NDArray[Any],
    input_ids: Sequence[Sequence[int]],
    full_lengths: Sequence[int] | NDArray[Any],
    sources: Sequence[str],
) -> pa.RecordBatch:
    """A block of examples as the Arrow files hold them; all arguments have one entry for each example."""
    offsets = np.zeros(len(input_ids) + 1, dtype=np.int64)
    np.cumsum(np.fromiter(map(len, input_ids), dtype=np.int64, count=len(input_ids)), out=offsets[1:])
    ids = np.fromiter(chain.from_iterable(input_ids), dtype=np.int32, count=int(offsets[-1]))
    return pa.record_batch(
        [
            pa.array(texts, pa.large_string()),
            pa.array(np.asarray(labels, dtype=np.int32)),
            pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(ids)),
            pa.array(np.asarray(full_lengths, dtype=np.int32)),
            pa.array(sources, pa.string()),
        ],
        schema=SCHEMA,
    )


class Split:
    """The examples of one part, in the order of their sources. Rows are numbered from 0; nothing is held in memory."""

    def __init__(self, table: pa.Table, *, num_prefix_tokens: int = 1, num_suffix_tokens: int = 1) -> None:
        """table: of `SCHEMA`. num_prefix_tokens, num_suffix_tokens: special tokens around each text."""
        self.num_prefix_tokens = num_prefix_tokens
        self.num_suffix_tokens = num_suffix_tokens
        self._table = table
        chunks = table.column("input_ids").chunks
        self._values = [chunk.values.to_numpy() for chunk in chunks]
        self._offsets = [chunk.offsets.to_numpy() for chunk in chunks]
        self._starts = np.cumsum([0, *map(len, chunks)])

    @classmethod
    def open(cls, path: Path, *, num_prefix_tokens: int, num_suffix_tokens: int) -> Split:
        """Map an Arrow IPC file into memory."""
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
        return cls(table, num_prefix_tokens=num_prefix_tokens, num_suffix_tokens=num_suffix_tokens)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    @cached_property
    def lengths(self) -> NDArray[np.int32]:
        """(N,) int32 tokens that are kept of each text, special ones included."""
        return np.concatenate([np.zeros(0, np.int32), *map(np.diff, self._offsets)]).astype(np.int32)

    @cached_property
    def full_lengths(self) -> NDArray[np.int32]:
        """(N,) int32 tokens of each text before truncation."""
        result: NDArray[np.int32] = self._table.column("num_tokens_full").to_numpy()
        return result

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """(N,) int64 index of each example's class."""
        result: NDArray[np.int64] = self._table.column("label").to_numpy().astype(np.int64)
        return result

    def input_ids(self, row: int) -> NDArray[np.int32]:
        """(T,) int32 token ids of one example, truncated to max_length, special tokens included; not to be
        written to."""
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} of {len(self)}")
        chunk = int(np.searchsorted(self._starts, row, side="right")) - 1
        offsets = self._offsets[chunk]
        at = row - int(self._starts[chunk])
        ids: NDArray[np.int32] = self._values[chunk][offsets[at] : offsets[at + 1]]
        return ids

    def text(self, row: int) -> str:
        """The text, as cleaned by data.remove."""
        return str(self._table.column("text")[row].as_py())

    def source(self, row: int) -> str:
        """Where it stood, such as ``reviews.csv:17``."""
        return str(self._table.column("source")[row].as_py())


@dataclass(frozen=True)
class Prepared:
    """Data ready for training.

    labels: class names in the order of the logits. fingerprint: SHA-256 of all that the examples follow from.
    """

    labels: tuple[str, ...]
    train: Split
    validation: Split | None
    test: Split | None
    report: DataReport
    fingerprint: str
    pad_token_id: int

    @property
    def splits(self) -> dict[str, Split]:
        """The splits that there are, by name."""
        named = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: split for name, split in named.items() if split is not None}
