"""A recipe file and its overrides to a `Recipe`; everything that is wrong with them is reported at once, with
its place.

Relative paths: in the file they are relative to the file's folder, in ``--set`` to the current folder. A
value of ``data.train``, ``data.validation``, ``data.test`` or ``design.model`` is a path when it begins with
``/``, ``./``, ``../`` or ``~``, when it ends like a data file, or when something of that name is there; else
it is the name of something elsewhere (on a hub, in a package).
"""

from __future__ import annotations

import os.path
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from modelyard.errors import RecipeError, UsageError
from modelyard.recipe.aliases import apply_aliases, find, put
from modelyard.recipe.fields import all_fields
from modelyard.recipe.schema import Recipe
from modelyard.recipe.syntax import Node, Problem, Scalar, parse, read_recipe_text
from modelyard.recipe.validate import to_values, validate

MAX_PROBLEMS_SHOWN = 10
PATH_FIELDS = (("data", "train"), ("data", "validation"), ("data", "test"), ("design", "model"))
DATA_FILE = re.compile(r"\.(csv|tsv|json|jsonl|ndjson|parquet|txt)(\.gz)?$", re.IGNORECASE)


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe as it was read. notices: what the person should know about how it was understood."""

    recipe: Recipe
    path: Path
    notices: tuple[str, ...] = ()


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> LoadedRecipe:
    """Read a recipe file; each of `overrides` is ``section.key=value`` with the value in YAML and wins over
    the file.

    Raises RecipeError with all that is wrong, each with its place (``file:line:column`` or the override);
    UsageError for an override that is not ``key=value``.
    """
    path = Path(path)
    problems: list[Problem] = []
    root = parse(read_recipe_text(path), str(path), problems)
    start = "modelyard init text-classification"
    if root is None:
        raise RecipeError(f"{path} is empty, expected a recipe", hint=f"`{start}` writes one to start from")
    if not isinstance(root.content, dict):
        raise RecipeError(
            f"a recipe is a mapping of keys to values, this is `{root.shown()}`",
            where=root.where,
            hint=f"begin with `task: text-classification`, or let `{start}` write one",
        )
    notices = apply_aliases(root, problems)
    _resolve_paths(root, path.absolute().parent)
    for override in overrides:
        notices += _apply_override(root, override, problems)
    values, places = to_values(root, problems)
    recipe = validate(values, places, problems)
    if problems or recipe is None:
        raise _report(problems, path)
    return LoadedRecipe(recipe, path, tuple(dict.fromkeys(notices)))


def _apply_override(root: Node, override: str, problems: list[Problem]) -> list[str]:
    """Put one ``--set`` value into `root`; notices for familiar names come back."""
    name, sign, text = override.partition("=")
    keys = tuple(key.strip() for key in name.split("."))
    if not sign or not all(keys):
        raise UsageError(
            f"--set {override!r} is not of the form section.key=value",
            hint="--set training.learning_rate=1e-5",
        )
    where = f"--set {override}"
    node = _override_value(keys, text, where, problems)
    single = Node({}, where, where)
    put(single, keys, node)
    notices = apply_aliases(single, problems)
    _resolve_paths(single, Path.cwd())
    target = _path_of(single, node)
    if target is not None and not put(root, target, node):
        text = f"`{'.'.join(target[:-1])}` is not a section in the recipe, so nothing can be set in it"
        problems.append(Problem(where, text, f"give the whole section: --set '{target[0]}={{…}}'"))
    return notices


def _override_value(keys: tuple[str, ...], text: str, where: str, problems: list[Problem]) -> Node:
    """The value in YAML; for a text field whatever is no YAML scalar (``[a-z]+``) is taken as it is."""
    field = all_fields().get(keys)
    literal = Node(Scalar(text, "str" if text else "null"), where, where)
    found: list[Problem] = []
    try:
        node = parse(text, where, found, fixed_where=where)
    except RecipeError:
        if field is None or not field.text:
            raise
        return literal
    if node is None or (field is not None and field.text and not isinstance(node.content, Scalar)):
        return literal
    problems += found
    return node


def _path_of(root: Node, wanted: Node) -> tuple[str, ...] | None:
    if root is wanted:
        return ()
    if isinstance(root.content, dict):
        for key, node in root.content.items():
            below = _path_of(node, wanted)
            if below is not None:
                return (key, *below)
    return None


def _resolve_paths(root: Node, folder: Path) -> None:
    """Make the values of path fields that are paths absolute, seen from `folder`."""
    for field in PATH_FIELDS:
        node = find(root, field)
        if node is None or not isinstance(node.content, Scalar) or node.content.kind == "null":
            continue
        text = node.content.text
        path = folder / os.path.expanduser(text)  # noqa: PTH111 - Path.expanduser fails for an unknown ~user
        marked = text.startswith(("/", "./", "../", "~")) or text in (".", "..")
        if marked or (text and _exists(path)) or (field[0] == "data" and DATA_FILE.search(text)):
            node.content = Scalar(os.path.normpath(path), "str")


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for a file, or a folder that may not be read
        return False


def _report(problems: list[Problem], path: Path) -> RecipeError:
    """One error for all problems, in the order of the file, the overrides last."""
    if len(problems) == 1:
        return RecipeError(problems[0].text, where=problems[0].where, hint=problems[0].hint)
    ordered = sorted(problems, key=_position)
    lines = [f"{len(ordered)} problems in {path}:"]
    for problem in ordered[:MAX_PROBLEMS_SHOWN]:
        lines.append(f"  {problem.where}: {problem.text}\n    {problem.hint}")
    if len(ordered) > MAX_PROBLEMS_SHOWN:
        lines.append(f"  … and {len(ordered) - MAX_PROBLEMS_SHOWN} more")
    error = RecipeError(
        "\n".join(lines),
        hint="correct these and type the same command again; docs/recipes.md lists every key",
    )
    error.where = ordered[0].where
    return error


def _position(problem: Problem) -> tuple[bool, int, int]:
    place = re.search(r":(\d+):(\d+)$", problem.where)
    if place is None or problem.where.startswith("--set"):
        return True, 0, 0
    return False, int(place[1]), int(place[2])
