"""The second proof for TensorFlow and JAX: Keras builds a small Transformer and trains it on that backend."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from itertools import pairwise
from typing import Any

import numpy as np

from modelyard.engines.keras.numbers import loaded
from modelyard.environment.proof.judge import same_device
from modelyard.environment.proof.record import Stack

NUM_STEPS = 3
VOCABULARY, POSITIONS, WIDTH, HEADS, CLASSES = 100, 16, 32, 4, 3


def prove(
    backend: str, on_device: Callable[[], AbstractContextManager[Any]], places: Callable[[Any], str], device: str
) -> Stack:
    """Three steps on one batch lower the loss, with all variables on `device`; never raises.

    `on_device` is the framework's way to choose the device, `places` says where an array lies.
    """
    started = time.monotonic()
    what, detail = "Keras", ""
    losses: tuple[float, ...] = ()
    try:
        keras = loaded(backend)  # may be what is broken

        what = f"keras {keras.__version__} on {backend}: Transformer, three steps"
        with on_device():
            losses, found = _train(keras, places)
        strangers = sorted(place for place in found if not same_device(device, place))
        detail = f"variables are on {', '.join(strangers)}" if strangers else ""
    except Exception as error:
        # Whatever a broken installation raises is the finding.
        detail = f"{type(error).__name__}: {error}"
    falls = len(losses) == NUM_STEPS and all(later < earlier for earlier, later in pairwise(losses))
    if not falls and not detail:
        detail = "the loss does not fall"
    return Stack(falls and not detail, what, losses, round(time.monotonic() - started, 3), detail)


def _train(keras: Any, places: Callable[[Any], str]) -> tuple[tuple[float, ...], set[str]]:
    """The loss of each step, and where the variables are."""
    keras.utils.set_random_seed(0)
    model = _model(keras)
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3), loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    )
    random = np.random.default_rng(0)
    ids = random.integers(1, VOCABULARY, size=(8, POSITIONS)).astype(np.int32)
    labels = random.integers(0, CLASSES, size=8).astype(np.int32)
    losses = []
    for _ in range(NUM_STEPS):
        model.reset_metrics()  # the loss that Keras gives is a mean since the last reset
        losses.append(float(model.train_on_batch(ids, labels)))
    variables: Iterable[Any] = (*model.trainable_variables, *model.optimizer.variables[2:])
    return tuple(losses), {places(variable.value) for variable in variables}


def _model(keras: Any) -> Any:
    """One layer with normalisation before its parts: ids (B, T) -> logits (B, C)."""
    layers = keras.layers
    ids = keras.Input((POSITIONS,), dtype="int32")
    x = layers.Embedding(VOCABULARY, WIDTH)(ids)
    normed = layers.LayerNormalization()(x)
    x = layers.Add()([x, layers.MultiHeadAttention(HEADS, WIDTH // HEADS)(normed, normed)])
    inner = layers.Dense(2 * WIDTH, activation="gelu")(layers.LayerNormalization()(x))
    x = layers.Add()([x, layers.Dense(WIDTH)(inner)])
    pooled = layers.GlobalAveragePooling1D()(layers.LayerNormalization()(x))
    return keras.Model(ids, layers.Dense(CLASSES)(pooled))
