"""``modelyard init TASK [DATA]``: look at the data, guess the columns, and write a commented recipe."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.cli.main import language
from modelyard.cli.messages import say
from modelyard.errors import InputError

if TYPE_CHECKING:
    from modelyard.data.sources import Row

TEXT_NAMES = ("text", "body", "content", "review", "sentence", "document", "comment", "message", "title")
LABEL_NAMES = ("label", "class", "category", "topic", "target", "sentiment", "stars", "rating", "y")
LOOKED_AT = 200


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The task, the data, and where the recipe goes."""
    parser.add_argument(
        "task",
        choices=("text-classification", "sentiment"),
        metavar="TASK",
        help="text-classification or sentiment",
    )
    parser.add_argument(
        "data",
        nargs="?",
        metavar="DATA",
        help="a CSV, TSV, JSONL or Parquet file, or a folder with one subfolder per class",
    )
    parser.add_argument(
        "--to",
        type=Path,
        default=Path("recipe.yaml"),
        metavar="FILE",
        help="the recipe (recipe.yaml if not given)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Write the recipe; a file that is there is left alone."""
    from modelyard.recipe.template import render_template
    from modelyard.runs.files import write_text

    target: Path = arguments.to
    if target.exists():
        raise InputError(f"{target} is there already", hint=f"choose another name: --to {target.stem}-2.yaml")
    columns, text, label, reasons = look_at(arguments.data) if arguments.data else ([], None, None, {})
    data = None
    if arguments.data:  # as seen from the recipe, which is how the recipe's paths are read
        data = Path(os.path.relpath(arguments.data, target.parent)).as_posix()
    content = render_template(arguments.task, data, columns, text=text, label=label, reasons=reasons)
    write_text(target, content)
    print(say("wrote", language(), path=target), flush=True)
    for key, reason in reasons.items():
        print(f"  {key}: {reason}")
    print(f"  modelyard data check {target}")
    if arguments.json:
        print(json.dumps({"recipe": str(target), "text": text, "label": label, "reasons": reasons}, ensure_ascii=False))
    return 0


def look_at(data: str) -> tuple[list[str], str, str, dict[str, str]]:
    """Columns of the data, and which of them are likely the text and the label, with reasons.

    Raises DataError when the data cannot be read, InputError when no guess is clear.
    """
    rows = first_rows(data)
    columns = list(rows[0].values)
    text, text_reason = guess_text(columns, rows)
    label, label_reason = guess_label([name for name in columns if name != text], rows)
    return columns, text, label, {"data.text": text_reason, "data.label": label_reason}


def first_rows(data: str) -> list[Row]:
    """A few hundred rows with all their columns."""
    from modelyard.data.sources import BadRow, open_source

    rows: list[Row] = []
    for row in open_source(data, "train", columns_of(Path(data))).read():
        if not isinstance(row, BadRow):
            rows.append(row)
        if len(rows) == LOOKED_AT:
            break
    if not rows:
        raise InputError(f"{data} holds no readable row", hint="expected a header and at least one row, in UTF-8")
    return rows


def columns_of(path: Path) -> tuple[str, ...]:
    """The names in the header of a table; a folder per class has these two, JSON lines name theirs in each row."""
    kind = path.name.lower().removesuffix(".gz").rsplit(".", 1)[-1]
    if kind == "parquet" and path.is_file():
        import pyarrow.parquet as pq

        return tuple(pq.read_schema(path).names)
    if kind not in ("csv", "tsv") or not path.is_file():
        return ("text", "label")
    import csv
    import gzip

    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", errors="replace", newline="") as file:
        return tuple(next(csv.reader(file, delimiter="\t" if kind == "tsv" else ","), ()))


def _values(rows: list[Row], column: str) -> list[str]:
    found: list[Any] = [row.values.get(column) for row in rows]
    return [str(value) for value in found if value is not None]


def guess_text(columns: list[str], rows: list[Row]) -> tuple[str, str]:
    """By a usual name; else the column with the longest texts, if it is clearly longer than the others."""
    for name in TEXT_NAMES:
        for column in columns:
            if column.lower() == name:
                return column, f"the column is called {column}"
    mean = {name: sum(map(len, _values(rows, name))) / len(rows) for name in columns}
    ranked = sorted(columns, key=lambda name: mean[name], reverse=True)
    if len(ranked) > 1 and mean[ranked[0]] < 2 * mean[ranked[1]]:
        raise InputError(
            f"which column is the text is not clear; there are: {', '.join(columns)}",
            hint="write the recipe by hand: `modelyard init TASK` without data gives one to start from",
        )
    return ranked[0], f"its values are the longest, {mean[ranked[0]]:.0f} characters on average"


def guess_label(columns: list[str], rows: list[Row]) -> tuple[str, str]:
    """By a usual name; else the only column with few different values that come again and again."""
    for name in LABEL_NAMES:
        for column in columns:
            if column.lower() == name:
                different = len(set(_values(rows, column)))
                return (
                    column,
                    f"the column is called {column}; {different} different values in the first {len(rows)} rows",
                )
    few = [name for name in columns if 2 <= len(set(_values(rows, name))) <= max(2, len(rows) // 10)]
    if len(few) != 1:
        raise InputError(
            f"which column is the label is not clear; there are: {', '.join(columns) or 'no others'}",
            hint="write the recipe by hand: `modelyard init TASK` without data gives one to start from",
        )
    return few[0], f"{len(set(_values(rows, few[0])))} different values in the first {len(rows)} rows"
