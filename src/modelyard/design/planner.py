"""From traces, a device and prices to what a run needs, and to the ways in which it would fit. No framework.

A trace of one micro-batch serves for others: `rescale` multiplies what grows with the number of examples and repeats
the micro-batch where a step accumulates. On a GPU the events are then played through the caching allocator, and what
no tensor holds is added: the workspace of cuBLAS and the CUDA context.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from modelyard.design.allocator import replay
from modelyard.design.step_time import Interval
from modelyard.engines.base import MemoryTrace, MemoryUse, StorageEvent

HELD = ("weights", "gradients", "optimizer")
# A run that uses less of a device than this share, with examples left to compute at once, wastes it; a guess.
WASTEFUL = 0.5
# What a larger micro-batch may use, so that a run does not stand at the brink; a guess.
COMFORTABLE = 0.9

Method = Literal["traced", "scaled", "estimated"]
Effect = Literal["nothing", "rounding", "text", "model"]
Kind = Literal["micro_batch", "checkpointing", "precision", "shorter", "layers", "device"]
EFFECTS: tuple[Effect, ...] = ("nothing", "rounding", "text", "model")


@dataclass(frozen=True)
class Room:
    """The memory of a device as a run finds it.

    usable_bytes: what the run may use. runtime_bytes: what is held outside tensors: the CUDA context, or on a
    processor the interpreter and its libraries. workspace_bytes: of cuBLAS, within the allocator.
    """

    kind: Literal["cpu", "cuda"]
    usable_bytes: int
    runtime_bytes: int = 0
    workspace_bytes: int = 0

    @property
    def limit_bytes(self) -> int:
        """What is left for tensors and what their allocator adds."""
        return max(0, self.usable_bytes - self.runtime_bytes - self.workspace_bytes)


@dataclass(frozen=True)
class Forecast:
    """What a run takes of a device.

    training, evaluation: bytes by cause at each peak, ``allocator``, ``workspace`` and ``runtime`` among them.
    needed_bytes: at the worst moment of the run. fits: also where the allocator must give back cached segments first,
    which `num_retries` counts.
    """

    training: Mapping[str, int]
    evaluation: Mapping[str, int] | None
    needed_bytes: int
    fits: bool
    num_retries: int = 0


@dataclass(frozen=True)
class Alternative:
    """Another way to do the run. effect: what it changes in what is learned. settings: ``section.field=value``.

    device: another device by name, or empty. values: numbers for the text. needed_bytes: at most so
    much where `method` is ``estimated``. seconds: of the whole run, None where unknown.
    """

    kind: Kind
    effect: Effect
    settings: tuple[str, ...]
    fits: bool
    needed_bytes: int
    seconds: Interval | None
    method: Method
    device: str = ""
    values: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """A JSON value with the names of the fields."""
        return {**asdict(self), "settings": list(self.settings)}


def forecast(trace: MemoryTrace, room: Room) -> Forecast:
    """What `trace` takes in `room`."""
    if room.kind == "cpu":
        training = {**asdict(trace.step_peak), "runtime": room.runtime_bytes}
        evaluation = {**asdict(trace.evaluation_peak), "runtime": room.runtime_bytes} if trace.evaluation_peak else None
        needed = trace.peak_bytes + room.runtime_bytes
        return Forecast(training, evaluation, needed, fits=needed <= room.usable_bytes)
    events = (*trace.held, *trace.step, *trace.evaluation)
    free = replay(events)
    outside = room.runtime_bytes + room.workspace_bytes
    num_retries, fits = 0, free.peak_reserved_bytes <= room.limit_bytes
    limit = None
    if not fits:
        limited = replay(events, limit_bytes=room.limit_bytes)
        if limited.fits:
            fits, num_retries, limit = True, limited.num_retries, room.limit_bytes
    reserved = free.peak_reserved_bytes if limit is None else limit
    step = replay((*trace.held, *trace.step), limit_bytes=limit)
    training = _on_device(trace.step_peak, step.peak_reserved_bytes, room)
    evaluation = None
    if trace.evaluation_peak:
        after = replay((*alive_after((*trace.held, *trace.step)), *trace.evaluation), limit_bytes=limit)
        evaluation = _on_device(trace.evaluation_peak, after.peak_reserved_bytes, room)
    return Forecast(training, evaluation, reserved + outside, fits, num_retries)


def _on_device(use: MemoryUse, reserved_bytes: int, room: Room) -> dict[str, int]:
    return {
        **asdict(use),
        "allocator": max(0, reserved_bytes - use.total),
        "workspace": room.workspace_bytes,
        "runtime": room.runtime_bytes,
    }


def alive_after(events: Iterable[StorageEvent]) -> tuple[StorageEvent, ...]:
    """One event for each storage that is alive after `events`, with the bytes that it then has."""
    alive: dict[int, StorageEvent] = {}
    for event in events:
        before = alive.pop(event.storage, None)
        num_bytes = event.num_bytes + (before.num_bytes if before else 0)
        if num_bytes:
            alive[event.storage] = event._replace(num_bytes=num_bytes)
    return tuple(alive.values())


def rescale(trace: MemoryTrace, factor: float, *, accumulates: bool = False) -> MemoryTrace:
    """The trace of a micro-batch of `factor` times as many examples; `accumulates`: of a step with several of these.

    Weights, gradients, the optimiser's state and the weights that autocast copies stay as they are; all else grows,
    some of it (gradients on their way, say) more than it really would.
    """
    copies = Counter(event.num_bytes // 2 for event in trace.held if event.cause == "weights")
    fixed = {event.storage for event in trace.held}
    step = _larger(trace.step, factor, fixed, copies)
    evaluation = _larger(trace.evaluation, factor, fixed | {event.storage for event in trace.step}, copies)
    if accumulates:
        step = _twice(step)
    return replace(
        trace,
        step=step,
        evaluation=evaluation,
        step_peak=peak(trace.held, step),
        evaluation_peak=peak((*trace.held, *step), evaluation) if trace.evaluation_peak else None,
    )


def _larger(
    events: Sequence[StorageEvent], factor: float, held: set[int], weights: Mapping[int, int]
) -> tuple[StorageEvent, ...]:
    """weights: how many there are by the bytes of their copy in 16 bits.

    More copies of that size than weights: some are of something else, so all are taken to grow.
    """
    if factor == 1:
        return tuple(events)
    made = Counter(event.num_bytes for event in events if event.num_bytes > 0 and _is_copy(event))
    copies = {num_bytes for num_bytes, count in made.items() if count <= weights.get(num_bytes, 0)}
    fixed, larger = set(held), []
    sizes: dict[int, int] = {}
    for event in events:
        stays = event.cause in HELD or (event.num_bytes in copies and _is_copy(event))
        if stays and event.storage not in sizes:
            fixed.add(event.storage)
        if event.storage in fixed:
            larger.append(event)
            continue
        before = sizes.get(event.storage, 0)
        sizes[event.storage] = before + event.num_bytes
        change = round(sizes[event.storage] * factor) - round(before * factor)
        larger.append(event._replace(num_bytes=change))
    return tuple(larger)


def _is_copy(event: StorageEvent) -> bool:
    return event.operation.startswith("aten._to_copy")


def _twice(step: tuple[StorageEvent, ...]) -> tuple[StorageEvent, ...]:
    """The same with a second micro-batch, whose gradients are added to those of the first as they come."""
    end = max((at for at, event in enumerate(step) if event.cause in ("activations", "inputs")), default=-1) + 1
    first, rest = step[:end], step[end:]
    own = {event.storage for event in first if event.num_bytes > 0}
    offset = max((event.storage for event in step), default=0) + 1
    second: list[StorageEvent] = []
    alive: dict[int, int] = {}
    on_its_way: StorageEvent | None = None
    for event in first:
        if event.storage not in own:
            continue  # the gradients of the step before, which went once
        copy = event._replace(storage=event.storage + offset)
        if event.cause == "gradients":
            if event.num_bytes <= 0:
                continue
            if on_its_way is not None:
                second.append(on_its_way._replace(num_bytes=-on_its_way.num_bytes))
            on_its_way = copy = copy._replace(cause="temporaries")
        else:
            alive[copy.storage] = alive.get(copy.storage, 0) + copy.num_bytes
        second.append(copy)
    if on_its_way is not None:
        second.append(on_its_way._replace(num_bytes=-on_its_way.num_bytes))
    second += [StorageEvent(storage, -size, "temporaries", "") for storage, size in alive.items() if size]
    return (*first, *second, *rest)


def peak(before: Iterable[StorageEvent], events: Iterable[StorageEvent]) -> MemoryUse:
    """The use when the live bytes are largest within `events`, which follow `before`."""
    now: dict[str, int] = {}
    for event in before:
        now[event.cause] = now.get(event.cause, 0) + event.num_bytes
    live = sum(now.values())
    most, at_most = live, dict(now)
    for event in events:
        live += event.num_bytes
        now[event.cause] = now.get(event.cause, 0) + event.num_bytes
        if live > most:
            most, at_most = live, dict(now)
    return MemoryUse(**at_most)


def work(trace: MemoryTrace) -> tuple[int, int]:
    """Bytes read and written besides matrix products, and kernels, of the traced step.

    A guess from what was allocated: each result is written once and read once by an operation that allocates.
    """
    made = [event.num_bytes for event in trace.step if event.num_bytes > 0]
    return 2 * sum(made), len(made)


def largest_micro_batch(most: int, needs: Callable[[int], Forecast], share_of: Room, share: float = 1.0) -> int:
    """The most examples at once, up to `most`, that fit into a share of the room; 0 when one is too many."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        found = needs(middle)
        if found.fits and (share == 1.0 or found.needed_bytes <= share * share_of.usable_bytes):
            low = middle
        else:
            high = middle - 1
    return low


def ranked(alternatives: Iterable[Alternative]) -> list[Alternative]:
    """What fits before what does not, then what changes least of what is learned, then what is fastest.

    Another device comes last among those that fit: it costs money and not learning.
    """

    def order(each: Alternative) -> tuple[bool, bool, int, float]:
        seconds = each.seconds.expected if each.seconds else 0.0
        return not each.fits, each.kind == "device", EFFECTS.index(each.effect), seconds

    return sorted(alternatives, key=order)
