from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as oracle

from modelyard.errors import InputError
from modelyard.evaluation.evaluate import compare_predictions, evaluate
from modelyard.recipe.schema import EvaluationSection
from modelyard.tasks.text_classification import TASKS

LABELS = ("bad", "fair", "good")
OPTIONS = EvaluationSection(num_resamples=200)


@pytest.fixture
def judge(tmp_path: Path, make_split: Callable[..., Any], noisy_logits: Callable[..., Any]) -> Callable[..., Any]:
    """Evaluate made-up logits on 120 texts whose words tell a little of their class."""

    def run(folder: str = "evaluation", strength: float = 3.0, seed: int = 0, **changes: Any) -> Any:
        generator = np.random.default_rng(9)
        labels = generator.integers(0, 3, 300)
        words = [
            f"{LABELS[label if generator.random() < 0.6 else 0]} text number {row}" for row, label in enumerate(labels)
        ]
        test = make_split(words[:120], labels[:120], generator.integers(20, 3000, 120), max_length=1024)
        train = make_split(words[120:], labels[120:])
        logits = noisy_logits(test.labels, 3, strength, seed)
        arguments: dict[str, Any] = {
            "train": train,
            "labels": LABELS,
            "task": TASKS["text-classification"],
            "options": OPTIONS,
            "folder": tmp_path / folder,
        }
        return evaluate([(np.arange(120), logits)], test, **{**arguments, **changes})

    return run


def test_metrics_json_holds_what_was_returned_and_agrees_with_scikit_learn(judge: Callable[..., Any]) -> None:
    evaluation = judge(cost={"num_parameters": 12, "tokens_per_second": 3.5})
    stored = json.loads((evaluation.folder / "metrics.json").read_text(encoding="utf-8"))
    assert stored == evaluation.metrics
    assert [system["name"] for system in stored["systems"]] == ["model", "majority", "tfidf-logistic-regression"]

    table = pq.read_table(evaluation.folder / "predictions.parquet").to_pydict()
    model = stored["systems"][0]
    assert model["metrics"]["accuracy"]["value"] == pytest.approx(
        oracle.accuracy_score(table["label"], table["predicted"])
    )
    assert model["metrics"]["f1"]["value"] == pytest.approx(
        oracle.f1_score(table["label"], table["predicted"], average="macro")
    )
    probabilities = np.stack([table[f"probability_{label}"] for label in LABELS], axis=1)
    probabilities /= probabilities.sum(axis=1, keepdims=True)  # they are stored as float32
    assert model["metrics"]["loss"]["value"] == pytest.approx(
        oracle.log_loss(table["label"], probabilities, labels=LABELS), rel=1e-4
    )
    assert model["details"]["num_parameters"] == 12
    assert sum(map(sum, model["confusion"])) == stored["n"] == 120
    assert [row["support"] for row in model["classes"]] == [table["label"].count(label) for label in LABELS]


def test_a_good_model_is_better_than_its_baselines_and_says_so(judge: Callable[..., Any]) -> None:
    sentences = judge().sentences
    assert len(sentences) == 2
    assert sentences[0].startswith("The model is better than the majority class by ")
    assert sentences[1].startswith("The model is better than TF-IDF + logistic regression by ")


def test_the_surest_mistakes_come_first_with_their_place(judge: Callable[..., Any]) -> None:
    evaluation = judge(strength=1.0)
    mistakes = evaluation.metrics["mistakes"]
    assert len(mistakes) == 20
    assert [entry["probability"] for entry in mistakes] == sorted(
        (entry["probability"] for entry in mistakes), reverse=True
    )
    assert all(entry["label"] != entry["predicted"] for entry in mistakes)
    assert mistakes[0]["source"] == f"texts.csv:{mistakes[0]['row'] + 2}"


def test_other_runs_stand_beside_the_model(judge: Callable[..., Any]) -> None:
    other = judge("other", strength=0.5, seed=5).folder / "predictions.parquet"
    metrics = judge(model_name="whole", other_systems={"cut at 512": other}).metrics
    assert [(system["name"], system["kind"]) for system in metrics["systems"]] == [
        ("whole", "model"),
        ("cut at 512", "model"),
        ("majority", "baseline"),
        ("tfidf-logistic-regression", "baseline"),
    ]
    assert metrics["comparisons"][0]["sentence"].startswith("“whole” is better than “cut at 512” by ")
    assert "Holm over 3" in metrics["comparisons"][0]["method"]
    assert set(metrics["slices"]["length"][0]["accuracy"]) == {system["name"] for system in metrics["systems"]}


def test_two_runs_are_compared_by_their_files(judge: Callable[..., Any]) -> None:
    good = judge("good", strength=3.0).folder / "predictions.parquet"
    poor = judge("poor", strength=0.5, seed=5).folder / "predictions.parquet"
    found = compare_predictions("first", good, "second", poor, OPTIONS)
    assert found.shown
    assert found.sentence.startswith("“first” is better than “second” by ")
    same = compare_predictions("first", good, "again", good, OPTIONS)
    assert not same.shown
    assert same.sentence.startswith("No difference: “first” and “again” are right on the same examples")


def test_without_training_texts_the_baselines_are_missing_and_noted(judge: Callable[..., Any]) -> None:
    metrics = judge(train=None).metrics
    assert [system["name"] for system in metrics["systems"]] == ["model"]
    assert metrics["comparisons"] == []
    assert metrics["notes"] == [
        {"key": "baseline_no_examples", "baseline": "majority"},
        {"key": "baseline_no_examples", "baseline": "tfidf-logistic-regression"},
    ]
    assert judge(options=EvaluationSection(baseline="none", num_resamples=100)).metrics["notes"] == []


def test_one_single_example_can_be_judged(
    judge: Callable[..., Any], make_split: Callable[..., Any], tmp_path: Path
) -> None:
    evaluation = evaluate(
        [(np.array([0]), np.array([[2.0, 0.0]]))],
        make_split(["one"], [0]),
        make_split(["one", "two"], [0, 1]),
        ("a", "b"),
        task=TASKS["sentiment"],
        options=OPTIONS,
        folder=tmp_path,
    )
    accuracy = evaluation.metrics["systems"][0]["metrics"]["accuracy"]
    assert (accuracy["value"], accuracy["n"]) == (1.0, 1)
    assert accuracy["low"] < 0.25
    assert not any(comparison["shown"] for comparison in evaluation.metrics["comparisons"])


def test_text_that_is_not_valid_unicode_does_not_break_the_files(
    make_split: Callable[..., Any], tmp_path: Path
) -> None:
    evaluation = evaluate(
        [(np.array([0]), np.array([[2.0, 0.0]]))],
        make_split(["half a character: \ud83d"], [1]),
        None,
        ("a", "b"),
        task=TASKS["sentiment"],
        options=OPTIONS,
        folder=tmp_path,
    )
    assert evaluation.metrics["mistakes"][0]["excerpt"] == "half a character: ?"


def test_an_empty_split_is_refused(judge: Callable[..., Any], make_split: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the test split has 0 examples, expected at least 1") as caught:
        evaluate([], make_split([], []), None, LABELS, task=TASKS["sentiment"], options=OPTIONS, folder=tmp_path)
    assert "data.split.test" in caught.value.hint


def test_two_systems_with_one_name_are_refused(judge: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'majority' names two systems of one report"):
        judge(other_systems={"majority": tmp_path / "none.parquet"})
