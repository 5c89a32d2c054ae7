"""The course of the learning rate, as a pure function of the step: nothing to save, nothing to restore."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Schedule:
    """A linear rise from 0 over the warm-up, then constant, or falling to 0 in a line or half a cosine.

    The factors are those of transformers' ``get_{constant,linear,cosine}_schedule_with_warmup``.

    peak: highest learning rate.
    num_steps: optimiser steps of the whole training, warm-up included.
    num_warmup_steps: steps before the peak.
    """

    name: Literal["constant", "linear", "cosine"]
    peak: float
    num_steps: int
    num_warmup_steps: int

    def learning_rate(self, step: int) -> float:
        """The learning rate of optimiser step `step`, counted from 0."""
        return self.peak * self._factor(step)

    def _factor(self, step: int) -> float:
        if step < self.num_warmup_steps:
            return step / self.num_warmup_steps
        if self.name == "constant":
            return 1.0
        progress = (step - self.num_warmup_steps) / max(1, self.num_steps - self.num_warmup_steps)
        if self.name == "linear":
            return max(0.0, 1.0 - progress)
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))


def warmup_steps(num_steps: int, warmup_ratio: float) -> int:
    """Steps of the warm-up: the ratio of all steps, rounded up."""
    return min(num_steps, math.ceil(num_steps * warmup_ratio))
