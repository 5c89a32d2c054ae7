"""Parts of the test set: by length of the document, and whole against truncated ones; and how long documents
are.

Legend: N examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.evaluation.predictions import EvaluatedSplit, Outcomes
from modelyard.evaluation.statistics import MIN_EXAMPLES, proportion

LENGTH_EDGES_TOKENS = (
    128,
    512,
    1024,
    2048,
    4096,
)  # where models are cut: sentences, BERT, half and whole Longformer
_SHORT_TOKENS = 512
_HISTOGRAM_BINS = 32

Slice = dict[str, Any]


def length_slices(full_lengths: NDArray[Any], systems: Mapping[str, Outcomes], confidence: float) -> list[Slice]:
    """Accuracy of each system in buckets of document length (tokens before truncation); empty buckets are
    left out.

    Fixed edges where a document is longer than 512 tokens, else quartiles. Each slice has ``over_tokens``
    (exclusive), ``up_to_tokens`` (inclusive; None: no upper end), ``n``, ``too_few`` (below 30: no claim) and
    ``accuracy`` by system.
    """
    if len(full_lengths) == 0:
        return []
    longest = int(full_lengths.max())
    if longest > _SHORT_TOKENS:
        edges = [0, *(edge for edge in LENGTH_EDGES_TOKENS if edge < longest)]
    else:
        quartiles = {int(np.quantile(full_lengths, q, method="lower")) for q in (0.25, 0.5, 0.75)}
        edges = [0, *sorted(edge for edge in quartiles if 0 < edge < longest)]
    slices = []
    for low, high in zip(edges, [*edges[1:], None], strict=True):
        inside = (full_lengths > low) & (full_lengths <= (longest if high is None else high))
        if inside.any():
            slices.append({"over_tokens": low, "up_to_tokens": high, **_accuracy_inside(inside, systems, confidence)})
    return slices


def truncation_slices(truncated: NDArray[np.bool_], systems: Mapping[str, Outcomes], confidence: float) -> list[Slice]:
    """Accuracy on documents that the model read whole and on those cut; empty when none was cut."""
    if not truncated.any():
        return []
    parts = [("whole", ~truncated), ("truncated", truncated)]
    return [{"part": name, **_accuracy_inside(inside, systems, confidence)} for name, inside in parts if inside.any()]


def _accuracy_inside(inside: NDArray[np.bool_], systems: Mapping[str, Outcomes], confidence: float) -> Slice:
    n = int(inside.sum())
    accuracy = {
        name: asdict(proportion(int(outcomes.correct[inside].sum()), n, confidence))
        for name, outcomes in systems.items()
    }
    return {"n": n, "too_few": n < MIN_EXAMPLES, "accuracy": accuracy}


def describe_split(split: EvaluatedSplit, num_classes: int) -> dict[str, Any]:
    """Examples of each class and lengths of the documents, for the report's picture of the data.

    ``histogram``: counts in bins of equal width; the last one holds everything from its lower edge on.
    ``read_tokens``: the length that texts were cut at, None when none was.
    """
    counts = np.bincount(np.asarray(split.labels), minlength=num_classes)
    full, read = np.asarray(split.full_lengths), np.asarray(split.lengths)
    if len(full) == 0:
        return {"n": 0, "class_counts": counts.tolist()}
    truncated = full > read
    cut_at = int(read[truncated].max()) if truncated.any() else None
    end = max(float(np.quantile(full, 0.99)), 1.25 * (cut_at or 0), 1.0)
    width = int(np.ceil(end / _HISTOGRAM_BINS))
    bins = np.minimum((full - 1).clip(0) // width, _HISTOGRAM_BINS - 1)
    return {
        "n": len(full),
        "class_counts": counts.tolist(),
        "median_tokens": float(np.median(full)),
        "max_tokens": int(full.max()),
        "num_truncated": int(truncated.sum()),
        "read_tokens": cut_at,
        "lost_token_share": float(1 - read.sum() / max(1, full.sum())),
        "histogram": {"bin_tokens": width, "counts": np.bincount(bins, minlength=_HISTOGRAM_BINS).tolist()},
    }
