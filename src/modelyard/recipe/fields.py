"""What the schema says of each field, in plain words: loading, overrides and the documentation all read it
from here.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from modelyard.recipe.schema import Recipe

KeyPath = tuple[str, ...]

_LIMITS = {"ge": "at least {}", "gt": "above {}", "le": "at most {}", "lt": "below {}"}
_SECTION = "a section with keys of its own"
_KINDS: Mapping[Any, str] = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


@dataclass(frozen=True)
class RecipeField:
    """One key of the recipe.

    expected: what may be written there, as words that follow "must be".
    section: the section's class when the value is a mapping of further keys, else None.
    nullable: whether ``null`` is a value of the field.
    text: whether a plain scalar stands for text, so that ``no`` or ``1`` are kept as written.
    """

    path: KeyPath
    info: FieldInfo
    expected: str
    section: type[BaseModel] | None
    nullable: bool
    text: bool

    @property
    def name(self) -> str:
        return ".".join(self.path)


@cache
def all_fields() -> dict[KeyPath, RecipeField]:
    """Every key of the recipe in the order of the schema, sections before what they hold."""
    return {field.path: field for field in _fields_of(Recipe, ())}


def _fields_of(section: type[BaseModel], above: KeyPath) -> list[RecipeField]:
    found = []
    for name, info in section.model_fields.items():
        options, nullable = _options(info.annotation)
        inner = next((o for o in options if isinstance(o, type) and issubclass(o, BaseModel)), None)
        path = (*above, name)
        expected = _SECTION if inner else _expected(options, info)
        if nullable:
            expected += ", or null"
        found.append(RecipeField(path, info, expected, inner, nullable, str in options))
        if inner:
            found.extend(_fields_of(inner, path))
    return found


def _options(annotation: Any) -> tuple[list[Any], bool]:
    """The members of a union without None, and whether None was among them."""
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return [m for m in members if m is not type(None)], type(None) in members


def _expected(options: list[Any], info: FieldInfo) -> str:
    if info.examples:
        return _one_of(tuple(info.examples))
    return " or ".join(_expected_option(option, info.metadata) for option in options)


def _expected_option(option: Any, metadata: list[Any]) -> str:
    if hasattr(option, "__metadata__"):  # Annotated[int, Field(ge=16)] inside a union
        inner, *extra = get_args(option)
        return _expected_option(inner, [m for e in extra for m in getattr(e, "metadata", [e])])
    origin = get_origin(option)
    if origin is Literal:
        return _one_of(get_args(option))
    if origin is tuple:
        member = get_args(option)[0]
        if member is str:
            return "a list of texts, such as [first, second]"
        filled = "a list (not empty)" if any(getattr(m, "min_length", None) for m in metadata) else "a list"
        return f"{filled} of {_one_of(get_args(member))}, such as [{get_args(member)[0]}]"
    if origin is dict:
        return "a mapping of texts to texts, such as {key: text}"
    return _expected_scalar(option, metadata)


def _one_of(choices: tuple[Any, ...]) -> str:
    quoted = [f"`{choice}`" for choice in choices]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _expected_scalar(kind: type, metadata: list[Any]) -> str:
    words = _KINDS[kind]
    limits = []
    for limit, phrase in _LIMITS.items():
        limits += [phrase.format(f"{getattr(m, limit):g}") for m in metadata if getattr(m, limit, None) is not None]
    multiple = [m.multiple_of for m in metadata if getattr(m, "multiple_of", None) is not None]
    limits += ["even" if m == 2 else f"a multiple of {m}" for m in multiple]
    if kind is str and any(getattr(m, "min_length", None) for m in metadata):
        words += " that is not empty"
    return f"{words} {' and '.join(limits)}".strip()
