"""Recipe text to a tree of nodes that remember where each stood.

The scalars follow the core schema of YAML 1.2 (https://yaml.org/spec/1.2.2/#103-core-schema), because
PyYAML's own YAML 1.1 reads ``no`` as a boolean and ``1e-5`` as text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from modelyard.errors import RecipeError

MAX_RECIPE_BYTES = 1_000_000
MAX_RECIPE_NODES = 100_000  # a YAML alias that repeats itself grows without bound

_CORE_SCALARS = {
    "null": r"~|null|Null|NULL|",
    "bool": r"true|True|TRUE|false|False|FALSE",
    "int": r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+",
    "float": r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
}
_MAX_NUMBER_CHARACTERS = 100  # longer ones are kept as text; Python refuses integers of more than 4,300 digits
_FIRST_CHARACTERS = {"null": "~nN", "bool": "tTfF", "int": "-+0123456789", "float": "-+.0123456789"}


class CoreLoader(yaml.SafeLoader):
    """Reads plain scalars by the core schema. It composes nodes only: no tag ever constructs an object."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - the library's own name; filled below


class CoreDumper(yaml.SafeDumper):
    """Quotes texts that `CoreLoader`, or another program's YAML 1.1, would take for something else."""


for _name, _pattern in _CORE_SCALARS.items():
    for _class in (CoreLoader, CoreDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), [*_FIRST_CHARACTERS[_name]]
        )
CoreLoader.yaml_implicit_resolvers[""] = [("tag:yaml.org,2002:null", re.compile("^$"))]


@dataclass(frozen=True)
class Scalar:
    """A value that is neither list nor mapping. kind: null, bool, int, float or str; text: as written."""

    text: str
    kind: str

    def value(self) -> Any:
        """The Python value: None, bool, int, float or str."""
        if self.kind == "null":
            return None
        if self.kind == "bool":
            return self.text.lower() == "true"
        if self.kind == "int":
            return int(self.text, 0) if self.text[:2] in ("0o", "0x") else int(self.text)
        if self.kind == "float":
            return float(self.text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        return self.text


@dataclass
class Node:
    """A value with its places: `where` of the value and `key_where` of its key, each as ``file:line:column``.

    alias: the familiar name that it was written under, when that is not the field's own.
    """

    content: Scalar | list[Node] | dict[str, Node]
    where: str
    key_where: str
    alias: str = ""

    def plain(self) -> Any:
        """The value without its places."""
        if isinstance(self.content, Scalar):
            return self.content.value()
        if isinstance(self.content, list):
            return [node.plain() for node in self.content]
        return {key: node.plain() for key, node in self.content.items()}

    def shown(self) -> str:
        """The value as it is quoted in a message, cut to a readable length."""
        if isinstance(self.content, Scalar):
            text = self.content.text if self.content.kind != "null" else "null"
        elif isinstance(self.content, list):
            text = "[" + ", ".join(node.shown() for node in self.content[:5]) + "]"
        else:
            text = "{" + ", ".join(f"{key}: …" for key in list(self.content)[:5]) + "}"
        return text if len(text) <= 80 else text[:77] + "..."


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong, where it stands, and what to write instead."""

    where: str
    text: str
    hint: str


def read_recipe_text(path: Path) -> str:
    """The file's text.

    Raises RecipeError when there is no such file, or it is a folder, too large, not readable or not UTF-8.
    """
    if path.is_dir():
        inside = _recipes_in(path)
        raise RecipeError(f"{path} is a folder, expected a recipe (a .yaml file)", hint=_name_one(inside, path))
    if not path.exists():
        inside = _recipes_in(path.parent)
        raise RecipeError(f"there is no recipe {path}", hint=_name_one(inside, path.parent))
    try:
        size = path.stat().st_size
        if size > MAX_RECIPE_BYTES:
            raise RecipeError(
                f"{path} has {size:,} bytes, a recipe at most {MAX_RECIPE_BYTES:,}",
                hint="name the recipe, not the data: data.train in the recipe says where the data is",
            )
        raw = path.read_bytes()
    except OSError as error:
        raise RecipeError(f"cannot read {path}: {error.strerror}", hint=f"ls -l {path}") from error
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise RecipeError(
            f"byte {error.start} (0x{raw[error.start]:02x}) is not UTF-8",
            where=f"{path}:{line}",
            hint=f"save it as UTF-8: iconv -f ISO-8859-1 -t UTF-8 {path} -o {path.stem}-utf8{path.suffix}",
        ) from error


def _recipes_in(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")])[:10]


def _name_one(recipes: list[Path], folder: Path) -> str:
    if recipes:
        return f"recipes there: {', '.join(str(recipe) for recipe in recipes)}"
    return f"there is none in {folder}; `modelyard init text-classification` writes one"


def parse(text: str, source: str, problems: list[Problem], *, fixed_where: str | None = None) -> Node | None:
    """The tree of `text`, or None for an empty document. Duplicate keys and the like are added to `problems`.

    source: the file's name in every place; fixed_where: one place for all instead (an override).
    Raises RecipeError for text that is not YAML.
    """
    try:
        loader = CoreLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        raise _syntax_error(error, text, source, fixed_where) from None
    except RecursionError:
        raise RecipeError(
            f"{source} is nested too deeply for a recipe", hint="a recipe has three levels at most"
        ) from None
    if root is None:
        return None
    return _Tree(source, problems, fixed_where).node(root, None, ())


def _syntax_error(error: yaml.YAMLError, text: str, source: str, fixed_where: str | None) -> RecipeError:
    where, hint = source, "indent with two spaces a level and write `key: value` with a space after the colon"
    problem = "this is not YAML"
    if isinstance(error, yaml.reader.ReaderError):
        line = text[: error.position].count("\n") + 1
        where, problem = (
            f"{source}:{line}",
            f"the character {chr(int(error.character))!a} cannot stand in YAML",
        )
        hint = "remove it, or write it as an escape in double quotes"
    elif isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            where = f"{source}:{mark.line + 1}:{mark.column + 1}"
            line_text = (text.splitlines() or [""])[min(mark.line, len(text.splitlines()) - 1)]
            problem = f"this is not YAML ({error.problem}): {line_text.strip()[:80]!r}"
            if "\t" in line_text:
                hint = "replace the tab by spaces: YAML is indented by spaces only"
            elif "another document" in str(error):
                hint = "keep one document: remove the line `---` between them"
    return RecipeError(problem, where=fixed_where or where, hint=hint)


class _Tree:
    """Turns PyYAML's nodes into ours."""

    def __init__(self, source: str, problems: list[Problem], fixed_where: str | None) -> None:
        self.source, self.problems, self.fixed_where = source, problems, fixed_where
        self.num_nodes = 0

    def place(self, node: yaml.Node) -> str:
        mark = node.start_mark
        return self.fixed_where or f"{self.source}:{mark.line + 1}:{mark.column + 1}"

    def node(self, node: yaml.Node, key: yaml.Node | None, above: tuple[int, ...]) -> Node:
        self.num_nodes += 1
        where = self.place(node)
        if id(node) in above or self.num_nodes > MAX_RECIPE_NODES:
            raise RecipeError("a YAML alias (*) repeats itself without end", where=where, hint="write the values out")
        inside = (*above, id(node))
        content: Scalar | list[Node] | dict[str, Node]
        if isinstance(node, yaml.MappingNode):
            content = self.mapping(node, inside)
        elif isinstance(node, yaml.SequenceNode):
            content = [self.node(item, None, inside) for item in node.value]
        else:
            assert isinstance(node, yaml.ScalarNode)
            content = self.scalar(node, where)
        return Node(content, where, self.place(key) if key is not None else where)

    def scalar(self, node: yaml.ScalarNode, where: str) -> Scalar:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind == "str":
            return Scalar(node.value, "str")
        if kind not in _CORE_SCALARS or not re.fullmatch(_CORE_SCALARS[kind], node.value):  # an explicit tag
            text = f"the tag {node.tag} has no meaning for `{node.value[:40]}` in a recipe"
            self.problems.append(Problem(where, text, "write the plain value"))
            return Scalar(node.value, "str")
        return Scalar(node.value, kind if len(node.value) <= _MAX_NUMBER_CHARACTERS else "str")

    def mapping(self, node: yaml.MappingNode, above: tuple[int, ...]) -> dict[str, Node]:
        content: dict[str, Node] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(
                    Problem(self.place(key), "a key must be text, not a list or mapping", "write `key: value`")
                )
                continue
            if key.value in content:
                first = content[key.value].key_where
                text = f"`{key.value}` stands here for the second time (first at {first})"
                self.problems.append(Problem(self.place(key), text, "remove one of the two"))
                continue
            content[key.value] = self.node(value, key, above)
        return content
