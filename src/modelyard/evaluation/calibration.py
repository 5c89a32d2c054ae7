"""Calibration: is the model right as often as its confidence says?

Legend: N examples, B bins of about equal numbers of examples.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.evaluation.metrics import Values
from modelyard.evaluation.statistics import MIN_EXAMPLES, proportion

MAX_BINS = 15
_SIMULATIONS = 1000


def calibration(confidences: Values, correct: NDArray[np.bool_], *, confidence: float, seed: int) -> dict[str, Any]:
    """Expected calibration error (Naeini 2015) over bins of equal mass, with the diagram's data.

    confidences: (N,) probability of the predicted class; correct: (N,).

    The error is never 0 in a sample, even for a perfect model; so the interval in which it would fall for a
    model whose confidences are exactly right is given beside it (consistency resampling, Broecker and Smith
    2007), and only an error above that interval counts as miscalibration. ``verdict``: ``consistent``,
    ``overconfident``, ``underconfident``, ``miscalibrated`` (in both directions) or ``too_few`` (below 30
    examples).
    """
    n = len(confidences)
    num_bins = max(1, min(MAX_BINS, n // MIN_EXAMPLES))
    edges = np.unique(np.quantile(confidences, np.arange(1, num_bins) / num_bins))
    bin_of = np.searchsorted(edges, confidences, side="right")
    sizes = np.bincount(bin_of)
    occupied = sizes > 0
    means = np.bincount(bin_of, weights=confidences)[occupied] / sizes[occupied]
    hits = np.bincount(bin_of, weights=correct)[occupied].astype(np.int64)
    sizes = sizes[occupied]

    error = float(np.abs(hits - means * sizes).sum() / n)
    generator = np.random.default_rng(seed)
    simulated_hits = generator.binomial(sizes, np.clip(means, 0, 1), size=(_SIMULATIONS, len(sizes)))
    simulated = np.abs(simulated_hits - means * sizes).sum(axis=1) / n
    expected_low, expected_high = np.quantile(simulated, [(1 - confidence) / 2, (1 + confidence) / 2])
    gap = float(confidences.mean() - correct.mean())
    accuracy = proportion(int(correct.sum()), n, confidence)

    if n < MIN_EXAMPLES:
        verdict = "too_few"
    elif error <= expected_high:
        verdict = "consistent"
    elif (accuracy.low or 0.0) <= accuracy.value + gap <= (accuracy.high or 1.0):
        verdict = "miscalibrated"
    else:
        verdict = "overconfident" if gap > 0 else "underconfident"
    return {
        "ece": error,
        "ece_if_calibrated": {"low": float(expected_low), "high": float(expected_high)},
        "mean_confidence": float(confidences.mean()),
        "verdict": verdict,
        "bins": [
            {"confidence": float(mean), **asdict(proportion(int(hit), int(size), confidence))}
            for mean, hit, size in zip(means, hits, sizes, strict=True)
        ],
    }
