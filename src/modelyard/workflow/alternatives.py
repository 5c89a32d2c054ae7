"""Other ways to do a run: what would fit where the recipe does not, or use the device better."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from modelyard.design.devices import catalogue
from modelyard.design.planner import (
    COMFORTABLE,
    WASTEFUL,
    Alternative,
    Forecast,
    forecast,
    largest_micro_batch,
    ranked,
    rescale,
)
from modelyard.engines.base import Plan
from modelyard.workflow.forecasting import Forecaster
from modelyard.workflow.targets import room_of_gpu

SHORTEST = 16  # tokens; no shorter documents are proposed


class Alternatives:
    """All proposals for one forecast. base: the recipe as it is."""

    def __init__(self, base: Forecaster) -> None:
        self.base = base

    def all(self) -> list[Alternative]:
        """What fits where the recipe does not, or uses the device better; best first."""
        now, room = self.base.now, self.base.target.room
        if not now.fits:
            found = list(self._same_result())
            # Where tracing takes seconds, what changes the result is looked at only if nothing else fits.
            if not (self.base.slow and any(each.fits for each in found)):
                found += [*self._rounded(), *self._other_models()]
            return ranked([*found, *self._other_devices()])
        found = []
        wasteful = now.needed_bytes < WASTEFUL * room.usable_bytes
        if (
            wasteful
            and self.base.target.device.kind == "cuda"
            and self.base.batch.examples < self.base.recipe.training.batch_size
        ):
            found += list(self._micro_batch(self.base.plan, self.base.recipe.training.batch_size))
        if self.base.plan.precision == "float32" and self._has_bfloat16:
            faster = self._changed(precision="bfloat16")
            seconds, before = self.base.run_seconds(faster), self.base.run_seconds(self.base.plan)
            if seconds and before and seconds.expected < before.expected:
                settings = ("training.precision=bfloat16",)
                values = {"examples": self.base.batch.examples}
                # Not traced: in the worst case nothing shrinks, and autocast's copies of the weights are added.
                most = now.needed_bytes + now.training["weights"] // 2
                fits = most <= room.usable_bytes
                found.append(
                    Alternative("precision", "rounding", settings, fits, most, seconds, "estimated", values=values)
                )
        return ranked(found)

    @property
    def _has_bfloat16(self) -> bool:
        return self.base.target.device.fast_bfloat16

    def _changed(self, **changes: Any) -> Plan:
        return replace(self.base.plan, **changes)

    def _most(self, most: int, needs: Callable[[int], Forecast]) -> int:
        """The most examples at once that leave a little room; one, where even that does not."""
        return max(1, largest_micro_batch(most, needs, self.base.target.room, COMFORTABLE))

    def _micro_batch(self, plan: Plan, most: int) -> Iterator[Alternative]:
        """`plan` with as many examples at once as fit, `most` at most."""
        count = self._most(most, lambda each: self.base.needs(plan, each))
        same = plan == self.base.plan
        same_precision = plan.precision == self.base.plan.precision
        if same and count == self.base.batch.examples:
            return
        needed = self.base.needs(plan, count)
        settings = []
        if plan.activation_checkpointing and not self.base.plan.activation_checkpointing:
            settings.append("training.activation_checkpointing=true")
        if plan.precision != self.base.plan.precision:
            settings.append(f"training.precision={plan.precision}")
        if count != self.base.batch.examples:
            settings.append(
                f"training.max_micro_batch_tokens={max(16, count * self.base.batch.tokens, self.base.longest)}"
            )
        micro_batches = -(-self.base.recipe.training.batch_size // count)
        yield Alternative(
            kind="micro_batch" if same else "checkpointing" if same_precision else "precision",
            effect="nothing" if same_precision else "rounding",
            settings=tuple(settings),
            fits=needed.fits,
            needed_bytes=needed.needed_bytes,
            seconds=self.base.run_seconds(plan, micro_batches=micro_batches),
            method="scaled",
            values={"examples": count, "micro_batches": micro_batches},
        )

    def _same_result(self) -> Iterator[Alternative]:
        yield from self._micro_batch(self.base.plan, self.base.batch.examples)
        if not self.base.plan.activation_checkpointing:
            yield from self._micro_batch(self._changed(activation_checkpointing=True), self.base.batch.examples)

    def _rounded(self) -> Iterator[Alternative]:
        if self.base.plan.precision == "float32" and self._has_bfloat16:
            yield from self._micro_batch(self._changed(precision="bfloat16"), self.base.batch.examples)

    def _other_models(self) -> Iterator[Alternative]:
        half = self.base.longest // 2
        if half >= SHORTEST:
            cut = None if self.base.slow else half

            def shorter(each: int) -> Forecast:
                return self.base.needs(self.base.plan, each, positions=each * half, tokens=cut)

            count = self._most(self.base.batch.examples, shorter)
            needed = shorter(count)
            yield Alternative(
                kind="shorter",
                effect="text",
                settings=(f"design.max_length={half}", f"training.max_micro_batch_tokens={count * half}"),
                fits=needed.fits,
                needed_bytes=needed.needed_bytes,
                seconds=self.base.run_seconds(self.base.plan, share=self._kept(half) / self._kept(self.base.longest)),
                method="scaled",
                values={"tokens": half, "share_lost": 1 - self._kept(half)},
            )
        layers = self.base.config.get("num_hidden_layers")
        if isinstance(layers, int) and layers > 1:
            fewer = layers // 2

            def with_fewer(each: int) -> Forecast:
                return self.base.needs(self.base.plan, each, num_layers=fewer)

            count = self._most(self.base.batch.examples, with_fewer)
            needed = with_fewer(count)
            place = "design" if self.base.recipe.design.model is not None else "design.architecture"
            yield Alternative(
                kind="layers",
                effect="model",
                settings=(
                    f"{place}.num_layers={fewer}",
                    f"training.max_micro_batch_tokens={max(16, count * self.base.batch.tokens, self.base.longest)}",
                ),
                fits=needed.fits,
                needed_bytes=needed.needed_bytes,
                seconds=self.base.run_seconds(self.base.plan, share=fewer / layers),
                method="scaled",
                values={"layers": fewer, "before": layers},
            )

    def _kept(self, max_tokens: int) -> float:
        """Share of the training texts' tokens that is read with inputs of so many."""
        full = self.base.ground.prepared.train.full_lengths.astype(np.int64)
        return float(np.minimum(full, max_tokens).sum() / max(1, full.sum()))

    def _other_devices(self) -> Iterator[Alternative]:
        """The device of the catalogue with the least memory in which the recipe fits as it is."""
        traced, unit = self.base.trace(self.base.plan)
        accumulates = self.base.recipe.training.batch_size > self.base.batch.examples
        scaled = rescale(traced, self.base.batch.examples / unit, accumulates=accumulates)
        larger = sorted(
            (each for each in catalogue().values() if each.vendor == "nvidia"), key=lambda each: each.usable_bytes
        )
        for known in larger:
            room = room_of_gpu(known.usable_bytes, known.capability)
            if self.base.target.device.kind == "cuda" and room.usable_bytes <= self.base.target.room.usable_bytes:
                continue
            if room.limit_bytes < scaled.peak_bytes:
                continue
            needed = forecast(scaled, room)
            if needed.fits:
                yield Alternative(
                    kind="device",
                    effect="nothing",
                    settings=(),
                    fits=True,
                    needed_bytes=needed.needed_bytes,
                    seconds=self.base.run_seconds(self.base.plan, known=known),
                    method="scaled",
                    device=known.name,
                    values={"description": known.description, "bytes": known.memory_bytes},
                )
                return
