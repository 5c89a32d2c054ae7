"""From a trace to other batches and to devices, on traces small enough to count by hand."""

from __future__ import annotations

import pytest

from modelyard.design.planner import (
    Alternative,
    Forecast,
    Room,
    alive_after,
    forecast,
    largest_micro_batch,
    peak,
    ranked,
    rescale,
)
from modelyard.design.step_time import Interval
from modelyard.engines.base import MemoryTrace, MemoryUse, StorageEvent

MIB = 1 << 20


def small_trace() -> MemoryTrace:
    """A weight of 8 MiB; one activation and one temporary of 2 MiB an example; a copy of the weight in 16 bits."""
    held = (
        StorageEvent(0, 8 * MIB, "weights", ""),
        StorageEvent(1, 16 * MIB, "optimizer", ""),
        StorageEvent(2, 8 * MIB, "gradients", ""),
    )
    step = (
        StorageEvent(2, -8 * MIB, "gradients", ""),
        StorageEvent(3, 4 * MIB, "activations", "aten._to_copy.default"),
        StorageEvent(4, 2 * MIB, "activations", "aten.mm.default"),
        StorageEvent(5, 2 * MIB, "temporaries", "aten.mm.default"),
        StorageEvent(5, -2 * MIB, "temporaries", ""),
        StorageEvent(6, 8 * MIB, "gradients", "aten.mm.default"),
        StorageEvent(4, -2 * MIB, "activations", ""),
        StorageEvent(3, -4 * MIB, "activations", ""),
    )
    evaluation = (
        StorageEvent(7, 3 * MIB, "temporaries", "aten.mm.default"),
        StorageEvent(7, -3 * MIB, "temporaries", ""),
    )
    return MemoryTrace(peak(held, step), peak((*held, *step), evaluation), held, step, evaluation, 10, 10)


def test_only_what_grows_with_the_batch_is_multiplied() -> None:
    three = rescale(small_trace(), 3)
    assert three.step_peak == MemoryUse(
        weights=8 * MIB, gradients=8 * MIB, optimizer=16 * MIB, activations=(4 + 3 * 2) * MIB
    )
    assert three.evaluation_peak is not None
    assert three.evaluation_peak.temporaries == 9 * MIB
    assert rescale(small_trace(), 1) == small_trace()


def test_a_second_micro_batch_meets_the_gradients_of_the_first() -> None:
    use = rescale(small_trace(), 1, accumulates=True).step_peak
    assert (use.gradients, use.temporaries, use.activations) == (8 * MIB, 8 * MIB, 6 * MIB)


@pytest.mark.parametrize("factor", [0.3, 1, 1.5, 7])
@pytest.mark.parametrize("accumulates", [False, True])
def test_all_that_was_taken_is_given_back(factor: float, accumulates: bool) -> None:
    larger = rescale(small_trace(), factor, accumulates=accumulates)
    alive = alive_after((*larger.held, *larger.step, *larger.evaluation))
    assert sum(event.num_bytes for event in alive) == (8 + 16 + 8) * MIB


def test_a_processor_adds_its_process_and_nothing_else() -> None:
    told = forecast(small_trace(), Room("cpu", 100 * MIB, runtime_bytes=10 * MIB))
    assert told.needed_bytes == small_trace().peak_bytes + 10 * MIB
    assert told.fits and sum(told.training.values()) == told.needed_bytes
    assert not forecast(small_trace(), Room("cpu", 48 * MIB - 1, runtime_bytes=10 * MIB)).fits


def test_a_gpu_adds_what_its_allocator_reserves() -> None:
    room = Room("cuda", 400 * MIB, runtime_bytes=100 * MIB, workspace_bytes=17 * MIB)
    told = forecast(small_trace(), room)
    assert told.fits and told.num_retries == 0
    assert told.training["allocator"] > 0 and told.training["allocator"] % MIB == 0
    assert told.needed_bytes == sum(told.training.values())
    assert not forecast(small_trace(), Room("cuda", 130 * MIB, 100 * MIB, 17 * MIB)).fits


def test_the_largest_micro_batch_is_found() -> None:
    room = Room("cpu", 1000)
    asked: list[int] = []

    def needs(count: int) -> Forecast:
        asked.append(count)
        return Forecast({}, None, 100 * count, fits=100 * count <= 1000)

    assert largest_micro_batch(64, needs, room) == 10
    assert len(asked) <= 7
    assert largest_micro_batch(64, needs, room, 0.5) == 5
    assert largest_micro_batch(4, needs, room) == 4
    assert largest_micro_batch(4, lambda count: Forecast({}, None, 2000, False), room) == 0


def test_what_fits_and_changes_least_comes_first() -> None:
    def way(kind: str, effect: str, fits: bool, seconds: float) -> Alternative:
        return Alternative(kind, effect, (), fits, 1, Interval(seconds, seconds, seconds), "scaled")  # type: ignore[arg-type]

    found = ranked(
        [
            way("micro_batch", "nothing", False, 1),
            way("device", "nothing", True, 1),
            way("layers", "model", True, 1),
            way("precision", "rounding", True, 1),
            way("checkpointing", "nothing", True, 4),
            way("micro_batch", "nothing", True, 3),
        ]
    )
    assert [each.kind for each in found] == [
        "micro_batch",
        "checkpointing",
        "precision",
        "layers",
        "device",
        "micro_batch",
    ]
