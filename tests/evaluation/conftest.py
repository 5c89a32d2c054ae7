from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray


class MemorySplit:
    """A prepared split that lives in memory; lengths are characters unless given."""

    def __init__(
        self, texts: Sequence[str], labels: Sequence[int], full_lengths: Sequence[int] | None, max_length: int
    ) -> None:
        self.texts = list(texts)
        self.labels = np.asarray(labels, dtype=np.int64)
        self.full_lengths = np.asarray(
            [len(text) for text in texts] if full_lengths is None else full_lengths, dtype=np.int32
        )
        self.lengths = np.minimum(self.full_lengths, max_length)

    def __len__(self) -> int:
        return len(self.texts)

    def text(self, row: int) -> str:
        return self.texts[row]

    def source(self, row: int) -> str:
        return f"texts.csv:{row + 2}"


@pytest.fixture
def make_split() -> Callable[..., MemorySplit]:
    def make(
        texts: Sequence[str],
        labels: Sequence[int],
        full_lengths: Sequence[int] | None = None,
        max_length: int = 10_000,
    ) -> MemorySplit:
        return MemorySplit(texts, labels, full_lengths, max_length)

    return make


@pytest.fixture
def noisy_logits() -> Callable[..., NDArray[np.float32]]:
    """Logits that favour the true class by `strength` standard deviations."""

    def make(labels: NDArray[Any], num_classes: int, strength: float, seed: int = 0) -> NDArray[np.float32]:
        logits = np.random.default_rng(seed).normal(size=(len(labels), num_classes))
        logits[np.arange(len(labels)), labels] += strength
        return logits.astype(np.float32)

    return make
