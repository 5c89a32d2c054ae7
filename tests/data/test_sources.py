"""Every format gives the same rows; broken rows are named by file and line."""

from __future__ import annotations

import csv
import gzip
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.data import sources
from modelyard.data.sources import BadRow, Row, open_source
from modelyard.errors import DataError, InputError, MachineError

COLUMNS = ("text", "label")
ROWS = [
    {"text": 'She said "no",\nand left.', "label": "neg"},
    {"text": "Schön, 好 🙂", "label": "pos"},
    {"text": "1.0", "label": "neg"},
]


def read(path: Path | str, columns: tuple[str, ...] = COLUMNS) -> list[Row | BadRow]:
    return list(open_source(str(path), "train", columns).read())


def write_table(path: Path, delimiter: str = ",", rows: list[dict[str, str]] = ROWS) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["id", *rows[0]], delimiter=delimiter)
        writer.writeheader()
        writer.writerows({"id": str(number), **row} for number, row in enumerate(rows))
    return path


def compress(path: Path) -> Path:
    target = path.with_name(path.name + ".gz")
    target.write_bytes(gzip.compress(path.read_bytes()))
    return target


def test_all_formats_give_the_same_rows(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    lines.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    table = write_table(tmp_path / "a.csv")
    tabs = write_table(tmp_path / "a.tsv", "\t")
    for path in (lines, parquet, table, tabs, compress(lines), compress(table), compress(tabs)):
        rows = read(path)
        assert [dict(row.values) for row in rows if isinstance(row, Row)] == ROWS, path.name
        assert {row.source for row in rows} == {path.name}


def test_numbers_of_rows_are_lines(tmp_path: Path) -> None:
    assert [row.number for row in read(write_table(tmp_path / "a.csv"))] == [2, 4, 5]
    lines = tmp_path / "a.jsonl"
    lines.write_text('{"text": "a"}\n\n{"text": "b"}\n')
    assert [row.number for row in read(lines)] == [1, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(*[st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1)] * 2),
        min_size=1,
    )
)
def test_csv_reads_what_pyarrow_reads(tmp_path_factory: pytest.TempPathFactory, rows: list[Any]) -> None:
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    options = pyarrow.csv.ParseOptions(newlines_in_values=True)
    strings = pyarrow.csv.ConvertOptions(
        column_types={"text": pa.string(), "label": pa.string()}, strings_can_be_null=False
    )
    oracle = pyarrow.csv.read_csv(path, parse_options=options, convert_options=strings)["text"].to_pylist()
    assert [row.values["text"] for row in read(path) if isinstance(row, Row)] == oracle


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label\na,b\n", encoding="utf-8-sig")
    assert read(path) == [Row("a.csv", 2, {"text": "a", "label": "b"})]


@pytest.mark.parametrize(
    ("content", "number", "reason"),
    [
        (b"text,label\na,b\nonly\n", 3, "the number of fields is wrong"),
        (b"text,label\na,b,c\n", 2, "the number of fields is wrong"),
        (b'text,label\n"a"x,b\n', 2, "the quotes are broken"),
        (b'text,label\n"a\nb,c\n', 2, "the quotes are broken"),
    ],
)
def test_broken_csv_rows(tmp_path: Path, content: bytes, number: int, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    (bad,) = [row for row in read(path) if isinstance(row, BadRow)]
    assert (bad.source, bad.number, bad.reason) == ("a.csv", number, reason)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a", "label"', "the line is not JSON"),
        (b"[" * 100_000, "the line is not JSON"),
        (b'["a", "b"]', "the line is not a JSON object"),
        (b'{"text": "caf\xe9"}', "the bytes are not UTF-8"),
    ],
)
def test_broken_json_rows(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n')
    first, bad, last = read(path)
    assert isinstance(bad, BadRow) and (bad.number, bad.reason) == (2, reason) and len(bad.value) < 250
    assert isinstance(first, Row) and isinstance(last, Row)
    message = str(bad.error())
    assert message.startswith("a.jsonl:2: ") and "data.on_bad_row=skip" in message


def test_a_missing_column_names_the_nearest(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv:1: column 'txet'.*'id', 'text', 'label'\n.*'text'"):
        read(path, ("txet", "label"))
    parquet = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), parquet)
    with pytest.raises(DataError, match=r"column 'Labels'.*\n.*'label'"):
        read(parquet, ("text", "Labels"))


def test_a_column_that_stands_twice(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("text,label,text\na,b,c\n")
    with pytest.raises(DataError, match="has this column twice"):
        read(path)


def test_whole_numbers_with_a_fraction_are_labels_without(tmp_path: Path) -> None:
    rows = [{"text": "1.0", "label": "1.0"}, {"text": "b", "label": "v2.0"}, {"text": "c", "label": "-3.0"}]
    values = [row.values for row in read(write_table(tmp_path / "a.csv", rows=rows)) if isinstance(row, Row)]
    assert [(row["text"], row["label"]) for row in values] == [("1.0", "1"), ("b", "v2.0"), ("c", "-3")]


def test_a_folder_of_classes(tmp_path: Path) -> None:
    for name, text in {"pos/b.txt": "good", "neg/a.txt": "bad", "neg/notes.md": "x", "README": "y"}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "neg" / "c.txt").write_bytes(b"one\ncaf\xe9")
    source = open_source(str(tmp_path), "train", COLUMNS)
    good_first, bad, last = source.read()
    assert good_first == Row("neg/a.txt", 1, {"text": "bad", "label": "neg"})
    assert isinstance(bad, BadRow) and (bad.source, bad.number) == ("neg/c.txt", 2)
    assert last == Row("pos/b.txt", 1, {"text": "good", "label": "pos"})
    assert "2 entries" in source.notes[0] and "README" in source.notes[0]
    with pytest.raises(DataError, match="no column 'author'"):
        open_source(str(tmp_path), "train", (*COLUMNS, "author"))


def test_a_folder_without_texts(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no subfolder with \.txt files\nhint: make one subfolder per class"):
        open_source(str(tmp_path), "train", COLUMNS)


def test_a_document_that_is_too_long_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_CHARACTERS", 10)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "1.txt").write_text("x" * 11)
    (bad,) = read(tmp_path)
    assert isinstance(bad, BadRow) and "longer than 10 bytes" in bad.reason


def test_a_line_without_end_stops_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_ROW_CHARACTERS", 100)
    path = tmp_path / "a.jsonl"
    path.write_text("{" * 1000)
    with pytest.raises(DataError, match=r"a\.jsonl:1: a line is longer than 100 bytes"):
        read(path)


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    write_table(tmp_path / "reviews.csv")
    with pytest.raises(DataError, match=r"no file or folder .*nearest name there is 'reviews\.csv'"):
        open_source(str(tmp_path / "review.csv"), "train", COLUMNS)
    odd = tmp_path / "a.xlsx"
    odd.touch()
    with pytest.raises(DataError, match=r"'a\.xlsx' is of no known format; expected one of \.csv"):
        open_source(str(odd), "train", COLUMNS)


def test_damaged_files(tmp_path: Path) -> None:
    cut = tmp_path / "cut.csv.gz"
    cut.write_bytes(gzip.compress(write_table(tmp_path / "a.csv").read_bytes())[:-9])
    plain = tmp_path / "plain.jsonl.gz"
    plain.write_text("{}")
    for path in (cut, plain):
        with pytest.raises(DataError, match="the compressed file is damaged"):
            read(path)
    parquet = tmp_path / "a.parquet"
    parquet.write_bytes(b"PAR1 this is not it PAR1")
    with pytest.raises(DataError, match=r"a\.parquet: this is not a sound Parquet file"):
        read(parquet)


def test_a_parquet_string_that_is_not_utf8(tmp_path: Path) -> None:
    texts = pa.array([b"good", b"caf\xe9", b"last"]).view(pa.string())
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts, "label": ["a", "b", "c"]}), path)
    first, bad, last = read(path)
    assert isinstance(bad, BadRow) and (bad.number, bad.reason) == (2, "the bytes are not UTF-8")
    assert isinstance(first, Row) and isinstance(last, Row)


def test_without_the_datasets_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MachineError, match="'stanfordnlp/imdb' is no file or folder") as error:
        open_source("stanfordnlp/imdb", "train", COLUMNS)
    assert error.value.hint == "pip install 'modelyard[datasets]'"
    (tmp_path / "state.json").touch()
    with pytest.raises(MachineError, match="is a saved dataset"):
        open_source(str(tmp_path), "train", COLUMNS)


class UnreachableHub:
    @staticmethod
    def load_dataset(name: str) -> None:
        raise ConnectionError(f"no route to {name}")


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", UnreachableHub())
    with pytest.raises(InputError, match=r"no route to.*\n.*one subfolder per class") as error:
        open_source("stanfordnlp/imdb", "train", COLUMNS)
    assert "ConnectionError" in error.value.problem


@pytest.mark.filterwarnings("default")
def test_saved_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    train = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    train.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=train, test=train.select([0])).save_to_disk(tmp_path / "two")
    rows = read(tmp_path / "one")
    assert [row.values["label"] for row in rows if isinstance(row, Row)] == ["pos", "neg", None]
    source = open_source(str(tmp_path / "two"), "train", COLUMNS)
    assert [row.number for row in source.read()] == [1, 2, 3]
    assert all(file.is_file() for file in source.files) and "data.test" in source.notes[0]
    assert len(list(open_source(str(tmp_path / "two"), "test", COLUMNS).read())) == 1
    with pytest.raises(DataError, match="has no split 'validation'; its splits are test, train"):
        open_source(str(tmp_path / "two"), "validation", COLUMNS)
    with pytest.raises(DataError, match="column 'labels'"):
        open_source(str(tmp_path / "one"), "train", ("text", "labels"))
    (tmp_path / "one" / "state.json").write_text("{")
    with pytest.raises(DataError, match="saved dataset cannot be read"):
        open_source(str(tmp_path / "one"), "train", COLUMNS)
