"""A recipe back to YAML: every key with its value, and behind each derived value the reason for it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from modelyard.errors import RecipeError
from modelyard.recipe.fields import all_fields
from modelyard.recipe.schema import Recipe
from modelyard.recipe.syntax import CoreDumper, Problem
from modelyard.recipe.validate import validate

_UNLIMITED = 2**31


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe in which nothing is left to be found out. reasons: why, by dotted name, for each value that
    was derived.
    """

    recipe: Recipe
    reasons: Mapping[str, str] = field(default_factory=dict)

    def derive(self, name: str, value: Any, reason: str) -> ResolvedRecipe:
        """The same with one more derived value (``derive("design.max_length", 512, "the most …")``)."""
        return ResolvedRecipe(set_values(self.recipe, {name: value}), {**self.reasons, name: reason})


def set_values(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """`recipe` with the value of each dotted name replaced, checked like a file.

    Raises RecipeError for a name or a value that the schema does not have.
    """
    tree = recipe.model_dump()
    for name, value in values.items():
        *above, last = name.split(".")
        section = tree
        for key in above:
            inner = section.get(key)
            section[key] = inner if isinstance(inner, dict) else {}
            section = section[key]
        section[last] = value
    problems: list[Problem] = []
    changed = validate(tree, {}, problems)
    if changed is None:
        raise RecipeError("; ".join(problem.text for problem in problems), hint=problems[0].hint)
    return changed


def recipe_text(recipe: Recipe, reasons: Mapping[str, str] | None = None) -> str:
    """The YAML text of a whole recipe; `reasons` (by dotted name) become comments behind their values."""
    reasons = reasons or {}
    unknown = sorted(set(reasons) - {known.name for known in all_fields().values()})
    assert not unknown, f"reasons for names that no recipe has: {unknown}"
    return "\n".join(_lines(recipe, (), reasons)) + "\n"


def write_recipe(recipe: Recipe, path: Path, reasons: Mapping[str, str] | None = None) -> Path:
    """Write `recipe_text` to `path`, at once or not at all; `load_recipe` reads the same recipe back."""
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(recipe_text(recipe, reasons), encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _lines(section: BaseModel, above: tuple[str, ...], reasons: Mapping[str, str]) -> list[str]:
    lines = []
    for key in type(section).model_fields:
        value = getattr(section, key)
        path = (*above, key)
        indent = "  " * len(above)
        if isinstance(value, BaseModel):
            lines += [f"{indent}{key}:", *_lines(value, path, reasons)]
        else:
            reason = comment_text(reasons.get(".".join(path), ""))
            lines.append(f"{indent}{key}: {scalar_text(value)}" + (f"  # derived: {reason}" if reason else ""))
    return lines


def scalar_text(value: Any) -> str:
    """A value that is no section, on one line of YAML."""
    plain = list(value) if isinstance(value, tuple) else value
    text = yaml.dump(
        plain,
        Dumper=_LineDumper,
        default_flow_style=True,
        allow_unicode=True,
        width=_UNLIMITED,
        sort_keys=False,
    )
    return str(text).removesuffix("\n").removesuffix("\n...").strip()


def comment_text(text: str) -> str:
    """`text` on one line, without the characters that YAML forbids even in comments."""
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


class _LineDumper(CoreDumper):
    """Writes texts that would take several lines as one line with escapes."""


def _represent_text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    one_line = value.isprintable()
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=None if one_line else '"')


_LineDumper.add_representer(str, _represent_text)
