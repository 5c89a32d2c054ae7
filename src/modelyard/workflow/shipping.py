"""Stage 5: the bundle. It is written only when the files answer as the trained model does."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from modelyard.data.batches import batch_of_ids
from modelyard.data.prepared import Split
from modelyard.deployment.bundle import Bundle, load_bundle, write_bundle
from modelyard.deployment.parity import ParityRecord, check_parity
from modelyard.engines.base import Batch
from modelyard.recipe.schema import Recipe
from modelyard.runs.events import EventLog
from modelyard.runs.files import value_sha256
from modelyard.runs.folder import RunFolder
from modelyard.workflow.ground import examples_of_run, load_engine
from modelyard.workflow.judging import metrics_summary, render_report
from modelyard.workflow.stage import Stage

# Padded tokens of one batch of the comparison: the library's own attention keeps T x window numbers a head.
PARITY_TOKENS = 8192


def ship_run(recipe: Recipe, run_folder: RunFolder, model_key: str, log: EventLog, folder: Path) -> Bundle:
    inside = folder == run_folder.bundle
    key = value_sha256(
        {
            "model": model_key,
            "evaluation": run_folder.stage_key("evaluation"),
            "deployment": recipe.deployment.model_dump(mode="json"),
        }
    )
    if inside and run_folder.stage_is_current("deployment", key):
        log.append("stage", name="deployment", state="skipped", reason="the same model, evaluation and settings")
        return load_bundle(folder)
    with Stage("deployment", log.append) as stage:
        prepared = examples_of_run(recipe, run_folder.model)
        split = prepared.test or prepared.validation or prepared.train
        record = _compare_exported(recipe, run_folder, prepared.pad_token_id, split)
        metrics = json.loads((run_folder.evaluation / "metrics.json").read_text(encoding="utf-8"))
        assert recipe.design.max_length is not None
        bundle = write_bundle(
            folder,
            model_folder=run_folder.model,
            labels=prepared.labels,
            max_length=recipe.design.max_length,
            remove=recipe.data.remove,
            task_name=recipe.task,
            limits=recipe.deployment,
            metrics_summary=metrics_summary(metrics),
            parity=record,
            versions=run_folder.read_manifest()["versions"],
            name=run_folder.path.resolve().name,
            examples=_examples(split),
        )
        stage.text = (
            f"bundle verified on {record.num_examples} examples of {record.shortest_tokens} to {record.longest_tokens} "
            f"tokens: largest difference of a logit {record.max_abs_difference:.1e}"
        )
    if inside:
        run_folder.record_stage("deployment", key, {"bundle": folder})
        render_report(run_folder)
    return bundle


def _compare_exported(recipe: Recipe, run_folder: RunFolder, pad_token_id: int, split: Split) -> ParityRecord:
    """Compare the files with the library's own classes, which know nothing of our attention, on real examples."""
    engine = load_engine(recipe.environment.framework)
    trained = engine.predictor(run_folder.model, recipe.environment.device)
    plain = engine.reference_predictor(run_folder.model, recipe.environment.device)
    batches = _spread_batches(split, pad_token_id)
    return check_parity(((batch, trained.predict(batch).logits) for batch in batches), plain)


def _spread_batches(split: Split, pad_token_id: int, num_batches: int = 4, num_examples: int = 64) -> list[Batch]:
    """Batches of neighbours in length, from the longest examples to the shortest."""
    rows = np.argsort(split.lengths, kind="stable")[::-1]
    size = max(1, min(num_examples, len(rows)) // num_batches)
    starts = np.unique(np.linspace(0, max(0, len(rows) - size), num_batches).astype(int))
    chosen = [rows[start : start + size] for start in starts]
    # one very long example says as much as sixteen of them, in a sixteenth of the time
    chosen = [part[: max(1, PARITY_TOKENS // int(split.lengths[part[0]]))] for part in chosen]
    return [batch_of_ids([split.input_ids(int(row)).tolist() for row in part], pad_token_id) for part in chosen]


def _examples(split: Split) -> list[str]:
    """Two short texts of the split for the page, as they are."""
    rows = np.argsort(split.lengths, kind="stable")[: max(1, len(split) // 2)]
    texts = [split.text(int(row)) for row in rows[-2:]]
    return [text for text in texts if len(text) <= 2000]
