"""The five stages in order: each looks whether its inputs changed, works, and records what it made from what.

    prepare → plan → train → evaluate → export → serve

`run` does all of them. The key of a stage is the SHA-256 of its inputs: the data's fingerprint, the recipe's sections
as resolved, the model files before it. A stage whose key and files are unchanged is skipped, and an event says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from modelyard.deployment.app import create_app
from modelyard.deployment.bundle import Bundle
from modelyard.deployment.server import serve as serve_app
from modelyard.errors import InputError
from modelyard.recipe.load import load_recipe as read_recipe
from modelyard.recipe.schema import Recipe
from modelyard.runs.folder import RunFolder
from modelyard.workflow.ground import load_engine
from modelyard.workflow.judging import judge_run, require_trained
from modelyard.workflow.learning import prepare, train_run
from modelyard.workflow.planning import plan_recipe
from modelyard.workflow.shipping import ship_run
from modelyard.workflow.stage import Listeners, Stage, teller, working
from modelyard.workflow.use import open_bundle

__all__ = ["Listeners", "evaluate", "export", "load_recipe", "plan", "prepare", "run", "serve", "train"]


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file, with ``section.key=value`` overrides.

    Raises RecipeError with every problem and its place.
    """
    return read_recipe(path, overrides).recipe


def plan(recipe: Recipe, *, device: str = "auto", listeners: Listeners = ()) -> dict[str, Any]:
    """Stages 1 and 2 without a run: the model's size, what it needs of a device, and how it would be trained there.

    device: ``auto`` (as the recipe says), one of this machine, one of the catalogue (``t4``), or a memory (``24GB``).
    Raises InputError for a device that is not known.
    """
    ground = prepare(recipe, listeners=listeners)
    with Stage("design", teller(listeners)) as stage:
        return plan_recipe(ground, load_engine(recipe.environment.framework), device, stage)


def train(
    recipe: Recipe,
    folder: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    listeners: Listeners = (),
) -> RunFolder:
    """Stages 1 to 3: the best model in ``model/`` of the run's folder.

    Raises InputError when the folder holds a run already, unless `resume` (go on with it) or `overwrite`.
    """
    run_folder = RunFolder(Path(folder))
    if run_folder.exists() and not (resume or overwrite):
        raise InputError(
            f"{run_folder.path} already holds a run",
            hint="go on with it with --resume, take another folder with --run FOLDER, or remove it with --overwrite",
        )
    with working(run_folder, listeners, overwrite=overwrite) as log:
        train_run(recipe, run_folder, log, listeners, resume=resume)
    return run_folder


def evaluate(
    folder: Path | str, *, beside: Mapping[str, Path] | None = None, listeners: Listeners = ()
) -> dict[str, Any]:
    """Stage 4: ``evaluation/`` of a trained run; returns the content of ``metrics.json``.

    beside: other evaluated runs on the same test examples, by the name they get in the report.
    """
    run_folder = RunFolder.open(Path(folder))
    with working(run_folder, listeners) as log:
        recipe = read_recipe(run_folder.recipe).recipe
        return judge_run(recipe, run_folder, require_trained(run_folder), log, listeners, beside or {})


def export(folder: Path | str, *, to: Path | None = None, listeners: Listeners = ()) -> Bundle:
    """Stage 5: the bundle of an evaluated run, in ``bundle/`` or in `to`.

    Raises InputError when the exported model does not answer as the trained one does.
    """
    run_folder = RunFolder.open(Path(folder))
    with working(run_folder, listeners) as log:
        recipe = read_recipe(run_folder.recipe).recipe
        model_key = require_trained(run_folder)
        if run_folder.stage_key("evaluation") is None:
            raise InputError(
                f"{run_folder.path} was not evaluated, and a bundle carries its metrics",
                hint=f"modelyard evaluate {run_folder.path}",
            )
        return ship_run(recipe, run_folder, model_key, log, to or run_folder.bundle)


def serve(
    folder: Path | str,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], Any] = lambda url: None,
) -> None:
    """Serve a run or a bundle until stopped; `on_ready` is told the address once requests are taken."""
    bundle, predictor = open_bundle(Path(folder))
    app = create_app(predictor, bundle.info)
    serve_app(app, host=host, port=port, on_ready=on_ready)


def run(recipe: Recipe, folder: Path | str, *, overwrite: bool = False, listeners: Listeners = ()) -> dict[str, Any]:
    """All five stages; returns the content of ``metrics.json``. What did not change since the last time is skipped."""
    run_folder = RunFolder(Path(folder))
    with working(run_folder, listeners, overwrite=overwrite) as log:
        model_key = train_run(recipe, run_folder, log, listeners, resume=run_folder.exists())
        resolved = read_recipe(run_folder.recipe).recipe
        metrics = judge_run(resolved, run_folder, model_key, log, listeners, {})
        ship_run(resolved, run_folder, model_key, log, run_folder.bundle)
    return metrics
