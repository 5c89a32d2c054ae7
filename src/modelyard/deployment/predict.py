"""From texts to labels with a bundle's model: the same preparation as in training, then the task's decoding.

Legend: B texts in a batch, T positions (tokens), C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from modelyard.data.batches import batch_of_ids, partition
from modelyard.data.prepare import prepare_texts
from modelyard.tasks.text_classification import TASKS

if TYPE_CHECKING:
    from modelyard.data.tokenizer import TextTokenizer
    from modelyard.deployment.bundle import Bundle
    from modelyard.engines.base import Predictor

# B * T of a batch, padding included. A guess: a processor is busy, and activations stay far below a gigabyte.
DEFAULT_MAX_BATCH_TOKENS = 8192


@dataclass(frozen=True)
class EncodedText:
    """A text as the model reads it. input_ids: with special tokens. num_tokens_cut: cut off at the end."""

    input_ids: Sequence[int]
    num_tokens_cut: int

    @property
    def num_tokens(self) -> int:
        """Tokens that the model reads."""
        return len(self.input_ids)


@dataclass(frozen=True)
class TextPrediction:
    """What the model says of one text.

    label: the most probable one, with its probability. probabilities: of all labels, in the bundle's order.
    num_tokens: tokens read, special tokens included. num_tokens_cut: tokens cut off at the end.
    """

    label: str
    probability: float
    probabilities: dict[str, float]
    num_tokens: int
    num_tokens_cut: int


class TextPredictor:
    """A bundle's model with its tokenizer and labels."""

    def __init__(self, bundle: Bundle, predictor: Predictor, tokenizer: TextTokenizer) -> None:
        self._info = bundle.info
        self._predictor = predictor
        self._tokenizer = tokenizer

    def predict(self, texts: Sequence[str], max_batch_tokens: int = DEFAULT_MAX_BATCH_TOKENS) -> list[TextPrediction]:
        """Label texts, in their order; those of like length together, up to `max_batch_tokens` padded."""
        encoded = self.encode(texts)
        lengths = np.array([text.num_tokens for text in encoded], dtype=np.int64)
        order = np.argsort(-lengths, kind="stable")
        answers: dict[int, TextPrediction] = {}
        start = 0
        for end in partition(lengths[order], max_batch_tokens):
            batch = order[start:end].tolist()
            answers.update(zip(batch, self.predict_encoded([encoded[n] for n in batch]), strict=True))
            start = end
        return [answers[n] for n in range(len(texts))]

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Take out what the bundle removes, tokenise, cut to its max_length."""
        preprocessing = self._info.preprocessing
        ids, full_lengths = prepare_texts(texts, self._tokenizer, preprocessing.max_length, preprocessing.remove)
        return [
            EncodedText(text_ids, int(full_length) - len(text_ids))
            for text_ids, full_length in zip(ids, full_lengths, strict=True)
        ]

    def predict_encoded(self, encoded: Sequence[EncodedText]) -> list[TextPrediction]:
        """Answer all of them in one batch, in their order."""
        batch = batch_of_ids([text.input_ids for text in encoded], self._tokenizer.pad_token_id)
        probabilities = TASKS[self._info.task].probabilities(self._predictor.predict(batch).logits)
        return [
            TextPrediction(
                label=self._info.labels[int(row.argmax())],
                probability=float(row.max()),
                probabilities=dict(zip(self._info.labels, row.tolist(), strict=True)),
                num_tokens=text.num_tokens,
                num_tokens_cut=text.num_tokens_cut,
            )
            for text, row in zip(encoded, probabilities, strict=True)
        ]
