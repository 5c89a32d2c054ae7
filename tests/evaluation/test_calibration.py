from __future__ import annotations

import numpy as np
import pytest

from modelyard.evaluation.calibration import calibration


def _drawn(confidences: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).random(len(confidences)) < right


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "consistent"), (-0.15, "overconfident"), (0.12, "underconfident")]
)
def test_the_verdict_follows_how_the_answers_were_drawn(shift: float, verdict: str) -> None:
    confidences = np.random.default_rng(0).uniform(0.55, 0.85, 2000)
    found = calibration(confidences, _drawn(confidences, confidences + shift), confidence=0.95, seed=0)
    assert found["verdict"] == verdict
    assert len(found["bins"]) == 15
    assert {entry["n"] for entry in found["bins"]} <= {133, 134}


def test_the_error_is_the_weighted_mean_of_the_gaps() -> None:
    confidences = np.repeat([0.6, 0.9], 300)
    correct = np.concatenate([np.arange(300) < 150, np.arange(300) < 285])
    found = calibration(confidences, correct, confidence=0.95, seed=0)
    assert found["ece"] == pytest.approx((0.1 + 0.05) / 2)
    assert [entry["confidence"] for entry in found["bins"]] == pytest.approx([0.6, 0.9])
    assert found["verdict"] == "miscalibrated"  # too sure here, not sure enough there


def test_a_calibrated_model_stays_within_the_expected_interval_as_often_as_it_says() -> None:
    inside = 0
    for seed in range(100):
        generator = np.random.default_rng(seed)
        confidences = generator.uniform(0.5, 1, 300)
        correct = generator.random(300) < confidences
        inside += calibration(confidences, correct, confidence=0.95, seed=0)["verdict"] == "consistent"
    assert inside >= 92


def test_one_confidence_for_all_is_one_bin_and_few_examples_no_verdict() -> None:
    constant = calibration(np.full(100, 0.7), np.arange(100) < 70, confidence=0.95, seed=0)
    assert [entry["n"] for entry in constant["bins"]] == [100]
    assert constant["verdict"] == "consistent"
    assert calibration(np.array([0.9]), np.array([True]), confidence=0.95, seed=0)["verdict"] == "too_few"
