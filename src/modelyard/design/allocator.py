"""A simulator of PyTorch's caching allocator for CUDA: what a series of allocations reserves on a device.

The rules are those of ``c10/cuda/CUDACachingAllocator.cpp`` with the constants of ``c10/core/AllocatorConfig.h`` (torch
2.13), for one stream and the default settings, with ``expandable_segments`` as an option:

- a request is rounded up to 512 bytes; requests of at most 1 MiB live in the small pool, others in the large one;
- the smallest free block of the pool that fits is taken, the lowest address among equals;
- where none fits, a segment is asked of the driver: 2 MiB (small), 20 MiB (requests below 10 MiB), else the request
  rounded up to 2 MiB;
- the rest of a block is split off when it is at least 512 bytes (small pool, expandable segments) or more than 1 MiB
  (large pool); a block that is not split counts as allocated in full;
- a freed block joins its free neighbours of the same segment; segments stay reserved;
- when the limit is met, all segments without a live block go back to the driver, and the request is tried once more;
- expandable: each pool has one range of addresses that grows by pages of 2 MiB (small) or 20 MiB (large), and whole
  free pages go back when the limit is met.

Not played: several streams (blocks that wait for an event), CUDA graphs' private pools, ``max_split_size_mb``,
``roundup_power2_divisions``, and the addresses that the driver really gives, which decide between free blocks of one
size (here segments lie in the order in which they were asked for).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from modelyard.engines.base import StorageEvent

MEBIBYTE = 1 << 20
SMALLEST_BLOCK_BYTES = 512  # kMinBlockSize
SMALL_REQUEST_BYTES = 1 * MEBIBYTE  # kSmallSize, the largest request of the small pool
SMALL_SEGMENT_BYTES = 2 * MEBIBYTE  # kSmallBuffer
LARGE_SEGMENT_BYTES = 20 * MEBIBYTE  # large_segment_size()
OWN_SEGMENT_BYTES = 10 * MEBIBYTE  # kMinLargeAlloc, the smallest request with a segment of its own size
LARGE_ROUNDING_BYTES = 2 * MEBIBYTE  # kRoundLarge
# A range of expandable segments has no end here; the real one is 1 1/8 of the device's memory.
ADDRESS_RANGE_BYTES = SMALL_SEGMENT_BYTES * LARGE_SEGMENT_BYTES * 1024

PoolName = Literal["small", "large"]


@dataclass(frozen=True)
class Replay:
    """What the allocator did with a series of events.

    peak_requested_bytes: most bytes live at once, as asked for.
    peak_allocated_bytes: the same in blocks (``torch.cuda.max_memory_allocated``).
    peak_reserved_bytes: most bytes held from the driver (``torch.cuda.max_memory_reserved``).
    peak_event: position of the event that first made peak_allocated_bytes; -1 when nothing was allocated.
    peak_by_cause: peak_allocated_bytes by cause, the largest first.
    final_allocated_bytes, final_reserved_bytes: after the last event that was played.
    num_retries: times when cached segments had to go back to the driver to serve a request; each costs a run time.
    failed_at: position of the event that ran out of memory, where the replay ended, or None.
    failed_bytes: what that event asked for, 0 without one.
    """

    peak_requested_bytes: int
    peak_allocated_bytes: int
    peak_reserved_bytes: int
    peak_event: int
    peak_by_cause: Mapping[str, int]
    final_allocated_bytes: int
    final_reserved_bytes: int
    num_retries: int
    failed_at: int | None
    failed_bytes: int

    @property
    def fits(self) -> bool:
        return self.failed_at is None


class Block:
    """A piece of a segment; ``before`` and ``after`` are its neighbours in the same segment.

    address: within the pool's own range for expandable segments, else within one range of all.
    """

    __slots__ = ("address", "after", "before", "live", "mapped", "num_bytes", "pool")

    def __init__(self, pool: _Pool, address: int, num_bytes: int) -> None:
        self.pool = pool
        self.address = address
        self.num_bytes = num_bytes
        self.live = False
        self.mapped = True
        self.before: Block | None = None
        self.after: Block | None = None

    @property
    def is_whole_segment(self) -> bool:
        return self.before is None and self.after is None

    def split_at(self, num_bytes: int) -> Block:
        """Keep the first `num_bytes` and return the rest as a block of the same segment."""
        rest = Block(self.pool, self.address + num_bytes, self.num_bytes - num_bytes)
        rest.mapped = self.mapped
        rest.before, rest.after = self, self.after
        if self.after is not None:
            self.after.before = rest
        self.after = rest
        self.num_bytes = num_bytes
        return rest

    def absorb(self, neighbour: Block) -> None:
        """Take over a neighbour's bytes; it exists no more."""
        if neighbour is self.before:
            self.address = neighbour.address
            self.before = neighbour.before
            if self.before is not None:
                self.before.after = self
        else:
            self.after = neighbour.after
            if self.after is not None:
                self.after.before = self
        self.num_bytes += neighbour.num_bytes


class _Pool:
    """Free blocks of one pool. sizes: (bytes, address) of them, sorted; an address names one block only."""

    __slots__ = ("by_address", "name", "page_bytes", "sizes", "smallest_rest_bytes", "unmapped")

    def __init__(self, name: PoolName, page_bytes: int, smallest_rest_bytes: int) -> None:
        self.name = name
        self.page_bytes = page_bytes
        self.smallest_rest_bytes = smallest_rest_bytes
        self.sizes: list[tuple[int, int]] = []
        self.by_address: dict[int, Block] = {}
        self.unmapped: list[Block] = []  # expandable only; few, so it is searched in address order

    def keep(self, block: Block) -> None:
        insort(self.sizes, (block.num_bytes, block.address))
        self.by_address[block.address] = block

    def drop(self, block: Block) -> None:
        del self.sizes[bisect_left(self.sizes, (block.num_bytes, block.address))]
        del self.by_address[block.address]

    def keep_unmapped(self, block: Block) -> None:
        insort(self.unmapped, block, key=lambda each: each.address)

    def take(self, num_bytes: int, expandable: bool) -> Block | None:
        """Remove and return the best free block for a request, or None."""
        place = bisect_left(self.sizes, (num_bytes, -1))
        if place == len(self.sizes):
            return None
        if expandable:
            place = self._least_expandable(place)
        block = self.by_address.pop(self.sizes[place][1])
        del self.sizes[place]
        return block

    def _least_expandable(self, place: int) -> int:
        """A free block before unmapped pages counts as large as it can grow, so that the end is used last."""

        def room(at: int) -> int:
            block = self.by_address[self.sizes[at][1]]
            after = block.after
            return block.num_bytes + (after.num_bytes if after is not None and not after.mapped else 0)

        while place + 1 < len(self.sizes) and room(place + 1) < room(place):
            place += 1
        return place


class CachingAllocator:
    """The allocator of one device. limit_bytes: most bytes that it may hold from the driver, None for no limit."""

    def __init__(self, *, limit_bytes: int | None = None, expandable: bool = False) -> None:
        self.limit_bytes = limit_bytes
        self.expandable = expandable
        self.allocated_bytes = 0
        self.reserved_bytes = 0
        self.peak_reserved_bytes = 0
        self.num_retries = 0
        smallest_large_rest = SMALLEST_BLOCK_BYTES if expandable else SMALL_REQUEST_BYTES + 1
        self._small = _Pool("small", SMALL_SEGMENT_BYTES, SMALLEST_BLOCK_BYTES)
        self._large = _Pool("large", LARGE_SEGMENT_BYTES, smallest_large_rest)
        self._next_address = 0
        if expandable:
            for pool in (self._small, self._large):
                everything = Block(pool, 0, ADDRESS_RANGE_BYTES)
                everything.mapped = False
                pool.unmapped.append(everything)

    def allocate(self, num_bytes: int) -> Block | None:
        """A block of at least `num_bytes` (> 0), or None when the limit does not allow it."""
        size = -(-num_bytes // SMALLEST_BLOCK_BYTES) * SMALLEST_BLOCK_BYTES
        pool = self._small if size <= SMALL_REQUEST_BYTES else self._large
        block = pool.take(size, self.expandable)
        if block is None:
            block = self._new_block(pool, size)
            if block is None:
                self.empty_cache()
                self.num_retries += 1
                block = self._new_block(pool, size)
                if block is None:
                    return None
        if block.num_bytes - size >= pool.smallest_rest_bytes:
            pool.keep(block.split_at(size))
        block.live = True
        self.allocated_bytes += block.num_bytes
        return block

    def free(self, block: Block) -> None:
        """Give a block back to its pool."""
        self.allocated_bytes -= block.num_bytes
        block.live = False
        self._merge(block)
        block.pool.keep(block)

    def empty_cache(self) -> None:
        """Return what holds no live block to the driver: whole segments, or whole pages of expandable ones."""
        for pool in (self._large, self._small):
            for _, address in list(pool.sizes):
                block = pool.by_address[address]
                if self.expandable:
                    self._unmap(block)
                elif block.is_whole_segment:
                    pool.drop(block)
                    self.reserved_bytes -= block.num_bytes

    def free_blocks(self) -> Iterator[Block]:
        """Every block that is mapped and not live."""
        for pool in (self._small, self._large):
            yield from pool.by_address.values()

    def _new_block(self, pool: _Pool, size: int) -> Block | None:
        """Memory of the driver for a request of `size` (rounded), or None when the limit forbids it."""
        if size <= SMALL_REQUEST_BYTES:
            segment_bytes = SMALL_SEGMENT_BYTES
        elif size < OWN_SEGMENT_BYTES:
            segment_bytes = LARGE_SEGMENT_BYTES
        else:
            segment_bytes = -(-size // LARGE_ROUNDING_BYTES) * LARGE_ROUNDING_BYTES
        # PyTorch makes this comparison with the segment's size for expandable segments too, though they may map less.
        if self.limit_bytes is not None and self.reserved_bytes + segment_bytes > self.limit_bytes:
            return None
        if self.expandable:
            return self._expand(pool, size)
        self._reserve(segment_bytes)
        block = Block(pool, self._next_address, segment_bytes)
        self._next_address += segment_bytes
        return block

    def _reserve(self, num_bytes: int) -> None:
        self.reserved_bytes += num_bytes
        self.peak_reserved_bytes = max(self.peak_reserved_bytes, self.reserved_bytes)

    def _merge(self, block: Block) -> None:
        """Join a block that is in no list with its neighbours of the same kind."""
        pool = block.pool
        for neighbour in (block.before, block.after):
            if neighbour is None or neighbour.live or neighbour.mapped != block.mapped:
                continue
            if neighbour.mapped:
                pool.drop(neighbour)
            else:
                pool.unmapped.remove(neighbour)
            block.absorb(neighbour)

    def _expand(self, pool: _Pool, size: int) -> Block | None:
        """Map pages at the lowest address where free and unmapped neighbours together have room for `size`."""
        block = self._room(pool, size)
        if not block.mapped and not self._map(block, min(size, block.num_bytes)):
            return None
        while block.num_bytes < size:
            unmapped = block.after
            assert unmapped is not None
            if not self._map(unmapped, min(size - block.num_bytes, unmapped.num_bytes)):
                return None
            block = unmapped  # it took over the free block before it
        pool.drop(block)
        return block

    def _room(self, pool: _Pool, size: int) -> Block:
        for unmapped in pool.unmapped:
            start = unmapped
            if start.before is not None and not start.before.live:
                start = start.before
            room, block = 0, start
            while room < size and not block.live:
                room += block.num_bytes
                if block.after is None:
                    break
                block = block.after
            if room >= size:
                return start
        raise AssertionError("a range of addresses without end has room")

    def _map(self, block: Block, num_bytes: int) -> bool:
        """Put pages behind the first `num_bytes` of an unmapped block, which becomes free; False at the limit."""
        pool = block.pool
        mapped_bytes = -(-num_bytes // pool.page_bytes) * pool.page_bytes
        if self.limit_bytes is not None and self.reserved_bytes + mapped_bytes > self.limit_bytes:
            return False
        pool.unmapped.remove(block)
        if mapped_bytes < block.num_bytes:
            pool.keep_unmapped(block.split_at(mapped_bytes))
        block.mapped = True
        self._merge(block)
        pool.keep(block)
        self._reserve(mapped_bytes)
        return True

    def _unmap(self, block: Block) -> None:
        """Return the whole pages inside a free block; what lies before and after them stays free."""
        pool = block.pool
        begin = -(-block.address // pool.page_bytes) * pool.page_bytes
        end = (block.address + block.num_bytes) // pool.page_bytes * pool.page_bytes
        if begin >= end:
            return
        pool.drop(block)
        if begin > block.address:
            rest = block.split_at(begin - block.address)
            pool.keep(block)
            block = rest
        if end - begin < block.num_bytes:
            pool.keep(block.split_at(end - begin))
        block.mapped = False
        self._merge(block)
        pool.keep_unmapped(block)
        self.reserved_bytes -= end - begin


def replay(events: Iterable[StorageEvent], *, limit_bytes: int | None = None, expandable: bool = False) -> Replay:
    """Play the changes of storages in order; stop where the memory would have run out.

    A live storage that changes its size moves: the new memory is taken before the old is freed, as in PyTorch. One of 0
    bytes takes nothing.
    limit_bytes: what the allocator may hold, the device's memory less all that is not allocated through it.
    Raises ValueError for a storage that gives back more than it has: a fault of the trace.
    """
    allocator = CachingAllocator(limit_bytes=limit_bytes, expandable=expandable)
    live: dict[int, tuple[int, Block, str]] = {}
    by_cause: dict[str, int] = {}
    at_peak: dict[str, int] = {}
    requested = peak_requested = peak_allocated = failed_bytes = 0
    peak_event, failed_at = -1, None
    is_at_peak = False  # the peak is noted when memory falls again, not at each step up to it
    for position, (storage, change, cause, _) in enumerate(events):
        if not change:
            continue
        old = live.pop(storage, None)
        num_bytes = change if old is None else old[0] + change
        if num_bytes < 0:
            raise ValueError(f"event {position}: storage {storage} gives back {-change} bytes, {-num_bytes} too many")
        if num_bytes:
            block = allocator.allocate(num_bytes)
            if block is None:
                failed_at, failed_bytes = position, num_bytes
                break
            live[storage] = (num_bytes, block, cause)
            requested += num_bytes
            by_cause[cause] = by_cause.get(cause, 0) + block.num_bytes
            if requested > peak_requested:
                peak_requested = requested
            if allocator.allocated_bytes > peak_allocated:
                peak_allocated, peak_event, is_at_peak = allocator.allocated_bytes, position, True
        if old is not None:
            if is_at_peak:
                at_peak, is_at_peak = dict(by_cause), False
            old_bytes, old_block, old_cause = old
            requested -= old_bytes
            by_cause[old_cause] -= old_block.num_bytes
            allocator.free(old_block)
    if is_at_peak:
        at_peak = by_cause
    return Replay(
        peak_requested_bytes=peak_requested,
        peak_allocated_bytes=peak_allocated,
        peak_reserved_bytes=allocator.peak_reserved_bytes,
        peak_event=peak_event,
        peak_by_cause={cause: held for cause, held in sorted(at_peak.items(), key=_largest_first) if held},
        final_allocated_bytes=allocator.allocated_bytes,
        final_reserved_bytes=allocator.reserved_bytes,
        num_retries=allocator.num_retries,
        failed_at=failed_at,
        failed_bytes=failed_bytes,
    )


def _largest_first(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]
