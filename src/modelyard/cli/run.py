"""``modelyard run RECIPE``: all five stages; a stage whose inputs did not change is skipped."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from modelyard.cli.arguments import (
    add_recipe,
    add_run_folder,
    add_tensorboard,
    listening,
    read_recipe,
    run_folder,
)
from modelyard.cli.messages import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, the run's folder, and what to do with one that is there."""
    add_recipe(parser)
    add_run_folder(parser)
    add_tensorboard(parser)
    parser.add_argument("--overwrite", action="store_true", help="remove the run in that folder first")
    parser.add_argument("--open", action="store_true", help="serve the result and open its page at the end")


def run(arguments: argparse.Namespace) -> int:
    """Run all stages and say where the report is."""
    from modelyard.cli.show import Show
    from modelyard.workflow.stages import run as run_stages

    with Show(arguments.json) as show:
        recipe = read_recipe(arguments, show)
        folder = run_folder(arguments)
        with listening(arguments, folder, show) as listeners:
            metrics = run_stages(recipe, folder, overwrite=arguments.overwrite, listeners=listeners)
        end(show, folder)
    if arguments.json:
        print(json.dumps({"run": str(folder), "report": str(folder / "evaluation/report.html"), "metrics": metrics}))
    if arguments.open:
        serve_and_open(folder)
    return 0


def end(show: object, folder: Path) -> None:
    """The last lines of a run: the report, and how to try the model."""
    from modelyard.cli.show import Show

    assert isinstance(show, Show)
    width = max(len(say(key, show.language)) for key in ("report", "try"))
    show.line()
    show.line(f"{say('report', show.language):<{width}}  {folder / 'evaluation' / 'report.html'}", style="stage")
    show.line(f"{say('try', show.language):<{width}}  modelyard serve {folder} --open", style="stage")


def serve_and_open(folder: Path) -> None:
    """Serve the run on this machine and open the page in the person's browser; returns when it is stopped."""
    import webbrowser

    from modelyard.workflow.stages import serve

    serve(folder, on_ready=lambda url: (print(url, flush=True), webbrowser.open(url)))
