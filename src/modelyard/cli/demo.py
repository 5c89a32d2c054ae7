"""``modelyard demo``: the five stages on real documents that come with the package."""

from __future__ import annotations

import argparse
from pathlib import Path

from modelyard.cli.arguments import add_overrides
from modelyard.cli.run import end


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Which demo, where it goes, and whether to try the result in a browser."""
    parser.add_argument(
        "name",
        nargs="?",
        default="sentiment",
        choices=("sentiment", "long-documents"),
        help="sentiment of short film reviews (the default), or which novel a chapter is from",
    )
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="where the run goes (runs/demo-NAME if not given)")
    parser.add_argument("--resume", action="store_true", help="go on with what was begun, which is the default here")
    parser.add_argument("--overwrite", action="store_true", help="start anew if it ran before")
    parser.add_argument("--open", action="store_true", help="serve the result and open its page at the end")
    add_overrides(parser)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo and say where the report is."""
    from modelyard.cli.show import Show
    from modelyard.workflow.demo import run_demo

    folder = arguments.run or Path("runs") / f"demo-{arguments.name}"
    with Show(arguments.json) as show:
        metrics = run_demo(
            arguments.name,
            folder,
            overrides=arguments.overrides,
            overwrite=arguments.overwrite,
            listeners=(show,),
        )
        end(arguments, show, folder, metrics)
    return 0
