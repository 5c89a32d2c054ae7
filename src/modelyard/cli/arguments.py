"""Arguments that several commands share, and what they mean."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from modelyard.errors import UsageError

if TYPE_CHECKING:
    from modelyard.cli.show import Show
    from modelyard.recipe.schema import Recipe
    from modelyard.runs.events import Listener


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """RECIPE and ``--set``."""
    parser.add_argument("recipe", type=Path, metavar="RECIPE", help="a recipe (YAML file)")
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """``--set SECTION.FIELD=VALUE``."""
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        dest="overrides",
        metavar="SECTION.FIELD=VALUE",
        help="change one value of the recipe; may be repeated",
    )


def add_run_folder(parser: argparse.ArgumentParser) -> None:
    """``--run FOLDER``."""
    parser.add_argument(
        "--run",
        type=Path,
        metavar="FOLDER",
        help="where the run goes (runs/ and the recipe's name if not given)",
    )


def add_tensorboard(parser: argparse.ArgumentParser) -> None:
    """``--tensorboard``."""
    parser.add_argument(
        "--tensorboard",
        action="store_true",
        help="also write the run's tensorboard/ folder (extra tensorboard)",
    )


@contextmanager
def listening(arguments: argparse.Namespace, folder: Path, show: Show) -> Iterator[tuple[Listener, ...]]:
    """Who is told of events: the screen, and TensorBoard if asked for."""
    if not arguments.tensorboard:
        yield (show,)
        return
    from modelyard.workflow.tensorboard import TensorBoard

    board = TensorBoard(folder / "tensorboard")
    try:
        yield (show, board)
    finally:
        board.close()


def read_recipe(arguments: argparse.Namespace, show: Show | None) -> Recipe:
    """Load the recipe with its overrides; names that are called otherwise here are pointed out."""
    from modelyard.recipe.load import load_recipe

    loaded = load_recipe(arguments.recipe, arguments.overrides)
    if show is not None:
        for notice in loaded.notices:
            show({"kind": "note", "text": notice})
    return loaded.recipe


def run_folder(arguments: argparse.Namespace) -> Path:
    """The run's folder: as given, or ``runs/<name of the recipe>``."""
    if arguments.run is not None:
        return Path(arguments.run)
    stem = Path(arguments.recipe).stem
    if not stem or stem.startswith("."):
        raise UsageError(f"{arguments.recipe} gives no name for the run", hint="--run runs/NAME")
    return Path("runs") / stem
