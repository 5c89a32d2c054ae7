"""Every example once a pass, the same at every resume, within the budget, and little padding."""

from __future__ import annotations

from itertools import chain, combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight

from modelyard.data import batches
from modelyard.data.batches import StepPlan, batch_of_ids, evaluation_batches, partition, training_steps
from modelyard.data.prepared import Split, example_block
from modelyard.engines.base import Batch

CLS, SEP, PAD = 1, 2, 0


def make_split(lengths: list[int], labels: list[int] | None = None) -> Split:
    """Texts whose tokens say which row they are of and where they stand."""
    ids = [[CLS, *(10 + 1000 * row + at for at in range(length - 2)), SEP] for row, length in enumerate(lengths)]
    names = [f"f:{row}" for row in range(len(lengths))]
    labels = labels if labels is not None else [row % 2 for row in range(len(lengths))]
    return Split(pa.Table.from_batches([example_block(names, labels, ids, lengths, names)]))


def steps(split: Split, **changes: Any) -> StepPlan:
    options: dict[str, Any] = {
        "batch_size": 4,
        "max_micro_batch_tokens": 64,
        "seed": 3,
        "epoch": 0,
        "pad_token_id": PAD,
        "padding": "batch",
        "max_length": 32,
        "train_window": None,
        "class_weights": "none",
    }
    return training_steps(split, **{**options, **changes})


def rows_of(step: list[Batch]) -> list[int]:
    return [int(row) for batch in step for row in batch.rows]


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.rows.tolist() == b.rows.tolist()
        and a.weights.tolist() == b.weights.tolist()
        and all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)
        for a, b in zip(one, other, strict=True)
    )


LENGTHS = st.lists(st.integers(3, 40), min_size=1, max_size=70)


@settings(max_examples=100, deadline=None)
@given(
    LENGTHS,
    st.integers(1, 20),
    st.integers(8, 300),
    st.integers(0, 3),
    st.sampled_from(["batch", "max_length"]),
)
def test_a_pass_shows_every_example_once(
    lengths: list[int], batch_size: int, budget: int, epoch: int, padding: str
) -> None:
    split = make_split(lengths)
    plan = steps(
        split,
        batch_size=batch_size,
        max_micro_batch_tokens=budget,
        epoch=epoch,
        padding=padding,
        max_length=40,
    )
    assert len(plan) == -(-len(lengths) // batch_size)
    seen = [rows_of(step) for step in plan]
    assert sorted(chain.from_iterable(seen)) == list(range(len(lengths)))
    assert sorted(map(len, seen)) == sorted(
        [batch_size] * (len(plan) - 1) + [len(lengths) - batch_size * (len(plan) - 1)]
    )
    for batch in (batch for step in plan for batch in step):
        ids, mask = batch.arrays["input_ids"], batch.arrays["attention_mask"]
        assert ids.shape == mask.shape and (ids.size <= budget or len(ids) == 1)
        assert ids.dtype == mask.dtype == batch.arrays["labels"].dtype == np.int64
        assert batch.weights.dtype == np.float32 and (batch.weights == 1).all()
        for at, row in enumerate(batch.rows):
            assert ids[at][mask[at] == 1].tolist() == split.input_ids(int(row)).tolist()
            assert (
                mask[at].tolist() == sorted(mask[at].tolist(), reverse=True) and (ids[at][mask[at] == 0] == PAD).all()
            )
        assert batch.arrays["labels"].tolist() == [row % 2 for row in batch.rows]
        assert ids.shape[1] == (40 if padding == "max_length" else split.lengths[batch.rows].max())


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 9), st.integers(1, 40), st.one_of(st.none(), st.integers(4, 20)))
def test_epochs_of_any_length_walk_on_through_passes(
    lengths: list[int], batch_size: int, num_steps: int, window: int | None
) -> None:
    split = make_split(lengths)
    options: dict[str, Any] = {"batch_size": batch_size, "train_window": window}
    per_pass = -(-len(lengths) // batch_size)
    by_pass = [step for epoch in range(3) for step in steps(split, epoch=epoch, **options)]
    for start in range(0, 3 * per_pass - num_steps + 1, num_steps):
        plan = steps(split, epoch=start // num_steps, num_steps=num_steps, **options)
        assert len(plan) == num_steps
        # Asked for out of order, as a resumed run does.
        for index in reversed(range(num_steps)):
            assert same(plan[index], by_pass[start + index])


def test_every_pass_and_seed_has_its_own_order() -> None:
    split = make_split(list(range(3, 33)) * 4)

    def order(**changes: Any) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(rows_of(step)) for step in steps(split, **changes))

    first = order()
    assert order() == first
    assert len({first, order(epoch=1), order(epoch=2), order(seed=4)}) == 4
    together = [{frozenset(pair) for step in order(epoch=epoch) for pair in combinations(step, 2)} for epoch in (0, 1)]
    assert len(together[0] & together[1]) < len(together[0]) / 2, "steps are mixed anew in each pass"


def test_steps_out_of_range() -> None:
    plan = steps(make_split([5] * 8))
    for index in (-1, 2):
        with pytest.raises(IndexError):
            plan[index]


def cost(lengths: list[int], ends: tuple[int, ...], budget: int) -> float:
    total, start = 0, 0
    for end in ends:
        size = (end - start) * lengths[start]
        if size > budget and end - start > 1:
            return float("inf")
        total += size + batches.MICRO_BATCH_OVERHEAD_TOKENS
        start = end
    return total


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 900), min_size=1, max_size=8), st.integers(1, 3000))
def test_the_partition_is_the_cheapest_of_all(lengths: list[int], budget: int) -> None:
    lengths.sort(reverse=True)
    count = len(lengths)
    every = [(*cuts, count) for size in range(count) for cuts in combinations(range(1, count), size)]
    best = min(cost(lengths, ends, budget) for ends in every)
    assert cost(lengths, tuple(partition(np.array(lengths), budget)), budget) == best


def test_windows_are_random_and_keep_the_special_tokens() -> None:
    split = make_split([30, 8, 10, 30])
    starts = set()
    for epoch in range(200):
        for batch in (batch for step in steps(split, epoch=epoch, train_window=10) for batch in step):
            ids, mask = batch.arrays["input_ids"], batch.arrays["attention_mask"]
            assert ids.shape[1] <= 10
            for at, row in enumerate(batch.rows):
                found = ids[at][mask[at] == 1]
                if row in (1, 2):
                    assert found.tolist() == split.input_ids(int(row)).tolist()
                else:
                    assert len(found) == 10 and (found[0], found[-1]) == (CLS, SEP)
                    start = int(found[1]) - 10 - 1000 * int(row)
                    assert found[1:-1].tolist() == [10 + 1000 * int(row) + start + i for i in range(8)]
                    starts.add(start)
    assert starts == set(range(21)), "all windows of 8 of the 28 tokens of text"


def test_padding_to_a_window() -> None:
    (first, *_) = steps(make_split([30] * 4), train_window=10, padding="max_length", max_micro_batch_tokens=25)[0]
    assert first.arrays["input_ids"].shape == (2, 10)


def test_class_weights_are_those_of_scikit_learn() -> None:
    labels = [0] * 13 + [2] * 5 + [3]
    plan = steps(make_split([5] * len(labels), labels), class_weights="balanced")
    expected = compute_sample_weight("balanced", labels)
    for batch in (batch for step in plan for batch in step):
        assert batch.weights == pytest.approx(expected[batch.rows])


@settings(max_examples=50, deadline=None)
@given(LENGTHS, st.integers(1, 300))
def test_evaluation_reads_everything_the_longest_first(lengths: list[int], budget: int) -> None:
    split = make_split(lengths)
    found = list(evaluation_batches(split, budget, PAD))
    rows = [int(row) for batch in found for row in batch.rows]
    assert sorted(rows) == list(range(len(lengths)))
    assert [lengths[row] for row in rows] == sorted(lengths, reverse=True)
    for batch in found:
        assert batch.arrays["input_ids"].size <= budget or batch.num_examples == 1
        assert batch.arrays["labels"].tolist() == [row % 2 for row in batch.rows]


def test_a_batch_for_prediction() -> None:
    batch = batch_of_ids([[1, 5, 2], [1, 2]], PAD)
    assert batch.arrays["input_ids"].tolist() == [[1, 5, 2], [1, 2, PAD]]
    assert batch.arrays["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    assert set(batch.arrays) == {"input_ids", "attention_mask"} and batch.rows.tolist() == [0, 1]


@pytest.mark.parametrize(("count", "mean", "spread"), [(6000, 3.0, 0.5), (600, 6.2, 0.9)])
def test_little_is_padding(count: int, mean: float, spread: float) -> None:
    # Log-normal lengths like those of many sentences (median 20 tokens) and of few news articles (median 490).
    draw = np.random.default_rng(0).lognormal(mean, spread, count)
    lengths = np.clip(draw, 3, 4096).astype(int).tolist()
    plan = steps(make_split(lengths), batch_size=16, max_micro_batch_tokens=16384)
    positions = sum(batch.arrays["input_ids"].size for step in plan for batch in step)
    assert 1 - sum(lengths) / positions < 0.05


def test_long_texts_meet_at_random_and_short_ones_by_length() -> None:
    """Steps of one length learn less well, so lengths are sorted over as few steps as the padding allows."""
    draw = np.random.default_rng(0)
    articles = make_split([int(length) for length in np.clip(draw.lognormal(7.2, 0.5, 400), 100, 4000)])
    sentences = make_split([int(length) for length in draw.integers(5, 60, 400)])

    def spread(split: Split, batch_size: int, **changes: Any) -> tuple[int, float]:
        """Steps sorted together, and the mean over steps of the spread of lengths inside, over that of all."""
        plan = steps(split, batch_size=batch_size, max_micro_batch_tokens=4096, max_length=4096, **changes)
        inside = [np.std([split.lengths[row] for row in rows_of(step)]) for step in plan]
        return plan.steps_a_window, float(np.mean(inside) / np.std(split.lengths))

    together, mixed = spread(articles, 8)
    assert together <= 2 and mixed > 0.6
    together, mixed = spread(sentences, 8)
    assert together >= 8 and mixed < 0.3
