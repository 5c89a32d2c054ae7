"""Text classification: one label for each text. Sentiment is the same task with its own names for usual labels.

Legend: B examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class TextClassification:
    """What the stages need to know of the task; no framework, no data.

    label_names: readable names for raw labels as they often stand in files.
    baselines: names of the baselines that `evaluation.baselines` fits on the same split.
    """

    name: str
    label_names: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ("accuracy", "precision", "recall", "f1")
    baselines: tuple[str, ...] = ("majority", "tfidf-logistic-regression")

    def probabilities(self, logits: NDArray[np.float32]) -> NDArray[np.float64]:
        """Softmax over classes: (B, C) logits to (B, C) probabilities, each row summing to 1."""
        import numpy as np

        shifted = np.asarray(logits, dtype=np.float64)
        shifted = shifted - shifted.max(axis=1, keepdims=True)
        exponentials = np.exp(shifted)
        result: NDArray[np.float64] = exponentials / exponentials.sum(axis=1, keepdims=True)
        return result


TASKS: Mapping[str, TextClassification] = {
    "text-classification": TextClassification("text-classification"),
    "sentiment": TextClassification(
        "sentiment",
        label_names={"0": "negative", "1": "positive", "neg": "negative", "pos": "positive"},
    ),
}
