"""``modelyard data check RECIPE``: what the data are, and what is wrong with them, before anything is trained."""

from __future__ import annotations

import argparse
import json

from modelyard.cli.arguments import add_recipe, read_recipe
from modelyard.cli.messages import say


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
        ground = prepare(recipe, listeners=(show,))
        report = ground.prepared.report
        for text in report.lines():
            show.line(text)
        for warning in report.warnings:
            show({"kind": "note", "text": warning})
        if not report.warnings:
            show.line(say("clean", show.language), style="good")
    if arguments.json:
        print(json.dumps(report.to_json(), ensure_ascii=False))
    return 0
