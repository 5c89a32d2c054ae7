"""The counters that ``/metrics`` shows, each server's own; no label ever holds what a client sent."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from modelyard.deployment.predict import TextPrediction

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TEXTS = (1, 2, 4, 8, 16, 32, 64, 128)


class Measures:
    """Counters of one server."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self.registry = registry
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "modelyard_requests", "Requests by path and status.", ("path", "status"), registry=registry
        )
        self.predict_seconds = Histogram(
            "modelyard_predict_seconds", "Time of an answered prediction.", buckets=SECONDS, registry=registry
        )
        self.texts = Counter("modelyard_texts", "Texts answered.", registry=registry)
        self.cut_texts = Counter("modelyard_cut_texts", "Texts of which the end was cut off.", registry=registry)
        self.tokens = Counter("modelyard_tokens", "Tokens read by the model.", registry=registry)
        self.queued_texts = Gauge("modelyard_queued_texts", "Texts that wait or are computed.", registry=registry)
        self.batch_texts = Histogram(
            "modelyard_batch_texts", "Texts computed at once.", buckets=TEXTS, registry=registry
        )

    def count_predictions(self, predictions: Sequence[TextPrediction], seconds: float) -> None:
        """Count one answered request."""
        self.predict_seconds.observe(seconds)
        self.texts.inc(len(predictions))
        self.cut_texts.inc(sum(prediction.num_tokens_cut > 0 for prediction in predictions))
        self.tokens.inc(sum(prediction.num_tokens for prediction in predictions))
