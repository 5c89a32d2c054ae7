from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats
from sklearn.metrics import f1_score

from modelyard.evaluation.metrics import confusion_matrix
from modelyard.evaluation.statistics import (
    bootstrap,
    class_estimates,
    compare,
    f1_proportion,
    holm,
    macro_estimates,
    mean,
    minimum_detectable_difference,
    proportion,
    with_holm,
)

Labels = NDArray[np.int64]


def _guesses(n: int, num_classes: int, right: float, seed: int) -> tuple[Labels, Labels]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, num_classes, n)
    predicted = np.where(generator.random(n) < right, labels, generator.integers(0, num_classes, n))
    return labels, predicted


@pytest.mark.parametrize(("successes", "n"), [(0, 10), (10, 10), (7, 10), (420, 500)])
def test_proportions_have_statsmodels_wilson_interval(successes: int, n: int) -> None:
    oracle = pytest.importorskip("statsmodels.stats.proportion")
    estimate = proportion(successes, n)
    assert (estimate.low, estimate.high) == pytest.approx(
        oracle.proportion_confint(successes, n, method="wilson"), abs=1e-12
    )


def test_a_proportion_and_a_mean_of_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="proportion of 0 examples"):
        proportion(0, 0)
    with pytest.raises(ValueError, match="mean of 0 examples"):
        mean(np.array([]))


def test_the_f1_interval_covers_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    shares = np.array([0.25, 0.06, 0.09, 0.60])  # true positives, false positives, false negatives, the rest
    truth = 2 * shares[0] / (2 * shares[0] + shares[1] + shares[2])
    covered = 0
    for counts in generator.multinomial(80, shares, size=1000):
        correct, false_positives, false_negatives = (int(count) for count in counts[:3])
        estimate = f1_proportion(correct, correct + false_negatives, correct + false_positives)
        assert estimate.value == pytest.approx(2 * correct / (2 * correct + counts[1] + counts[2]))
        covered += estimate.low <= truth <= estimate.high  # type: ignore[operator]
    assert 0.93 <= covered / 1000 <= 0.975


def test_means_have_students_interval() -> None:
    values = np.random.default_rng(0).exponential(size=40)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    estimate = mean(values, 0.9)
    assert (estimate.low, estimate.high) == pytest.approx((expected.low, expected.high))
    assert mean(values[:1]).low is None


def test_the_macro_f1_bootstrap_is_scipys() -> None:
    labels, predicted = _guesses(150, 3, 0.7, seed=3)
    ours = macro_estimates(confusion_matrix(labels, predicted, 3), confidence=0.95, num_resamples=4000, seed=0)["f1"]
    theirs = stats.bootstrap(
        (labels, predicted),
        lambda a, b: f1_score(a, b, average="macro"),
        paired=True,
        vectorized=False,
        n_resamples=800,
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert ours.method == "bca-bootstrap"
    assert ours.value == pytest.approx(f1_score(labels, predicted, average="macro"))
    # Two Monte Carlo intervals of a width of about 0.15 agree to a few thousandths.
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.012)


def test_the_bca_correction_is_scipys_on_a_skewed_statistic() -> None:
    values = np.array([0.0, 1.0, 2.0, 8.0, 30.0])
    counts = np.array([30, 12, 8, 4, 2])
    (ours,) = bootstrap(counts, lambda c: (c @ values / c.sum(axis=1))[:, None], 0.95, 20_000, seed=0)
    theirs = stats.bootstrap(
        (np.repeat(values, counts),), np.mean, n_resamples=20_000, rng=np.random.default_rng(1)
    ).confidence_interval
    percentile = stats.bootstrap(
        (np.repeat(values, counts),),
        np.mean,
        n_resamples=20_000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.08)
    assert abs(percentile.high - theirs.high) > 0.4  # the correction matters here, so the agreement means something


def test_a_perfect_result_is_not_certain() -> None:
    labels = np.arange(40) % 2
    found = macro_estimates(confusion_matrix(labels, labels, 2), confidence=0.95, num_resamples=500, seed=0)
    for estimate in found.values():
        assert estimate.value == estimate.high == 1.0
        assert estimate.method == "wilson-average"
        assert estimate.low is not None
        assert 0.8 < estimate.low < 0.95


def test_a_bootstrap_without_its_correction_says_percentile() -> None:
    (estimate,) = bootstrap(np.array([5, 5]), lambda counts: np.full((len(counts), 1), 0.7), 0.95, 200, seed=0)
    assert (estimate.method, estimate.low, estimate.high) == ("percentile-bootstrap", 0.7, 0.7)


def test_very_many_cells_are_resampled_without_the_correction() -> None:
    counts = np.full(6000, 2)
    (estimate,) = bootstrap(counts, lambda c: c[:, :600].sum(axis=1)[:, None] / 12_000, 0.95, 100, seed=0)
    assert estimate.method == "percentile-bootstrap"
    assert estimate.low is not None
    assert estimate.low < 0.1 == estimate.value


def test_classes_with_one_example_or_none_have_honest_intervals() -> None:
    confusion = np.array([[9, 1, 0], [0, 1, 0], [0, 0, 0]])
    first, single, absent = class_estimates(confusion, 0.95)
    assert first["recall"] == proportion(9, 10)
    assert single["recall"] is not None
    assert single["recall"].low == pytest.approx(0.207, abs=0.001)  # Wilson: 1 / (1 + 1.96**2)
    assert absent == {"precision": None, "recall": None, "f1": None}
    found = macro_estimates(confusion, confidence=0.95, num_resamples=500, seed=0)
    assert found["f1"].low is not None
    assert found["f1"].high is not None
    assert found["f1"].low < found["f1"].value < found["f1"].high


def test_intervals_of_100_000_examples_are_quick() -> None:
    labels, predicted = _guesses(100_000, 20, 0.8, seed=0)
    started = time.perf_counter()
    macro_estimates(confusion_matrix(labels, predicted, 20), confidence=0.95, num_resamples=2000, seed=0)
    compare("a", "b", labels, predicted, labels, 20)
    assert time.perf_counter() - started < 20  # about 2 s; resampling rows would take minutes


def test_mcnemar_is_statsmodels() -> None:
    oracle = pytest.importorskip("statsmodels.stats.contingency_tables")
    labels, a = _guesses(300, 3, 0.8, seed=5)
    b = np.where(np.random.default_rng(6).random(300) < 0.3, _guesses(300, 3, 0.6, seed=7)[1], a)
    right_a, right_b = a == labels, b == labels
    table = [[(right_a & right_b).sum(), (right_a & ~right_b).sum()], [(~right_a & right_b).sum(), 0]]
    found = compare("a", "b", labels, a, b, 3)
    assert found.p_value == pytest.approx(oracle.mcnemar(table, exact=True).pvalue)
    assert found.difference == pytest.approx(right_a.mean() - right_b.mean())


def test_the_interval_of_a_difference_is_the_paired_bootstraps() -> None:
    labels, a = _guesses(400, 2, 0.8, seed=1)
    _, b = _guesses(400, 2, 0.5, seed=2)
    found = compare("a", "b", labels, a, b, 2)
    difference = (a == labels).astype(float) - (b == labels).astype(float)
    theirs = stats.bootstrap((difference,), np.mean, rng=np.random.default_rng(0)).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.006)
    assert found.f1_difference.value == pytest.approx(
        f1_score(labels, a, average="macro") - f1_score(labels, b, average="macro")
    )


def test_the_same_model_twice_is_no_difference() -> None:
    labels, predicted = _guesses(500, 2, 0.8, seed=1)
    found = compare("model", "majority", labels, predicted, predicted, 2)
    assert (found.difference, found.p_value, found.shown) == (0.0, 1.0, False)
    assert found.low < 0 < found.high
    assert found.f1_difference.low is None
    assert found.sentence == (
        "No difference: the model and the majority class are right on the same examples, of all 500; "
        "this test set could show 1.6 points or more."
    )


def test_few_disagreements_show_nothing_and_the_interval_says_so_too() -> None:
    labels = np.zeros(500, dtype=np.int64)
    a, b = labels.copy(), labels.copy()
    b[:5] = 1  # five to nothing: the exact p-value is 0.0625, a bootstrap alone would exclude 0
    found = compare("model", "new", labels, a, b, 2)
    assert not found.shown
    assert found.low <= 0
    assert found.sentence.startswith("No difference is shown between the model and “new”: +1.0 points")
    assert "exact McNemar p = 0.062)" in found.sentence


def test_a_difference_either_way_is_said_plainly() -> None:
    labels = np.arange(200) % 2
    worse = np.where(np.arange(200) < 40, 1 - labels, labels)
    better = compare("model", "majority", labels, labels, worse, 2)
    assert better.shown
    assert better.sentence.startswith("The model is better than the majority class by 20.0 points of accuracy (95% ")
    assert better.sentence.endswith("n = 200, exact McNemar p < 0.001).")
    found = compare("model", "majority", labels, worse, labels, 2)
    assert found.sentence.startswith("The model is worse than the majority class by 20.0 points")
    assert found.difference == -0.2


def test_below_thirty_examples_nothing_is_claimed() -> None:
    labels = np.arange(29) % 2
    found = compare("a", "b", labels, labels, 1 - labels, 2)
    assert found.p_value < 1e-6
    assert not found.shown


def test_a_comparison_on_no_examples_is_refused() -> None:
    nothing = np.zeros(0, dtype=np.int64)
    with pytest.raises(ValueError, match="model and other were compared on 0 examples"):
        compare("model", "other", nothing, nothing, nothing, 2)


@pytest.mark.parametrize("disagreement", [0.1, 0.3])
def test_the_minimum_detectable_difference_is_found_in_four_of_five_test_sets(disagreement: float) -> None:
    n = 1000
    difference = minimum_detectable_difference(n, disagreement)
    only_a, only_b = (disagreement + difference) / 2, (disagreement - difference) / 2
    draws = np.random.default_rng(0).multinomial(n, [only_a, only_b, 1 - disagreement], size=4000)
    tested = stats.binom.cdf(draws[:, 1], draws[:, 0] + draws[:, 1], 0.5) * 2
    # The formula is that of the asymptotic test; the exact one is a little more careful.
    assert (tested < 0.05).mean() == pytest.approx(0.8, abs=0.04)


def test_more_examples_show_smaller_differences_and_disagreement_hides_them() -> None:
    assert minimum_detectable_difference(500, 0.2) == pytest.approx(0.0559, abs=0.0005)
    assert minimum_detectable_difference(2000, 0.2) < minimum_detectable_difference(500, 0.2)
    assert minimum_detectable_difference(500, 0.1) < minimum_detectable_difference(500, 0.2)
    assert minimum_detectable_difference(500, 0.0) == pytest.approx(7.85 / 500, rel=0.02)  # (1.96 + 0.84)**2 / n
    assert minimum_detectable_difference(3, 0.3) == 1.0


def test_holm_is_statsmodels() -> None:
    oracle = pytest.importorskip("statsmodels.stats.multitest")
    p_values = [0.01, 0.04, 0.03, 0.005, 0.9]
    assert holm(p_values) == pytest.approx(oracle.multipletests(p_values, method="holm")[1])


def test_several_comparisons_are_adjusted_together() -> None:
    labels, a = _guesses(300, 2, 0.9, seed=1)
    one = replace(compare("a", "b", labels, a, _guesses(300, 2, 0.85, seed=2)[1], 2), p_value=0.03)
    assert with_holm([one]) == [one]
    first, second = with_holm([one, replace(one, p_value=0.5)])
    assert (first.p_value, second.p_value) == (0.06, 0.5)
    assert first.method == "exact McNemar, paired bootstrap, Holm over 2"
    assert not first.shown
