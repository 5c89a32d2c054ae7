"""The model card: a bundle's ``README.md``."""

from __future__ import annotations

from modelyard.deployment.info import BundleInfo, Measured

METRIC_NAMES = {
    "accuracy": "Accuracy",
    "precision": "Precision (macro)",
    "recall": "Recall (macro)",
    "f1": "F1 (macro)",
}


def model_card(info: BundleInfo) -> str:
    """A short model card in Markdown: what it does, how well, how to use it, where it ends."""
    return "\n".join(
        [
            f"# {_plain(info.name)}",
            "",
            f"A model for {info.task}. It gives each text one of {len(info.labels)} labels: "
            + ", ".join(_code(label) for label in info.labels)
            + ".",
            "",
            "## How well it does",
            "",
            *_results(info),
            "",
            "## Use it",
            "",
            "```bash",
            "modelyard serve .        # a page and an HTTP interface at http://127.0.0.1:8000",
            'modelyard predict . "a text"',
            "```",
            "",
            "The folder `model/` is a Hugging Face model; `AutoModelForSequenceClassification`"
            + (" loads it." if info.preprocessing.remove is None else " loads it, without the removal below."),
            "",
            "## What it reads",
            "",
            *_reading(info),
            "",
            "## What it is",
            "",
            *_facts(info),
            "",
        ]
    )


def _results(info: BundleInfo) -> list[str]:
    summary = info.metrics
    columns = {"this model": summary.metrics, **summary.baselines}
    lines = [
        f"On {summary.num_examples:,} test examples that it was not trained on, with "
        f"{summary.confidence * 100:g}% confidence intervals:",
        "",
        "| metric | " + " | ".join(_plain(name) for name in columns) + " |",
        "| --- " * (1 + len(columns)) + "|",
    ]
    for metric in summary.metrics:
        cells = [_interval(values[metric]) if metric in values else "–" for values in columns.values()]
        lines.append(f"| {_plain(METRIC_NAMES.get(metric, metric))} | " + " | ".join(cells) + " |")
    return lines


def _reading(info: BundleInfo) -> list[str]:
    preprocessing = info.preprocessing
    lines = [f"- The first {preprocessing.max_length:,} tokens of a text; what is cut off, the answer says."]
    if preprocessing.remove is not None:
        lines.append(f"- Not what this regular expression matches: {_code(preprocessing.remove)}")
    lines.append("- Every text gets one of the labels, also a text that none of them fits.")
    return lines


def _facts(info: BundleInfo) -> list[str]:
    parity, model = info.parity, info.model
    return [
        f"- {model.architecture}, {model.num_parameters:,} parameters, {model.weights_bytes / 1e6:,.1f} MB",
        f"- Verified: on {parity.num_examples:,} test examples of {parity.shortest_tokens:,} to "
        f"{parity.longest_tokens:,} tokens its logits differ from the trained model's by at most "
        f"{parity.max_abs_difference or 0.0:.2g} (allowed: {parity.tolerance:.2g})",
        f"- Made on {info.created} with "
        + ", ".join(f"{_plain(name)} {_plain(version)}" for name, version in info.versions.items()),
    ]


def _interval(measured: Measured) -> str:
    return f"{measured.value * 100:.1f}% ({measured.low * 100:.1f}–{measured.high * 100:.1f}%)"


def _plain(text: str) -> str:
    """A text that Markdown takes for nothing else: one line, its special characters escaped."""
    escaped = "".join("\\" + sign if sign in "\\`*_{}[]<>#|" else sign for sign in " ".join(text.split()))
    return escaped or "–"


def _code(text: str) -> str:
    """A text as inline code, also when it holds backticks."""
    line = " ".join(text.split())
    fence = "`" * (1 + max((len(run) for run in _runs_of_backticks(line)), default=0))
    padding = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{padding}{line}{padding}{fence}"


def _runs_of_backticks(text: str) -> list[str]:
    return [run for run in "".join(sign if sign == "`" else " " for sign in text).split() if run]
