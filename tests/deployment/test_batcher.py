"""Requests are joined into batches, in a bounded queue, and none harms another."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from modelyard.deployment.batcher import MicroBatcher, PredictionFailed, QueueFull, Stopped
from modelyard.errors import InputError

Make = Callable[..., tuple[Any, MicroBatcher]]


def words(count: int) -> str:
    return " ".join(["word"[:3]] * count)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def make(fake: ModuleType) -> Iterator[Make]:
    made: list[tuple[Any, MicroBatcher]] = []

    def make_one(
        max_batch_tokens: int = 40, max_queued_texts: int = 100, held: bool = True
    ) -> tuple[Any, MicroBatcher]:
        model = fake.FakeModel()
        if held:
            model.gate.clear()
        batcher = MicroBatcher(model, max_batch_tokens=max_batch_tokens, max_queued_texts=max_queued_texts)
        batcher.start()
        made.append((model, batcher))
        return model, batcher

    yield make_one
    for model, batcher in made:
        model.gate.set()
        batcher.stop()
        assert batcher.join(10)
        assert batcher.num_texts == 0  # whatever happened, the queue is empty again


def test_one_request_is_answered_in_its_order(make: Make) -> None:
    _, batcher = make(held=False)
    answers = batcher.submit(["a bcd", "ab", "abc", words(60)]).result(10)
    assert [answer.label for answer in answers] == ["odd", "even", "odd", "odd"]
    assert [answer.num_tokens for answer in answers] == [2, 1, 1, 50]
    assert [answer.num_tokens_cut for answer in answers] == [0, 0, 0, 10]


def test_waiting_texts_of_like_length_are_joined_within_the_budget(make: Make) -> None:
    model, batcher = make(max_batch_tokens=40)
    first = batcher.submit([words(1)])
    wait_until(lambda: len(model.batches) == 1)  # computing; the rest waits
    rest = [batcher.submit([words(count)]) for count in (10, 2, 11, 9, 30, 10, 12)]
    model.gate.set()
    for future in [first, *rest]:
        future.result(10)
    assert model.batches[0] == [1]
    assert model.batches[1] == [10, 10, 11]  # 3 * 11 fit into 40 and 4 * 11 do not; 10 waited longest
    assert model.batches[2] == [2, 9, 12]
    assert model.batches[3] == [30]


def test_a_text_beyond_the_budget_is_computed_alone(make: Make) -> None:
    model, batcher = make(max_batch_tokens=5, held=False)
    batcher.submit([words(20), words(20)]).result(10)
    assert model.batches == [[20], [20]]


def test_the_queue_is_bounded_in_texts(make: Make) -> None:
    model, batcher = make(max_queued_texts=5)
    first = batcher.submit(["a", "b", "c"])
    with pytest.raises(QueueFull):
        batcher.submit(["d", "e", "f"])
    second = batcher.submit(["d", "e"])
    assert batcher.is_full
    model.gate.set()
    first.result(10), second.result(10)
    wait_until(lambda: batcher.num_texts == 0)
    batcher.submit(["f"]).result(10)


def test_a_cancelled_request_leaves_the_queue_uncomputed(make: Make) -> None:
    model, batcher = make()
    running = batcher.submit([words(3)])
    wait_until(lambda: len(model.batches) == 1)
    waiting = batcher.submit([words(7), words(7)])
    assert waiting.cancel() and running.cancel()  # also the one that is being computed harms nothing
    model.gate.set()
    wait_until(lambda: batcher.num_texts == 0)
    assert model.batches == [[3]]


def test_a_large_request_cancelled_half_way_leaves_the_queue(make: Make) -> None:
    model, batcher = make(max_batch_tokens=10)
    request = batcher.submit([words(10)] * 5)
    wait_until(lambda: len(model.batches) == 1)
    assert request.cancel()
    model.gate.set()
    wait_until(lambda: batcher.num_texts == 0)
    assert len(model.batches) == 1


def test_a_text_that_cannot_be_read_fails_its_request_only(make: Make) -> None:
    model, batcher = make()
    good, bad = batcher.submit(["ab"]), batcher.submit(["ab", "unreadable"])
    model.gate.set()
    assert good.result(10)[0].label == "even"
    with pytest.raises(InputError, match="cannot be read"):
        bad.result(10)


def test_a_failing_model_is_logged_without_the_text(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    _, batcher = make(held=False)
    with caplog.at_level(logging.DEBUG), pytest.raises(PredictionFailed):
        batcher.submit(["fail"]).result(10)
    assert "ValueError at" in caplog.text and "fake_server.py" in caplog.text
    assert "secret" not in caplog.text
    assert batcher.submit(["ab"]).result(10)[0].label == "even"  # the thread lives on


def test_what_is_queued_is_answered_after_stop(make: Make) -> None:
    model, batcher = make(max_batch_tokens=5)
    futures = [batcher.submit([words(5)]) for _ in range(4)]
    batcher.stop()
    with pytest.raises(Stopped):
        batcher.submit(["late"])
    model.gate.set()
    assert batcher.join(10)
    assert all(future.done() and len(future.result()) == 1 for future in futures)
