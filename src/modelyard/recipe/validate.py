"""Checks a tree of nodes against the schema and says in plain words what does not fit."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from modelyard.recipe.aliases import read_aliases
from modelyard.recipe.fields import KeyPath, RecipeField, all_fields
from modelyard.recipe.schema import Recipe
from modelyard.recipe.syntax import Node, Problem, Scalar

Places = Mapping[KeyPath, Node]


def to_values(root: Node, problems: list[Problem]) -> tuple[dict[str, Any], Places]:
    """The plain values of `root` for the schema, and the node of each path. Unknown keys are left out, as
    `problems`.
    """
    places: dict[KeyPath, Node] = {}
    values = _mapping(root, (), problems, places)
    return values, places


def _mapping(node: Node, path: KeyPath, problems: list[Problem], places: dict[KeyPath, Node]) -> dict[str, Any]:
    places[path] = node
    values: dict[str, Any] = {}
    assert isinstance(node.content, dict)
    for key, inner in node.content.items():
        field = all_fields().get((*path, key))
        if field is None:
            problems.append(_unknown(key, path, inner))
        elif field.section is not None and isinstance(inner.content, dict):
            values[key] = _mapping(inner, field.path, problems, places)
        else:
            places[field.path] = inner
            values[key] = _leaf(inner, field)
    return values


def _leaf(node: Node, field: RecipeField) -> Any:
    if isinstance(node.content, Scalar):
        return _scalar(node.content, field)
    if isinstance(node.content, list):
        return [_text_member(inner) for inner in node.content]
    return {key: _text_member(inner) for key, inner in node.content.items()}


def _scalar(scalar: Scalar, field: RecipeField) -> Any:
    if scalar.kind == "null":
        # A section whose keys are all commented out is an empty section.
        return {} if field.section is not None and not field.nullable else None
    if field.text or (scalar.kind == "bool" and field.info.annotation is not bool):
        return scalar.text
    return scalar.value()


def _text_member(node: Node) -> Any:
    """Members of all lists and mappings in a recipe are texts: ``no``, ``1`` and ``null`` are kept as
    written.
    """
    return node.content.text if isinstance(node.content, Scalar) and node.content.text else node.plain()


def validate(values: Mapping[str, Any], places: Places, problems: list[Problem]) -> Recipe | None:
    """The recipe of `values`, or None after adding to `problems`."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems += _explain(error.errors(include_url=False), values, places, problems)
        return None


def _explain(
    errors: Iterable[ErrorDetails], values: Mapping[str, Any], places: Places, known: list[Problem]
) -> list[Problem]:
    """One problem for each path; none that only follows from a misspelt key."""
    found: dict[KeyPath, Problem] = {}
    suggested = " ".join(problem.hint for problem in known)
    for error in errors:
        path = _field_path(error["loc"])
        place = _nearest(path, places)
        name = ".".join(path)
        if error["type"] == "missing":
            if f"`{name}`" not in suggested:
                found.setdefault(path, _missing(path, place))
        elif error["type"] == "value_error":
            cause = error.get("ctx", {}).get("error", error["msg"])
            where = place.key_where if place else name
            if not any(_inside(problem.hint, name) for problem in known):
                key = f"{name}.KEY" if all_fields()[path].section else name
                hint = f"change it in the recipe, or take a value away with --set {key}=null"
                found.setdefault(path, Problem(where, str(cause), hint))
        elif error["type"] == "extra_forbidden":
            found.setdefault(path, _unknown(str(error["loc"][-1]), path, place or Node({}, name, name)))
        else:
            found.setdefault(path, _wrong_value(all_fields()[path], values, places))
    return list(found.values())


def _inside(hint: str, section: str) -> bool:
    return f"`{section}." in hint


def _field_path(loc: tuple[int | str, ...]) -> KeyPath:
    """The longest part of pydantic's location that is a key of the recipe; the rest names members."""
    path: KeyPath = ()
    for part in loc:
        if (*path, str(part)) not in all_fields():
            break
        path = (*path, str(part))
    return path


def _nearest(path: KeyPath, places: Places) -> Node | None:
    while path not in places and path:
        path = path[:-1]
    return places.get(path)


def _missing(path: KeyPath, place: Node | None) -> Problem:
    field = all_fields()[path]
    under = f" under `{'.'.join(path[:-1])}:`" if path[:-1] else ""
    if field.section is not None:
        needed = [f.path[-1] for p, f in all_fields().items() if p[:-1] == path and f.info.is_required()]
        hint = f"write `{path[-1]}:` and below it {', '.join(f'`{key}: …`' for key in needed or ['model'])}"
    else:
        hint = f"write `{path[-1]}: …`{under}; {field.expected}"
    text = f"`{field.name}` is missing ({str(field.info.description).rstrip('.')})"
    return Problem(place.key_where if place else field.name, text, hint)


def _wrong_value(field: RecipeField, values: Mapping[str, Any], places: Places) -> Problem:
    node = places.get(field.path)
    if node is None:  # set from code
        value: Any = values
        for key in field.path:
            value = value.get(key) if isinstance(value, Mapping) else None
        where, shown, alias = field.name, repr(value), ""
    else:
        where, shown, alias = node.where, node.shown(), node.alias
    written = f" (written `{alias}`)" if alias and alias != field.path[-1] else ""
    text = f"`{field.name}`{written} is `{shown}`, must be {field.expected}"
    choices = re.findall(r"`([^`]+)`", field.expected)
    near = difflib.get_close_matches(shown.lower(), choices, n=1, cutoff=0.7)
    hint = f"did you mean `{near[0]}`?" if near else f"`{field.path[-1]}`: {field.info.description}"
    return Problem(where, text, hint)


def _unknown(key: str, above: KeyPath, node: Node) -> Problem:
    name = ".".join((*above, key))
    text = f"`{name}` is not a key of a recipe"
    dotted = tuple(key.split("."))
    if dotted in all_fields() and len(dotted) > 1:
        section = ".".join(dotted[:-1])
        return Problem(node.key_where, text, f"write `{dotted[-1]}` on a line of its own below `{section}:`")
    guesses = _guesses(key, above)
    if guesses:
        hint = f"did you mean {' or '.join(f'`{guess}`' for guess in guesses)}?"
    else:
        keys = [path[-1] for path in all_fields() if path[:-1] == above]
        where = f"`{'.'.join(above)}`" if above else "the top level"
        hint = f"keys of {where}: {', '.join(keys)}"
    return Problem(node.key_where, text, hint)


def _guesses(key: str, above: KeyPath) -> list[str]:
    """Full names that `key` may stand for: the same key elsewhere, else the most similar here, else
    elsewhere.
    """
    renamed, _ = read_aliases()
    meant: dict[str, list[str]] = {}
    for path in all_fields():
        meant.setdefault(path[-1], []).append(".".join(path))
    for alias in renamed.values():
        meant.setdefault(alias.name, [".".join(target) for target in alias.targets])
    if key in meant:
        return meant[key]
    here = [path[-1] for path in all_fields() if path[:-1] == above]
    for names in (here, list(meant)):
        near = difflib.get_close_matches(key.lower(), names, n=1, cutoff=0.7)
        if near:
            return [".".join((*above, near[0]))] if names is here else meant[near[0]]
    return []
