"""Joins the texts of concurrent requests into batches for one inference thread.

While a batch is computed, new texts gather; the next batch starts with the one that has waited longest and is
filled with those closest to it in length, so that little is computed on padding and nobody waits for ever.
Nothing is delayed on purpose: a single text on an idle server is answered at once.
"""

from __future__ import annotations

import logging
import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol

from modelyard.deployment.predict import EncodedText, TextPrediction
from modelyard.errors import InputError

logger = logging.getLogger("modelyard.deployment")


class TextModel(Protocol):
    """What is served; `TextPredictor` is one. Called by the inference thread only."""

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        """Tokenise. Raises InputError for a text that cannot be read."""

    def predict_encoded(self, encoded: Sequence[EncodedText]) -> list[TextPrediction]:
        """Answer all of them in one batch, in their order."""


class QueueFull(Exception):
    """No room for this request now."""


class Stopped(Exception):
    """The service takes no more requests."""


class PredictionFailed(Exception):
    """The model raised an error; it was logged without the texts."""


@dataclass(eq=False)
class _Request:
    texts: Sequence[str]
    future: Future[list[TextPrediction]] = field(default_factory=Future)
    answers: dict[int, TextPrediction] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Text:
    """One encoded text that waits for its batch."""

    request: _Request
    position: int
    encoded: EncodedText


class MicroBatcher:
    """A bounded queue of texts and the one thread that answers them.

    max_batch_tokens: B * T of a batch, padding included, at most; one text alone may exceed it.
    max_queued_texts: texts that wait or are computed at most; what does not fit is refused at once.
    on_batch: told the number of texts of every batch (for metrics).
    """

    def __init__(
        self,
        model: TextModel,
        *,
        max_batch_tokens: int,
        max_queued_texts: int,
        on_batch: Callable[[int], None] = lambda num_texts: None,
    ) -> None:
        self._model = model
        self._max_batch_tokens = max_batch_tokens
        self._max_queued_texts = max_queued_texts
        self._on_batch = on_batch
        self._changed = threading.Condition()  # guards the four below
        self._arrived: list[_Request] = []
        self._num_texts = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._waiting: list[_Text] = []  # the inference thread's own

    @property
    def num_texts(self) -> int:
        """Texts that wait or are being computed."""
        return self._num_texts

    @property
    def is_full(self) -> bool:
        """Whether not even one more text fits."""
        return self._num_texts >= self._max_queued_texts

    def start(self) -> None:
        """Start the inference thread."""
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, texts: Sequence[str]) -> Future[list[TextPrediction]]:
        """Queue a request; cancelling the future takes what was not yet computed out of the queue.

        Raises QueueFull or Stopped at once. The future raises InputError or PredictionFailed.
        """
        with self._changed:
            if self._stopping:
                raise Stopped
            if self._num_texts + len(texts) > self._max_queued_texts:
                raise QueueFull
            request = _Request(texts)
            self._arrived.append(request)
            self._num_texts += len(texts)
            self._changed.notify_all()
            return request.future

    def stop(self) -> None:
        """Take no more requests; what is queued is still answered."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

    def join(self, timeout_seconds: float | None = None) -> bool:
        """Wait after `stop` until everything is answered; whether that was reached in time."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            return not self._thread.is_alive()
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._arrived or self._waiting or self._stopping)
                arrived, self._arrived = self._arrived, []
                if not arrived and not self._waiting:
                    return
            for request in arrived:
                self._encode(request)
            self._drop_cancelled()
            if self._waiting:
                self._answer(self._next_batch())

    def _encode(self, request: _Request) -> None:
        """Tokenise one request on its own, so that a text that cannot be read fails no other request."""
        if request.future.cancelled():
            self._finish(request)
            return
        try:
            encoded = self._model.encode(request.texts)
        except Exception as error:
            self._fail(request, error)
        else:
            self._waiting += [_Text(request, position, text) for position, text in enumerate(encoded)]

    def _drop_cancelled(self) -> None:
        cancelled = {text.request for text in self._waiting if text.request.future.cancelled()}
        self._waiting = [text for text in self._waiting if text.request not in cancelled]
        for request in cancelled:
            self._finish(request)

    def _next_batch(self) -> list[_Text]:
        """The oldest text and those closest to it in length, within the budget; they leave the queue."""
        oldest = self._waiting[0]
        by_distance = sorted(
            self._waiting[1:], key=lambda text: abs(text.encoded.num_tokens - oldest.encoded.num_tokens)
        )
        batch, longest = [oldest], oldest.encoded.num_tokens
        for text in by_distance:
            longest = max(longest, text.encoded.num_tokens)
            if (len(batch) + 1) * longest > self._max_batch_tokens:
                break
            batch.append(text)
        taken = set(batch)
        self._waiting = [text for text in self._waiting if text not in taken]
        return batch

    def _answer(self, batch: list[_Text]) -> None:
        self._on_batch(len(batch))
        try:
            answers = self._model.predict_encoded([text.encoded for text in batch])
            answered = list(zip(batch, answers, strict=True))
        except Exception as error:
            failed = {text.request for text in batch}
            self._waiting = [text for text in self._waiting if text.request not in failed]
            for request in failed:
                self._fail(request, error)
            return
        for text, answer in answered:
            request = text.request
            request.answers[text.position] = answer
            if len(request.answers) == len(request.texts):
                self._finish(request)
                if request.future.set_running_or_notify_cancel():
                    request.future.set_result([request.answers[n] for n in range(len(request.texts))])

    def _fail(self, request: _Request, error: Exception) -> None:
        if not isinstance(error, InputError):
            # The message of a foreign error may quote the text, so only its kind and place are logged.
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("prediction failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
            error = PredictionFailed(type(error).__name__)
        self._finish(request)
        if request.future.set_running_or_notify_cancel():
            request.future.set_exception(error)

    def _finish(self, request: _Request) -> None:
        with self._changed:
            self._num_texts -= len(request.texts)
