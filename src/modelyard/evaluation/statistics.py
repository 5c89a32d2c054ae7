"""Uncertainty: intervals of metrics, comparisons of two models on the same examples, and what a test set can
show at all.

Legend: N examples, C classes, K cells (distinct tuples of label and predictions), R resamples, M statistics.

Resampling rows is the same as drawing the counts of the cells from a multinomial, which costs K numbers a
resample instead of N; so a bootstrap over 100,000 examples takes no longer than one over 100.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse, stats

from modelyard.evaluation.metrics import AVERAGED, ClassCounts, Counts, Values
from modelyard.evaluation.wording import comparison_sentence

MIN_EXAMPLES = 30  # no claim below: a Wilson interval at 29 examples is already 35 points wide in the middle
POWER = 0.8  # customary; Card et al. 2020 judge test sets by it
_MAX_CELLS_LEFT_OUT = 5_000  # beyond, leaving out each in turn takes minutes and corrects next to nothing
_CHUNK_NUMBERS = 4_000_000  # numbers of one block of resamples: 32 MB

Labels = NDArray[np.integer[Any]]
Statistic = Callable[[NDArray[np.int64]], Values]


@dataclass(frozen=True)
class Estimate:
    """A value with its interval. n: examples it rests on.

    method: ``wilson``, ``wilson-f1``, ``wilson-average``, ``bca-bootstrap``, ``percentile-bootstrap``,
    ``student-t``, or ``none`` when so few examples allow no interval; low and high are None then.
    """

    value: float
    low: float | None
    high: float | None
    n: int
    method: str


@dataclass(frozen=True)
class Comparison:
    """Model `a` against model `b` on the same `n` examples; all differences are a minus b, as shares (0.01 is
    one point).

    difference, low, high: of the accuracy. p_value: of the exact McNemar test, Holm-adjusted when there were
    several. minimum_detectable: the smallest difference that this test set shows with a power of 80%.
    num_only_a, num_only_b: examples that only the one or only the other got right.
    f1_difference: of the macro F1, with a paired bootstrap interval.
    """

    a: str
    b: str
    difference: float
    low: float
    high: float
    p_value: float
    n: int
    method: str
    minimum_detectable: float
    num_only_a: int
    num_only_b: int
    f1_difference: Estimate
    confidence: float

    @property
    def shown(self) -> bool:
        """True when test and interval both exclude "no difference" and there are at least 30 examples."""
        excludes_zero = self.low > 0 or self.high < 0
        return self.n >= MIN_EXAMPLES and excludes_zero and self.p_value < 1 - self.confidence

    @property
    def sentence(self) -> str:
        """The result in one plain English sentence."""
        return comparison_sentence(self.as_dict(sentence=False), "en")

    def as_dict(self, *, sentence: bool = True) -> dict[str, Any]:
        """For JSON: the fields, ``shown`` and, unless told otherwise, ``sentence``."""
        values = {**asdict(self), "shown": self.shown}
        return {**values, "sentence": self.sentence} if sentence else values


def proportion(successes: int, n: int, confidence: float = 0.95) -> Estimate:
    """successes / n with the Wilson score interval (Wilson 1927). Raises ValueError when n is 0."""
    if n == 0:
        raise ValueError("proportion of 0 examples; expected at least one")
    interval = stats.binomtest(int(successes), int(n)).proportion_ci(confidence, method="wilson")
    return Estimate(successes / n, float(interval.low), float(interval.high), int(n), "wilson")


def f1_proportion(correct: int, support: int, predicted: int, confidence: float = 0.95) -> Estimate:
    """F1 of one class with the indirect Wilson interval (Lam, Gopal and Qian 2023, arXiv 2309.14621).

    F1 = 2J / (1 + J) grows with J, the share of right ones among the examples that are of the class or
    predicted as it; J is a proportion, so its Wilson bounds carry over and stay honest for a class with one
    example.
    """
    involved = support + predicted - correct
    share = proportion(correct, involved, confidence)
    low, high = (2 * bound / (1 + bound) for bound in (share.low or 0.0, share.high or 0.0))
    return Estimate(2 * share.value / (1 + share.value), low, high, involved, "wilson-f1")


def mean(values: Values, confidence: float = 0.95) -> Estimate:
    """Mean of one number an example, (N,), with Student's interval; without one when N is 1."""
    n = len(values)
    if n == 0:
        raise ValueError("mean of 0 examples; expected at least one")
    value = float(values.mean())
    if n == 1:
        return Estimate(value, None, None, 1, "none")
    margin = float(stats.t.ppf((1 + confidence) / 2, n - 1) * values.std(ddof=1) / np.sqrt(n))
    return Estimate(value, value - margin, value + margin, n, "student-t")


def macro_estimates(confusion: Counts, *, confidence: float, num_resamples: int, seed: int) -> dict[str, Estimate]:
    """Macro precision, recall and F1, and weighted F1 as ``f1_weighted``, each with a BCa bootstrap interval.

    Where no resample differs (a perfect result, say) a bootstrap would claim certainty; the average of the
    classes' Wilson bounds stands in, which is wider than needed rather than too narrow.
    """
    labels, predicted = np.nonzero(confusion)
    cells = _Cells(labels, predicted, len(confusion))

    def statistic(counts: NDArray[np.int64]) -> Values:
        classes = cells.class_counts(counts)
        columns = [classes.macro(metric) for metric in AVERAGED] + [classes.weighted("f1")]
        return np.stack(columns, axis=1)

    estimates = bootstrap(confusion[labels, predicted], statistic, confidence, num_resamples, seed)
    named = dict(zip((*AVERAGED, "f1_weighted"), estimates, strict=True))
    classes = ClassCounts.of(confusion)
    for name, estimate in named.items():
        if estimate.low == estimate.high:
            weights = classes.support if name == "f1_weighted" else (classes.support + classes.predicted) > 0
            named[name] = _average_of_classes(estimate, classes, name.removesuffix("_weighted"), weights, confidence)
    return named


def class_estimates(confusion: Counts, confidence: float) -> list[dict[str, Estimate | None]]:
    """Precision, recall and F1 of each class with Wilson intervals; None where nothing can be said (0/0)."""
    classes = ClassCounts.of(confusion)
    result: list[dict[str, Estimate | None]] = []
    for row in zip(classes.correct, classes.support, classes.predicted, strict=True):
        correct, support, predicted = (int(count) for count in row)
        result.append(
            {
                "precision": proportion(correct, predicted, confidence) if predicted else None,
                "recall": proportion(correct, support, confidence) if support else None,
                "f1": f1_proportion(correct, support, predicted, confidence) if support + predicted else None,
            }
        )
    return result


def _average_of_classes(
    estimate: Estimate, classes: ClassCounts, metric: str, weights: NDArray[Any], confidence: float
) -> Estimate:
    confusion_rows = zip(classes.correct, classes.support, classes.predicted, weights, strict=True)
    lows, highs, kept = [], [], []
    for correct, support, predicted, weight in confusion_rows:
        n = {"precision": predicted, "recall": support, "f1": support + predicted - correct}[metric]
        if not weight:
            continue
        kept.append(float(weight))
        if n == 0:  # such a class counts as 0, whatever happens
            bounds: tuple[float, float] = (0.0, 0.0)
        else:
            share = (
                f1_proportion(correct, support, predicted, confidence)
                if metric == "f1"
                else proportion(correct, n, confidence)
            )
            bounds = (share.low or 0.0, share.high or 0.0)
        lows.append(bounds[0])
        highs.append(bounds[1])
    low, high = float(np.average(lows, weights=kept)), float(np.average(highs, weights=kept))
    return replace(estimate, low=low, high=high, method="wilson-average")


class _Cells:
    """The distinct (label, prediction) pairs, and how resampled counts of them become counts of classes."""

    def __init__(self, labels: Labels, predicted: Labels, num_classes: int) -> None:
        self._of_label = _one_hot(labels, num_classes)
        self._of_prediction = _one_hot(predicted, num_classes)
        self._right = labels == predicted

    def class_counts(self, counts: NDArray[np.int64]) -> ClassCounts:
        """counts: (R, K). The fields of the result are (R, C)."""
        return ClassCounts(
            correct=(counts * self._right) @ self._of_label,
            support=counts @ self._of_label,
            predicted=counts @ self._of_prediction,
        )


def _one_hot(classes: Labels, num_classes: int) -> Any:
    """(K,) to a sparse (K, C); with a thousand classes a dense one would not fit."""
    num_cells = len(classes)
    ones = np.ones(num_cells, dtype=np.int64)
    return sparse.csr_array((ones, (np.arange(num_cells), classes)), shape=(num_cells, num_classes))


def bootstrap(
    counts: NDArray[np.int64], statistic: Statistic, confidence: float, num_resamples: int, seed: int
) -> list[Estimate]:
    """Bias-corrected and accelerated intervals (Efron 1987) of M statistics of cell counts.

    counts: (K,), all positive. statistic: (R, K) counts to (R, M) values. Where the correction cannot be
    had (all resamples on one side of the estimate, leave-one-out values that never change, more than 5,000
    cells) the percentile interval is given, and `method` says so.
    """
    n = int(counts.sum())
    observed = statistic(counts[None, :])[0]
    generator = np.random.default_rng(seed)
    chunk = max(1, _CHUNK_NUMBERS // len(counts))
    resampled = np.concatenate(
        [
            statistic(generator.multinomial(n, counts / n, size=min(chunk, num_resamples - start)))
            for start in range(0, num_resamples, chunk)
        ]
    )
    acceleration = _acceleration(counts, statistic, chunk)
    tail = (1 - confidence) / 2
    estimates = []
    for value, values, skew in zip(observed, resampled.T, acceleration, strict=True):
        below = ((values < value).mean() + (values <= value).mean()) / 2
        method, levels = "percentile-bootstrap", np.array([tail, 1 - tail])
        if 0 < below < 1 and np.isfinite(skew):
            bias = stats.norm.ppf(below)
            shifted = bias + stats.norm.ppf(levels)
            method, levels = "bca-bootstrap", stats.norm.cdf(bias + shifted / (1 - skew * shifted))
        low, high = np.quantile(values, levels)
        estimates.append(Estimate(float(value), float(low), float(high), n, method))
    return estimates


def _acceleration(counts: NDArray[np.int64], statistic: Statistic, chunk: int) -> Values:
    """(M,) skewness over six of the leave-one-out values, NaN where there is none; leaving out any example of a
    cell gives the same value.
    """
    num_cells = len(counts)
    if num_cells > _MAX_CELLS_LEFT_OUT:
        return np.full(statistic(counts[None, :]).shape[1], np.nan)
    left_out = np.concatenate(
        [
            statistic(counts[None, :] - np.eye(min(chunk, num_cells - start), num_cells, start, dtype=np.int64))
            for start in range(0, num_cells, chunk)
        ]
    )
    weights = counts[:, None].astype(np.float64)
    deviations = (weights * left_out).sum(axis=0) / counts.sum() - left_out
    squares = (weights * deviations**2).sum(axis=0)
    # Differences of rounding only (a statistic that never changes) must not pass for a skewness.
    squares[squares < 1e-24] = np.nan
    result: Values = (weights * deviations**3).sum(axis=0) / (6 * squares**1.5)
    return result


def compare(
    a: str,
    b: str,
    labels: Labels,
    predicted_a: Labels,
    predicted_b: Labels,
    num_classes: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Comparison:
    """Two models on the same examples: labels, predicted_a, predicted_b are (N,) in 0 .. C-1, aligned.

    The p-value is McNemar's exact one: among the examples that only one of both got right, is either
    favoured? The interval is the paired BCa bootstrap's, widened where the exact interval of the same
    binomial reaches further, so that interval and test never contradict each other (with few such examples a
    bootstrap is too sure of itself).
    """
    n = len(labels)
    if n == 0:
        raise ValueError(f"{a} and {b} were compared on 0 examples; expected at least one")
    right_a, right_b = predicted_a == labels, predicted_b == labels
    only_a, only_b = int((right_a & ~right_b).sum()), int((~right_a & right_b).sum())
    discordant = only_a + only_b

    codes = (labels.astype(np.int64) * num_classes + predicted_a) * num_classes + predicted_b
    cells, counts = np.unique(codes, return_counts=True)
    label, cell_a, cell_b = cells // num_classes**2, cells // num_classes % num_classes, cells % num_classes
    cells_a, cells_b = _Cells(label, cell_a, num_classes), _Cells(label, cell_b, num_classes)

    def statistic(resampled: NDArray[np.int64]) -> Values:
        classes_a, classes_b = cells_a.class_counts(resampled), cells_b.class_counts(resampled)
        accuracies = classes_a.accuracy() - classes_b.accuracy()
        return np.stack([accuracies, classes_a.macro("f1") - classes_b.macro("f1")], axis=1)

    accuracy, f1 = bootstrap(counts, statistic, confidence, num_resamples, seed)
    low, high, p_value = accuracy.low or 0.0, accuracy.high or 0.0, 1.0
    if discordant:
        test = stats.binomtest(only_a, discordant)
        share = test.proportion_ci(confidence, method="exact")
        low = min(low, (2 * float(share.low) - 1) * discordant / n)
        high = max(high, (2 * float(share.high) - 1) * discordant / n)
        p_value = float(test.pvalue)
    else:  # no disagreement gives the bootstrap no spread, but the next n examples may hold one
        bound = proportion(0, n, confidence).high or 0.0
        low, high = -bound, bound
    if f1.low == f1.high:
        f1 = replace(f1, low=None, high=None, method="none")
    detectable = minimum_detectable_difference(n, discordant / n, confidence)
    return Comparison(
        a, b, (only_a - only_b) / n, low, high, p_value, n, "exact McNemar, paired bootstrap", detectable,
        only_a, only_b, f1, confidence,
    )  # fmt: skip


def minimum_detectable_difference(n: int, disagreement: float, confidence: float = 0.95, power: float = POWER) -> float:
    """The smallest difference of accuracy that McNemar's test shows with the given power on n examples (0 to
    1).

    disagreement: share d of the examples that exactly one of both models gets right. From the sample size of
    McNemar's test (Connor 1987, Biometrics 43), sqrt(n) * x = z_a * sqrt(d) + z_b * sqrt(d - x**2), solved
    for x: x = sqrt(d) * k with k = (z_a sqrt(n) + z_b sqrt(n + z_b**2 - z_a**2)) / (n + z_b**2). A difference
    larger than d needs more disagreement than was seen; then at least d = x, which gives x = k**2. The idea
    of printing it: Card et al. 2020.
    """
    z_a, z_b = float(stats.norm.ppf((1 + confidence) / 2)), float(stats.norm.ppf(power))
    inner = max(0.0, n + z_b**2 - z_a**2)
    k = (z_a * np.sqrt(n) + z_b * np.sqrt(inner)) / (n + z_b**2)
    fewest = np.ceil(np.log2(2 / (1 - confidence)))  # disagreements that the exact test needs to show anything
    return float(min(1.0, max(np.sqrt(disagreement) * k, k**2, fewest / n)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given."""
    order = np.argsort(p_values, kind="stable")
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def with_holm(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """The same comparisons with p-values adjusted for their number, and `method` saying so when there are
    several.
    """
    if len(comparisons) < 2:
        return list(comparisons)
    adjusted = holm([comparison.p_value for comparison in comparisons])
    return [
        replace(comparison, p_value=p_value, method=f"{comparison.method}, Holm over {len(comparisons)}")
        for comparison, p_value in zip(comparisons, adjusted, strict=True)
    ]
