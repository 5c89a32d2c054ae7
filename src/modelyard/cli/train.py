"""``modelyard train RECIPE``: data, design and training."""

from __future__ import annotations

import argparse
import json

from modelyard.cli.arguments import (
    add_recipe,
    add_run_folder,
    add_tensorboard,
    listening,
    read_recipe,
    run_folder,
)
from modelyard.cli.run import own_command


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, the run's folder, and how to go on with one that is there."""
    add_recipe(parser)
    add_run_folder(parser)
    add_tensorboard(parser)
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in that folder from its newest checkpoint"
    )
    parser.add_argument("--overwrite", action="store_true", help="remove the run in that folder first")


def run(arguments: argparse.Namespace) -> int:
    """Train; 130 when stopped with a checkpoint."""
    from modelyard.cli.show import Show
    from modelyard.workflow.stages import train

    with Show(arguments.json) as show:
        recipe = read_recipe(arguments, show)
        folder = run_folder(arguments)
        with listening(arguments, folder, show) as listeners:
            trained = train(recipe, folder, resume=arguments.resume, overwrite=arguments.overwrite, listeners=listeners)
        show.line(f"\n{own_command()} evaluate {folder}")
        if arguments.json:
            print(json.dumps({"run": str(trained.path), "training": trained.read_manifest()["stages"]["training"]}))
    return 0
