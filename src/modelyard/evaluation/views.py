"""What the report's templates draw: positions, paths and rows made of the values in ``metrics.json`` and
``events.jsonl``.

Nothing here knows a language; the templates add the words.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from modelyard.evaluation.charts import Axis, axis, dots, line, smoothed, thinned

MAX_MATRIX_CLASSES = 12
NUM_CONFUSIONS = 12
View = dict[str, Any]


def _bar(estimate: Mapping[str, Any], scale: Axis) -> View:
    """Positions in percent of an interval bar: ``start``, ``width`` and ``dot``."""
    value = estimate["value"]
    low = value if estimate["low"] is None else estimate["low"]
    high = value if estimate["high"] is None else estimate["high"]
    start, end = scale.position(low), scale.position(high)
    return {"start": start, "width": round(end - start, 2), "dot": scale.position(value), **estimate}


def _ticks(scale: Axis) -> list[View]:
    return [{"value": tick, "at": scale.position(tick)} for tick in scale.ticks]


def _ends(estimates: Sequence[Mapping[str, Any]]) -> Iterator[float]:
    for estimate in estimates:
        yield from (estimate[key] for key in ("low", "value", "high") if estimate[key] is not None)


def _tones(systems: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """The colour of each system by name: ``model`` for the one judged, ``other`` for further models,
    ``baseline``.
    """
    tones = {system["name"]: "baseline" if system["kind"] == "baseline" else "other" for system in systems}
    return tones | {systems[0]["name"]: "model"}


def metric_bars(metrics: Mapping[str, Any]) -> View:
    """All systems' intervals of each metric on one axis."""
    systems = metrics["systems"]
    estimates = [system["metrics"][metric] for system in systems for metric in metrics["metrics"]]
    scale = axis(_ends(estimates), floor=0.0, ceiling=1.0)
    tones = _tones(systems)
    groups = [
        {
            "metric": metric,
            "rows": [
                {
                    "name": system["name"],
                    "tone": tones[system["name"]],
                    **_bar(system["metrics"][metric], scale),
                }
                for system in systems
            ],
        }
        for metric in metrics["metrics"]
    ]
    return {"groups": groups, "ticks": _ticks(scale)}


def difference_bars(comparisons: Sequence[Mapping[str, Any]]) -> View:
    """Differences of accuracy with their intervals on one axis that holds 0."""
    scale = axis([0.0, *(comparison[key] for comparison in comparisons for key in ("low", "high"))])
    rows = []
    for comparison in comparisons:
        estimate = {"value": comparison["difference"], "low": comparison["low"], "high": comparison["high"]}
        rows.append({"comparison": comparison, "verdict": verdict_of(comparison), **_bar(estimate, scale)})
    return {"rows": rows, "ticks": _ticks(scale), "zero": scale.position(0.0)}


def verdict_of(comparison: Mapping[str, Any]) -> str:
    """``better``, ``worse`` or ``not_shown``."""
    if not comparison["shown"]:
        return "not_shown"
    return "better" if comparison["difference"] > 0 else "worse"


def hardest_comparison(metrics: Mapping[str, Any]) -> View | None:
    """The comparison with the most accurate baseline (else with the best other system), for the headline."""
    systems = {system["name"]: system for system in metrics["systems"]}
    comparisons = metrics["comparisons"]
    candidates = [entry for entry in comparisons if systems[entry["b"]]["kind"] == "baseline"] or comparisons
    if not candidates:
        return None
    hardest = max(candidates, key=lambda entry: systems[entry["b"]]["metrics"]["accuracy"]["value"])
    return {"comparison": hardest, "verdict": verdict_of(hardest)}


def curves(events: Sequence[Mapping[str, Any]], best_metric: str) -> View | None:
    """Training and validation loss, and the validation metrics, over optimiser steps; None without any event.

    A resumed run repeats the steps after its checkpoint; the later event of a step counts.
    """
    losses = {event["step"]: event["loss"] for event in events if event.get("kind") == "step" and _has(event, "loss")}
    evaluations = {event["step"]: event for event in events if event.get("kind") == "evaluation" and "step" in event}
    training = [(float(step), float(loss)) for step, loss in sorted(losses.items())]
    validation = [
        (float(step), float(event["loss"])) for step, event in sorted(evaluations.items()) if _has(event, "loss")
    ]
    if not training and not validation:
        return None
    smooth, raw = thinned(smoothed(training)), thinned(training)
    x = axis([0.0, *(step for step, _ in (*training, *validation))])
    # One wild first step must not flatten the rest: the axis follows the smoothed line, the raw one may leave
    # it.
    y = axis([*(loss for _, loss in (*smooth, *validation))], 4, floor=0.0)
    best = _best_step(evaluations, best_metric)
    shared = {"x_ticks": _ticks(x), "best": best, "best_at": None if best is None else x.position(best)}
    loss_chart = {
        **shared,
        "y_ticks": _ticks(y),
        "y_decimals": y.num_decimals(),
        "raw": line(raw, x, y),
        "smooth": line(smooth, x, y),
        "validation": line(validation, x, y),
        "validation_dots": dots(validation, x, y),
    }
    return {"loss": loss_chart, "metrics": _metric_chart(evaluations, best_metric, x, shared)}


def _has(event: Mapping[str, Any], key: str) -> bool:
    return isinstance(event.get(key), int | float) and "step" in event


def _best_step(evaluations: Mapping[int, Mapping[str, Any]], metric: str) -> int | None:
    values = [(event[metric], -step) for step, event in evaluations.items() if _has(event, metric)]
    if not values:
        return None
    return -(min(values, key=lambda pair: (pair[0], -pair[1])) if metric == "loss" else max(values))[1]


def _metric_chart(evaluations: Mapping[int, Mapping[str, Any]], best_metric: str, x: Axis, shared: View) -> View | None:
    names = ["accuracy", "f1" if best_metric == "loss" else best_metric]
    series = {
        name: [(float(step), float(event[name])) for step, event in sorted(evaluations.items()) if _has(event, name)]
        for name in dict.fromkeys(names)
    }
    values = [value for points in series.values() for _, value in points]
    if not values:
        return None
    y = axis(values, 4, floor=0.0, ceiling=1.0)
    drawn = [
        {"metric": name, "line": line(points, x, y), "dots": dots(points, x, y)} for name, points in series.items()
    ]
    return {**shared, "y_ticks": _ticks(y), "y_decimals": y.num_decimals(100), "series": drawn}


def matrix(model: Mapping[str, Any]) -> View:
    """The confusion matrix as rows of cells with shares, and its largest confusions."""
    confusion = model["confusion"]
    labels = [row["label"] for row in model["classes"]]
    rows, confusions = [], []
    for index, counts in enumerate(confusion):
        total = sum(counts)
        shares = [count / total if total else 0.0 for count in counts]
        cells = [
            {"count": count, "share": share, "tint": round(42 * share, 1), "right": index == column}
            for column, (count, share) in enumerate(zip(counts, shares, strict=True))
        ]
        rows.append({"label": labels[index], "total": total, "cells": cells})
        confusions += [
            {"true": labels[index], "predicted": labels[column], **cell, "total": total}
            for column, cell in enumerate(cells)
            if column != index and cell["count"]
        ]
    confusions.sort(key=lambda entry: -entry["count"])
    return {
        "labels": labels,
        "num_right": sum(row[index] for index, row in enumerate(confusion)),
        "rows": rows if len(labels) <= MAX_MATRIX_CLASSES else None,
        "confusions": confusions[:NUM_CONFUSIONS],
    }


def slice_bars(metrics: Mapping[str, Any], kind: str) -> View | None:
    """Accuracy of the models and the best baseline in each slice, on one axis.

    None with fewer than two slices, or when none has enough texts.
    """
    slices = metrics["slices"][kind]
    if len(slices) < 2:
        return None
    systems = metrics["systems"]
    baselines = [system for system in systems if system["kind"] == "baseline"]
    best = max(baselines, key=lambda system: system["metrics"]["accuracy"]["value"], default=None)
    shown = [system["name"] for system in systems if system["kind"] != "baseline" or system is best]
    tones = _tones(systems)
    trusted = [part["accuracy"][name] for part in slices if not part["too_few"] for name in shown]
    if not trusted:
        return None
    scale = axis(_ends(trusted), floor=0.0, ceiling=1.0)
    groups = [
        {
            **{key: value for key, value in part.items() if key != "accuracy"},
            "rows": [{"name": name, "tone": tones[name], **_bar(part["accuracy"][name], scale)} for name in shown],
        }
        for part in slices
    ]
    return {"groups": groups, "ticks": _ticks(scale)}


def reliability(calibration: Mapping[str, Any]) -> View:
    """The reliability diagram: both axes alike, so that perfect calibration is the diagonal."""
    bins = calibration["bins"]
    scale = axis([*_ends(bins), *(entry["confidence"] for entry in bins), 1.0], floor=0.0, ceiling=1.0)
    points = [
        {
            **entry,
            "x": scale.position(entry["confidence"]),
            "y": scale.position(entry["value"]),
            "low_y": scale.position(entry["low"]),
            "high_y": scale.position(entry["high"]),
        }
        for entry in bins
    ]
    return {"points": points, "ticks": _ticks(scale)}


def data_parts(metrics: Mapping[str, Any]) -> list[View]:
    """Class balance and length histogram of each split."""
    parts = []
    for name, part in metrics["data"].items():
        if not part["n"]:
            continue
        counts = part["class_counts"]
        classes = [
            {
                "label": label,
                "count": count,
                "share": count / part["n"],
                "width": round(100 * count / max(counts), 2),
            }
            for label, count in zip(metrics["labels"], counts, strict=True)
        ]
        classes.sort(key=lambda entry: -entry["count"])
        parts.append({"name": name, **part, "classes": classes, "lengths": _histogram(part)})
    return parts


def _histogram(part: Mapping[str, Any]) -> View:
    counts, width = part["histogram"]["counts"], part["histogram"]["bin_tokens"]
    end = width * len(counts)
    x = axis([0.0, float(end)], 5, ceiling=float(end))
    share = 1000 / len(counts)
    tallest = max(counts)
    bars = "".join(
        f"M{index * share + share * 0.08:.1f} 1000v{-1000 * count / tallest:.1f}h{share * 0.84:.1f}V1000z"
        for index, count in enumerate(counts)
        if count
    )
    cut = part["read_tokens"]
    return {
        "bars": bars,
        "ticks": _ticks(x),
        "cut_at": None if cut is None else x.position(cut),
        "overflows": part["max_tokens"] > end,
    }


def methods_used(metrics: Mapping[str, Any]) -> list[str]:
    """The kinds of intervals that stand in the report, for its last section."""
    used = {estimate["method"] for system in metrics["systems"] for estimate in system["metrics"].values()}
    used |= {
        row[metric]["method"]
        for row in metrics["systems"][0]["classes"]
        for metric in ("precision", "recall", "f1")
        if row[metric] is not None
    }
    order = (
        "wilson",
        "wilson-f1",
        "bca-bootstrap",
        "percentile-bootstrap",
        "wilson-average",
        "student-t",
        "none",
    )
    return [method for method in order if method in used]
