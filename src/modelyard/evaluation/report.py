"""``report.html``: one self-contained page that says what was learned, how sure that is, and how it was made.

The page loads nothing (a content security policy forbids it) and runs no script. Documents and labels are
untrusted text: the templates escape everything. Both languages are in one file; a reader switches without a
script.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from modelyard.evaluation import views
from modelyard.evaluation.wording import (
    LANGUAGES,
    Language,
    catalogue,
    comparison_sentence,
    integer,
    p_value_text,
    percent,
    plain_name,
    say,
    signed,
    system_name,
)
from modelyard.runs.files import write_text


@dataclass(frozen=True)
class ReportData:
    """What a report is made of, as plain values; only `name` and `metrics` are needed.

    name: of the run. metrics: content of ``metrics.json``. recipe: the resolved recipe; reasons: by dotted
    key, where a value came from. data: the data report (its ``warnings``, a list of texts, are shown first).
    plan: the plan. events: of ``events.jsonl``, in order. parity: the bundle's record. versions: versions,
    machine and hashes, nested as you like. created: date and time as they are to be shown.
    """

    name: str
    metrics: Mapping[str, Any]
    recipe: Mapping[str, Any] = field(default_factory=dict)
    reasons: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    events: Sequence[Mapping[str, Any]] = ()
    parity: Mapping[str, Any] | None = None
    versions: Mapping[str, Any] = field(default_factory=dict)
    created: str = ""


def write_report(run: ReportData, path: Path, languages: Sequence[Language] = LANGUAGES) -> Path:
    """Write the report at once or not at all; the first of `languages` is shown first."""
    html = render_report(run, languages)
    return write_text(path, html.encode("utf-8", "replace").decode("utf-8"))


def render_report(run: ReportData, languages: Sequence[Language] = LANGUAGES) -> str:
    """The whole page as text."""
    metrics = run.metrics
    model = metrics["systems"][0]
    return (
        _environment()
        .get_template("report.html")
        .render(
            css=Markup(_style()),
            languages=list(languages),
            run=run,
            metrics=metrics,
            model=model,
            settings=list(_flattened(run.recipe)),
            plan=list(_flattened(run.plan)),
            data_report=list(_flattened({key: value for key, value in run.data.items() if key != "warnings"})),
            data_warnings=[str(warning) for warning in run.data.get("warnings") or ()],
            parity=list(_flattened(run.parity or {})),
            versions=list(_flattened(run.versions)),
            bars=views.metric_bars(metrics),
            differences=views.difference_bars(metrics["comparisons"]),
            verdict=views.hardest_comparison(metrics),
            curves=views.curves(run.events, _best_metric(run.recipe)),
            matrix=views.matrix(model),
            length=views.slice_bars(metrics, "length"),
            truncation=views.slice_bars(metrics, "truncation"),
            reliability=views.reliability(model["calibration"]),
            data_parts=views.data_parts(metrics),
            methods=views.methods_used(metrics),
        )
    )


def _best_metric(recipe: Mapping[str, Any]) -> str:
    training = recipe.get("training")
    return str(training.get("best_metric", "f1")) if isinstance(training, Mapping) else "f1"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("modelyard.evaluation"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "say": say,
        "catalogue": catalogue,
        "percent": percent,
        "integer": integer,
        "signed": signed,
        "p_value_text": p_value_text,
        "plain_name": plain_name,
        "system_name": system_name,
        "comparison_sentence": _unbroken_sentence,
    }
    return environment


def _unbroken_sentence(comparison: Mapping[str, Any], language: Language) -> str:
    """The sentence of a comparison whose "n = 500" is never broken across lines."""
    sentence = comparison_sentence(comparison, language)
    for sign in "=<":
        sentence = sentence.replace(f" {sign} ", f"\N{NO-BREAK SPACE}{sign}\N{NO-BREAK SPACE}")
    return sentence


def _style() -> str:
    return (files("modelyard.evaluation") / "templates" / "report.css").read_text(encoding="utf-8")


def _flattened(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested values as (dotted key, text) pairs."""
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping) and value:
            yield from _flattened(value, name)
        else:
            yield name, _written(value)


def _written(value: Any) -> str:
    if value is None or value in ([], (), {}):
        return "–"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple) and all(isinstance(entry, str | int | float) for entry in value):
        return ", ".join(_written(entry) for entry in value)
    return json.dumps(value, ensure_ascii=False, default=str)
