"""Reading the losses: late enough that the device need not wait, early enough to stop a broken training."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from modelyard.engines.base import Batch, StepOutcome
from modelyard.errors import InputError
from modelyard.runs.events import EventLog

# Asking a device for a number waits for all its work. Twice a second costs next to nothing, and shows
# that the training moves.
READ_EVERY_SECONDS = 0.5
NAMED_ROWS = 16


class StepPlan(Protocol):
    """The optimiser steps of one epoch, each a list of micro-batches."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sequence[Batch]: ...


class NonFiniteLoss(InputError):
    """The loss or its gradient became infinite or no number."""


@dataclass(frozen=True)
class _Pending:
    step: int
    epoch: int
    learning_rate: float
    rows: list[int]
    outcome: StepOutcome


class StepReader:
    """Takes the outcomes of steps, and later reads them and writes their events.

    num_steps: of the whole training, for the events.
    memory_bytes: the most memory held so far.
    describe_rows: names rows of the training split as the person knows them.
    last_good: where the last checkpoint lies, for the error.
    """

    def __init__(
        self,
        events: EventLog,
        *,
        num_steps: int,
        memory_bytes: Callable[[], int],
        describe_rows: Callable[[Sequence[int]], Sequence[str]],
        last_good: Callable[[], str],
    ) -> None:
        self._events = events
        self._num_steps = num_steps
        self._memory_bytes = memory_bytes
        self._describe_rows = describe_rows
        self._last_good = last_good
        self._pending: list[_Pending] = []
        self._since = time.perf_counter()

    def restart_clock(self) -> None:
        """What happened since the last step (an evaluation, a checkpoint) is not the next step's time."""
        self._since = time.perf_counter()

    def add(
        self,
        micro_batches: Sequence[Batch],
        outcome: StepOutcome,
        *,
        step: int,
        epoch: int,
        learning_rate: float,
    ) -> None:
        """Take the outcome of optimiser step `step`, counted from 1."""
        rows = [int(row) for batch in micro_batches for row in batch.rows[batch.weights > 0]]
        self._pending.append(_Pending(step, epoch, learning_rate, rows, outcome))

    @property
    def is_due(self) -> bool:
        return time.perf_counter() - self._since >= READ_EVERY_SECONDS

    def read(self) -> list[float]:
        """The losses of the steps since the last reading, in order; their events are written.

        Raises NonFiniteLoss at the first that is infinite or no number.
        """
        read = [
            (
                each,
                each.outcome.loss.item(),
                each.outcome.gradient_norm.item(),
            )  # the first one waits for the device
            for each in self._pending
        ]
        now = time.perf_counter()
        seconds = (now - self._since) / max(1, len(read))
        self._pending, self._since = [], now
        for each, loss, gradient_norm in read:
            self._events.append(
                "step",
                step=each.step,
                num_steps=self._num_steps,
                epoch=each.epoch,
                loss=loss,
                learning_rate=each.learning_rate,
                gradient_norm=gradient_norm,
                tokens=each.outcome.num_tokens,
                tokens_per_second=each.outcome.num_tokens / seconds if seconds > 0 else None,
                seconds=seconds,
                memory_bytes=self._memory_bytes(),
            )
            if not (math.isfinite(loss) and math.isfinite(gradient_norm)):
                raise self._non_finite(each, loss, gradient_norm)
        return [loss for _, loss, _ in read]

    def _non_finite(self, step: _Pending, loss: float, gradient_norm: float) -> NonFiniteLoss:
        named = ", ".join(self._describe_rows(step.rows[:NAMED_ROWS]))
        more = len(step.rows) - NAMED_ROWS
        return NonFiniteLoss(
            f"step {step.step} has loss {loss:g} and gradient norm {gradient_norm:g} at learning rate "
            f"{step.learning_rate:g}; the step was not applied. {self._last_good()}. "
            f"Its examples: {named}{f' and {more} more' if more > 0 else ''}",
            hint=f"try --set training.learning_rate={step.learning_rate / 10:g}, a longer warmup_ratio "
            "or --set training.precision=float32; if the loss was never sound, look at these examples",
        )
