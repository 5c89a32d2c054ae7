"""``modelyard export RUN``: the bundle, compared with the trained model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from modelyard.cli.messages import say


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """RUN, and where the bundle goes."""
    parser.add_argument("run_folder", type=Path, metavar="RUN", help="folder of a trained run")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the bundle goes (RUN/bundle if not given)")


def run(arguments: argparse.Namespace) -> int:
    """Write the bundle."""
    from modelyard.cli.show import Show
    from modelyard.workflow.stages import export

    with Show(arguments.json) as show:
        bundle = export(arguments.run_folder, to=arguments.to, listeners=(show,))
        show.line("\n" + say("wrote", show.language, path=bundle.folder))
    if arguments.json:
        print(json.dumps({"bundle": str(bundle.folder)}))
    return 0
