"""Which evaluation is the best."""

from __future__ import annotations

import pytest

from modelyard.errors import InputError
from modelyard.training.progress import Progress


def best_of(metric: str, values: list[float]) -> tuple[int | None, float | None, int]:
    progress = Progress(steps_per_epoch=10)
    for epoch, value in enumerate(values, start=1):
        progress.epoch, progress.step = epoch, 10 * epoch
        progress.take_evaluation({metric: value}, metric)
    return progress.best_epoch, progress.best_value, progress.evaluations_without_better


def test_a_loss_is_better_when_lower_and_a_score_when_higher() -> None:
    assert best_of("loss", [0.9, 0.4, 0.5]) == (2, 0.4, 1)
    assert best_of("f1", [0.9, 0.4, 0.95]) == (3, 0.95, 0)


def test_a_tie_keeps_the_earlier() -> None:
    assert best_of("accuracy", [0.5, 0.7, 0.7, 0.7]) == (2, 0.7, 2)


def test_what_is_no_number_is_never_the_best() -> None:
    nan = float("nan")
    assert best_of("loss", [nan, 0.4, nan]) == (2, 0.4, 1)
    assert best_of("loss", [nan, nan]) == (None, None, 2)


def test_a_metric_that_was_not_computed_is_an_error() -> None:
    with pytest.raises(InputError, match=r"no 'f1' to select the best model by, only \['accuracy', 'loss'\]"):
        Progress(10).take_evaluation({"loss": 1.0, "accuracy": 0.5}, "f1")


def test_it_survives_json() -> None:
    progress = Progress(10, 25, 3, 5, 0.1 + 0.2, 20, 2, 0.75, 1, 12.5)
    assert Progress.from_json(progress.to_json(), where="x") == progress


@pytest.mark.parametrize("change", [{"format": 2}, {"new": 1}])
def test_another_format_is_refused(change: dict[str, int]) -> None:
    with pytest.raises(InputError, match=r"progress\.json has format \d, and this modelyard reads 1"):
        Progress.from_json(Progress(10).to_json() | change, where="progress.json")
