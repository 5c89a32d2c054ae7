"""Metrics of a classifier, all of them from the counts of (label, prediction) pairs, and the loss.

Legend: N examples, C classes, R resamples; a *cell* is one pair (label, prediction).

Averages follow scikit-learn: a class that stands neither among the labels nor among the predictions is left
out of the macro average, and 0/0 counts as 0. The counts may carry a leading axis of resamples, so that one
bootstrap is a few matrix operations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

Counts = NDArray[np.int64]
Values = NDArray[np.float64]

AVERAGED = ("precision", "recall", "f1")


def confusion_matrix(labels: NDArray[np.integer[Any]], predicted: NDArray[np.integer[Any]], num_classes: int) -> Counts:
    """(C, C) counts; rows are true classes, columns predicted ones. labels, predicted: (N,) in 0 .. C-1."""
    cells = np.asarray(labels, dtype=np.int64) * num_classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(cells, minlength=num_classes**2).astype(np.int64).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassCounts:
    """What every metric is made of, for each class; arrays of shape (C,) or (R, C).

    correct: examples of the class that were predicted as it. support: examples of the class. predicted:
    predictions of it.
    """

    correct: NDArray[Any]
    support: NDArray[Any]
    predicted: NDArray[Any]

    @classmethod
    def of(cls, confusion: Counts) -> ClassCounts:
        """From a (C, C) confusion matrix."""
        return cls(np.diagonal(confusion), confusion.sum(axis=1), confusion.sum(axis=0))

    def per_class(self, metric: str) -> Values:
        """``precision``, ``recall`` or ``f1`` of each class, in the shape of the counts; 0/0 is 0."""
        denominator = {
            "precision": self.predicted,
            "recall": self.support,
            "f1": (self.support + self.predicted) / 2,
        }[metric]
        return _ratio(self.correct, denominator)

    def macro(self, metric: str) -> Values:
        """Mean over the classes that occur; shape () or (R,)."""
        occurs = (self.support + self.predicted) > 0
        return _ratio((self.per_class(metric) * occurs).sum(axis=-1), occurs.sum(axis=-1))

    def weighted(self, metric: str) -> Values:
        """Mean over classes, weighted by their support; shape () or (R,)."""
        return _ratio((self.per_class(metric) * self.support).sum(axis=-1), self.support.sum(axis=-1))

    def accuracy(self) -> Values:
        """Share of all examples that are right; shape () or (R,)."""
        return _ratio(self.correct.sum(axis=-1), self.support.sum(axis=-1))


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Values:
    numerator = np.asarray(numerator, dtype=np.float64)
    denominator = np.asarray(denominator, dtype=np.float64)
    result: Values = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return result


def log_probabilities(logits: NDArray[np.floating[Any]]) -> Values:
    """Logarithm of the softmax over classes, computed without overflow: (N, C) to (N, C).

    Logarithms of probabilities pass through unchanged, so both may be given wherever logits are asked for.
    """
    logits = np.asarray(logits, dtype=np.float64)
    result: Values = logits - logsumexp(logits, axis=1, keepdims=True)
    return result


def example_losses(labels: NDArray[np.integer[Any]], logs: Values) -> Values:
    """Negative log-likelihood of each example in nats: labels (N,), logs (N, C) to (N,)."""
    losses: Values = -logs[np.arange(len(labels)), labels]
    return losses


def example_brier_scores(labels: NDArray[np.integer[Any]], probabilities: Values) -> Values:
    """Squared distance between the probabilities and the truth, 0 to 2 (Brier 1950): (N,), (N, C) to (N,)."""
    truth = probabilities[np.arange(len(labels)), labels]
    scores: Values = (probabilities**2).sum(axis=1) - 2 * truth + 1
    return scores


def quick_metrics(
    labels: Sequence[int] | NDArray[np.integer[Any]], logits: NDArray[np.floating[Any]]
) -> dict[str, float]:
    """``accuracy``, macro ``precision``, ``recall`` and ``f1``, and mean ``loss`` (nats): for use after each
    epoch.

    labels: (N,); logits: (N, C), or logarithms of probabilities. No intervals: they belong to the test set.
    """
    labels = np.asarray(labels, dtype=np.int64)
    if len(labels) == 0:
        raise ValueError("quick_metrics got no examples; expected at least one")
    counts = ClassCounts.of(confusion_matrix(labels, logits.argmax(axis=1), logits.shape[1]))
    return {
        "accuracy": float(counts.accuracy()),
        **{metric: float(counts.macro(metric)) for metric in AVERAGED},
        "loss": float(example_losses(labels, log_probabilities(logits)).mean()),
    }
