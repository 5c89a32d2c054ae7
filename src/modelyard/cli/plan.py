"""``modelyard plan RECIPE``: the model's size and how it will be trained here."""

from __future__ import annotations

import argparse
import json

from modelyard.cli.arguments import add_recipe, read_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE."""
    add_recipe(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan."""
    from modelyard.cli.show import Show
    from modelyard.workflow.stages import plan

    with Show(arguments.json) as show:
        recipe = read_recipe(arguments, show)
        value = plan(recipe, listeners=(show,))
    if arguments.json:
        print(json.dumps(value, ensure_ascii=False))
    return 0
