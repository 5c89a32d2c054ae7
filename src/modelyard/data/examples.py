"""From a row to an example: which values are usable, and how they are cleaned (in training and use alike)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from modelyard.data.sources import NOT_UTF8, SAVE_AS_UTF8, BadRow, Row, missing_column, shortened
from modelyard.errors import RecipeError

PARTS: Mapping[str, int] = {
    "train": 0, "training": 0,
    "validation": 1, "valid": 1, "val": 1, "dev": 1,
    "test": 2, "testing": 2,
}  # fmt: skip


class Example(NamedTuple):
    """A usable row. part: index into ("train", "validation", "test"), or -1 where no column says it."""

    text: str
    label: str
    part: int
    group: str
    source: str
    number: int


def text_cleaner(remove: str | None) -> Callable[[str], str] | None:
    """Takes out what the regular expression `remove` matches; None when there is nothing to take out.

    Raises RecipeError when the expression is wrong.
    """
    if not remove:
        return None
    try:
        pattern = re.compile(remove)
    except re.error as error:
        raise RecipeError(
            f"data.remove is no regular expression: {remove!r} ({error})",
            hint="try it in Python with re.compile, and put it into single quotes in YAML",
        ) from error
    return lambda text: pattern.sub("", text)


def normalised(text: str) -> str:
    """The form in which two texts count as the same: case and white space do not matter."""
    return " ".join(text.casefold().split())


def label_text(value: Any) -> str | None:
    """A raw label as a string: 1.0 as ``1``, true and false as in JSON, nothing as empty; None for what is no label."""
    match value:
        case str():
            return value.strip()
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return "" if math.isnan(value) else str(int(value)) if value.is_integer() else repr(value)
        case None:
            return ""
    return None


class _Unusable(Exception):
    def __init__(self, column: str, value: Any, reason: str, hint: str) -> None:
        self.details = (column, value, reason, hint)


@dataclass(frozen=True)
class ExampleReader:
    """Turns rows into examples, or says what is wrong with them.

    labels: the only labels allowed, raw or by their readable names in `label_names`; None allows all.
    """

    text: str
    label: str
    remove: str | None = None
    labels: frozenset[str] | None = None
    label_names: Mapping[str, str] | None = None
    part: str | None = None
    group: str | None = None

    @cached_property
    def _clean(self) -> Callable[[str], str] | None:
        return text_cleaner(self.remove)

    def read(self, row: Row) -> Example | BadRow:
        try:
            return Example(
                self._text(row.values),
                self._label(row.values),
                self._part(row.values) if self.part else -1,
                self._group(row.values) if self.group else "",
                row.source,
                row.number,
            )
        except _Unusable as problem:
            column, value, reason, hint = problem.details
            return BadRow(row.source, row.number, column, value, reason, hint)

    def _value(self, values: Mapping[str, Any], column: str) -> Any:
        try:
            value = values[column]
        except KeyError:
            problem, hint = missing_column(column, values)
            reason, _, listed = problem.partition("; ")
            raise _Unusable(column, listed, reason, hint) from None
        if isinstance(value, str):
            try:
                value.encode()
            except UnicodeEncodeError:
                raise _Unusable(column, shortened(value), NOT_UTF8, SAVE_AS_UTF8) from None
        return value

    def _text(self, values: Mapping[str, Any]) -> str:
        value = self._value(values, self.text)
        if value is None:
            raise _Unusable(self.text, "null", "the text is empty", "fill in the text or remove the row")
        if not isinstance(value, str):
            reason = "the text is not a string"
            found = f"{shortened(value)} is of type {type(value).__name__}"
            raise _Unusable(self.text, found, reason, "name a column that holds text as data.text")
        text = self._clean(value) if self._clean else value
        if not text or text.isspace():
            reason = "the text is empty" + (" after data.remove" if value and not value.isspace() else "")
            raise _Unusable(self.text, shortened(value), reason, "fill in the text or remove the row")
        return text

    def _label(self, values: Mapping[str, Any]) -> str:
        value = self._value(values, self.label)
        label = label_text(value)
        if label is None:
            found = f"{shortened(value)} is of type {type(value).__name__}"
            reason = "the label is neither a string nor a number"
            raise _Unusable(self.label, found, reason, "write one label for each row")
        if not label:
            raise _Unusable(self.label, shortened(value), "the label is empty", "fill in the label or remove the row")
        if self.labels is not None and not self.labels & {label, (self.label_names or {}).get(label, label)}:
            allowed = ", ".join(sorted(self.labels))
            reason = "the label is not in data.labels"
            raise _Unusable(
                self.label,
                shortened(label),
                reason,
                f"correct it to one of {allowed}, or add it to data.labels",
            )
        return label

    def _part(self, values: Mapping[str, Any]) -> int:
        assert self.part is not None
        value = self._value(values, self.part)
        part = PARTS.get(value.strip().lower()) if isinstance(value, str) else None
        if part is None:
            reason = "the part is unknown"
            raise _Unusable(self.part, shortened(value), reason, "write train, validation or test")
        return part

    def _group(self, values: Mapping[str, Any]) -> str:
        assert self.group is not None
        value = self._value(values, self.group)
        group = label_text(value)
        if not group:
            reason = "the group is empty or no string or number"
            raise _Unusable(
                self.group,
                shortened(value),
                reason,
                "fill it in, so that rows that belong together stay together",
            )
        return group
