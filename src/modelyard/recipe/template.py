"""The recipe that ``modelyard init`` writes: the keys that most people change, each with its unit and the
reason for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from modelyard.recipe.schema import TaskName
from modelyard.recipe.write import comment_text, scalar_text

_DEFAULT_MODEL = "google-bert/bert-base-uncased"
_TITLES: Mapping[TaskName, str] = {
    "text-classification": "One label for each text.",
    "sentiment": "Sentiment: one label, such as negative or positive, for each text.",
}


def render_template(
    task: TaskName,
    data_path: str | None = None,
    columns: Sequence[str] | None = None,
    *,
    text: str | None = None,
    label: str | None = None,
    model: str = _DEFAULT_MODEL,
    reasons: Mapping[str, str] | None = None,
) -> str:
    """A short recipe for `task` that `load_recipe` accepts as it is.

    columns: names that the data has, listed in a comment; text, label: the guesses among them, explained by
    `reasons` under ``data.text`` and ``data.label``.
    """
    reasons = reasons or {}
    there = f"# columns there: {comment_text(', '.join(columns))}" if columns else "# columns of the data"
    values = {
        "title": _TITLES[task],
        "task": task,
        "train": scalar_text(data_path or "train.csv"),
        "columns": there,
        "text": _with_reason(text or "text", reasons.get("data.text", "")),
        "label": _with_reason(label or "label", reasons.get("data.label", "")),
        "model": scalar_text(model),
    }
    return _TEMPLATE.format(**values)


def _with_reason(value: str, reason: str) -> str:
    return scalar_text(value) + (f"  # {comment_text(reason)}" if reason else "")


_TEMPLATE = """\
# {title}
# Every key, its unit and its default: docs/recipes.md. Whatever is not written here keeps its default.
task: {task}

data:
  # CSV, TSV, JSONL or Parquet (also .gz), seen from this file; or a folder with one subfolder for each class.
  train: {train}
  {columns}
  text: {text}
  label: {label}
  split:
    test: 0.2         # share of the examples that judges the model once, at the end
    validation: 0.1   # share of the rest that selects the best epoch
    seed: 7           # the same seed gives the same division

design:
  # A hub id, or a folder with config.json and model.safetensors. For documents of up to 4,096 tokens:
  # allenai/longformer-base-4096
  model: {model}
  # max_length: 512       # tokens; without it the most that the model takes
  on_too_long: truncate   # or `error`; how much is lost is reported either way

training:
  num_epochs: 3           # passes over the training examples
  batch_size: 16          # examples an optimiser step, whatever fits into memory at once
  learning_rate: 2.0e-5   # the highest one; BERT's authors tried 2e-5 to 5e-5 (arXiv 1810.04805, A.3)
  seed: 42                # repeat with other seeds to see how much of a result is chance
"""
