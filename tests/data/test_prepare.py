"""From files to splits: what comes out, what is refused, and what the cache keeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from modelyard.data import prepare as prepare_module
from modelyard.data.prepare import prepare_texts, training_texts
from modelyard.data.prepared import Prepared, Split, example_block
from modelyard.data.tokenizer import TextTokenizer
from modelyard.errors import DataError, MachineError
from modelyard.recipe.schema import DataSection
from modelyard.tasks.text_classification import TASKS

WriteLines = Callable[..., Path]
PrepareFile = Callable[..., Prepared]


def reviews(count: int, start: int = 0) -> list[dict[str, Any]]:
    """Different texts; every third is positive (1)."""
    return [
        {"text": f"The film number {n} was " + "long " * (n % 7), "label": int(n % 3 == 0)}
        for n in range(start, start + count)
    ]


def sizes(prepared: Prepared) -> dict[str, int]:
    return {name: len(split) for name, split in prepared.splits.items()}


def places(split: Split) -> list[str]:
    return [split.source(row) for row in range(len(split))]


def test_every_example_is_in_one_split(
    write_jsonl: WriteLines, prepare_file: PrepareFile, tokenizer: TextTokenizer
) -> None:
    rows = reviews(300)
    prepared = prepare_file(write_jsonl(rows))
    assert sizes(prepared) == {"train": 216, "validation": 24, "test": 60}
    seen = set()
    for split in prepared.splits.values():
        for row in range(len(split)):
            name, number = split.source(row).split(":")
            original = rows[int(number) - 1]
            seen.add(int(number))
            assert name == "reviews.jsonl" and split.text(row) == original["text"]
            assert prepared.labels[split.labels[row]] == str(original["label"])
            ids = tokenizer.encode_batch([original["text"]], 32).ids[0]
            assert split.input_ids(row).tolist() == ids
            assert split.lengths[row] == split.full_lengths[row] == len(ids)
    assert seen == set(range(1, 301))
    report = prepared.report
    assert (report.num_rows, report.num_examples, report.num_skipped) == (300, 300, 0)
    assert report.classes["train"] == {"0": 144, "1": 72}
    assert report.lengths["test"].num_tokens == prepared.splits["test"].full_lengths.sum()


def test_blocks_do_not_matter(
    write_jsonl: WriteLines, prepare_file: PrepareFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_jsonl(reviews(100))
    whole = prepare_file(train)
    monkeypatch.setattr(prepare_module, "BLOCK_ROWS", 7)
    monkeypatch.setattr(prepare_module, "BLOCK_CHARACTERS", 200)
    parts = prepare_file(train, cache=tmp_path / "other")
    assert parts.report == whole.report and parts.fingerprint == whole.fingerprint
    for name, split in whole.splits.items():
        other = parts.splits[name]
        assert places(split) == places(other)
        for row in range(len(split)):
            assert split.input_ids(row).tolist() == other.input_ids(row).tolist()
    with pytest.raises(IndexError):
        whole.train.input_ids(len(whole.train))
    with pytest.raises(ValueError, match="read-only"):
        whole.train.input_ids(0)[0] = 1


def test_given_files(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    train = write_jsonl(reviews(100))
    test = write_jsonl(
        [*reviews(20, 1000), {"text": " THE film number 3 was long  long long", "label": 1}], "test.jsonl"
    )
    prepared = prepare_file(train, test=str(test))
    assert sizes(prepared) == {"train": 90, "validation": 10, "test": 21}
    assert prepared.report.leakage["test"] + prepared.report.leakage["validation"] <= 1
    both = prepare_file(train, test=str(test), validation=str(write_jsonl(reviews(30, 500), "val.jsonl")))
    assert both.report.leakage == {"validation": 0, "test": 1}
    assert both.report.leaking_places["test"] == ("test.jsonl:21",)
    assert any("1 test examples stand in train" in warning for warning in both.report.warnings)
    assert [len(split) for split in both.splits.values()] == [100, 30, 21]


def test_a_column_of_parts(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    rows = [{**row, "part": "test" if n < 20 else "train"} for n, row in enumerate(reviews(120))]
    prepared = prepare_file(write_jsonl(rows), split={"column": "part"})
    assert prepared.test is not None and prepared.validation is not None
    assert {prepared.test.source(row) for row in range(20)} == {f"reviews.jsonl:{n}" for n in range(1, 21)}
    assert (len(prepared.train), len(prepared.validation)) == (90, 10)
    rows[5]["part"] = "tset"
    with pytest.raises(DataError, match=r"reviews\.jsonl:6: column 'part': the part is unknown: 'tset'"):
        prepare_file(write_jsonl(rows), split={"column": "part"})


def test_groups_stay_together(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    rows = [{**row, "author": n // 5} for n, row in enumerate(reviews(200))]
    prepared = prepare_file(write_jsonl(rows), split={"group": "author"})
    authors = [
        {(int(split.source(row).split(":")[1]) - 1) // 5 for row in range(len(split))}
        for split in prepared.splits.values()
    ]
    assert sum(map(len, authors)) == len(set.union(*authors)) == 40


def test_no_shares_mean_no_parts(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    prepared = prepare_file(write_jsonl(reviews(20)), split={"validation": 0.0, "test": 0.0})
    assert prepared.test is None and prepared.validation is None and len(prepared.train) == 20
    assert "there is no test split" in " ".join(prepared.report.warnings)


@pytest.mark.parametrize(
    ("raw", "fields", "task", "labels"),
    [
        (["0", "1"], {}, "text-classification", ("0", "1")),
        ([0, 1], {}, "sentiment", ("negative", "positive")),
        (["neg", "pos", "1"], {}, "sentiment", ("positive", "negative")),
        (["good", "neg"], {}, "sentiment", ("good", "neg")),
        ([10, 9, -1], {}, "sentiment", ("-1", "9", "10")),
        (["10", "9", "a"], {}, "sentiment", ("10", "9", "a")),
        ([0, 1], {"label_names": {"0": "bad", "1": "good"}}, "sentiment", ("bad", "good")),
        ([0, 1, 2], {"label_names": {"2": "1"}}, "text-classification", ("0", "1")),
        ([0, 1], {"labels": ("1", "0")}, "text-classification", ("1", "0")),
        ([0, 1], {"labels": ("positive", "negative")}, "sentiment", ("positive", "negative")),
        ([0, 1], {"labels": ("1", "0")}, "sentiment", ("positive", "negative")),
    ],
)
def test_the_order_and_names_of_labels(
    write_jsonl: WriteLines,
    prepare_file: PrepareFile,
    raw: list[Any],
    fields: dict[str, Any],
    task: str,
    labels: tuple[str, ...],
) -> None:
    rows = [{"text": f"text {n}", "label": raw[n % len(raw)]} for n in range(30)]
    prepared = prepare_file(write_jsonl(rows), task=task, **fields)
    assert prepared.labels == labels
    assert sum(prepared.report.classes["train"].values()) == len(prepared.train)


def test_labels_that_mix_raw_and_readable_names(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    rows = [{"text": f"text {n}", "label": n % 3} for n in range(30)]
    with pytest.raises(DataError, match=r"labels that are not in data\.labels \(negative, positive, 2\): '0', '1'"):
        prepare_file(write_jsonl(rows), task="sentiment", labels=("negative", "positive", "2"))


def test_idle_label_names_are_reported(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    prepared = prepare_file(write_jsonl(reviews(30)), label_names={"0": "no", "1": "yes", "2": "maybe"})
    assert "data.label_names names labels that do not occur: 2." in prepared.report.warnings


def test_texts_are_cleaned_alike_in_training_and_use(
    write_jsonl: WriteLines, prepare_file: PrepareFile, tokenizer: TextTokenizer
) -> None:
    prepared = prepare_file(write_jsonl(reviews(30)), remove=r"number \d+ ?", max_length=6)
    row = next(row for row in range(len(prepared.train)) if prepared.train.full_lengths[row] > 6)
    assert "number" not in prepared.train.text(row)
    number = int(prepared.train.source(row).split(":")[1])
    encoded = prepare_texts([reviews(30)[number - 1]["text"]], tokenizer, 6, r"number \d+ ?")
    assert encoded.ids[0] == prepared.train.input_ids(row).tolist()
    assert encoded.full_lengths[0] == prepared.train.full_lengths[row]
    assert prepared.train.lengths.max() == 6


def test_at_most_so_many_examples(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    train = write_jsonl(reviews(200))
    prepared = prepare_file(train, max_examples=50)
    assert sum(map(len, prepared.splits.values())) == 50
    assert (prepared.report.num_examples, prepared.report.num_unused) == (50, 150)
    other = prepare_file(train, max_examples=50, split={"seed": 8})
    assert {prepared.train.source(row) for row in range(20)} != {other.train.source(row) for row in range(20)}


def test_bad_rows_stop_or_are_listed(write_jsonl: WriteLines, prepare_file: PrepareFile, tmp_path: Path) -> None:
    rows: list[Any] = reviews(60)
    rows[10:10] = [{"text": "", "label": 1}, "{", {"text": "a", "label": None}, {"text": "b", "label": 7}]
    train = write_jsonl(rows)
    with pytest.raises(DataError, match=r"reviews\.jsonl:11: column 'text': the text is empty: ''"):
        prepare_file(train, labels=("0", "1"))
    assert not list((tmp_path / "cache").glob("*/")), "nothing is left of a failed preparation"
    rejected = tmp_path / "rejected.jsonl"
    for _ in range(2):  # prepared, and from the cache
        prepared = prepare_file(train, labels=("0", "1"), on_bad_row="skip", rejected=rejected)
        lines = [json.loads(line) for line in rejected.read_text().splitlines()]
        assert [(line["source"], line["row"], line["column"]) for line in lines] == [
            ("reviews.jsonl", 11, "text"),
            ("reviews.jsonl", 12, None),
            ("reviews.jsonl", 13, "label"),
            ("reviews.jsonl", 14, "label"),
        ]
        assert lines[3] == {
            "source": "reviews.jsonl",
            "row": 14,
            "column": "label",
            "value": "'7'",
            "reason": "the label is not in data.labels",
        }
        rejected.unlink()
    report = prepared.report
    assert (report.num_rows, report.num_examples, report.num_skipped) == (64, 60, 4)
    assert report.skipped["the line is not JSON"] == 1
    rejected.write_text("old")
    prepare_file(write_jsonl(reviews(60), "good.jsonl"), rejected=rejected)
    assert not rejected.exists()


def test_sources_without_usable_rows(write_jsonl: WriteLines, prepare_file: PrepareFile, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"empty\.jsonl: data\.train is empty"):
        prepare_file(write_jsonl([], "empty.jsonl"))
    (tmp_path / "header.csv").write_text("text,label\n")
    with pytest.raises(DataError, match=r"header\.csv: data\.train is empty"):
        prepare_file(tmp_path / "header.csv")
    with pytest.raises(DataError, match=r"test\.jsonl: data\.test is empty"):
        prepare_file(write_jsonl(reviews(20)), test=str(write_jsonl([], "test.jsonl")))
    bad = write_jsonl([{"text": "a"}] * 3, "bad.jsonl")
    rejected = tmp_path / "rejected.jsonl"
    with pytest.raises(
        DataError,
        match=r"no row of data\.train is usable; 3 rows .* bad\.jsonl:1: column "
        r"'label'",
    ):
        prepare_file(bad, on_bad_row="skip", rejected=rejected)
    assert len(rejected.read_text().splitlines()) == 3


def test_data_that_teach_nothing(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    with pytest.raises(DataError, match=r"all .* are of one class, '5'"):
        prepare_file(write_jsonl([{"text": f"text {n}", "label": 5} for n in range(20)]))
    test = write_jsonl([{"text": "new", "label": "odd"}], "test.jsonl")
    with pytest.raises(DataError, match=r"test has 1 label\(s\) that train has not: 'odd'"):
        prepare_file(write_jsonl(reviews(30)), test=str(test))


def test_texts_that_are_too_long(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    rows = reviews(30)
    rows[4]["text"] += " word" * 100
    rows[9]["text"] += " word" * 200
    train = write_jsonl(rows)
    for _ in range(2):
        with pytest.raises(
            DataError,
            match=r"reviews\.jsonl:5: 2 texts are longer than max_length 32 "
            r".*longest has",
        ):
            prepare_file(train, on_too_long="error")
    report = prepare_file(train).report
    assert report.num_truncated == 2 and report.first_truncated == "reviews.jsonl:5"
    assert prepare_file(train, max_length=1024, on_too_long="error").report.num_truncated == 0


def test_repeated_and_conflicting_texts(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    rows = [*reviews(60), {"text": "the FILM number 0  was", "label": 1}, {"text": "The film number 7 was", "label": 1}]
    report = prepare_file(write_jsonl(rows)).report
    assert (report.num_duplicates, report.duplicate_places) == (2, ("reviews.jsonl:61", "reviews.jsonl:62"))
    assert (report.num_conflicting_texts, report.conflicting_places) == (1, ("reviews.jsonl:62",))
    assert report.leakage == {"validation": 0, "test": 0}


def test_the_texts_of_training_alone(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    train = write_jsonl(reviews(90))
    prepared = prepare_file(train, remove="film")
    texts = training_texts(DataSection(train=str(train), remove="film"), TASKS["text-classification"])
    for _ in range(2):
        assert list(texts) == [prepared.train.text(row) for row in range(len(prepared.train))]


def test_the_cache_follows_the_content(
    write_jsonl: WriteLines, prepare_file: PrepareFile, tmp_path: Path, tokenizer: TextTokenizer
) -> None:
    train = write_jsonl(reviews(60))
    told: list[str] = []

    def prepared(**fields: Any) -> str:
        return prepare_file(train, progress=lambda what, done, total: told.append(what), **fields).fingerprint

    first = prepared()
    assert told and set(told) <= {"reading", "tokenising"}
    told.clear()
    assert prepared() == first and not told
    os.utime(train, (1, 1))
    (tmp_path / "moved").mkdir()
    moved = train.rename(tmp_path / "moved" / train.name)
    assert prepare_file(moved).fingerprint == first
    train = moved
    other_tokenizer = TextTokenizer.train(["other words"], 300, "roberta")
    keys = {
        first,
        prepared(max_length=31),
        prepared(split={"seed": 8}),
        prepared(remove="film"),
        prepared(with_tokenizer=other_tokenizer),
        prepared(task="sentiment"),
    }
    train.write_text(train.read_text().replace("long", "dull"))
    assert len({*keys, prepared()}) == 7


def test_a_damaged_cache_is_made_anew(write_jsonl: WriteLines, prepare_file: PrepareFile, tmp_path: Path) -> None:
    train = write_jsonl(reviews(60))
    text = prepare_file(train).train.text(0)
    (entry,) = [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]

    def cut(file: Path) -> None:
        file.write_bytes(file.read_bytes()[:-10])

    def flip(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)

    damages: list[Callable[[], object]] = [
        lambda: cut(entry / "train.arrow"),
        lambda: flip(entry / "report.json"),
        lambda: (entry / "test.arrow").unlink(),
        lambda: (entry / "cache.json").write_text("{}"),
        lambda: (tmp_path / "cache" / "content.json").write_text("no json"),
    ]
    for damage in damages:
        damage()
        assert prepare_file(train).train.text(0) == text
        assert len(list(entry.glob("*.arrow"))) == 3


def test_an_error_in_the_middle_leaves_nothing(
    write_jsonl: WriteLines, prepare_file: PrepareFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = write_jsonl(reviews(60))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(pa.ipc, "new_file", full)
        with pytest.raises(MachineError, match="No space left on device"):
            prepare_file(train)
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]
    assert len(prepare_file(train).train) == 43


def test_data_that_change_while_they_are_read(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    train = write_jsonl(reviews(60))

    def change(what: str, done: int, total: int | None) -> None:
        if what == "tokenising":
            with train.open("a") as file:
                file.write("\n")

    with pytest.raises(DataError, match="the data changed while it was read"):
        prepare_file(train, progress=change)


PROGRAM = """
import sys, time
from pathlib import Path
from modelyard.data.prepare import prepare
from modelyard.data.tokenizer import TextTokenizer
from modelyard.recipe.schema import DataSection
from modelyard.tasks.text_classification import TASKS

folder = Path({folder!r})
def progress(what, done, total):
    print(what, flush=True)
    time.sleep({pause})
prepared = prepare(DataSection(train=str(folder / "reviews.jsonl")), TASKS["sentiment"],
    TextTokenizer.load(folder / "tokenizer"), max_length=32, on_too_long="truncate",
    cache_folder=folder / "cache", progress=progress)
heavy = [name for name in ("torch", "transformers", "datasets", "sklearn") if name in sys.modules]
print(prepared.fingerprint, len(prepared.train), *heavy)
"""


def test_processes_that_prepare_the_same_at_once(
    write_jsonl: WriteLines, tokenizer: TextTokenizer, tmp_path: Path
) -> None:
    write_jsonl(reviews(60))
    tokenizer.save(tmp_path / "tokenizer")
    program = PROGRAM.format(folder=str(tmp_path), pause=0)
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    results = {process.communicate(timeout=60)[0].splitlines()[-1] for process in processes}
    assert len(results) == 1 and results.pop().split()[1:] == ["43"], "one result, nothing heavy imported"
    assert not list((tmp_path / "cache").glob("*.tmp-*"))


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a signal that cannot be caught")
def test_a_killed_preparation_is_cleaned_up(write_jsonl: WriteLines, tokenizer: TextTokenizer, tmp_path: Path) -> None:
    write_jsonl(reviews(60))
    tokenizer.save(tmp_path / "tokenizer")
    killed = subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(folder=str(tmp_path), pause=60)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert killed.stdout is not None and killed.stdout.readline().strip() == "tokenising"
    killed.kill()
    killed.communicate()
    assert list((tmp_path / "cache").glob("*.tmp-*"))
    program = PROGRAM.format(folder=str(tmp_path), pause=0)
    output = subprocess.check_output([sys.executable, "-c", program], text=True, timeout=60)
    assert output.split()[-1] == "43" and not list((tmp_path / "cache").glob("*.tmp-*"))


def test_a_second_start_is_quick(write_jsonl: WriteLines, prepare_file: PrepareFile) -> None:
    train = write_jsonl(reviews(5000))
    prepare_file(train)
    start = time.perf_counter()
    prepared = prepare_file(train)
    assert len(prepared.train.lengths) == 3600
    assert time.perf_counter() - start < 2


def test_splits_hold_what_was_written(tmp_path: Path) -> None:
    blocks = [
        example_block(["a", "ü"], [0, 1], [[2, 5, 3], [2, 3]], [9, 2], ["f:1", "f:2"]),
        example_block(["c"], np.array([1]), [[2, 7, 7, 3]], np.array([4]), ["f:3"]),
    ]
    split = Split(pa.Table.from_batches(blocks))
    assert split.lengths.tolist() == [3, 2, 4] and split.full_lengths.tolist() == [9, 2, 4]
    assert split.labels.tolist() == [0, 1, 1]
    assert [split.input_ids(row).tolist() for row in range(3)] == [[2, 5, 3], [2, 3], [2, 7, 7, 3]]
    assert [(split.text(row), split.source(row)) for row in (1, 2)] == [("ü", "f:2"), ("c", "f:3")]
    assert split.lengths.dtype == np.int32 and split.labels.dtype == np.int64
