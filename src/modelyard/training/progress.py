"""Where a training stands: which step comes next, and which evaluation was the best so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from modelyard.errors import InputError

FORMAT = 1


@dataclass
class Progress:
    """Stored with every checkpoint; all that the loop needs to go on, beside the learner's own state.

    step: optimiser steps done.
    epoch: the epoch under way, counted from 1; one past the last when all are done.
    step_in_epoch: steps done of that epoch; equal to `steps_per_epoch` while its evaluation is still to come.
    epoch_loss_sum: sum of the losses of these steps.
    best_step, best_epoch, best_value: the best evaluation's, or None before there was one.
    evaluations_without_better: evaluations since then.
    seconds: time spent in training and evaluation, over all resumes.
    """

    steps_per_epoch: int
    step: int = 0
    epoch: int = 1
    step_in_epoch: int = 0
    epoch_loss_sum: float = 0.0
    best_step: int | None = None
    best_epoch: int | None = None
    best_value: float | None = None
    evaluations_without_better: int = 0
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        return {"format": FORMAT, **asdict(self)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any], *, where: str) -> Progress:
        """Raises InputError for what another version wrote."""
        fields = {key: item for key, item in value.items() if key != "format"}
        if value.get("format") != FORMAT or set(fields) != set(cls.__dataclass_fields__):
            raise InputError(
                f"{where} has format {value.get('format')!r}, and this modelyard reads {FORMAT}",
                hint="go on with the modelyard that began the training, or begin anew with --run FOLDER",
            )
        return cls(**fields)

    def take_evaluation(self, metrics: Mapping[str, float], best_metric: str) -> bool:
        """Note the evaluation after the current step; True when it is the best so far.

        A tie keeps the earlier one. A value that is no number is never the best.
        Raises InputError when `metrics` lacks `best_metric`.
        """
        if best_metric not in metrics:
            raise InputError(
                f"the evaluation has no {best_metric!r} to select the best model by, only {sorted(metrics)}",
                hint=f"--set training.best_metric={min(metrics, default='loss')}",
            )
        value = float(metrics[best_metric])
        if math.isnan(value) or not is_better(value, self.best_value, best_metric):
            self.evaluations_without_better += 1
            return False
        self.best_step, self.best_epoch, self.best_value = self.step, self.epoch, value
        self.evaluations_without_better = 0
        return True


def is_better(value: float, than: float | None, metric: str) -> bool:
    """Whether `value` of `metric` beats `than`: a loss when lower, others when higher."""
    if than is None:
        return True
    return value < than if metric == "loss" else value > than
