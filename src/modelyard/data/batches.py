"""From prepared splits to batches: which examples make a step, and how they are padded.

There is no state: step i of an epoch follows from the seed and the numbers alone, so a resumed run goes on
with the very batches it would have had. A step is cut into micro-batches of like length, which waste little on
padding. Where that is not enough (short texts, many a micro-batch), steps too are made of examples of like length,
as little as the padding allows: steps of one length learn less well (docs/experiments.md). Neither changes how often
an example is seen.

Legend: N examples of a split, B examples of a micro-batch, T positions (tokens), S steps of a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from modelyard.data.prepared import Split
from modelyard.data.shuffle import random_keys, random_order
from modelyard.engines.base import Batch

# Steps whose examples are shuffled together and then sorted by length. More of them pad less and mix less, so the
# first of these whose padding is below the bound is taken, or the last. A pass has at least four such windows, or else
# its steps would hold nearly the same examples every time.
STEPS_A_WINDOW = (1, 2, 4, 8, 16, 32)
MOST_PADDING = 0.05
WINDOWS_A_PASS = 4
SAMPLED_STEPS = 64  # enough to know the share of padding to half a point
# What a micro-batch costs besides its tokens, in tokens: enough that none is made to save a few positions.
# Measured on sentences and on articles (benchmarks/data_preparation.py), 256 keeps padding below 5% with the
# fewest micro-batches.
MICRO_BATCH_OVERHEAD_TOKENS = 256
EVALUATION_BLOCK = 4096
# What a stream of random numbers is for.
ORDER, STEP_ORDER, WINDOW_START = 1, 2, 3


def training_steps(
    split: Split,
    *,
    batch_size: int,
    max_micro_batch_tokens: int,
    seed: int,
    epoch: int,
    pad_token_id: int,
    padding: Literal["batch", "max_length"],
    max_length: int,
    train_window: int | None,
    class_weights: Literal["none", "balanced"],
    num_steps: int | None = None,
) -> StepPlan:
    """The optimiser steps of one epoch (from 0), each a list of micro-batches.

    batch_size: examples a step; only the one short step of a pass has fewer, so that no example is left out.
    max_micro_batch_tokens: B * T at most, padding included; one example alone may exceed it.
    num_steps: steps that are called an epoch; they walk on through pass after pass. Else one pass.
    train_window: read a random window of so many tokens of each document, another one in every pass.
    """
    lengths = split.lengths if train_window is None else np.minimum(split.lengths, train_window)
    return StepPlan(
        split=split,
        batch_size=batch_size,
        max_micro_batch_tokens=max_micro_batch_tokens,
        seed=seed,
        pad_token_id=pad_token_id,
        pad_to=None if padding == "batch" else min(max_length, train_window or max_length),
        steps_a_window=_steps_a_window(lengths, batch_size, max_micro_batch_tokens, seed) if padding == "batch" else 1,
        train_window=train_window,
        weights=_example_weights(split.labels, class_weights),
        first_step=epoch * (num_steps if num_steps is not None else -(-len(split) // batch_size)),
        num_steps=num_steps,
    )


@dataclass(frozen=True)
class StepPlan:
    """The steps of an epoch; ``plan[i]`` builds step i. ``len(plan)`` is their number.

    first_step: number of the first step since the start of the run. weights: (N,) float32 weight of each
    example. pad_to: length that every micro-batch is padded to, or None for that of its longest example.
    steps_a_window: steps whose examples are sorted by length together; 1 leaves every step a random draw.
    """

    split: Split
    batch_size: int
    max_micro_batch_tokens: int
    seed: int
    pad_token_id: int
    pad_to: int | None
    steps_a_window: int
    train_window: int | None
    weights: NDArray[np.float32]
    first_step: int
    num_steps: int | None
    _order_of_pass: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict, repr=False)

    @property
    def steps_per_pass(self) -> int:
        """S: steps that show every example once."""
        return -(-len(self.split) // self.batch_size)

    def __len__(self) -> int:
        return self.num_steps if self.num_steps is not None else self.steps_per_pass

    def __iter__(self) -> Iterator[list[Batch]]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> list[Batch]:
        """The micro-batches of step `index` (from 0) of this epoch."""
        if not 0 <= index < len(self):
            raise IndexError(f"step {index} of {len(self)}")
        pass_number, step = divmod(self.first_step + index, self.steps_per_pass)
        rows = self._rows(pass_number, step)
        if self.pad_to is not None:
            size = max(1, self.max_micro_batch_tokens // self.pad_to)
            parts = [rows[at : at + size] for at in range(0, len(rows), size)]
        else:
            rows = rows[np.argsort(-self._lengths(rows), kind="stable")]
            ends = partition(self._lengths(rows), self.max_micro_batch_tokens)
            parts = np.split(rows, ends[:-1])
        return [self._batch(part, pass_number) for part in parts]

    def _lengths(self, rows: NDArray[np.int64]) -> NDArray[np.int32]:
        lengths = self.split.lengths[rows]
        return lengths if self.train_window is None else np.minimum(lengths, self.train_window)

    def _rows(self, pass_number: int, step: int) -> NDArray[np.int64]:
        """Rows of one step of a pass. The short step holds what comes first in the shuffled order: any examples."""
        order, step_order = self._orders(pass_number)
        short = len(order) % self.batch_size
        number = int(step_order[step])
        if short:
            end = short + number * self.batch_size
            return order[max(end - self.batch_size, 0) : end]
        return order[number * self.batch_size : (number + 1) * self.batch_size]

    def _orders(self, pass_number: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(N,) rows in the order of the pass's steps before these are shuffled, and (S,) the order of the steps."""
        if pass_number not in self._order_of_pass:
            self._order_of_pass.clear()
            order = random_order(len(self.split), self.seed, ORDER, pass_number)
            if self.pad_to is None:
                order = _sorted_in_windows(order, self._lengths(order), self.batch_size, self.steps_a_window)
            steps = random_order(self.steps_per_pass, self.seed, STEP_ORDER, pass_number)
            self._order_of_pass[pass_number] = (order, steps)
        return self._order_of_pass[pass_number]

    def _batch(self, rows: NDArray[np.int64], pass_number: int) -> Batch:
        ids = [self.split.input_ids(int(row)) for row in rows]
        if self.train_window is not None:
            starts = random_keys(rows.astype(np.uint64), self.seed, WINDOW_START, pass_number)
            ids = [
                random_window(self.split, values, int(start), self.train_window)
                for values, start in zip(ids, starts, strict=True)
            ]
        return _padded(ids, rows, self.pad_token_id, self.pad_to, self.split.labels[rows], self.weights[rows])


def _sorted_in_windows(
    order: NDArray[np.int64], lengths: NDArray[np.int32], batch_size: int, steps: int
) -> NDArray[np.int64]:
    """`order` with the examples of every `steps` steps sorted by length; those of the short step come first."""
    short = len(order) % batch_size
    window = (np.arange(len(order)) - short) // (steps * batch_size)
    window[:short] = -1
    return order[np.lexsort((lengths, window))]


def _steps_a_window(lengths: NDArray[np.int32], batch_size: int, max_tokens: int, seed: int) -> int:
    """The fewest steps that have to be sorted together so that padding stays within `MOST_PADDING`."""
    most = max(1, min(STEPS_A_WINDOW[-1], -(-len(lengths) // batch_size) // WINDOWS_A_PASS))
    order = random_order(len(lengths), seed, ORDER, 0)[: SAMPLED_STEPS * batch_size]
    for steps in (each for each in STEPS_A_WINDOW if each < most):
        sample = _sorted_in_windows(order, lengths[order], batch_size, steps)
        if _share_of_padding(lengths[sample], batch_size, max_tokens) <= MOST_PADDING:
            return steps
    return most


def _share_of_padding(lengths: NDArray[np.int32], batch_size: int, max_tokens: int) -> float:
    """Of all positions of steps that hold `lengths` in this order."""
    positions = 0
    for at in range(len(lengths) % batch_size, len(lengths), batch_size):
        step = np.sort(lengths[at : at + batch_size])[::-1]
        start = 0
        for end in partition(step, max_tokens):
            positions += (end - start) * int(step[start])
            start = end
    return 1 - int(lengths[len(lengths) % batch_size :].sum()) / positions if positions else 0.0


def random_window(split: Split, ids: NDArray[np.int32], random_number: int, length: int) -> NDArray[np.int32]:
    """A window of `length` tokens of an encoded text, its special tokens included; all of it if it is not longer."""
    if len(ids) <= length:
        return ids
    prefix, suffix = split.num_prefix_tokens, split.num_suffix_tokens
    start = prefix + random_number % (len(ids) - length + 1)
    end = start + length - prefix - suffix
    return np.concatenate([ids[:prefix], ids[start:end], ids[len(ids) - suffix :]])


def partition(lengths: NDArray[np.integer], max_tokens: int) -> list[int]:
    """Cut examples, sorted from the longest down, into micro-batches of least cost; returns where each one ends.

    The cost of a micro-batch is B * T (T its longest, which is its first) plus a constant; B * T is at most
    `max_tokens` unless B is 1. Exact, by dynamic programming over the end of the last micro-batch.
    """
    count = len(lengths)
    length = lengths.astype(np.int64)
    best = np.zeros(count + 1, dtype=np.int64)
    previous = np.zeros(count + 1, dtype=np.int64)
    first = 0
    for end in range(1, count + 1):
        # Starts too far back stay too far back: lengths fall, so the longest at an earlier start is no shorter.
        while first < end - 1 and (end - first) * length[first] > max_tokens:
            first += 1
        starts = np.arange(first, end)
        costs = best[first:end] + (end - starts) * length[first:end]
        chosen = int(np.argmin(costs))
        best[end] = costs[chosen] + MICRO_BATCH_OVERHEAD_TOKENS
        previous[end] = first + chosen
    ends = [count] if count else []
    while ends and previous[ends[-1]] > 0:
        ends.append(int(previous[ends[-1]]))
    return ends[::-1]


def evaluation_batches(split: Split, max_micro_batch_tokens: int, pad_token_id: int) -> Iterator[Batch]:
    """Every example once, the longest first, so that a lack of memory shows at once; ``rows`` says which they are."""
    order = np.argsort(-split.lengths.astype(np.int64), kind="stable")
    for at in range(0, len(order), EVALUATION_BLOCK):
        block = order[at : at + EVALUATION_BLOCK]
        ends = partition(split.lengths[block], max_micro_batch_tokens)
        for rows in np.split(block, ends[:-1]):
            ids = [split.input_ids(int(row)) for row in rows]
            yield _padded(ids, rows, pad_token_id, None, split.labels[rows], np.ones(len(rows), dtype=np.float32))


def batch_of_ids(ids: Sequence[Sequence[int]], pad_token_id: int) -> Batch:
    """One batch for prediction, in the order given and without labels; at least one text."""
    rows = np.arange(len(ids), dtype=np.int64)
    return _padded(ids, rows, pad_token_id, None, None, np.ones(len(ids), dtype=np.float32))


def _padded(
    ids: Sequence[Sequence[int] | NDArray[np.int32]],
    rows: NDArray[np.int64],
    pad_token_id: int,
    pad_to: int | None,
    labels: NDArray[np.int64] | None,
    weights: NDArray[np.float32],
) -> Batch:
    longest = max(map(len, ids))
    shape = (len(ids), longest if pad_to is None else max(pad_to, longest))
    input_ids = np.full(shape, pad_token_id, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for at, values in enumerate(ids):
        input_ids[at, : len(values)] = values
        attention_mask[at, : len(values)] = 1
    arrays = {"input_ids": input_ids, "attention_mask": attention_mask}
    if labels is not None:
        arrays["labels"] = labels
    return Batch(arrays, weights, rows)


def _example_weights(labels: NDArray[np.int64], class_weights: Literal["none", "balanced"]) -> NDArray[np.float32]:
    """(N,) float32: 1, or N / (classes present * examples of the class), whose mean over the examples is 1."""
    if class_weights == "none":
        return np.ones(len(labels), dtype=np.float32)
    counts = np.bincount(labels)
    num_present = int((counts > 0).sum())
    weights: NDArray[np.float32] = (len(labels) / (num_present * counts[labels])).astype(np.float32)
    return weights
