"""The evaluation of a trained model: predictions to disk, then everything that can honestly be said of them.

``metrics.json`` holds, in this order: what was evaluated, the ``systems`` (the model, other runs, baselines)
with metrics, classes and calibration, the paired ``comparisons``, ``slices``, the most confident
``mistakes``, the ``data`` and ``notes``.

Legend: N examples, C classes.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.errors import InputError
from modelyard.evaluation.baselines import BaselineUnfit, fit_baseline
from modelyard.evaluation.calibration import calibration
from modelyard.evaluation.metrics import confusion_matrix
from modelyard.evaluation.predictions import (
    EvaluatedSplit,
    Outcomes,
    Outputs,
    check_aligned,
    read_outcomes,
    write_predictions,
)
from modelyard.evaluation.slices import describe_split, length_slices, truncation_slices
from modelyard.evaluation.statistics import (
    Comparison,
    class_estimates,
    compare,
    macro_estimates,
    mean,
    proportion,
    with_holm,
)
from modelyard.recipe.schema import EvaluationSection
from modelyard.runs.files import write_json
from modelyard.tasks.text_classification import TextClassification

NUM_MISTAKES = 20
EXCERPT_CHARACTERS = 1200
MODEL = "model"


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` wrote. metrics: the content of ``metrics.json``."""

    metrics: Mapping[str, Any]
    folder: Path

    @property
    def sentences(self) -> list[str]:
        """The comparisons with the baselines and other systems in plain words."""
        return [comparison["sentence"] for comparison in self.metrics["comparisons"]]


@dataclass(frozen=True)
class System:
    """One model or baseline with its predictions in the test set's order."""

    name: str
    kind: str
    outcomes: Outcomes
    details: Mapping[str, Any]


def evaluate(
    outputs: Outputs,
    split: EvaluatedSplit,
    train: EvaluatedSplit | None,
    labels: Sequence[str],
    *,
    task: TextClassification,
    options: EvaluationSection,
    folder: Path,
    model_name: str = MODEL,
    cost: Mapping[str, Any] | None = None,
    other_systems: Mapping[str, Path] | None = None,
    split_name: str = "test",
) -> Evaluation:
    """Judge a model on `split`; writes ``predictions.parquet``, ``baselines/*.parquet`` and ``metrics.json``
    to `folder`.

    outputs: pairs of rows and logits as the model gives them; consumed once, so it may be a generator.
    train: the split that the model was trained on, for the baselines; None leaves them out.
    cost: what the caller measured (``num_parameters``, ``tokens_per_second`` …), stored with the model.
    other_systems: predictions of other runs on the same test set, by the name they get in the report.
    Raises InputError when the split is empty, two systems have one name, or predictions are missing, not
    finite or not aligned.
    """
    if len(split) == 0:
        raise InputError(
            f"the {split_name} split has 0 examples, expected at least 1",
            hint="give data.test a file, or set data.split.test above 0",
        )
    taken = {model_name, *task.baselines}.intersection(other_systems or {})
    if taken:
        raise InputError(
            f"{sorted(taken)[0]!r} names two systems of one report, expected different names",
            hint="give the other run another name",
        )
    started = time.perf_counter()
    path = write_predictions(outputs, split, labels, folder / "predictions.parquet")
    details = {"seconds": time.perf_counter() - started, **(cost or {})}
    systems = [System(model_name, "model", read_outcomes(path), details)]
    for name, other in (other_systems or {}).items():
        systems.append(System(name, "model", read_outcomes(other), {}))
        check_aligned(systems[0].outcomes, systems[-1].outcomes, model_name, name)
    notes: list[dict[str, Any]] = []
    if options.baseline == "auto":
        systems += _baselines(task.baselines, split, train, labels, options, folder, notes)

    metrics = {
        "task": task.name,
        "split": split_name,
        "n": len(split),
        "labels": list(labels),
        "metrics": list(options.metrics),
        "confidence": options.confidence,
        "num_resamples": options.num_resamples,
        "seed": options.seed,
        "systems": [_describe(system, options) for system in systems],
        "comparisons": [comparison.as_dict() for comparison in _comparisons(systems, options)],
        "slices": _slices(systems, split, options.confidence),
        "mistakes": _mistakes(systems[0].outcomes, split),
        "data": {
            name: describe_split(part, len(labels))
            for name, part in (("train", train), (split_name, split))
            if part is not None
        },
        "notes": notes,
    }
    write_json(folder / "metrics.json", metrics)
    return Evaluation(metrics, folder)


def compare_predictions(
    name_a: str, path_a: Path, name_b: str, path_b: Path, options: EvaluationSection | None = None
) -> Comparison:
    """Two ``predictions.parquet`` files of the same test set, aligned by row.

    Raises InputError when they are not of the same test set or cannot be read.
    """
    options = options or EvaluationSection()
    a, b = read_outcomes(path_a), read_outcomes(path_b)
    check_aligned(a, b, name_a, name_b)
    return _compare(System(name_a, "model", a, {}), System(name_b, "model", b, {}), options)


def _baselines(
    names: Sequence[str],
    split: EvaluatedSplit,
    train: EvaluatedSplit | None,
    labels: Sequence[str],
    options: EvaluationSection,
    folder: Path,
    notes: list[dict[str, Any]],
) -> list[System]:
    """Fit and evaluate each baseline; one that cannot be fitted becomes a note."""
    systems = []
    for name in names:
        try:
            if train is None:
                raise BaselineUnfit("no_examples")
            baseline = fit_baseline(name, train, len(labels), options.seed)
        except BaselineUnfit as unfit:
            notes.append({"key": f"baseline_{unfit.reason}", "baseline": name})
            continue
        started = time.perf_counter()
        path = write_predictions(baseline.predict(split), split, labels, folder / "baselines" / f"{name}.parquet")
        details = {**baseline.details, "seconds": baseline.seconds + time.perf_counter() - started}
        systems.append(System(name, "baseline", read_outcomes(path), details))
    return systems


def _describe(system: System, options: EvaluationSection) -> dict[str, Any]:
    """Everything about one system by itself."""
    outcomes, confidence = system.outcomes, options.confidence
    names = outcomes.class_names
    confusion = confusion_matrix(outcomes.labels, outcomes.predicted, len(names))
    estimates = {
        "accuracy": proportion(int(outcomes.correct.sum()), len(outcomes.rows), confidence),
        **macro_estimates(confusion, confidence=confidence, num_resamples=options.num_resamples, seed=options.seed),
        "loss": mean(outcomes.loss, confidence),
        "brier": mean(outcomes.brier, confidence),
    }
    classes = [
        {
            "label": label,
            "support": int(confusion[index].sum()),
            "predicted": int(confusion[:, index].sum()),
            **{metric: None if value is None else asdict(value) for metric, value in row.items()},
        }
        for index, (label, row) in enumerate(zip(names, class_estimates(confusion, confidence), strict=True))
    ]
    return {
        "name": system.name,
        "kind": system.kind,
        "details": dict(system.details),
        "metrics": {name: asdict(estimate) for name, estimate in estimates.items()},
        "classes": classes,
        "confusion": confusion.tolist(),
        "calibration": calibration(outcomes.confidence, outcomes.correct, confidence=confidence, seed=options.seed),
    }


def _comparisons(systems: Sequence[System], options: EvaluationSection) -> list[Comparison]:
    """The first model against every other system, with p-values adjusted for their number."""
    return with_holm([_compare(systems[0], other, options) for other in systems[1:]])


def _compare(a: System, b: System, options: EvaluationSection) -> Comparison:
    return compare(
        a.name,
        b.name,
        a.outcomes.labels,
        a.outcomes.predicted,
        b.outcomes.predicted,
        len(a.outcomes.class_names),
        confidence=options.confidence,
        num_resamples=options.num_resamples,
        seed=options.seed,
    )


def _slices(systems: Sequence[System], split: EvaluatedSplit, confidence: float) -> dict[str, Any]:
    outcomes = {system.name: system.outcomes for system in systems}
    full, read = np.asarray(split.full_lengths), np.asarray(split.lengths)
    return {
        "length": length_slices(full, outcomes, confidence),
        "truncation": truncation_slices(full > read, outcomes, confidence),
    }


def _mistakes(outcomes: Outcomes, split: EvaluatedSplit) -> list[dict[str, Any]]:
    """The wrong predictions that the model was surest of."""
    wrong = np.flatnonzero(~outcomes.correct)
    surest = wrong[np.argsort(-outcomes.confidence[wrong], kind="stable")][:NUM_MISTAKES]
    mistakes = []
    for index in surest:
        row = int(outcomes.rows[index])
        # Text that is not valid Unicode (a lone surrogate) could not be written as JSON or HTML.
        text = split.text(row).encode("utf-8", "replace").decode("utf-8")
        mistakes.append(
            {
                "row": row,
                "source": split.source(row),
                "label": outcomes.class_names[outcomes.labels[index]],
                "predicted": outcomes.class_names[outcomes.predicted[index]],
                "probability": float(outcomes.confidence[index]),
                "num_tokens": int(split.full_lengths[row]),
                "num_characters": len(text),
                "excerpt": text[:EXCERPT_CHARACTERS],
            }
        )
    return mistakes
