"""``modelyard data check RECIPE``: what the data are, and what is wrong with them, before anything is trained."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from modelyard.cli.arguments import add_recipe, read_recipe
from modelyard.cli.messages import say

if TYPE_CHECKING:
    from modelyard.cli.show import Show
    from modelyard.data.check import DataReport, LengthReport

BAR_WIDTH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``check`` and RECIPE."""
    parser.add_argument("action", choices=("check",), help="what to do with the data")
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the report of the check."""
    from modelyard.cli.show import Show
    from modelyard.workflow.stages import prepare

    with Show(arguments.json) as show:
        recipe = read_recipe(arguments, show)
        report = prepare(recipe, listeners=(show,)).prepared.report
        show_report(show, report)
    if arguments.json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    return 0


def show_report(show: Show, report: DataReport) -> None:
    """Classes, lengths and warnings, as a person reads them."""
    show.line()
    width = max(len(label) for label in report.labels)
    for name, counts in report.classes.items():
        show.line(say(f"split.{name}", show.language), style="stage")
        total = max(1, sum(counts.values()))
        for label in report.labels:
            count = counts.get(label, 0)
            bar = "█" * round(BAR_WIDTH * count / total)
            show.line(f"  {label:<{width}}  {count:>8,}  {count / total:>6.1%}  {bar}")
    for name, lengths in report.lengths.items():
        show.line(say("lengths", show.language, split=say(f"split.{name}", show.language)), style="stage")
        show_lengths(show, lengths, report.max_length)
    show.line()
    for warning in report.warnings:
        show({"kind": "note", "text": warning})
    if not report.warnings:
        show.line("  " + say("clean", show.language), style="good")


def show_lengths(show: Show, lengths: LengthReport, max_length: int) -> None:
    """Quantiles, a histogram, and what the chosen length cuts."""
    show.line("  " + "  ".join(f"{name}%: {value:,}" for name, value in lengths.quantiles.items() if name != "max"))
    edges, counts = lengths.histogram["edges"], lengths.histogram["counts"]
    most = max(max(counts), 1)
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        if count:
            show.line(f"  {low:>6,}–{high - 1:<6,} {count:>8,}  {'█' * max(1, round(BAR_WIDTH * count / most))}")
    show.line(
        "  "
        + say(
            "cut",
            show.language,
            max_length=f"{max_length:,}",
            documents=f"{lengths.num_truncated:,}",
            share=f"{lengths.share_lost:.1%}",
        )
    )
