"""Familiar names from Hugging Face Transformers, translated to ours with a notice; the table is
``aliases.yaml``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from modelyard.recipe.fields import KeyPath, all_fields
from modelyard.recipe.syntax import Node, Problem, Scalar

_ACCUMULATION = "gradient_accumulation_steps"
_PER_DEVICE = "per_device_train_batch_size"


@dataclass(frozen=True)
class Alias:
    """A name that has a field of ours. targets: that field; of several, the section that the name stands in
    decides.
    """

    name: str
    targets: tuple[KeyPath, ...]
    values: Mapping[str, Any]
    note: str


@dataclass(frozen=True)
class Refusal:
    """A name that has no field here. harmless: values (as written, in small letters) that ask for what
    happens anyway.
    """

    name: str
    section: str
    because: str
    hint: str
    harmless: tuple[str, ...]


@cache
def read_aliases() -> tuple[dict[str, Alias], dict[str, Refusal]]:
    """The table: renamed and refused names."""
    table = yaml.safe_load((files("modelyard.recipe") / "aliases.yaml").read_text(encoding="utf-8"))
    renamed = {}
    for name, entry in table["renamed"].items():
        targets = entry["to"] if isinstance(entry["to"], list) else [entry["to"]]
        paths = tuple(tuple(target.split(".")) for target in targets)
        renamed[name] = Alias(name, paths, entry.get("values", {}), entry.get("note", ""))
    refused = {
        name: Refusal(name, entry["section"], entry["because"], entry["hint"], tuple(entry.get("harmless", ())))
        for name, entry in table["refused"].items()
    }
    return renamed, refused


def apply_aliases(root: Node, problems: list[Problem]) -> list[str]:
    """Move every familiar name in `root` to the field that it means, in place; the notices for the person
    come back.

    A name is taken at the top level or in the section of its field. A name whose field is given too, with
    another value, is added to `problems`.
    """
    renamed, refused = read_aliases()
    notices: list[str] = []
    known = all_fields()
    for section_path, section in _sections(root):
        assert isinstance(section.content, dict)
        notices += _accumulate(section, problems)
        for name in [name for name in section.content if (*section_path, name) not in known]:
            if name in renamed and (target := _target(renamed[name], section_path)):
                node = section.content.pop(name)
                notices.append(_move(root, renamed[name], node, section_path, target, problems))
            elif name in refused and section_path in ((), (refused[name].section,)):
                node = section.content.pop(name)
                notices += _refuse(refused[name], node, problems)
    return notices


def _sections(root: Node) -> list[tuple[KeyPath, Node]]:
    """The recipe and all its sections that were given, the outermost first."""
    found: list[tuple[KeyPath, Node]] = [((), root)]
    for path, field in all_fields().items():
        if field.section is not None and (node := find(root, path)) is not None and isinstance(node.content, dict):
            found.append((path, node))
    return found


def find(root: Node, path: KeyPath) -> Node | None:
    """The node at `path`, if every step of it is there."""
    node: Node | None = root
    for key in path:
        if node is None or not isinstance(node.content, dict):
            return None
        node = node.content.get(key)
    return node


def put(root: Node, path: KeyPath, node: Node) -> bool:
    """Set the node at `path`, making sections on the way; False when something else than a section stands
    there.
    """
    for key in path[:-1]:
        assert isinstance(root.content, dict)
        inner = root.content.get(key)
        if inner is None or (isinstance(inner.content, Scalar) and inner.content.kind == "null"):
            inner = root.content[key] = Node({}, node.where, node.key_where)
        if not isinstance(inner.content, dict):
            return False
        root = inner
    assert isinstance(root.content, dict)
    root.content[path[-1]] = node
    return True


def _target(alias: Alias, section_path: KeyPath) -> KeyPath | None:
    if section_path == ():
        return alias.targets[0]
    return next((target for target in alias.targets if target[:-1] == section_path), None)


def _move(root: Node, alias: Alias, node: Node, section_path: KeyPath, target: KeyPath, problems: list[Problem]) -> str:
    ours = ".".join(target)
    written = node.shown()
    node.alias = alias.name
    if isinstance(node.content, Scalar) and node.content.text.lower() in alias.values:
        value = alias.values[node.content.text.lower()]
        node.content = Scalar("null", "null") if value is None else Scalar(str(value), "str")
    there = find(root, target)
    if there is not None and there.plain() != node.plain():
        text = f"`{alias.name}: {written}` and `{ours}: {there.shown()}` (at {there.where}) name one thing"
        problems.append(Problem(node.key_where, text, f"keep `{ours}` and remove `{alias.name}`"))
    elif not put(root, target, node):
        above = ".".join(target[:-1])
        text = f"`{alias.name}` is `{ours}` here, but `{above}` is not a section"
        problems.append(Problem(node.key_where, text, f"write `{target[-1]}` below `{above}:`"))
    if alias.name == target[-1]:
        notice = f"`{alias.name}` stands under `{'.'.join(target[:-1])}` here"
    elif node.shown() != written:
        notice = f"`{alias.name}: {written}` is called `{ours}: {node.shown()}` here"
    else:
        notice = f"`{alias.name}` is called `{ours}` here"
    return f"{notice}; {alias.note}" if alias.note else notice


def _refuse(refusal: Refusal, node: Node, problems: list[Problem]) -> list[str]:
    if node.shown().lower() in refusal.harmless:
        return [f"`{refusal.name}: {node.shown()}` is not needed here: {refusal.because}"]
    text = f"`{refusal.name}` has no field here: {refusal.because}"
    problems.append(Problem(node.key_where, text, refusal.hint))
    return []


def _accumulate(section: Node, problems: list[Problem]) -> list[str]:
    """`per_device_train_batch_size` times `gradient_accumulation_steps` is what we call the batch size."""
    assert isinstance(section.content, dict)
    per_device, steps = section.content.get(_PER_DEVICE), section.content.get(_ACCUMULATION)
    if per_device is None or steps is None:
        return []
    first, second = per_device.plain(), steps.plain()
    if not (isinstance(first, int) and isinstance(second, int) and min(first, second) >= 1):
        return []
    del section.content[_ACCUMULATION]
    product = first * second
    per_device.content = Scalar(str(product), "int")
    return [f"`{_PER_DEVICE}: {first}` times `{_ACCUMULATION}: {second}` is `training.batch_size: {product}` here"]
