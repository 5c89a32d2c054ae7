"""``modelyard run RECIPE``: all five stages; a stage whose inputs did not change is skipped."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelyard.cli.arguments import (
    add_recipe,
    add_run_folder,
    add_tensorboard,
    listening,
    read_recipe,
    run_folder,
)
from modelyard.cli.messages import say

if TYPE_CHECKING:
    from modelyard.cli.show import Show


TYPED = "MODELYARD_TYPED"  # set by the hand-over: what was typed stands outside the environment that goes on


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RECIPE, the run's folder, and what to do with one that is there."""
    add_recipe(parser)
    add_run_folder(parser)
    add_tensorboard(parser)
    parser.add_argument("--resume", action="store_true", help="go on with what was begun, which is the default here")
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
        end(arguments, show, folder, metrics)
    return 0


def own_command() -> str:
    """What the person can type for this program: its name if the shell finds it, else where it stands."""
    if os.environ.get(TYPED):
        return os.environ[TYPED]
    if shutil.which("modelyard"):
        return "modelyard"
    beside = Path(sys.executable).parent / "modelyard"
    if not beside.exists():
        return f"{sys.executable} -m modelyard"
    return os.path.relpath(beside) if beside.is_relative_to(Path.cwd()) else str(beside)


def end(arguments: argparse.Namespace, show: Show, folder: Path, metrics: dict[str, Any]) -> None:
    """The end of a run: where the report is, how to try the model, and with ``--open`` the page itself."""
    report = folder / "evaluation" / "report.html"
    width = max(len(say(key, show.language)) for key in ("report", "try"))
    show.line()
    show.line(f"{say('report', show.language):<{width}}  {report}", style="stage")
    show.line(f"{say('try', show.language):<{width}}  {own_command()} serve {folder} --open", style="stage")
    if arguments.json:
        print(json.dumps({"run": str(folder), "report": str(report), "metrics": metrics}), flush=True)
    if arguments.open:
        import webbrowser

        from modelyard.workflow.stages import serve

        def ready(url: str) -> None:
            show.line(say("serving", show.language, name=folder, url=url))
            webbrowser.open(url)

        serve(folder, on_ready=ready)
