from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from modelyard.evaluation import baselines
from modelyard.evaluation.baselines import BaselineUnfit, fit_baseline, unspaced_share

GOOD = ["a fine and moving film", "wonderful acting, a fine story", "moving and wonderful", "a fine, fine story"]
BAD = ["a dull and empty film", "terrible acting, an empty story", "dull and terrible", "an empty, dull story"]
TFIDF = "tfidf-logistic-regression"


def _predicted(baseline: Any, split: Any) -> tuple[Any, Any]:
    rows, logs = zip(*baseline.predict(split), strict=True)
    return np.concatenate(rows), np.concatenate(logs)


def test_the_majority_class_answers_with_the_training_shares(make_split: Callable[..., Any]) -> None:
    baseline = fit_baseline("majority", make_split(["x"] * 10, [1] * 7 + [0] * 3), 3, seed=0)
    rows, logs = _predicted(baseline, make_split(["y"] * 600, [0] * 600))
    assert rows.tolist() == list(range(600))
    assert np.exp(logs[0]) == pytest.approx([4 / 13, 8 / 13, 1 / 13])  # each class counts one example more
    assert baseline.details == {"class": 1, "share": 0.7}


def test_tfidf_learns_from_words_and_says_how(make_split: Callable[..., Any]) -> None:
    train = make_split((GOOD + BAD) * 3, ([1] * 4 + [0] * 4) * 3)
    baseline = fit_baseline(TFIDF, train, 2, seed=0)
    _, logs = _predicted(baseline, make_split(["wonderful and fine", "terrible and dull"], [1, 0]))
    assert logs.argmax(axis=1).tolist() == [1, 0]
    assert np.exp(logs).sum(axis=1) == pytest.approx([1, 1])
    assert baseline.details["features"] == "words"
    assert baseline.details["num_documents"] == baseline.details["num_available"] == 24
    assert baseline.details["C"] in baselines.REGULARISATIONS
    again = _predicted(fit_baseline(TFIDF, train, 2, seed=0), train)[1]
    assert (again == _predicted(baseline, train)[1]).all()


def test_text_without_spaces_is_read_by_character(make_split: Callable[..., Any]) -> None:
    good, bad = ["这本书很好看", "非常好的酒店", "很好，很喜欢"], ["这本书太差了", "非常差的酒店", "太差，不喜欢"]
    baseline = fit_baseline(TFIDF, make_split((good + bad) * 2, ([1] * 3 + [0] * 3) * 2), 2, seed=0)
    assert baseline.details["features"] == "characters"
    _, logs = _predicted(baseline, make_split(["好书", "差书"], [1, 0]))
    assert logs.argmax(axis=1).tolist() == [1, 0]


def test_the_share_of_unspaced_scripts_counts_letters_only() -> None:
    assert unspaced_share(["你好ab！！ 12"]) == 0.5
    assert unspaced_share(["ひらがな", "ไทย"]) == 1.0
    assert unspaced_share(["한국어 문장", "plain words"]) == 0.0  # Korean puts spaces between words
    assert unspaced_share(["", "123 !?"]) == 0.0


def test_documents_are_bounded_and_drawn_by_seed(
    make_split: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baselines, "MAX_DOCUMENTS", 30)
    train = make_split([f"{GOOD[row % 4]} {row}" for row in range(90)], [row % 2 for row in range(90)])
    one = fit_baseline(TFIDF, train, 2, seed=1)
    assert (one.details["num_documents"], one.details["num_available"]) == (30, 90)
    other = fit_baseline(TFIDF, train, 2, seed=2)
    assert set(one.vectorizer.vocabulary_) != set(other.vectorizer.vocabulary_)  # type: ignore[attr-defined]
    monkeypatch.setattr(baselines, "MAX_CHARACTERS", 200)
    assert fit_baseline(TFIDF, train, 2, seed=1).details["num_documents"] < 12


def test_three_classes_one_with_a_single_example(make_split: Callable[..., Any]) -> None:
    train = make_split([*GOOD, *BAD, "quite another thing"], [1] * 4 + [0] * 4 + [2])
    baseline = fit_baseline(TFIDF, train, 4, seed=0)
    _, logs = _predicted(baseline, make_split(["fine and moving", "empty and dull"], [1, 0]))
    assert logs.argmax(axis=1).tolist() == [1, 0]
    assert np.isfinite(logs).all()  # also of the fourth class, which was never seen
    assert np.exp(logs[:, 3]) == pytest.approx([1e-9, 1e-9])


def test_too_few_examples_to_choose_on_take_the_default(make_split: Callable[..., Any]) -> None:
    baseline = fit_baseline(TFIDF, make_split(["fine film", "dull film"], [1, 0]), 2, seed=0)
    assert (baseline.details["C"], baseline.details["validated_accuracy"]) == (3.0, None)


@pytest.mark.parametrize(
    ("name", "texts", "labels", "reason"),
    [
        ("majority", [], [], "no_examples"),
        (TFIDF, [], [], "no_examples"),
        (TFIDF, ["a fine film", "a dull film"], [1, 1], "one_class"),
        (TFIDF, ["?!", "..."], [1, 0], "no_words"),
    ],
)
def test_what_cannot_be_fitted_says_why(
    make_split: Callable[..., Any], name: str, texts: list[str], labels: list[int], reason: str
) -> None:
    with pytest.raises(BaselineUnfit) as caught:
        fit_baseline(name, make_split(texts, labels), 2, seed=0)
    assert caught.value.reason == reason
