"""The two demos: recipes and real documents that come with the package, walked through all five stages."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from modelyard.recipe.load import load_recipe
from modelyard.workflow.stage import Listeners, teller
from modelyard.workflow.stages import evaluate, export, run, train

CUT_TOKENS = 512
LINEAR_BASELINE = "tfidf-logistic-regression"


def run_demo(
    name: str,
    folder: Path,
    *,
    overrides: Sequence[str] = (),
    overwrite: bool = False,
    listeners: Listeners = (),
) -> dict[str, Any]:
    """Run the demo `name` (``sentiment`` or ``long-documents``); returns the content of ``metrics.json``."""
    with as_file(files("modelyard") / "demos" / name) as demo:
        recipe = load_recipe(demo / "recipe.yaml", overrides).recipe
        if name != "long-documents":
            return run(recipe, folder, overwrite=overwrite, listeners=listeners)
        return _long_documents(demo / "recipe.yaml", folder, overrides, overwrite, listeners)


def _long_documents(
    recipe_file: Path, folder: Path, overrides: Sequence[str], overwrite: bool, listeners: Listeners
) -> dict[str, Any]:
    """The same model twice, on whole documents and cut, judged on the same test examples in one report."""
    cut_folder = folder.with_name(f"{folder.name}-cut-{CUT_TOKENS}")
    cut = load_recipe(recipe_file, [*overrides, f"design.max_length={CUT_TOKENS}", "evaluation.baseline=none"]).recipe
    whole = load_recipe(recipe_file, overrides).recipe
    tell = teller(listeners)
    for recipe, target, text in (
        (cut, cut_folder, f"first the same model on documents cut at {CUT_TOKENS} tokens"),
        (whole, folder, "now on whole documents"),
    ):
        tell("result", text=text)
        train(
            recipe,
            target,
            resume=(target / "manifest.json").exists(),
            overwrite=overwrite,
            listeners=listeners,
        )
    evaluate(cut_folder, listeners=listeners)
    metrics = evaluate(folder, beside={f"cut at {CUT_TOKENS} tokens": cut_folder}, listeners=listeners)
    export(folder, listeners=listeners)
    linear = next((each for each in metrics["comparisons"] if each["b"] == LINEAR_BASELINE), None)
    if linear is not None and not (linear["shown"] and linear["difference"] > 0):
        tell(
            "result",
            text="the Transformer does not beat the linear baseline here; far more documents would change that, or a "
            "question whose answer lies in the order of words (docs/experiments.md)",
        )
    return metrics
