"""Where examples come from: files, folders and datasets as streams of rows.

Nothing here holds more than a few rows (Parquet: one batch) in memory. A row that cannot be read becomes a
`BadRow`, which the reader of the stream either raises or records; a file that cannot be read is a DataError.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple

from modelyard.errors import DataError

Role = Literal["train", "validation", "test"]
TEXT_FORMATS = (".csv", ".tsv", ".jsonl", ".ndjson")
FORMATS = (*TEXT_FORMATS, *(f"{suffix}.gz" for suffix in TEXT_FORMATS), ".parquet")
# A quote or a brace that is never closed would otherwise pull the rest of a large file into memory.
MAX_ROW_CHARACTERS = 64 * 1024 * 1024
PARQUET_BATCH_ROWS = 256
NOT_UTF8 = "the bytes are not UTF-8"
SAVE_AS_UTF8 = "save the file as UTF-8, for example with `iconv -f LATIN1 -t UTF-8`"


class Row(NamedTuple):
    """One row. source: file name relative to what the recipe names; number: its line or row, from 1."""

    source: str
    number: int
    values: Mapping[str, Any]


class BadRow(NamedTuple):
    """A row that cannot be used. reason: one of few constant phrases, to be counted by; value: shortened."""

    source: str
    number: int
    column: str | None
    value: str
    reason: str
    hint: str

    def error(self) -> DataError:
        """The error to raise for it."""
        column = f"column {self.column!r}: " if self.column else ""
        value = f": {self.value}" if self.value else ""
        return DataError(
            f"{column}{self.reason}{value}",
            hint=f"{self.hint}; or leave such rows out with --set data.on_bad_row=skip",
            where=f"{self.source}:{self.number}",
        )


def shortened(value: object, limit: int = 80) -> str:
    """A value as it may stand in a message: its Python form, cut in the middle of nowhere but with dots."""
    text = repr(value[: limit + 1] if isinstance(value, (str, bytes, list)) else value)
    return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Source:
    """A stream of rows that can be read again and again.

    name: as the recipe names it. files: the files whose bytes decide what comes out.
    identity: stands for the content where there are no files to hash. notes: what a person should know of it.
    """

    name: str
    read: Callable[[], Iterator[Row | BadRow]]
    files: tuple[Path, ...] = ()
    identity: str = ""
    notes: tuple[str, ...] = ()


def open_source(spec: str, role: Role, columns: Sequence[str]) -> Source:
    """What `spec` names: a file, a folder with one subfolder per class, a saved dataset or a hub id.

    columns: the columns to read: the text, then, if wanted, the label and others.

    Raises DataError when it is missing or of an unknown format, MachineError when `datasets` is needed.
    """
    path = Path(spec).expanduser()
    if path.is_file():
        return Source(path.name, _file_reader(path, tuple(columns)), (path,))
    if path.is_dir():
        if any((path / name).exists() for name in ("dataset_dict.json", "state.json")):
            from modelyard.data.hub import open_saved_dataset

            return open_saved_dataset(path, role, columns)
        return _class_folder(path, columns)
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", spec) and not spec.lower().endswith((*FORMATS, ".txt", ".json")):
        from modelyard.data.hub import open_hub_dataset

        return open_hub_dataset(spec, role, columns)
    near = nearest(path.name, [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else [])
    raise DataError(
        f"there is no file or folder {spec!r}" + (f"; the nearest name there is {near!r}" if near else ""),
        hint=f"give data.{role} a file ({', '.join(FORMATS)}), a folder with one subfolder per class, or a hub id",
    )


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The name most like `name`, if any is alike."""
    by_lower = {other.lower(): other for other in names}
    found = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    return by_lower[found[0]] if found else None


def missing_column(column: str, present: Iterable[str]) -> tuple[str, str]:
    """What is wrong and what to do when `column` is not among `present`."""
    names = [str(name) for name in present]
    near = nearest(column, names)
    listed = ", ".join(repr(name) for name in names[:20]) + (", …" if len(names) > 20 else "")
    return (
        f"there is no such column; the columns are {listed or '(none)'}",
        f"name the right column in the recipe, perhaps {near!r}" if near else "name one of these columns in the recipe",
    )


def _file_reader(path: Path, columns: tuple[str, ...]) -> Callable[[], Iterator[Row | BadRow]]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compressed = suffixes[-1:] == [".gz"]
    kind = (suffixes[:-1] if compressed else suffixes)[-1:]
    match kind:
        case [".csv"]:
            return lambda: _delimited_rows(path, ",", compressed, columns)
        case [".tsv"]:
            return lambda: _delimited_rows(path, "\t", compressed, columns)
        case [".jsonl"] | [".ndjson"]:
            return lambda: _json_rows(path, compressed)
        case [".parquet"] if not compressed:
            return lambda: _parquet_rows(path, columns)
    raise DataError(
        f"{path.name!r} is of no known format; expected one of {', '.join(FORMATS)}",
        hint="convert it; a JSON array becomes JSON lines with `jq -c '.[]' in.json > out.jsonl`",
    )


@contextmanager
def _readable(path: Path, compressed: bool) -> Iterator[IO[bytes]]:
    """Open for reading bytes; damage and missing permission become DataErrors."""
    try:
        with gzip.open(path, "rb") if compressed else path.open("rb") as file:
            yield file  # type: ignore[misc]  # a GzipFile offers all of IO[bytes] that is used here
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"the compressed file is damaged ({error})", hint="download or compress it again", where=path.name
        ) from error
    except OSError as error:
        raise DataError(
            f"the file cannot be read ({error.strerror or error})",
            hint=f"check it with `ls -l {path}`",
            where=path.name,
        ) from error


def _lines(file: IO[bytes], name: str) -> Iterator[bytes]:
    """Lines with their ends, without a byte order mark."""
    number = 0
    while line := file.readline(MAX_ROW_CHARACTERS):
        number += 1
        if len(line) == MAX_ROW_CHARACTERS:
            raise DataError(
                f"a line is longer than {MAX_ROW_CHARACTERS:,} bytes",
                hint="check that the file has line ends and is what its name says",
                where=f"{name}:{number}",
            )
        yield line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line


def _json_rows(path: Path, compressed: bool) -> Iterator[Row | BadRow]:
    """One JSON object a line; blank lines are no rows."""
    with _readable(path, compressed) as file:
        for number, line in enumerate(_lines(file, path.name), start=1):
            if line.isspace():
                continue
            try:
                text = line.decode("utf-8")
            except UnicodeDecodeError as error:
                value = shortened(line[max(0, error.start - 20) : error.start + 20])
                yield BadRow(path.name, number, None, value, NOT_UTF8, SAVE_AS_UTF8)
                continue
            try:
                values = json.loads(text)
            except (json.JSONDecodeError, RecursionError) as error:
                value = f"{error} in {shortened(text.strip())}"
                yield BadRow(
                    path.name,
                    number,
                    None,
                    value,
                    "the line is not JSON",
                    "write one JSON object on each line",
                )
                continue
            if isinstance(values, dict):
                yield Row(path.name, number, values)
            else:
                reason = "the line is not a JSON object"
                yield BadRow(
                    path.name,
                    number,
                    None,
                    shortened(text.strip()),
                    reason,
                    'write lines like {"text": …, "label": …}',
                )


def _delimited_rows(path: Path, delimiter: str, compressed: bool, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    """CSV (RFC 4180) or TSV with a header line; a quoted field may hold line ends. Blank lines are no rows.

    The number of a row is the line on which it starts.
    """
    csv.field_size_limit(MAX_ROW_CHARACTERS)  # of the whole process: Python's own limit of 131,072 is too small
    with _readable(path, compressed) as file:
        # Bytes that are not UTF-8 become lone surrogates, which the check of each value finds and names.
        lines = (line.decode("utf-8", "surrogateescape") for line in _lines(file, path.name))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header: list[str] | None = None
        positions: list[tuple[str, int]] = []
        while True:
            number = reader.line_num + 1
            try:
                fields = next(reader, None)
            except csv.Error as error:
                reason = "the quotes are broken" if header is not None else "the header line is broken"
                yield BadRow(
                    path.name,
                    number,
                    None,
                    str(error),
                    reason,
                    'put fields in "…" and double each quote inside: ""',
                )
                continue
            if fields is None:
                return
            if not fields:
                continue
            if header is None:
                header = fields
                positions = _positions(path.name, number, header, columns)
            elif len(fields) != len(header):
                value = f"{len(fields)} fields where the header has {len(header)}: {shortened(fields)}"
                hint = 'put fields that hold the delimiter in "…"'
                yield BadRow(path.name, number, None, value, "the number of fields is wrong", hint)
            else:
                values = {name: fields[at] for name, at in positions}
                for label in columns[1:2]:
                    values[label] = _plain_number(values[label])
                yield Row(path.name, number, values)


def _positions(name: str, number: int, header: list[str], columns: tuple[str, ...]) -> list[tuple[str, int]]:
    for column in columns:
        if header.count(column) != 1:
            problem, hint = missing_column(column, header)
            if column in header:
                problem, hint = "the header has this column twice", "rename one of the columns"
            raise DataError(f"column {column!r}: {problem}", hint=hint, where=f"{name}:{number}")
    return [(column, header.index(column)) for column in columns]


def _plain_number(field: str) -> str:
    """A label ``1.0`` as ``1``: pandas writes whole numbers so when a column has a gap; all else as it is."""
    return field[:-2] if field.endswith(".0") and field[:-2].lstrip("-").isdecimal() else field


def _parquet_rows(path: Path, columns: tuple[str, ...]) -> Iterator[Row | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with _readable(path, compressed=False) as file:
        try:
            table = pq.ParquetFile(file)
            for column in columns:
                if column not in table.schema_arrow.names:
                    problem, hint = missing_column(column, table.schema_arrow.names)
                    raise DataError(f"column {column!r}: {problem}", hint=hint, where=path.name)
            number = 0
            for batch in table.iter_batches(PARQUET_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                for row in _arrow_rows(path.name, number, batch):
                    yield row
                    number += 1
        except pa.ArrowException as error:
            raise DataError(
                f"this is not a sound Parquet file ({shortened(str(error))})",
                hint="write or download it again",
                where=path.name,
            ) from error


def _arrow_rows(name: str, before: int, batch: Any) -> Iterator[Row | BadRow]:
    """The rows of an Arrow batch; string columns with broken UTF-8 are looked at row by row."""
    names = batch.schema.names
    try:
        columns = [batch.column(at).to_pylist() for at in range(len(names))]
    except UnicodeDecodeError:
        for at in range(batch.num_rows):
            try:
                values = {column: batch.column(column)[at].as_py() for column in names}
                yield Row(name, before + at + 1, values)
            except UnicodeDecodeError as error:
                yield BadRow(name, before + at + 1, None, shortened(str(error)), NOT_UTF8, SAVE_AS_UTF8)
        return
    for at, values_of_row in enumerate(zip(*columns, strict=True), start=1):
        yield Row(name, before + at, dict(zip(names, values_of_row, strict=True)))


def _class_folder(folder: Path, columns: Sequence[str]) -> Source:
    """One subfolder per class, one ``.txt`` file per document; other files are counted in the notes."""
    files: list[Path] = []
    others = [entry for entry in sorted(folder.iterdir()) if not entry.is_dir() and not entry.name.startswith(".")]
    for subfolder in sorted(entry for entry in folder.iterdir() if entry.is_dir()):
        for entry in sorted(subfolder.iterdir()):
            if entry.suffix.lower() == ".txt" and entry.is_file():
                files.append(entry)
            elif not entry.name.startswith("."):
                others.append(entry)
    if not files:
        raise DataError(
            f"the folder {str(folder)!r} has no subfolder with .txt files",
            hint="make one subfolder per class with one .txt file per document, or name a file such as "
            + repr(str(folder / "train.csv")),
        )
    if extra := sorted(set(columns[2:])):
        raise DataError(
            f"a folder of text files has no column {extra[0]!r}",
            hint="leave out data.split.column and data.split.group, or make a file that has these columns",
        )
    notes: tuple[str, ...] = ()
    if others:
        first = others[0].relative_to(folder).as_posix()
        notes = (
            f"{len(others)} entries of {folder.name}/ are no .txt file of a class and are left out, such as {first}",
        )

    def read() -> Iterator[Row | BadRow]:
        for file in files:
            name = file.relative_to(folder).as_posix()
            with _readable(file, compressed=False) as opened:
                content = opened.read(MAX_ROW_CHARACTERS + 1)
            if len(content) > MAX_ROW_CHARACTERS:
                reason = f"the document is longer than {MAX_ROW_CHARACTERS:,} bytes"
                yield BadRow(name, 1, columns[0], "", reason, "split it into several files")
                continue
            try:
                text = content.decode("utf-8-sig")
            except UnicodeDecodeError as error:
                line = content.count(b"\n", 0, error.start) + 1
                value = shortened(content[max(0, error.start - 20) : error.start + 20])
                yield BadRow(name, line, columns[0], value, NOT_UTF8, SAVE_AS_UTF8)
                continue
            yield Row(name, 1, dict(zip(columns, (text, file.parent.name), strict=False)))

    return Source(f"{folder.name}/", read, tuple(files), notes=notes)
