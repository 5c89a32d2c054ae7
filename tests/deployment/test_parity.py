"""An export is published only when its answers are the trained model's."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from modelyard.deployment.parity import ParityRecord, check_parity, require_parity
from modelyard.engines.base import Batch, Predictions
from modelyard.errors import InputError

Logits = NDArray[np.float32]


def batch_of(*lengths: int) -> Batch:
    """A batch of texts of these lengths, padded with id 0."""
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype(np.int64)
    ids = mask * (1 + np.arange(mask.size).reshape(mask.shape) % 13)
    rows = np.arange(len(lengths), dtype=np.int64)
    return Batch({"input_ids": ids, "attention_mask": mask}, np.ones(len(lengths), dtype=np.float32), rows)


def masked_mean(batch: Batch) -> Logits:
    """A model that minds the mask: logits (B, 3)."""
    ids, mask = batch.arrays["input_ids"], batch.arrays["attention_mask"]
    mean = (ids * mask).sum(axis=1) / mask.sum(axis=1)
    return np.stack([mean, -mean, np.sin(mean)], axis=1).astype(np.float32)


class Model:
    def __init__(self, logits: Callable[[Batch], Logits]) -> None:
        self.logits = logits

    def predict(self, batch: Batch) -> Predictions:
        return Predictions(self.logits(batch))


BATCHES = [batch_of(5, 9, 2), batch_of(30), batch_of(4, 4)]
REFERENCE = [(batch, masked_mean(batch)) for batch in BATCHES]


def test_the_same_answers_pass_and_are_counted() -> None:
    record = check_parity(REFERENCE, Model(lambda batch: masked_mean(batch) + np.float32(3e-5)))
    assert record.passed and record.reason == ""
    assert record.max_abs_difference == pytest.approx(3e-5, rel=0.1)
    assert (record.num_examples, record.num_agreeing, record.num_batches) == (6, 6, 3)
    assert record.batch_sizes == (1, 2, 3)
    assert (record.shortest_tokens, record.longest_tokens) == (2, 30)  # 2: the shortest text, alone
    require_parity(record)
    assert ParityRecord.model_validate(record.model_dump(mode="json")) == record


def wrong_for_long_texts(batch: Batch) -> Logits:
    logits = masked_mean(batch)
    return logits * (-1 if batch.arrays["input_ids"].shape[1] > 20 else 1)


def blind_to_the_mask(batch: Batch) -> Logits:
    """Right whenever it sees a batch as the reference did, wrong for the same text without its padding."""
    for known, logits in REFERENCE:
        if known is batch:
            return logits
    return masked_mean(batch) + np.float32(0.01)


@pytest.mark.parametrize(
    ("logits", "reason"),
    [
        (wrong_for_long_texts, "a logit differs by"),
        (blind_to_the_mask, "a logit differs by 0.01, more than the tolerance of 0.0001"),
        (lambda batch: masked_mean(batch) * np.nan, "not all finite numbers"),
        (lambda batch: masked_mean(batch)[:, :2], "shape (3, 2) instead of (3, 3)"),
    ],
)
def test_other_answers_refuse_publication(logits: Callable[[Batch], Logits], reason: str) -> None:
    record = check_parity(REFERENCE, Model(logits))
    assert not record.passed
    assert reason in record.reason
    with pytest.raises(InputError, match="the exported model is not published") as caught:
        require_parity(record)
    assert record.reason in caught.value.problem
    assert "modelyard train" in caught.value.hint


def test_disagreeing_labels_are_counted() -> None:
    record = check_parity(REFERENCE, Model(wrong_for_long_texts))
    assert (record.num_agreeing, record.num_examples) == (5, 6)


def test_a_reference_without_numbers_does_not_pass() -> None:
    broken = [(BATCHES[0], masked_mean(BATCHES[0]) * np.nan)]
    assert not check_parity(broken, Model(masked_mean)).passed


def test_nothing_compared_is_not_passed() -> None:
    record = check_parity([], Model(masked_mean))
    assert not record.passed
    assert "no test example" in record.reason
