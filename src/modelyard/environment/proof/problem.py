"""What the proof trains: a two-layer Transformer that classifies texts, its weights and one batch.

B examples, T positions, D width, N heads, H head width (N x H = D), F inner width of the feed-forward, V vocabulary,
C classes.

The model, with ``x W + b`` for every linear (weights are ``(in, out)``) and layers counted from 0::

    x = embedding.word[ids] + embedding.position                            (B, T, D)
    each layer L:
        x = x + attention(norm(x, L.norm_1)) ;  x = x + feed_forward(norm(x, L.norm_2))
    pooled = mean over the real positions of norm(x, norm)                  (B, D)
    logits = pooled classifier.weight + classifier.bias                     (B, C)
    loss   = sum_b example_weights[b] cross_entropy(logits[b], labels[b]) / sum_b example_weights[b]

``attention``: query, key, value and output linears with bias; head n has the columns n H to (n + 1) H; padding is
masked as a key. ``feed_forward``: linear, exact GELU, linear. ``norm``: layer normalisation with `norm_epsilon`.
The optimiser is Adam without weight decay, on all weights, with the numbers of `Problem`.

Every number is chosen so that a mistake is seen: no bias is zero, no scale one, no example as long as another, no
hyperparameter the default of a framework. Activations are of order one, so that float16 neither overflows nor drowns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Precision = Literal["float32", "bfloat16", "float16"]
Mode = Literal["strict", "default"]

PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16", "float16")

# The same for every seed: all positions occur, and no two examples are equally long.
LENGTHS = (16, 11, 7, 4)
# Far from balanced: the gradients of the last bias and shift, sums over the examples, would nearly cancel if every
# class had the share that an untrained model gives it. What is left of such a sum is rounding error.
EXAMPLE_WEIGHTS = (1.0, 0.5, 2.0, 1.5)
LABELS = (0, 1, 2, 2)
PADDING_ID = 0
NUM_LAYERS = 2
NUM_HEADS = 4
WIDTH = 32
INNER_WIDTH = 64
VOCABULARY = 50
CLASSES = 3


@dataclass(frozen=True)
class Case:
    """One way to train the problem.

    float32 ``strict``: no shortcut of the hardware (TensorFloat-32, bfloat16 passes). float32 ``default``: as the
    framework comes. bfloat16 and float16: as people train, with mixed precision: weights, gradients and Adam's moments
    in float32, matrix products and their outputs (so the logits) in the case's precision, the loss in float32.
    """

    precision: Precision
    mode: Mode


CASES = (
    Case("float32", "strict"),
    Case("float32", "default"),
    Case("bfloat16", "default"),
    Case("float16", "default"),
)


@dataclass(frozen=True)
class Problem:
    """Weights, one batch and the numbers of the optimiser."""

    seed: int
    weights: Mapping[str, Array]
    ids: NDArray[np.int64]  # (B, T), 0 to V - 1, PADDING_ID where there is no token
    mask: NDArray[np.bool_]  # (B, T), True for a token, False for padding
    labels: NDArray[np.int64]  # (B,), 0 to C - 1
    example_weights: Array  # (B,), positive
    num_layers: int = NUM_LAYERS
    num_heads: int = NUM_HEADS
    num_steps: int = 3
    # Adam moves a weight by learning_rate * g / (|g| + epsilon) in its first step. With the usual 1e-8 that is only the
    # sign of g: wrong magnitudes would pass, and rounding noise of a zero gradient would move a weight by a full step.
    # An epsilon of the size of the larger gradients makes the update a smooth function of them.
    learning_rate: float = 0.01
    beta_1: float = 0.8  # short memories, so that three steps tell one beta from another
    beta_2: float = 0.95
    adam_epsilon: float = 0.1
    norm_epsilon: float = 1e-3  # large enough that a framework's own default (1e-5, 1e-6) would be seen

    @property
    def num_examples(self) -> int:
        return int(self.ids.shape[0])


def make(seed: int = 0, precision: Precision = "float32") -> Problem:
    """The problem of that seed. Its weights are rounded to `precision`, so that every implementation starts equal."""
    random = np.random.default_rng(seed)
    weights = {name: rounded(values, precision) for name, values in _draw(random).items()}
    positions = np.arange(max(LENGTHS))
    mask = positions < np.asarray(LENGTHS)[:, None]
    ids = np.where(mask, random.integers(PADDING_ID + 1, VOCABULARY, size=mask.shape), PADDING_ID)
    ids[:, 1] = ids[0, 0]  # a token that repeats, within an example and between them
    labels = np.asarray(LABELS, dtype=np.int64)
    return Problem(seed, weights, ids.astype(np.int64), mask, labels, np.asarray(EXAMPLE_WEIGHTS))


def _draw(random: np.random.Generator) -> dict[str, Array]:
    weights: dict[str, Array] = {
        "embedding.word": random.normal(scale=0.5, size=(VOCABULARY, WIDTH)),
        "embedding.position": random.normal(scale=0.25, size=(max(LENGTHS), WIDTH)),
    }

    def linear(name: str, inputs: int, outputs: int) -> None:
        weights[f"{name}.weight"] = random.normal(scale=inputs**-0.5, size=(inputs, outputs))
        weights[f"{name}.bias"] = _away_from_zero(random, outputs)

    def norm(name: str) -> None:
        weights[f"{name}.scale"] = 1 + _away_from_zero(random, WIDTH)
        weights[f"{name}.shift"] = _away_from_zero(random, WIDTH)

    for layer in range(NUM_LAYERS):
        norm(f"layer_{layer}.norm_1")
        for part in ("query", "key", "value", "output"):
            linear(f"layer_{layer}.attention.{part}", WIDTH, WIDTH)
        norm(f"layer_{layer}.norm_2")
        linear(f"layer_{layer}.feed_forward.inner", WIDTH, INNER_WIDTH)
        linear(f"layer_{layer}.feed_forward.outer", INNER_WIDTH, WIDTH)
    norm("norm")
    linear("classifier", WIDTH, CLASSES)
    weights["classifier.weight"] /= 2  # small logits: an example that is right already has no gradient to compare
    return weights


def _away_from_zero(random: np.random.Generator, size: int) -> Array:
    """Numbers between 0.1 and 0.4 with a random sign."""
    return np.asarray(random.uniform(0.1, 0.4, size=size) * random.choice([-1.0, 1.0], size=size))


def rounded(values: Array, precision: Precision) -> Array:
    """The nearest numbers that `precision` holds, as float64."""
    if precision == "bfloat16":
        return to_significant_bits(values, 8)
    return np.asarray(values.astype(precision), dtype=np.float64)


def to_significant_bits(values: Array, bits: int) -> Array:
    """`values` rounded to nearest even with that many significant bits: 11 are TensorFloat-32, 8 are bfloat16."""
    mantissa, exponent = np.frexp(values)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, bits)), exponent - bits))
