"""A model that costs nothing, and a process that serves it: ``python fake_server.py HOST PORT``.

The label is the parity of the longest word's length; ``slow`` takes 1.5 seconds, ``fail`` raises.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any

from modelyard.deployment.info import BundleInfo
from modelyard.deployment.predict import EncodedText, TextPrediction
from modelyard.deployment.requests import ServerLimits
from modelyard.deployment.server import create_app, serve
from modelyard.errors import InputError

LABELS = ("even", "odd")
SLOW, FAIL = 4, 99
MAX_LENGTH = 50


class FakeModel:
    """Answers from the lengths of words. `gate` can hold it back; `batches` records what it computed."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.batches: list[list[int]] = []

    def encode(self, texts: Sequence[str]) -> list[EncodedText]:
        for text in texts:
            if text == "unreadable":
                raise InputError("the text cannot be read", hint="write another one")
        lengths = [[FAIL] if text == "fail" else [len(word) for word in text.split()] for text in texts]
        return [EncodedText(one[:MAX_LENGTH], max(0, len(one) - MAX_LENGTH)) for one in lengths]

    def predict_encoded(self, encoded: Sequence[EncodedText]) -> list[TextPrediction]:
        self.batches.append([text.num_tokens for text in encoded])
        self.gate.wait(20)
        if any(list(text.input_ids) == [FAIL] for text in encoded):
            raise ValueError("a secret word")
        if any(list(text.input_ids) == [SLOW] for text in encoded):
            time.sleep(1.5)
        return [self._answer(text) for text in encoded]

    def _answer(self, text: EncodedText) -> TextPrediction:
        odd = 0.9 if max(text.input_ids) % 2 else 0.2
        label, probability = ("odd", odd) if odd > 0.5 else ("even", 1 - odd)
        return TextPrediction(label, probability, {"even": 1 - odd, "odd": odd}, text.num_tokens, text.num_tokens_cut)


def facts() -> dict[str, Any]:
    """What `BundleInfo` is made of."""
    return {
        "name": "Words by length",
        "task": "text-classification",
        "labels": LABELS,
        "preprocessing": {"remove": None, "max_length": MAX_LENGTH},
        "limits": {"max_texts": 8, "max_characters": 1000},
        "model": {
            "architecture": "BertForSequenceClassification",
            "num_layers": 2,
            "hidden_size": 8,
            "num_parameters": 1234,
            "weights_bytes": 4936,
        },
        "metrics": {
            "num_examples": 1000,
            "confidence": 0.95,
            "metrics": {
                "accuracy": {"value": 0.923, "low": 0.905, "high": 0.938},
                "f1": {"value": 0.921, "low": 0.902, "high": 0.937},
            },
            "baselines": {"majority": {"accuracy": {"value": 0.512, "low": 0.481, "high": 0.543}}},
        },
        "parity": {
            "passed": True,
            "reason": "",
            "tolerance": 1e-4,
            "max_abs_difference": 2e-6,
            "num_examples": 64,
            "num_agreeing": 64,
            "num_batches": 8,
            "batch_sizes": (1, 8),
            "shortest_tokens": 12,
            "longest_tokens": 50,
        },
        "versions": {"modelyard": "0.1.0"},
        "created": "2026-11-20T10:00:00+00:00",
        "examples": ("an example of five words", "another"),
    }


def fake_info(**changes: Any) -> BundleInfo:
    """The facts with changes."""
    return BundleInfo.model_validate(facts() | changes)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    limits = ServerLimits(max_texts=8, max_characters=1000, request_timeout_seconds=10)
    host, port = sys.argv[1], int(sys.argv[2])
    serve(
        create_app(FakeModel(), fake_info(), limits),
        host,
        port,
        on_ready=lambda url: print(url, flush=True),
    )
    print("ended", flush=True)
