"""Stages 1 to 3: data, design, training. They end with the best model in the run's ``model/``."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.data.batches import StepPlan, evaluation_batches, training_steps
from modelyard.data.prepared import Prepared
from modelyard.design.describe import describe_model
from modelyard.engines.base import Batch, Engine, Learner, Plan
from modelyard.errors import InputError
from modelyard.evaluation.metrics import quick_metrics
from modelyard.recipe.schema import Recipe
from modelyard.recipe.write import recipe_text
from modelyard.runs.events import EventLog
from modelyard.runs.files import file_sha256, value_sha256, write_folder, write_json, write_text
from modelyard.runs.folder import RunFolder
from modelyard.training.checkpoints import Checkpoints
from modelyard.training.loop import TrainingResult, train_learner
from modelyard.version import __version__
from modelyard.workflow.ground import (
    Ground,
    choose_plan,
    load_engine,
    micro_tokens,
    model_spec,
    optimizer_spec,
    stand_on,
)
from modelyard.workflow.stage import Listeners, Stage, teller


def prepare(
    recipe: Recipe,
    *,
    rejected_folder: Path | None = None,
    listeners: Listeners = (),
    tell: Callable[..., Any] | None = None,
) -> Ground:
    """Stage 1: find the model's tokenizer, check the data and prepare it in the shared cache.

    rejected_folder: where ``rejected.jsonl`` goes when ``data.on_bad_row`` is ``skip``.
    """
    with Stage("data", tell or teller(listeners)) as stage:
        ground = stand_on(
            recipe,
            rejected_folder,
            lambda what, done, total: teller(listeners)("progress", what=what, done=done, total=total),
        )
        for key, reason in ground.reasons.items():
            stage.choice(key, _short(_value_at(ground.recipe, key)), reason)
        stage.text = _data_text(ground.prepared)
    return ground


def _data_text(prepared: Prepared) -> str:
    report = prepared.report
    parts = ", ".join(f"{len(split):,} {name}" for name, split in prepared.splits.items())
    lengths = report.lengths["train"]
    cut = (
        f"{lengths.num_truncated:,} cut, losing {lengths.share_lost:.1%} of the text"
        if lengths.num_truncated
        else "none cut"
    )
    return (
        f"{report.num_examples:,} texts ({parts}), {len(prepared.labels)} classes, "
        f"median {lengths.quantiles['50']:,} tokens, {cut}"
    )


def design(ground: Ground, engine: Engine, stage: Stage) -> tuple[Plan, dict[str, Any], Ground]:
    """Choose device, precision and micro-batch; say how large the model is."""
    chosen, device, recipe, reasons = choose_plan(ground.recipe, engine)
    ground = Ground(
        recipe, {**ground.reasons, **reasons}, ground.source, ground.config, ground.tokenizer, ground.prepared
    )
    for key, reason in reasons.items():
        stage.choice(key, _short(_value_at(recipe, key)), reason)
    train_split = ground.prepared.train
    size = describe_model(
        recipe.design,
        ground.config,
        num_labels=len(ground.prepared.labels),
        num_tokens=float(train_split.lengths.mean()),
    )
    value = {
        "model": size,
        "device": asdict(device),
        "precision": chosen.precision,
        "max_micro_batch_tokens": chosen.max_micro_batch_tokens,
        "steps_per_epoch": len(_steps_of_epoch(ground)(1)),
        "reasons": ground.reasons,
    }
    stage.text = size["summary"]
    return chosen, value, ground


def train_run(recipe: Recipe, run_folder: RunFolder, log: EventLog, listeners: Listeners, *, resume: bool) -> str:
    """Returns the SHA-256 that names the trained model, for the stages that follow."""
    ground = prepare(recipe, rejected_folder=run_folder.data, listeners=listeners, tell=log.append)
    engine = load_engine(recipe.environment.framework)
    with Stage("design", log.append) as stage:
        chosen, plan_value, ground = design(ground, engine, stage)
    key = _training_key(ground)
    if run_folder.stage_is_current("training", key):
        reason = "the same data, model and settings as before"
        log.append("stage", name="training", state="skipped", reason=reason)
        write_text(run_folder.recipe, recipe_text(ground.recipe, ground.reasons))
        return run_folder.model_key()
    begun = run_folder.read_manifest().get("training_key")
    if begun is not None and begun != key:
        raise InputError(
            f"{run_folder.path} holds a run with other data, another model or other training settings",
            hint="take another folder with --run FOLDER, or remove that run with --overwrite",
        )
    with Stage("training", log.append) as stage:
        learner = engine.learner(model_spec(ground), optimizer_spec(ground.recipe), chosen)
        _write_ground(run_folder, ground, plan_value, engine, key)  # a run begins only with a model that can be built
        for note in learner.notes:
            log.append("note", text=note)
        result = _run_loop(learner, ground, run_folder, log, resume=resume)
        write_folder(run_folder.model, lambda path: _write_model(learner, ground, path))
        _check_written(engine, run_folder, ground, learner, chosen)
        write_json(run_folder.plan, {**plan_value, "measured": _measured(learner, result)})
        run_folder.record_stage("training", key, {"model": run_folder.model}, **_training_facts(result))
        stage.text = _training_text(result)
    return run_folder.model_key()


def _steps_of_epoch(ground: Ground) -> Callable[[int], StepPlan]:
    """The steps of each epoch (counted from 1), a function of the recipe and the number alone."""
    recipe, train_split = ground.recipe, ground.prepared.train
    assert isinstance(recipe.training.max_micro_batch_tokens, int) and recipe.design.max_length is not None
    tokens, max_length = recipe.training.max_micro_batch_tokens, recipe.design.max_length

    def steps(epoch: int) -> StepPlan:
        return training_steps(
            train_split,
            batch_size=recipe.training.batch_size,
            max_micro_batch_tokens=tokens,
            seed=recipe.training.seed,
            epoch=epoch - 1,
            pad_token_id=ground.prepared.pad_token_id,
            padding=recipe.training.padding,
            max_length=max_length,
            train_window=recipe.training.train_window,
            class_weights=recipe.training.class_weights,
            num_steps=recipe.training.steps_per_epoch,
        )

    return steps


def _run_loop(
    learner: Learner, ground: Ground, run_folder: RunFolder, log: EventLog, *, resume: bool
) -> TrainingResult:
    validation, tokens = ground.prepared.validation, micro_tokens(ground.recipe)

    def evaluate_learner(learner: Learner) -> Mapping[str, float]:
        assert validation is not None
        logits = np.zeros((len(validation), len(ground.prepared.labels)), np.float32)
        for batch in evaluation_batches(validation, tokens, ground.prepared.pad_token_id):
            logits[batch.rows] = learner.predict(batch).logits
        return quick_metrics(validation.labels, logits)

    store = Checkpoints(run_folder.checkpoints, keep=ground.recipe.training.keep_checkpoints)
    if ground.recipe.training.head_start == "probe" and not store.steps():
        share = learner.fit_head(_whole_documents(ground))
        log.append("note", text=f"head fitted on the frozen encoder: right on {share:.0%} of the training examples")
    return train_learner(
        learner,
        steps_of_epoch=_steps_of_epoch(ground),
        evaluate=None if validation is None else evaluate_learner,
        options=ground.recipe.training,
        events=log,
        checkpoints=run_folder.checkpoints,
        resume=resume,
        describe_rows=lambda rows: [ground.prepared.train.source(row) for row in rows],
    )


def _whole_documents(ground: Ground) -> Iterator[Batch]:
    """Every training example once, uncut by `train_window`, with the weight that it has in training."""
    weights = _steps_of_epoch(ground)(1).weights
    for batch in evaluation_batches(ground.prepared.train, micro_tokens(ground.recipe), ground.prepared.pad_token_id):
        yield replace(batch, weights=weights[batch.rows])


def _write_ground(run_folder: RunFolder, ground: Ground, plan_value: dict[str, Any], engine: Engine, key: str) -> None:
    """What the run stands on, before its first step."""
    write_text(run_folder.recipe, recipe_text(ground.recipe, ground.reasons))
    write_json(run_folder.data / "report.json", ground.prepared.report.to_json())
    write_json(run_folder.data / "labels.json", list(ground.prepared.labels))
    write_json(run_folder.plan, plan_value)
    run_folder.update_manifest(
        modelyard=__version__,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        versions={"python": platform.python_version(), "modelyard": __version__, **engine.versions()},
        machine={"system": platform.platform(), "device": plan_value["device"]},
        data={"fingerprint": ground.prepared.fingerprint},
        training_key=key,
    )


def _write_model(learner: Learner, ground: Ground, folder: Path) -> None:
    """The Hugging Face folder; its tokenizer says the length that this model was trained for."""
    learner.write_model(folder)
    ground.tokenizer.save(folder)
    settings = folder / "tokenizer_config.json"
    content = json.loads(settings.read_text(encoding="utf-8"))
    write_json(settings, {**content, "model_max_length": ground.recipe.design.max_length})


def _training_key(ground: Ground) -> str:
    recipe = ground.recipe
    weights = None
    if ground.source is not None:
        weights = {file.name: file_sha256(file) for file in sorted(ground.source.glob("*.safetensors"))}
    return value_sha256(
        {
            "data": ground.prepared.fingerprint,
            "design": recipe.design.model_dump(mode="json", exclude={"model"}),
            "training": recipe.training.model_dump(mode="json", exclude={"keep_checkpoints"}),
            "framework": recipe.environment.framework,
            "config": ground.config,
            "weights": weights,
        }
    )


def _check_written(engine: Engine, run_folder: RunFolder, ground: Ground, learner: Learner, chosen: Plan) -> None:
    """The model on disk must answer as the one in memory does, before anything is built on it."""
    split = ground.prepared.validation or ground.prepared.train
    predictor = engine.predictor(run_folder.model, chosen.device, chosen.precision)
    for batch, _ in zip(evaluation_batches(split, 1024, ground.prepared.pad_token_id), range(2), strict=False):
        difference = np.abs(predictor.predict(batch).logits - learner.predict(batch).logits).max()
        tolerance = 1e-2 if chosen.compile else 1e-4  # a compiled model rounds in other places
        assert difference <= tolerance, f"the written model differs from the trained one by {difference:.2g}"


def _measured(learner: Learner, result: TrainingResult) -> dict[str, Any]:
    return {
        "peak_memory_bytes": learner.peak_memory_bytes(),
        "seconds": result.seconds,
        "num_steps": result.num_steps,
    }


def _training_facts(result: TrainingResult) -> dict[str, Any]:
    names = (
        "num_steps",
        "num_epochs",
        "best_step",
        "best_epoch",
        "best_metric",
        "best_value",
        "seconds",
        "stopped",
    )
    return {name: getattr(result, name) for name in names}


def _training_text(result: TrainingResult) -> str:
    best = "" if result.best_value is None else f"; {result.best_metric} {result.best_value:.3f} on validation"
    return f"best after epoch {result.best_epoch} of {result.num_epochs}{best}"


def _value_at(recipe: Recipe, key: str) -> Any:
    value: Any = recipe
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _short(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return text if len(text) <= 60 else text[:59] + "…"
