from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as oracle

from modelyard.evaluation.metrics import (
    ClassCounts,
    confusion_matrix,
    example_brier_scores,
    example_losses,
    log_probabilities,
    quick_metrics,
)

PAIRS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40)


@given(PAIRS)
def test_every_average_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    labels, predicted = np.array(pairs).T
    confusion = confusion_matrix(labels, predicted, 4)
    assert (confusion == oracle.confusion_matrix(labels, predicted, labels=range(4))).all()
    counts = ClassCounts.of(confusion)
    assert counts.accuracy() == pytest.approx(oracle.accuracy_score(labels, predicted))
    for average, ours in (("macro", counts.macro), ("weighted", counts.weighted)):
        theirs = oracle.precision_recall_fscore_support(labels, predicted, average=average, zero_division=0)
        assert [ours(name) for name in ("precision", "recall", "f1")] == pytest.approx(theirs[:3])
    theirs = oracle.precision_recall_fscore_support(labels, predicted, labels=range(4), zero_division=0)
    for name, values in zip(("precision", "recall", "f1"), theirs, strict=False):
        assert counts.per_class(name) == pytest.approx(values)


def test_quick_metrics_agree_with_scikit_learn() -> None:
    generator = np.random.default_rng(1)
    labels, logits = generator.integers(0, 3, 200), generator.normal(size=(200, 3)).astype(np.float32)
    probabilities = np.exp(log_probabilities(logits))
    found = quick_metrics(labels, logits)
    predicted = logits.argmax(axis=1)
    assert found == pytest.approx(
        {
            "accuracy": oracle.accuracy_score(labels, predicted),
            "precision": oracle.precision_score(labels, predicted, average="macro"),
            "recall": oracle.recall_score(labels, predicted, average="macro"),
            "f1": oracle.f1_score(labels, predicted, average="macro"),
            "loss": oracle.log_loss(labels, probabilities),
        }
    )


def test_quick_metrics_refuse_no_examples() -> None:
    with pytest.raises(ValueError, match="got no examples; expected at least one"):
        quick_metrics([], np.zeros((0, 2)))


def test_the_loss_of_a_sure_mistake_is_finite_and_exact() -> None:
    logs = log_probabilities(np.array([[500.0, -500.0]], dtype=np.float32))
    assert example_losses(np.array([1]), logs) == pytest.approx([1000.0])


def test_brier_scores_agree_with_their_definition() -> None:
    generator = np.random.default_rng(2)
    labels, logits = generator.integers(0, 2, 50), generator.normal(size=(50, 2))
    probabilities = np.exp(log_probabilities(logits))
    # scikit-learn's score of two classes is that of one of them, half of the sum over both.
    expected = 2 * oracle.brier_score_loss(labels, probabilities[:, 1])
    assert example_brier_scores(labels, probabilities).mean() == pytest.approx(expected)
