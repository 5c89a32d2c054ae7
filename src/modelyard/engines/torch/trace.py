"""Peak memory of a training step, known before anything is allocated, from the very code that trains.

`trace` builds the model from its configuration, with tensors that have no bytes, and lets the same `TorchLearner` take
two steps and an evaluation. `measure` does the same with real tensors, for models whose code asks for values, and as
the proof of the first. Both follow the bytes of storages, not of allocators: see `engines.base.MemoryTrace`.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from modelyard.design.planner import peak
from modelyard.engines.base import (
    Batch,
    MemoryCause,
    MemoryTrace,
    ModelSpec,
    OptimizerSpec,
    Plan,
    StorageEvent,
)
from modelyard.engines.torch.learner import TorchLearner
from modelyard.engines.torch.models import build_model, build_without_weights
from modelyard.engines.torch.trace_pretend import Pretender
from modelyard.engines.torch.trace_storage import Storage, StorageTracker

# The step before the traced one only makes the optimiser's state: one example of so many positions will do.
SHORT = 16


def trace(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    plan: Plan,
    *,
    training: Sequence[Batch],
    evaluation: Batch | None = None,
) -> MemoryTrace:
    """The memory of one optimiser step over the micro-batches `training`, then of predicting `evaluation`.

    No weights are read and none are allocated. The operations are those of a CPU whatever the plan's device is, and
    those of eager mode. Raises InputError for a model that cannot be built, and UntraceableError for one whose code
    needs computed values.
    """
    pretender = Pretender()
    with torch.random.fork_rng(devices=[]):
        with StorageTracker(pretender):
            built = build_without_weights(model)
            pretender.parameters_of(built)
            learner = TorchLearner(built, optimizer, _eager_on_cpu(plan), torch.device("cpu"))
        return _follow(learner, StorageTracker(pretender), training, evaluation)


def measure(
    model: ModelSpec,
    optimizer: OptimizerSpec,
    plan: Plan,
    *,
    training: Sequence[Batch],
    evaluation: Batch | None = None,
) -> MemoryTrace:
    """What `trace` tells, from a real run on the CPU: it reads the weights and takes the time and memory of a step."""
    with torch.random.fork_rng(devices=[]):
        built = build_model(model, seed=plan.seed)
        learner = TorchLearner(built.model, optimizer, _eager_on_cpu(plan), torch.device("cpu"))
        return _follow(learner, StorageTracker(None), training, evaluation)


def _eager_on_cpu(plan: Plan) -> Plan:
    return replace(plan, device="cpu", compile=False)


def _follow(
    learner: TorchLearner, tracker: StorageTracker, training: Sequence[Batch], evaluation: Batch | None
) -> MemoryTrace:
    gc.collect()
    causes: dict[int, MemoryCause] = {}
    _mark(causes, tracker, learner)
    with tracker:
        learner.step([_short(training[0])], 0.0)
    _mark(causes, tracker, learner)
    held = [(storage, storage.num_bytes) for storage in tracker.alive()]
    begin = len(tracker.events)
    with tracker:
        learner.step(training, 0.0)
    _mark(causes, tracker, learner)
    middle = len(tracker.events)
    if evaluation is not None:
        with _like_inference(), tracker:
            learner.evaluate(evaluation)
    before = _named(held, causes)
    step = _named(tracker.events[begin:middle], causes)
    after = _named(tracker.events[middle:], causes)
    return MemoryTrace(
        step_peak=peak(before, step),
        evaluation_peak=peak(before + step, after) if evaluation is not None else None,
        held=before,
        step=step,
        evaluation=after,
        num_parameters=learner.num_parameters,
        num_trainable_parameters=learner.num_trainable_parameters,
    )


@contextmanager
def _like_inference() -> Iterator[None]:
    """What inference mode keeps, but not the mode itself: a tracker would see its compound operations (einsum, say)
    whole, without what they allocate inside. In inference mode autocast does not keep the weights that it cast.
    """
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_autocast_cache_enabled(before)


def _mark(causes: dict[int, MemoryCause], tracker: StorageTracker, learner: TorchLearner) -> None:
    """Note which storages the learner keeps; a gradient is known as one only when the step is over."""
    for cause, tensors in learner.held_tensors().items():
        for tensor in tensors:
            causes.setdefault(tracker.storage_of(tensor).number, cause)


def _named(changes: Iterable[tuple[Storage, int]], causes: Mapping[int, MemoryCause]) -> tuple[StorageEvent, ...]:
    return tuple(
        StorageEvent(storage.number, num_bytes, _cause(storage, causes), storage.operation)
        for storage, num_bytes in changes
    )


def _cause(storage: Storage, causes: Mapping[int, MemoryCause]) -> MemoryCause:
    if storage.number in causes:
        return causes[storage.number]
    if storage.is_input:
        return "inputs"
    return "activations" if storage.saved else "temporaries"


def _short(batch: Batch) -> Batch:
    """The first example alone and, where it is a text, its first tokens; it counts, whatever its weight was."""
    shape = batch.arrays["input_ids"].shape
    arrays = {name: array[:1, :SHORT] if array.shape == shape else array[:1] for name, array in batch.arrays.items()}
    return Batch(arrays, weights=np.ones(1, np.float32), rows=batch.rows[:1])
