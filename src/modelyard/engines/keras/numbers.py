"""What the proofs of TensorFlow and JAX share: Keras and its optimiser, and what was seen on arrays."""

from __future__ import annotations

import importlib.metadata
import math
from collections.abc import Iterable
from typing import Any

from modelyard.environment.proof.problem import Case, Problem

# Some gradients are below what float16 holds with all its digits (6e-5). People train with a loss multiplied by a power
# of two, and divide the gradients by it; with this one neither end of float16 is reached here.
FLOAT16_LOSS_SCALE = 1024.0


def loaded(backend: str) -> Any:
    """Keras on that backend. Raises RuntimeError where this process already has it on another."""
    import keras

    found = keras.backend.backend()
    if found != backend:
        raise RuntimeError(f"Keras runs on {found!r} in this process, not on {backend!r}")
    return keras


def loss_scale(case: Case) -> float:
    return FLOAT16_LOSS_SCALE if case.precision == "float16" else 1.0


def adam(keras: Any, problem: Problem) -> Any:
    """Keras' own Adam with the problem's numbers; its epsilon is set before each step, see `keras_epsilon`."""
    return keras.optimizers.Adam(
        learning_rate=problem.learning_rate,
        beta_1=problem.beta_1,
        beta_2=problem.beta_2,
        epsilon=problem.adam_epsilon,
    )


def keras_epsilon(problem: Problem, step: int) -> float:
    """The epsilon that makes step `step` (from 1) of Keras' Adam the one of Kingma and Ba's Algorithm 1.

    Keras computes the order that the end of their section 2 gives, with another epsilon ("epsilon hat"):
    ``m lr sqrt(1 - beta_2^t) / (1 - beta_1^t) / (sqrt(v) + epsilon hat)``. Both are the same number where
    ``epsilon hat = epsilon sqrt(1 - beta_2^t)``.
    """
    return problem.adam_epsilon * math.sqrt(1 - problem.beta_2**step)


class Seen:
    """The devices and dtypes that were found on the arrays themselves."""

    def __init__(self) -> None:
        self.devices: dict[str, set[str]] = {"parameters": set(), "gradients": set(), "outputs": set()}
        self.dtypes: dict[str, set[str]] = {"parameters": set(), "gradients": set(), "outputs": set()}

    def look(self, place: str, found: Iterable[tuple[str, str]]) -> None:
        """Add (device, dtype) of arrays at one of `judge.PLACES`."""
        for device, dtype in found:
            self.devices[place].add(device)
            self.dtypes[place].add(dtype)


def installed(*packages: str) -> dict[str, str]:
    """Versions of those of `packages` that are installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
