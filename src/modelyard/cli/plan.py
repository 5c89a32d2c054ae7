"""``modelyard plan RECIPE``: what a run needs of a device before it starts, and what else would do."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelyard.cli.arguments import add_recipe, read_recipe
from modelyard.cli.plan_messages import say

if TYPE_CHECKING:
    from modelyard.cli.page import Page

TABLE_WIDTH = 80  # columns, where it is not a terminal that says its own
LONGEST_BAR = 30
SHORTEST_BAR = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE and the device."""
    add_recipe(parser)
    parser.add_argument(
        "--device",
        default="auto",
        metavar="DEVICE",
        help="auto (as the recipe says), cpu, cuda:N, a device such as t4, a10, l4, rtx-4090, a100-40gb, h100, "
        "or a memory such as 24GB",
    )


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from modelyard.cli.main import language
    from modelyard.cli.page import Page
    from modelyard.cli.show import Show
    from modelyard.workflow.stages import plan

    with Show(arguments.json) as listener:
        recipe = read_recipe(arguments, listener)
        value = plan(recipe, device=arguments.device, listeners=(listener,))
    if arguments.json:
        print(json.dumps(value, ensure_ascii=False))
    else:
        page = Page()
        page.line()
        show(page, value, language())
    return 0


def show(page: Page, value: Mapping[str, Any], spoken: str) -> None:
    """The verdict, the facts, the memory, and other ways."""
    memory = value["memory"]
    if "problem" in memory:
        page.line(say("unknown", spoken), "warning")
        page.line(say("untraceable", spoken, operation=memory["operation"]))
    else:
        page.line(verdict(value, spoken), "bold green" if memory["fits"] else "error")
        if memory["num_retries"]:
            page.line(say("retries", spoken), "warning")
    page.line()
    _show_facts(page, value, spoken)
    if "problem" in memory:
        return
    page.line()
    for line in table(memory, value["device"]["kind"], spoken, page.width or TABLE_WIDTH):
        page.command(line) if line.startswith(" ") else page.line(line)
    page.line()
    for note in _notes(value, spoken):
        page.line(note, "dim")
    _show_alternatives(page, value, spoken)


def verdict(value: Mapping[str, Any], spoken: str) -> str:
    """One line: whether it fits, and by how much."""
    from modelyard.cli.doctor_machine import gigabytes

    memory, device = value["memory"], value["device"]
    needed, usable = memory["needed_bytes"], memory["usable_bytes"]
    nameless = device["kind"] == "cuda" and not device["here"] and device["known_as"] is None
    name = say("device.a_gpu", spoken) if nameless else device["description"]
    numbers = {"needed": gigabytes(needed), "usable": gigabytes(usable), "device": name}
    if memory["fits"]:
        return say("fits", spoken, share=f"{needed / usable:.0%}", **numbers)
    return say("fits_not", spoken, missing=gigabytes(max(0, needed - usable)), **numbers)


def _show_facts(page: Page, value: Mapping[str, Any], spoken: str) -> None:
    from modelyard.cli.page import cells

    groups = [(say(f"group.{name}", spoken), lines) for name, lines in _facts(value, spoken) if lines]
    width = max(cells(label) for label, _ in groups)
    for label, lines in groups:
        page.labelled(label, [(line, "") for line in lines], width, "dim")


def _facts(value: Mapping[str, Any], spoken: str) -> list[tuple[str, list[str]]]:
    memory, time = value["memory"], value["time"]
    traced = "problem" not in memory
    model = [value["model"]["summary"]]
    if traced:
        total, trainable = memory["num_parameters"], memory["num_trainable_parameters"]
        model.append(say("parameters", spoken, total=f"{total:,}", trainable=f"{trainable:,}"))
    work = []
    if time["flops_per_step"]:
        token, step = scaled(time["flops_per_token"]), scaled(time["flops_per_step"])
        work.append(say("flops", spoken, token=token, step=step))
    return [
        ("model", model),
        ("work", work),
        ("device", [_device(value, spoken)] if traced else [value["device"]["description"]]),
        ("plan", [_plan(value, spoken)] if traced else []),
        ("time", _time(value, spoken)),
        ("energy", _energy(time, spoken)),
        ("cost", _costs(time, spoken)),
    ]


def _device(value: Mapping[str, Any], spoken: str) -> str:
    from modelyard.cli.doctor_machine import gigabytes

    memory = value["memory"]
    usable, total = gigabytes(memory["usable_bytes"]), gigabytes(memory["device_bytes"])
    if memory["usable_bytes"] == memory["device_bytes"] and not value["device"]["known_as"]:
        return say("device.memory", spoken, total=total)
    return say("device.usable", spoken, name=value["device"]["description"], usable=usable, total=total)


def _plan(value: Mapping[str, Any], spoken: str) -> str:
    memory = value["memory"]
    batch = memory["micro_batch"]
    text = say(
        "plan.batch",
        spoken,
        precision=value["precision"],
        examples=batch["examples"],
        tokens=f"{batch['tokens']:,}",
    )
    count = memory["micro_batches_a_step"]
    text += say("comma", spoken) + say("plan.one" if count == 1 else "plan.many", spoken, count=count)
    if value["activation_checkpointing"]:
        text += say("comma", spoken) + say("plan.checkpointing", spoken)
    return text


def _time(value: Mapping[str, Any], spoken: str) -> list[str]:
    time = value["time"]
    if time["step_seconds"] is None:
        return [say("time.unknown", spoken, precision=value["precision"])]
    return [
        say("time.step", spoken, step=interval(time["step_seconds"], spoken)),
        say("time.epoch", spoken, epoch=interval(time["epoch_seconds"], spoken)),
        say("time.run", spoken, run=interval(time["run_seconds"], spoken), steps=f"{time['num_steps']:,}"),
        say(f"time.{time['basis']}", spoken),
    ]


def _energy(time: Mapping[str, Any], spoken: str) -> list[str]:
    energy = time["energy_kilowatt_hours"]
    if energy is None:
        return []
    if energy["high"] < 0.01:
        return [say("energy.little", spoken)]
    numbers = {name: f"{number:.2g}" for name, number in energy.items()}
    return [say("energy", spoken, energy=say("range", spoken, **numbers))]


def _costs(time: Mapping[str, Any], spoken: str) -> list[str]:
    lines = []
    for cost in time["costs"]:
        dollars = say("range", spoken, **{name: f"${number:,.2f}" for name, number in cost["dollars"].items()})
        rate = f"${cost['dollars_per_hour']:,.2f}"
        if cost["dollars"]["high"] < 0.01:
            dollars = "< $0.01"
        lines.append(
            say("cost", spoken, dollars=dollars, provider=cost["provider"], rate=rate, date=cost["date"])
            + say("comma", spoken)
            + cost["source"]
        )
    return lines


def table(memory: Mapping[str, Any], kind: str, spoken: str, width: int) -> list[str]:
    """Bytes by cause, with a bar for training's share; every line is at most `width` columns."""
    from modelyard.cli.doctor_machine import gigabytes
    from modelyard.cli.page import cells, padded

    training, evaluation = memory["training"], memory["evaluation"]
    outside = "context" if kind == "cuda" else "process"
    labels = {cause: say(f"cause.{outside if cause == 'runtime' else cause}", spoken) for cause in training}
    heads = [say("training", spoken), *([say("evaluation", spoken)] if evaluation else [])]
    label_width = max(cells(text) for text in (*labels.values(), say("total", spoken)))
    column = max(8, *map(cells, heads))
    bar_width = max(SHORTEST_BAR, min(LONGEST_BAR, width - label_width - (column + 1) * len(heads) - 3))
    total = sum(training.values())

    def row(label: str, bar: str, numbers: list[str]) -> str:
        right = "".join(" " * (column + 1 - cells(text)) + text for text in numbers)
        return f"{padded(label, label_width)}  {padded(bar, bar_width)}{right}".rstrip()

    lines = [row(say("memory", spoken), "", heads)]
    for cause, num_bytes in training.items():
        other = evaluation[cause] if evaluation else 0
        if num_bytes or other:
            bar = "█" * round(bar_width * num_bytes / total)
            numbers = [_size(num_bytes), *([_size(other)] if evaluation else [])]
            lines.append(row(labels[cause], bar, numbers))
    sums = [gigabytes(total), *([gigabytes(sum(evaluation.values()))] if evaluation else [])]
    return [*lines, row(say("total", spoken), "", sums)]


def _size(num_bytes: int) -> str:
    from modelyard.cli.doctor_machine import gigabytes

    return gigabytes(num_bytes) if num_bytes else "0"


def _notes(value: Mapping[str, Any], spoken: str) -> list[str]:
    memory, device = value["memory"], value["device"]
    notes = []
    if device["kind"] == "cpu":
        notes.append(say("note.processor", spoken))
    else:
        notes.append(say("note.modelled", spoken))
        if device["usable_is_estimate"]:
            notes.append(say("note.usable", spoken))
        if device["here"]:
            notes.append(say("note.total", spoken))
    if memory["method"] != "traced":
        notes.append(say("note.scaled", spoken, examples=memory["traced_examples"]))
    return notes


def _show_alternatives(page: Page, value: Mapping[str, Any], spoken: str) -> None:
    fits = value["memory"]["fits"]
    found = value["alternatives"]
    if not found and fits:
        return
    page.line()
    page.line(say("other.fits" if fits else "other.fits_not", spoken), "bold")
    if not any(each["fits"] for each in found):
        page.line(say("other.none", spoken), "warning")
    for number, each in enumerate(found, 1):
        lines = [(_what(each, spoken), "bold"), *((line, "") for line in _consequences(each, value, spoken))]
        page.labelled(f"{number}", lines, 2, "good" if each["fits"] else "dim")
        page.command(_typed(each), 2 if page.narrow else 4)


def _what(each: Mapping[str, Any], spoken: str) -> str:
    from modelyard.cli.doctor_machine import gigabytes

    values = dict(each["values"])
    if each["kind"] == "device":
        values["size"] = gigabytes(values["bytes"])
    return say(f"other.{each['kind']}", spoken, **values)


def _consequences(each: Mapping[str, Any], value: Mapping[str, Any], spoken: str) -> list[str]:
    """What it changes in what is learned, and what it takes."""
    from modelyard.cli.doctor_machine import gigabytes

    share = f"{each['values'].get('share_lost', 0.0):.0%}"
    needed = gigabytes(each["needed_bytes"])
    missing = max(0, each["needed_bytes"] - value["memory"]["usable_bytes"])
    parts = [
        say("needs.most" if each["method"] == "estimated" else "needs", spoken, needed=needed),
        say("fit", spoken) if each["fits"] else say("fit_not", spoken, missing=gigabytes(missing)),
    ]
    if each["seconds"]:
        parts.append(say("run", spoken, run=interval(each["seconds"], spoken)))
    return [say(f"effect.{each['effect']}", spoken, share=share), say("comma", spoken).join(parts)]


def _typed(each: Mapping[str, Any]) -> str:
    return f"--device {each['device']}" if each["device"] else " ".join(f"--set {one}" for one in each["settings"])


def scaled(number: float) -> str:
    """``1.2e12`` as ``1.2 T``."""
    for unit, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def duration(seconds: float, spoken: str) -> str:
    """In the largest unit of which there are at least two."""
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= 2 * size:
            return say(f"{unit}", spoken, number=f"{seconds / size:.3g}")
    return say("second", spoken, number=f"{seconds:.2g}" if seconds < 10 else f"{seconds:.0f}")


def interval(value: Mapping[str, float], spoken: str) -> str:
    """``2.1 h (1.3 h to 2.9 h)``."""
    return say("range", spoken, **{name: duration(number, spoken) for name, number in value.items()})
