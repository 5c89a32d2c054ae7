"""A trained model in use: opening a run or a bundle, and reading the texts that a person wants labels for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TextIO

from modelyard.data.sources import BadRow, open_source
from modelyard.data.tokenizer import TextTokenizer
from modelyard.deployment.bundle import INFO_FILE, Bundle, load_bundle
from modelyard.deployment.predict import TextPredictor
from modelyard.errors import DataError, InputError
from modelyard.runs.folder import RunFolder
from modelyard.workflow.ground import choose_device, load_engine

TEXTS_AT_ONCE = 256
TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".gz")


def open_bundle(folder: Path, device: str = "auto") -> tuple[Bundle, TextPredictor]:
    """The bundle in `folder` (or in the run that `folder` is), its model loaded and ready.

    Raises InputError when there is none, or when one of its files was changed.
    """
    if (folder / INFO_FILE).is_file():
        bundle = load_bundle(folder)
    else:
        run_folder = RunFolder.open(folder)
        if not (run_folder.bundle / INFO_FILE).is_file():
            raise InputError(f"{folder} was not exported yet: it has no bundle/", hint=f"modelyard export {folder}")
        bundle = load_bundle(run_folder.bundle)
    engine = load_engine("torch")
    chosen, _ = choose_device(engine, device)
    tokenizer = TextTokenizer.load(bundle.model_folder)
    return bundle, TextPredictor(bundle, engine.predictor(bundle.model_folder, chosen.name), tokenizer)


def input_texts(given: str, column: str, standard_input: TextIO) -> Iterator[str]:
    """The texts that `given` names: ``-`` (one a line on standard input), a file, or itself."""
    if given == "-":
        yield from (line.rstrip("\n") for line in standard_input if line.strip())
        return
    path = Path(given)
    try:
        is_file = path.is_file()
    except OSError:  # a long text is no file name
        is_file = False
    if not is_file:
        if path.suffix.lower() in (*TABLES, ".txt") and " " not in given:
            raise InputError(f"there is no file {given}", hint="check the path, or give the text itself in quotes")
        if not given.strip():
            raise InputError("the text is empty", hint='modelyard predict RUN "some text"')
        yield given
    elif path.suffix.lower() in TABLES:
        yield from _column(given, column)
    else:
        yield _document(path)


def _document(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"byte {error.start} is not UTF-8",
            where=str(path),
            hint=f"save the file as UTF-8, for example: iconv -f GB18030 -t UTF-8 {path.name} > utf8.txt",
        ) from error


def _column(given: str, column: str) -> Iterator[str]:
    for row in open_source(given, "test", (column,)).read():
        if isinstance(row, BadRow):
            raise row.error()
        value = row.values.get(column)
        if not isinstance(value, str) or not value.strip():
            raise DataError(
                f"column {column!r} holds {value!r}, expected a text",
                where=f"{row.source}:{row.number}",
                hint="correct the row, or name the column of the texts with --text COLUMN",
            )
        yield value


def blocks(texts: Iterable[str]) -> Iterator[list[str]]:
    """The texts in lists, so that an endless input is answered as it comes."""
    block: list[str] = []
    for text in texts:
        block.append(text)
        if len(block) == TEXTS_AT_ONCE:
            yield block
            block = []
    if block:
        yield block
