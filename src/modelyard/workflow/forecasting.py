"""What one ground and one plan take on one device: memory and time.

The largest micro-batch that the data can make is traced, or one example of it where tracing takes its time for each
(our attention for long documents); the planner makes the rest of that.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from modelyard.data.batches import EVALUATION_BLOCK, StepPlan, training_steps
from modelyard.data.prepared import Split
from modelyard.design.architecture import flops_per_token
from modelyard.design.describe import changed_config
from modelyard.design.devices import CatalogueDevice, prices
from modelyard.design.planner import (
    Forecast,
    Method,
    forecast,
    rescale,
    work,
)
from modelyard.design.step_time import (
    Interval,
    cost_dollars,
    energy_kilowatt_hours,
    load_calibration,
    predict_seconds,
)
from modelyard.engines.base import Batch, Engine, MemoryTrace, Plan
from modelyard.errors import InputError
from modelyard.runs.places import cache_folder
from modelyard.workflow.ground import Ground, micro_tokens, model_spec, optimizer_spec
from modelyard.workflow.targets import Target, without_rates

SAMPLED_STEPS = 16  # of an epoch, for the mean operations of a step


@dataclass(frozen=True)
class Sizes:
    """A micro-batch. examples, tokens: B and T. rows: of the split, the longest first."""

    rows: NDArray[np.int64]
    tokens: int

    @property
    def examples(self) -> int:
        return len(self.rows)


def largest_batch(lengths: NDArray[np.integer], max_tokens: int, most: int) -> Sizes:
    """The micro-batch with the most positions that examples of these lengths can make, the longest where it is near.

    most: examples at once. Only those of like length meet in one, so it holds neighbours in order of length.
    """
    order = np.argsort(-lengths.astype(np.int64), kind="stable")
    sizes = lengths[order].astype(np.int64)
    room = len(sizes) - np.arange(len(sizes))
    counts = np.minimum(np.maximum(1, max_tokens // sizes), np.minimum(most, room))
    positions = counts * sizes
    at = 0 if positions[0] >= 0.9 * positions.max() else int(np.argmax(positions))
    return Sizes(order[at : at + int(counts[at])], int(sizes[at]))


class Forecaster:
    """All questions about one ground, one plan and one device; traces are made when they are needed, and once."""

    def __init__(self, ground: Ground, engine: Engine, plan: Plan, target: Target) -> None:
        self.ground, self.engine, self.plan, self.target = ground, engine, plan, target
        self.recipe = ground.recipe
        self.config = changed_config(self.recipe.design, ground.config)
        training = self.recipe.training
        lengths: NDArray[np.integer] = ground.prepared.train.lengths
        if training.train_window is not None:
            lengths = np.minimum(lengths, training.train_window)
        self.pad_to: int | None = None
        if training.padding == "max_length":
            assert self.recipe.design.max_length is not None
            self.pad_to = min(self.recipe.design.max_length, training.train_window or self.recipe.design.max_length)
            lengths = np.full_like(lengths, self.pad_to)
        self.longest = int(lengths.max())
        self.batch = largest_batch(lengths, plan.max_micro_batch_tokens, training.batch_size)
        self.judged = ground.prepared.validation or ground.prepared.train
        self.judged_batch = largest_batch(self.judged.lengths, plan.max_micro_batch_tokens, EVALUATION_BLOCK)
        # Our attention for long documents is traced example by example: one stands for all.
        self.slow = "attention_window" in self.config
        self._traces: dict[tuple[Any, ...], tuple[MemoryTrace, int]] = {}

    # memory

    def trace(self, plan: Plan, *, tokens: int | None = None, num_layers: int | None = None) -> tuple[MemoryTrace, int]:
        """A trace of the largest micro-batch, or of some of its examples; and of how many."""
        key = (plan.precision, plan.activation_checkpointing, tokens, num_layers)
        if key not in self._traces:
            examples = 1 if self.slow else self.batch.examples
            spec = model_spec(self.ground)
            if num_layers is not None:
                spec = replace(spec, num_layers=num_layers)
            judged = max(1, round(self.judged_batch.examples * examples / self.batch.examples))
            evaluation = self._batch(self.judged, self.judged_batch, judged, None, tokens)
            training = self._batch(self.ground.prepared.train, self.batch, examples, self.pad_to, tokens)
            traced = self.engine.trace(
                spec, optimizer_spec(self.recipe), plan, training=[training], evaluation=evaluation
            )
            self._traces[key] = traced, examples
        return self._traces[key]

    def _batch(self, split: Split, sizes: Sizes, examples: int, pad_to: int | None, tokens: int | None) -> Batch:
        """The first `examples` of a micro-batch, cut after `tokens`, as training makes it."""
        rows = np.resize(sizes.rows, examples)
        length = min(pad_to or sizes.tokens, tokens or sizes.tokens)
        ids = np.full((examples, length), self.ground.prepared.pad_token_id, np.int64)
        mask = np.zeros((examples, length), np.int64)
        for at, row in enumerate(rows):
            own = split.input_ids(int(row))[:length]
            ids[at, : len(own)] = own
            mask[at, : len(own)] = 1
        arrays = {"input_ids": ids, "attention_mask": mask, "labels": split.labels[rows]}
        return Batch(arrays, np.ones(examples, np.float32), rows)

    def needs(
        self, plan: Plan, examples: int, *, positions: int | None = None, tokens: int | None = None, **other: int
    ) -> Forecast:
        """What a step of micro-batches of so many examples takes: no more than `positions` tokens at once."""
        most = positions or max(examples * self.batch.tokens, self.longest)
        traced, unit = self.trace(plan, tokens=tokens, **other)
        length = min(self.batch.tokens, tokens or self.batch.tokens)
        accumulates = self.recipe.training.batch_size > examples
        return forecast(rescale(traced, most / (unit * length), accumulates=accumulates), self.target.room)

    @cached_property
    def now(self) -> Forecast:
        """What the recipe as it is takes."""
        return self.needs(self.plan, self.batch.examples)

    def memory(self) -> dict[str, Any]:
        """The value ``memory`` of the plan."""
        now, room = self.now, self.target.room
        traced, unit = self.trace(self.plan)
        return {
            "num_parameters": traced.num_parameters,
            "num_trainable_parameters": traced.num_trainable_parameters,
            "training": dict(now.training),
            "evaluation": dict(now.evaluation) if now.evaluation else None,
            "needed_bytes": now.needed_bytes,
            "usable_bytes": room.usable_bytes,
            "device_bytes": self.target.known.memory_bytes if self.target.known else self.target.device.memory_bytes,
            "fits": now.fits,
            "num_retries": now.num_retries,
            "method": self._method(unit),
            "traced_examples": unit,
            "micro_batch": {"examples": self.batch.examples, "tokens": self.batch.tokens},
            "evaluation_batch": {"examples": self.judged_batch.examples, "tokens": self.judged_batch.tokens},
            "micro_batches_a_step": -(-self.recipe.training.batch_size // self.batch.examples),
        }

    def _method(self, unit: int) -> Method:
        accumulates = self.recipe.training.batch_size > self.batch.examples
        return "traced" if unit == self.batch.examples and not accumulates else "scaled"

    # time

    @cached_property
    def step(self) -> dict[str, float] | None:
        """Means of a step: ``flops``, ``tokens`` (padding included), ``micro_batches``; None for an unknown family."""
        steps = self._steps()
        numbers = np.unique(np.linspace(0, len(steps) - 1, min(SAMPLED_STEPS, len(steps))).astype(int))
        flops = tokens = micro_batches = 0.0
        for number in numbers:
            for batch in steps[int(number)]:
                count, length = batch.arrays["input_ids"].shape
                try:
                    flops += flops_per_token(self.config, length, training=True) * count * length
                except InputError:
                    return None
                tokens += count * length
                micro_batches += 1
        each = len(numbers)
        return {"flops": flops / each, "tokens": tokens / each, "micro_batches": micro_batches / each}

    @cached_property
    def num_steps(self) -> int:
        return len(self._steps())

    def _steps(self) -> StepPlan:
        training = self.recipe.training
        assert self.recipe.design.max_length is not None
        return training_steps(
            self.ground.prepared.train,
            batch_size=training.batch_size,
            max_micro_batch_tokens=micro_tokens(self.recipe),
            seed=training.seed,
            epoch=0,
            pad_token_id=self.ground.prepared.pad_token_id,
            padding=training.padding,
            max_length=self.recipe.design.max_length,
            train_window=training.train_window,
            class_weights=training.class_weights,
            num_steps=training.steps_per_epoch,
        )

    def step_seconds(
        self,
        plan: Plan,
        known: CatalogueDevice | None = None,
        *,
        micro_batches: float | None = None,
        share: float = 1.0,
    ) -> Interval | None:
        """Of one optimiser step; None where it cannot be told. share: of the operations of the recipe as it is."""
        step, device = self.step, known or self.target.known
        calibration = None
        if known is None and self.target.here:
            calibration = load_calibration(cache_folder(), self.target.device.description)
        if step is None or (device is None and calibration is None):
            return None
        flops = step["flops"] * share * (4 / 3 if plan.activation_checkpointing else 1)
        moved, kernels = 0.0, 0.0
        if self._traces:
            traced, unit = next(iter(self._traces.values()))
            num_bytes, num_kernels = work(traced)
            moved = num_bytes * share * step["tokens"] / (unit * self.batch.tokens)
            repetitions = micro_batches or step["micro_batches"]
            kernels = num_kernels * (self.recipe.training.batch_size / unit if self.slow else repetitions)
        try:
            return predict_seconds(
                flops,
                moved,
                device or without_rates(self.target.device),
                plan.precision,
                num_kernels=round(kernels),
                calibration=calibration,
            )
        except InputError:  # no rate of this precision
            return None

    def run_seconds(self, plan: Plan, **other: Any) -> Interval | None:
        step = self.step_seconds(plan, **other)
        return step * (self.num_steps * self.recipe.training.num_epochs) if step else None

    def time(self) -> dict[str, Any]:
        """The value ``time`` of the plan; what is not known is None."""
        step = self.step
        seconds = self.step_seconds(self.plan)
        value: dict[str, Any] = {
            "flops_per_step": step["flops"] if step else None,
            "flops_per_token": step["flops"] / step["tokens"] if step else None,
            "tokens_per_step": step["tokens"] if step else None,
            "num_steps": self.num_steps * self.recipe.training.num_epochs,
            "step_seconds": None,
            "epoch_seconds": None,
            "run_seconds": None,
            "basis": None,
            "energy_kilowatt_hours": None,
            "costs": [],
        }
        if seconds is None:
            return value
        run = seconds * value["num_steps"]
        known = self.target.known
        calibrated = self.target.here and load_calibration(cache_folder(), self.target.device.description) is not None
        energy = energy_kilowatt_hours(run, known) if known else None
        return {
            **value,
            "step_seconds": asdict(seconds),
            "epoch_seconds": asdict(seconds * self.num_steps),
            "run_seconds": asdict(run),
            "basis": "calibration" if calibrated else "catalogue",
            "energy_kilowatt_hours": asdict(energy) if energy else None,
            "costs": [
                {**asdict(price), "dollars": asdict(cost_dollars(run, price))}
                for price in (prices(known.name) if known else ())
            ],
        }
