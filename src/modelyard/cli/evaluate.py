"""``modelyard evaluate RUN``: judge the trained model on the test set."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from modelyard.cli.messages import say
from modelyard.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, and other runs to show beside it."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        metavar="NAME=RUN",
        help="another evaluated run on the same test examples, compared in the report; may be repeated",
    )


def run(arguments: argparse.Namespace) -> int:
    """Evaluate and say where the report is."""
    from modelyard.cli.show import Show
    from modelyard.workflow.stages import evaluate

    beside: dict[str, Path] = {}
    for text in arguments.beside:
        name, sign, path = text.partition("=")
        if not sign or not name or not path:
            raise UsageError(f"--beside {text!r} is not NAME=RUN", hint='--beside "cut at 512"=runs/cut')
        beside[name] = Path(path)
    with Show(arguments.json) as show:
        metrics = evaluate(arguments.run_folder, beside=beside, listeners=(show,))
        show.line(
            f"\n{say('report', show.language)}  {arguments.run_folder / 'evaluation' / 'report.html'}",
            style="stage",
        )
    if arguments.json:
        print(json.dumps(metrics, ensure_ascii=False))
    return 0
