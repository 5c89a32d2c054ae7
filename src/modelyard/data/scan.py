"""The first pass over the data: check every row and keep a few numbers of each, but no text.

Legend: N usable examples of all sources, in the order of reading.
"""

from __future__ import annotations

import json
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from modelyard.data.examples import Example, ExampleReader, normalised
from modelyard.data.sources import BadRow, Role, Source, open_source
from modelyard.errors import DataError
from modelyard.recipe.schema import DataSection
from modelyard.tasks.text_classification import TextClassification

Progress = Callable[[str, int, int | None], None]
ROWS_A_REPORT = 8192
ROLES: tuple[Role, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class SourceOfRole:
    """A source, the part that it was given for, and how its rows are read."""

    role: Role
    source: Source
    reader: ExampleReader


@dataclass
class Scan:
    """What the first pass found.

    texts: (N,) uint64 hash of each normalised text. labels: (N,) int32 index into raw_labels. roles: (N,)
    int8 index into ROLES. parts: (N,) int8 the part that the recipe's column says, -1 where none does.
    groups: (N,) uint64 hash of each group, if there are groups. skipped: rows left out, by reason.
    """

    raw_labels: list[str] = field(default_factory=list)
    num_rows: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    first_skipped: BadRow | None = None
    _texts: array[int] = field(default_factory=lambda: array("Q"))
    _labels: array[int] = field(default_factory=lambda: array("i"))
    _roles: array[int] = field(default_factory=lambda: array("b"))
    _parts: array[int] = field(default_factory=lambda: array("b"))
    _groups: array[int] = field(default_factory=lambda: array("Q"))

    def add(self, role: int, label: int, example: Example, grouped: bool) -> None:
        self._texts.append(text_hash(normalised(example.text)))
        self._labels.append(label)
        self._roles.append(role)
        self._parts.append(example.part)
        if grouped:
            self._groups.append(text_hash(example.group))

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def texts(self) -> NDArray[np.uint64]:
        return np.frombuffer(self._texts, dtype=np.uint64)

    @property
    def labels(self) -> NDArray[np.int32]:
        return np.frombuffer(self._labels, dtype=np.int32)

    @property
    def roles(self) -> NDArray[np.int8]:
        return np.frombuffer(self._roles, dtype=np.int8)

    @property
    def parts(self) -> NDArray[np.int8]:
        return np.frombuffer(self._parts, dtype=np.int8)

    @property
    def groups(self) -> NDArray[np.uint64] | None:
        return np.frombuffer(self._groups, dtype=np.uint64) if len(self._groups) else None


def text_hash(text: str) -> int:
    """64 bits of BLAKE2b: among ten million texts, two different ones share a hash with a chance of about 3
    in a million."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def open_sources(data: DataSection, task: TextClassification) -> list[SourceOfRole]:
    """The sources that the recipe names. Raises DataError, MachineError or InputError as `open_source` does."""
    names: Mapping[str, str] = task.label_names if data.label_names is None else data.label_names
    opened = []
    specs: dict[Role, str | None] = {"train": data.train, "validation": data.validation, "test": data.test}
    for role, spec in specs.items():
        if spec is None:
            continue
        part = data.split.column if role == "train" else None
        group = data.split.group if role == "train" else None
        columns = [data.text, data.label, *(name for name in (part, group) if name is not None)]
        reader = ExampleReader(
            text=data.text,
            label=data.label,
            remove=data.remove,
            labels=None if data.labels is None else frozenset(data.labels),
            label_names=names,
            part=part,
            group=group,
        )
        opened.append(SourceOfRole(role, open_source(spec, role, columns), reader))
    return opened


def read_all(sources: list[SourceOfRole]) -> Iterator[tuple[int, Example | BadRow]]:
    """Every row of every source, with the index of its role; the same at each call."""
    for entry in sources:
        role = ROLES.index(entry.role)
        for row in entry.source.read():
            yield role, row if isinstance(row, BadRow) else entry.reader.read(row)


def scan(sources: list[SourceOfRole], *, skip_bad: bool, rejected: Path | None, progress: Progress | None) -> Scan:
    """Check every row. With `skip_bad`, each bad row becomes a line of the JSONL file `rejected`; else the
    first one ends it.

    Raises DataError for a bad row, and for a source without one usable row.
    """
    found = Scan()
    label_numbers: dict[str, int] = {}
    grouped = any(entry.reader.group for entry in sources)
    with _RejectedRows(rejected) as rejected_rows:
        for role, row in read_all(sources):
            found.num_rows += 1
            if progress and found.num_rows % ROWS_A_REPORT == 0:
                progress("reading", found.num_rows, None)
            if isinstance(row, BadRow):
                if not skip_bad:
                    raise row.error()
                rejected_rows.write(row)
                found.skipped[row.reason] += 1
                found.first_skipped = found.first_skipped or row
                continue
            found.add(role, label_numbers.setdefault(row.label, len(label_numbers)), row, grouped)
    found.raw_labels = list(label_numbers)
    _require_examples(found, sources)
    return found


def _require_examples(found: Scan, sources: list[SourceOfRole]) -> None:
    counts = np.bincount(found.roles, minlength=len(ROLES))
    for entry in sources:
        if counts[ROLES.index(entry.role)]:
            continue
        if found.first_skipped is not None:
            raise DataError(
                f"no row of data.{entry.role} is usable; {sum(found.skipped.values())} rows were skipped, "
                f"the first one because of this: {found.first_skipped.error().problem}",
                hint="correct the rows; rejected.jsonl lists each with its reason",
                where=entry.source.name,
            )
        raise DataError(
            f"data.{entry.role} is empty: it holds no rows",
            hint="check that it was written to the end and is the file that you mean",
            where=entry.source.name,
        )


class _RejectedRows:
    """Writes bad rows as JSON lines; makes no file when there are none."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._file: TextIO | None = None

    def __enter__(self) -> _RejectedRows:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def write(self, row: BadRow) -> None:
        if self._path is None:
            return
        if self._file is None:
            self._file = self._path.open("w", encoding="utf-8")
        line = {
            "source": row.source,
            "row": row.number,
            "column": row.column,
            "value": row.value,
            "reason": row.reason,
        }
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
