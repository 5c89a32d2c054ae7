"""Stage 4: the trained model on its test set, beside baselines and other runs, and the report of it all."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.batches import evaluation_batches
from modelyard.data.prepared import Split
from modelyard.deployment.bundle import INFO_FILE
from modelyard.engines.base import Predictor
from modelyard.errors import InputError
from modelyard.evaluation.evaluate import evaluate as judge
from modelyard.evaluation.report import ReportData, write_report
from modelyard.recipe.load import load_recipe
from modelyard.recipe.schema import Recipe
from modelyard.runs.events import EventLog, read_events
from modelyard.runs.files import file_sha256, value_sha256
from modelyard.runs.folder import RunFolder
from modelyard.tasks.text_classification import TASKS
from modelyard.workflow.ground import examples_of_run, load_engine, micro_tokens
from modelyard.workflow.stage import Listeners, Stage, teller


def require_trained(run_folder: RunFolder) -> str:
    changed = run_folder.changed_artefact("training")
    if run_folder.stage_key("training") is None:
        raise InputError(
            f"{run_folder.path} has no trained model: its training did not end",
            hint=f"modelyard train {run_folder.recipe} --run {run_folder.path} --resume",
        )
    if changed is not None:
        raise InputError(
            f"{run_folder.path / changed} is missing or was changed since the training wrote it",
            hint=f"train again: modelyard train {run_folder.recipe} --run runs/NAME",
        )
    return run_folder.model_key()


def judge_run(
    recipe: Recipe,
    run_folder: RunFolder,
    model_key: str,
    log: EventLog,
    listeners: Listeners,
    beside: Mapping[str, Path],
) -> dict[str, Any]:
    others = {name: RunFolder.open(path).evaluation / "predictions.parquet" for name, path in beside.items()}
    key = value_sha256(
        {
            "model": model_key,
            "data": run_folder.read_manifest()["data"],
            "evaluation": recipe.evaluation.model_dump(mode="json"),
            "others": {name: file_sha256(path) for name, path in others.items()},
        }
    )
    metrics_file = run_folder.evaluation / "metrics.json"
    if run_folder.stage_is_current("evaluation", key):
        log.append("stage", name="evaluation", state="skipped", reason="the same model, test examples and settings")
        return dict(json.loads(metrics_file.read_text(encoding="utf-8")))
    prepared = examples_of_run(recipe, run_folder.model)
    name = "test" if prepared.test is not None else "validation"
    split = prepared.splits.get(name)
    if split is None:
        raise InputError(
            "there are no test examples to judge the model on",
            hint="give data.test a file, or --set data.split.test=0.2, and train in a new run folder",
        )
    with Stage("evaluation", log.append) as stage:
        engine = load_engine(recipe.environment.framework)
        predictor = engine.predictor(run_folder.model, recipe.environment.device)
        clock = _Clock()
        evaluation = judge(
            clock.timed(_outputs(predictor, split, micro_tokens(recipe), prepared.pad_token_id, listeners)),
            split,
            prepared.train,
            prepared.labels,
            task=TASKS[recipe.task],
            options=recipe.evaluation,
            folder=run_folder.evaluation,
            cost=_cost(run_folder, split, clock),
            other_systems=others,
            split_name=name,
        )
        metrics = dict(evaluation.metrics)
        for sentence in (_accuracy_text(metrics), *evaluation.sentences):
            log.append("result", text=sentence)
        stage.text = f"judged on {metrics['n']:,} {name} examples"
    artefacts = {"metrics": metrics_file, "predictions": run_folder.evaluation / "predictions.parquet"}
    run_folder.record_stage("evaluation", key, artefacts)
    render_report(run_folder)
    return metrics


class _Clock:
    """Seconds spent inside an iterator, so that the time of its consumer is not counted."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, outputs: Iterator[Any]) -> Iterator[Any]:
        while True:
            started = time.perf_counter()
            try:
                value = next(outputs)
            except StopIteration:
                return
            finally:
                self.seconds += time.perf_counter() - started
            yield value


def _outputs(
    predictor: Predictor, split: Split, max_tokens: int, pad_token_id: int, listeners: Listeners
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
    tell, done = teller(listeners), 0
    for batch in evaluation_batches(split, max_tokens, pad_token_id):
        yield batch.rows, predictor.predict(batch).logits
        done += batch.num_examples
        tell("progress", what="evaluation", done=done, total=len(split))


def _cost(run_folder: RunFolder, split: Split, clock: _Clock) -> Mapping[str, Any]:
    plan_value = json.loads(run_folder.plan.read_text(encoding="utf-8"))
    return {
        "num_parameters": plan_value["model"]["num_parameters"],
        "training": plan_value.get("measured", {}),
    }


def _accuracy_text(metrics: Mapping[str, Any]) -> str:
    accuracy = metrics["systems"][0]["metrics"]["accuracy"]
    level = f"{metrics['confidence']:.0%}"
    return (
        f"accuracy {accuracy['value']:.3f} ({level} interval {accuracy['low']:.3f} to {accuracy['high']:.3f}, "
        f"n = {metrics['n']})"
    )


def metrics_summary(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """What a bundle says of its quality: each metric of the report with its interval, and the baselines'."""

    def measured(system: Mapping[str, Any]) -> dict[str, dict[str, float]]:
        values = {name: system["metrics"][name] for name in metrics["metrics"]}
        return {name: {key: value[key] for key in ("value", "low", "high")} for name, value in values.items()}

    return {
        "num_examples": metrics["n"],
        "confidence": metrics["confidence"],
        "metrics": measured(metrics["systems"][0]),
        "baselines": {
            system["name"]: measured(system) for system in metrics["systems"] if system["kind"] == "baseline"
        },
    }


def render_report(run_folder: RunFolder) -> Path:
    """Write ``report.html`` from what the run's folder holds."""

    def read(path: Path) -> dict[str, Any]:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}

    manifest, plan = run_folder.read_manifest(), read(run_folder.plan)
    report = ReportData(
        name=run_folder.path.resolve().name,
        metrics=read(run_folder.evaluation / "metrics.json"),
        recipe=load_recipe(run_folder.recipe).recipe.model_dump(mode="json"),
        reasons=plan.pop("reasons", {}),
        data=read(run_folder.data / "report.json"),
        plan=plan,
        events=list(read_events(run_folder.events)),
        parity=read(run_folder.bundle / INFO_FILE).get("parity"),
        versions=manifest.get("versions", {}),
        created=manifest.get("created", ""),
    )
    return write_report(report, run_folder.report)
