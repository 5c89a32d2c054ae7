"""The simulator against what PyTorch documents and tests, and against a second, naive allocator written here."""

from __future__ import annotations

import random
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelyard.design.allocator import CachingAllocator, replay
from modelyard.engines.base import StorageEvent

KIB, MIB = 1 << 10, 1 << 20


def event(storage: int, num_bytes: int, cause: str = "temporaries") -> StorageEvent:
    return StorageEvent(storage, num_bytes, cause, "")


def numbered(*sizes: int) -> list[StorageEvent]:
    """Allocate each positive size in order; -n frees the n-th allocation, counted from 1."""
    events, allocated = [], []
    for size in sizes:
        if size >= 0:
            events.append(event(len(allocated), size))
            allocated.append(size)
        else:
            events.append(event(-size - 1, -allocated[-size - 1]))
    return events


# PyTorch's "CUDA semantics: memory management" and the head of CUDACachingAllocator.cpp describe these.
@pytest.mark.parametrize(
    ("num_bytes", "allocated", "reserved"),
    [
        (1, 512, 2 * MIB),  # everything is rounded up to 512 bytes and packed into 2 MiB
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),  # the largest small request
        (MIB + 1, MIB + 512, 20 * MIB),  # the smallest large one shares 20 MiB
        (10 * MIB - 1, 10 * MIB, 10 * MIB),  # rounded to 10 MiB before the class is chosen
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        (10 * MIB, 10 * MIB, 10 * MIB),  # from here on its own segment, rounded up to 2 MiB
        (11 * MIB, 12 * MIB, 12 * MIB),  # a rest of 1 MiB is not split off
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),  # one of more than 1 MiB is
        (32 * MIB + 1, 32 * MIB + 512, 34 * MIB),
        (0, 0, 0),
    ],
)
def test_one_request(num_bytes, allocated, reserved):
    played = replay(numbered(num_bytes))
    assert (played.peak_requested_bytes, played.peak_allocated_bytes) == (num_bytes, allocated)
    assert played.peak_reserved_bytes == played.final_reserved_bytes == reserved
    assert played.fits


@pytest.mark.parametrize(
    ("num_bytes", "reserved"),
    [(1, 2 * MIB), (3 * MIB, 20 * MIB), (21 * MIB, 40 * MIB), (40 * MIB, 40 * MIB), (41 * MIB, 60 * MIB)],
)
def test_expandable_segments_grow_by_pages_and_split_to_the_byte(num_bytes, reserved):
    played = replay(numbered(num_bytes), expandable=True)
    assert played.peak_reserved_bytes == reserved
    assert played.peak_allocated_bytes == -(-num_bytes // 512) * 512


def test_small_requests_share_a_segment_and_a_freed_one_is_used_again():
    assert replay(numbered(*[512 * KIB] * 4)).peak_reserved_bytes == 2 * MIB
    assert replay(numbered(*[512 * KIB] * 5)).peak_reserved_bytes == 4 * MIB
    assert replay(numbered(*[512 * KIB] * 4, -2, 500 * KIB)).peak_reserved_bytes == 2 * MIB


def test_freed_neighbours_become_one_block():
    assert replay(numbered(5 * MIB, 5 * MIB, 5 * MIB, -1, -2, 9 * MIB)).peak_reserved_bytes == 20 * MIB
    assert replay(numbered(5 * MIB, 5 * MIB, 5 * MIB, -1, 9 * MIB)).peak_reserved_bytes == 40 * MIB


def test_best_fit_takes_the_smallest_block_that_is_large_enough():
    # Blocks of 30 and 20 MiB are free; 20 goes into the smaller, and 30 then still fits.
    assert replay(numbered(30 * MIB, 20 * MIB, -1, -2, 20 * MIB, 30 * MIB)).peak_reserved_bytes == 50 * MIB


def test_a_large_block_with_a_small_rest_is_taken_whole():
    played = replay(numbered(40 * MIB, -1, 39 * MIB))
    assert played.final_allocated_bytes == 40 * MIB
    assert replay(numbered(40 * MIB, -1, 39 * MIB), expandable=True).final_allocated_bytes == 39 * MIB


def test_cached_segments_go_back_before_memory_runs_out():
    played = replay(numbered(30 * MIB, -1, 40 * MIB), limit_bytes=50 * MIB)
    assert played.fits
    assert played.num_retries == 1
    assert played.final_reserved_bytes == 40 * MIB


def test_a_segment_that_is_partly_in_use_does_not_go_back():
    events = numbered(30 * MIB, -1, 10 * MIB, 40 * MIB)  # 10 MiB live inside the old 30
    played = replay(events, limit_bytes=69 * MIB)
    assert (played.failed_at, played.failed_bytes) == (3, 40 * MIB)
    assert replay(events, limit_bytes=70 * MIB).fits


def test_pytorchs_own_test_of_expandable_segments_at_a_limit():
    """``test_max_split_expandable`` of test/test_cuda.py: three blocks of 40 MiB, no fourth, then one of 120."""
    forty = 40 * MIB
    assert replay(numbered(forty, forty, forty), limit_bytes=120 * MIB, expandable=True).fits
    assert replay(numbered(forty, forty, forty, forty), limit_bytes=120 * MIB, expandable=True).failed_at == 3
    assert replay(numbered(forty, forty, forty, -1, -2, -3, 120 * MIB), limit_bytes=120 * MIB, expandable=True).fits


def test_whole_free_pages_move_to_another_address():
    # 20 of the first 40 MiB stay live; its other page is given back and serves the request of 100 at the end.
    events = numbered(20 * MIB, 20 * MIB, 20 * MIB, -2, 100 * MIB)
    assert replay(events, limit_bytes=140 * MIB, expandable=True).fits
    assert not replay(events, limit_bytes=139 * MIB, expandable=True).fits


def test_a_gap_between_free_rests_is_filled_again():
    allocator = CachingAllocator(expandable=True)
    _, between, _ = (allocator.allocate(size) for size in (10 * MIB, 40 * MIB, 10 * MIB))
    allocator.free(between)
    allocator.empty_cache()
    assert allocator.reserved_bytes == 40 * MIB  # the page between; rests of 10 MiB before and after it
    assert allocator.allocate(35 * MIB).address == 10 * MIB
    assert allocator.reserved_bytes == 60 * MIB


def test_the_growing_batches_that_expandable_segments_are_made_for():
    events = [size for step in range(1, 20) for size in (step * 11 * MIB, -step)]
    segments, pages = replay(numbered(*events)), replay(numbered(*events), expandable=True)
    assert pages.peak_reserved_bytes < 1.1 * pages.peak_allocated_bytes
    assert segments.peak_reserved_bytes > 5 * segments.peak_allocated_bytes


def test_the_peak_is_named_by_cause():
    events = [
        event(0, 3 * MIB, "weights"),
        event(1, 2 * MIB, "activations"),
        event(2, 4 * MIB, "activations"),
        event(1, -2 * MIB, "activations"),
        event(3, 1 * MIB, "gradients"),
        event(2, -4 * MIB, "activations"),
    ]
    played = replay(events)
    assert played.peak_event == 2
    assert played.peak_by_cause == {"activations": 6 * MIB, "weights": 3 * MIB}
    assert list(played.peak_by_cause) == ["activations", "weights"]
    assert replay(events[:3]).peak_by_cause == played.peak_by_cause
    assert replay([]).peak_event == -1


@pytest.mark.parametrize("events", [[event(0, -8)], [event(0, 8), event(0, -9)], [event(0, 8), event(1, -8)]])
def test_a_faulty_trace_is_refused(events):
    with pytest.raises(ValueError, match=r"event \d: storage \d gives back"):
        replay(events)


def test_a_storage_that_grows_needs_both_memories_for_a_moment():
    played = replay([event(0, 20 * MIB), event(0, 10 * MIB), event(0, -30 * MIB)])
    assert (played.peak_requested_bytes, played.peak_reserved_bytes) == (50 * MIB, 50 * MIB)
    assert played.final_allocated_bytes == 0
    assert replay([event(0, 20 * MIB), event(0, 10 * MIB)]).final_allocated_bytes == 30 * MIB
    assert replay([event(0, 20 * MIB), event(0, 10 * MIB)], limit_bytes=49 * MIB).failed_at == 1


def test_a_hundred_thousand_events_take_less_than_a_second():
    events = drawn(100_000, seed=1)
    for expandable in (False, True):
        start = time.process_time()
        replay(events, expandable=expandable)
        assert time.process_time() - start < 1.0


def drawn(num_events: int, *, seed: int) -> list[StorageEvent]:
    """Sizes from 4 bytes to 256 MiB, about 300 storages live."""
    generator = random.Random(seed)
    events: list[StorageEvent] = []
    live: list[StorageEvent] = []
    while len(events) < num_events:
        if not live or generator.random() < (0.8 if len(live) < 300 else 0.5):
            live.append(event(len(events), int(2 ** generator.uniform(2, 28))))
            events.append(live[-1])
        else:
            freed = live.pop(generator.randrange(len(live)))
            events.append(freed._replace(num_bytes=-freed.num_bytes))
    return events


class NaiveAllocator:
    """A second allocator, by description: ranges in use and ranges held; everything else follows by looking.

    held: (start, end) of memory of the driver. used: start -> end of live ranges. One pool.
    """

    def __init__(self, small: bool, expandable: bool, budget: Budget) -> None:
        self.small, self.expandable, self.budget = small, expandable, budget
        self.page = 2 * MIB if small else 20 * MIB
        self.held: list[tuple[int, int]] = []
        self.used: dict[int, int] = {}
        self.end = 0

    def free_ranges(self) -> list[tuple[int, int]]:
        ranges = []
        for start, end in self.held_ranges():
            cursor = start
            for low in sorted(self.used):
                if start <= low < end:
                    if low > cursor:
                        ranges.append((cursor, low))
                    cursor = self.used[low]
            if cursor < end:
                ranges.append((cursor, end))
        return ranges

    def held_ranges(self) -> list[tuple[int, int]]:
        """Segments as they are; neighbouring pages as one range."""
        if not self.expandable:
            return self.held
        joined: list[tuple[int, int]] = []
        for start, end in sorted(self.held):
            if joined and joined[-1][1] == start:
                joined[-1] = (joined[-1][0], end)
            else:
                joined.append((start, end))
        return joined

    def gap_after(self, end: int) -> float:
        """Bytes without memory behind them from `end` to the next page that has it."""
        later = [start for start, _ in self.held if start >= end]
        if any(start <= end < stop for start, stop in self.held):
            return 0
        return (min(later) - end) if later else float("inf")

    def allocate(self, size: int) -> tuple[int, int] | None:
        found = self.best(size) or self.grow(size)
        if found is None:
            self.budget.release_everything()
            found = self.grow(size)
        if found is None:
            return None
        start, end = found
        splits = end - start - size >= 512 if self.small or self.expandable else end - start - size > MIB
        end = start + size if splits else end
        self.used[start] = end
        return start, end

    def best(self, size: int) -> tuple[int, int] | None:
        fitting = sorted((end - start, start) for start, end in self.free_ranges() if end - start >= size)
        if not fitting:
            return None
        if self.expandable:
            rooms = [length + self.gap_after(start + length) for length, start in fitting]
            place = 0
            while place + 1 < len(fitting) and rooms[place + 1] < rooms[place]:
                place += 1
            fitting = fitting[place:]
        return fitting[0][1], fitting[0][1] + fitting[0][0]

    def grow(self, size: int) -> tuple[int, int] | None:
        segment = 2 * MIB if size <= MIB else 20 * MIB if size < 10 * MIB else -(-size // (2 * MIB)) * 2 * MIB
        if not self.budget.allows(segment):
            return None
        if not self.expandable:
            self.held.append((self.end, self.end + segment))
            self.end += segment
            return self.held[-1]
        # The lowest page without memory from which, with the free memory before it, there is room without a live range.
        page = 0
        while True:
            if any(start <= page < end for start, end in self.held):
                page += self.page
                continue
            first_of_gap = page == 0 or any(end == page for _, end in self.held)
            if first_of_gap:
                start = next((low for low, high in self.free_ranges() if high == page), page)
                blocking = [low for low in self.used if low >= start]
                if not blocking or min(blocking) - start >= size:
                    break
            page += self.page
        return self.fill(start, size)

    def fill(self, start: int, size: int) -> tuple[int, int] | None:
        """Memory behind every page from `start` on; each gap between held pages is filled whole or not at all."""
        cursor = start
        while cursor < start + size:
            inside = [end for low, end in self.held if low <= cursor < end]
            if inside:
                cursor = inside[0]
                continue
            pages = [cursor]
            while pages[-1] + self.page < start + size and self.gap_after(pages[-1] + self.page):
                pages.append(pages[-1] + self.page)
            if not self.budget.allows(len(pages) * self.page):
                return None
            self.held += [(page, page + self.page) for page in pages]
            cursor = pages[-1] + self.page
        return next((low, high) for low, high in self.free_ranges() if low == start)

    def release(self) -> None:
        free = self.free_ranges()
        self.held = [held for held in self.held if not any(low <= held[0] and held[1] <= high for low, high in free)]


class Budget:
    """Both pools under one limit."""

    def __init__(self, expandable: bool, limit: int | None) -> None:
        self.limit = limit
        self.pools = {small: NaiveAllocator(small, expandable, self) for small in (True, False)}

    def reserved(self) -> int:
        return sum(end - start for pool in self.pools.values() for start, end in pool.held)

    def allows(self, more: int) -> bool:
        return self.limit is None or self.reserved() + more <= self.limit

    def release_everything(self) -> None:
        for pool in self.pools.values():
            pool.release()


SIZES = st.one_of(
    st.integers(1, 4 * KIB),
    st.integers(1, 2 * MIB),
    st.integers(MIB, 12 * MIB),
    st.integers(9 * MIB, 70 * MIB),
    st.sampled_from([512, MIB, MIB + 1, 10 * MIB - 512, 10 * MIB, 20 * MIB, 40 * MIB]),
)
# True with a size: allocate; False with a number: free the live storage at that place, counted around.
ACTIONS = st.lists(st.tuples(st.booleans(), SIZES), min_size=1, max_size=60)
LIMITS = st.one_of(st.none(), st.integers(2 * MIB, 300 * MIB))


def compare(actions, limit, expandable):
    allocator = CachingAllocator(limit_bytes=limit, expandable=expandable)
    naive = Budget(expandable, limit)
    live = []
    for allocates, number in actions:
        if allocates:
            size = -(-number // 512) * 512
            block = allocator.allocate(number)
            expected = naive.pools[size <= MIB].allocate(size)
            assert (block is None) == (expected is None)
            if block is not None:
                live.append((block, expected, naive.pools[size <= MIB]))
                assert block.num_bytes == expected[1] - expected[0]
        elif live:
            block, expected, pool = live.pop(number % len(live))
            allocator.free(block)
            del pool.used[expected[0]]
        assert allocator.reserved_bytes == naive.reserved()
        free = sorted(block.num_bytes for block in allocator.free_blocks())
        assert free == sorted(high - low for pool in naive.pools.values() for low, high in pool.free_ranges())


@settings(max_examples=200, deadline=None)
@given(actions=ACTIONS, limit=LIMITS, expandable=st.booleans())
def test_it_does_what_the_naive_allocator_does(actions, limit, expandable):
    compare(actions, limit, expandable)


@pytest.mark.parametrize("expandable", [False, True])
def test_it_does_so_in_long_fragmented_series_at_a_limit(expandable):
    for seed in range(40):
        generator = random.Random(seed)
        limit = generator.randrange(100, 500) * MIB
        largest = generator.choice([16, 40, 120]) * MIB
        sizes = (
            generator.choice([generator.randrange(1, 2 * MIB), generator.randrange(MIB, largest)]) for _ in range(150)
        )
        compare([(generator.random() < 0.55, size) for size in sizes], limit, expandable)


@settings(max_examples=200, deadline=None)
@given(actions=ACTIONS, limit=LIMITS, expandable=st.booleans())
def test_what_always_holds(actions, limit, expandable):
    allocator = CachingAllocator(limit_bytes=limit, expandable=expandable)
    live = []
    for allocates, number in actions:
        if allocates:
            block = allocator.allocate(number)
            if block is None:
                assert limit is not None
                continue
            assert block.num_bytes >= number
            live.append(block)
        elif live:
            allocator.free(live.pop(number % len(live)))
        assert allocator.allocated_bytes == sum(block.num_bytes for block in live)
        pieces = [*live, *allocator.free_blocks()]
        assert sum(block.num_bytes for block in pieces) == allocator.reserved_bytes
        assert limit is None or allocator.reserved_bytes <= limit
        for pool in {id(block.pool): block.pool for block in pieces}.values():
            placed = sorted((block.address, block.num_bytes) for block in pieces if block.pool is pool)
            assert all(start + size <= later for (start, size), (later, _) in pairwise(placed))
    for block in live:
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    allocator.empty_cache()
    assert allocator.reserved_bytes == 0
    assert not list(allocator.free_blocks())


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 1000), expandable=st.booleans(), limit=st.one_of(st.none(), st.integers(MIB, 4096 * MIB)))
def test_a_replay_is_the_same_each_time_and_consistent(seed, expandable, limit):
    events = drawn(300, seed=seed)
    played = replay(events, limit_bytes=limit, expandable=expandable)
    assert played == replay(iter(events), limit_bytes=limit, expandable=expandable)
    assert played.peak_requested_bytes <= played.peak_allocated_bytes <= played.peak_reserved_bytes
    assert sum(played.peak_by_cause.values()) == played.peak_allocated_bytes
    assert limit is None or played.peak_reserved_bytes <= limit
    if limit is None:
        assert played.fits
        assert played.num_retries == 0
