"""JAX's side of the proof: the Transformer of ``environment/proof/problem.py`` in JAX's own functions.

    python -I -m modelyard.engines.keras.proof_jax --device cpu --out proof.json

Gradients are those of ``jax.grad`` under ``jax.jit``, the optimiser is Keras' Adam. B examples, T positions, D width,
N heads, H head width, as in ``problem.py``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"  # this process proves JAX, whatever the person trains with
# A proof needs a few MB; JAX would take three quarters of the GPU from whoever else works on it.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np

from modelyard.engines.keras import stack
from modelyard.engines.keras.numbers import Seen, adam, installed, keras_epsilon, loaded, loss_scale
from modelyard.environment.proof import command
from modelyard.environment.proof.command import NotOffered, Opened
from modelyard.environment.proof.judge import Observed
from modelyard.environment.proof.problem import Array, Case, Problem
from modelyard.environment.proof.record import Stack
from modelyard.errors import MachineError

KINDS = ("cpu", "cuda", "gpu", "rocm", "tpu")
GPUS = ("gpu", "cuda", "rocm")  # JAX's own name of each is gpu
MISSING = ("unimplemented", "unsupported", "not supported", "not implemented")  # words of XLA where a kernel is missing

Weights = Mapping[str, Any]


class JaxSide:
    """JAX on one device."""

    def open(self, device: str) -> Opened:
        """See `command.Side`."""
        self.kind = device.partition(":")[0]
        self.device = _require(device)
        return Opened(
            framework="jax",
            version=jax.__version__,
            built_for=_built_for(),
            device=self._place(self.device),
            device_name=command.processor_name() if self.kind == "cpu" else str(self.device.device_kind),
            versions=installed("numpy", "jax", "jaxlib", "keras", "ml-dtypes"),
        )

    def train(self, problem: Problem, case: Case) -> Observed:
        """See `command.Side`."""
        strict = jax.default_matmul_precision("highest") if case.mode == "strict" else nullcontext()
        try:
            with strict, jax.default_device(self.device):
                return self._train(problem, case)
        except (NotImplementedError, RuntimeError) as error:
            if case.precision != "float32" and any(word in str(error).lower() for word in MISSING):
                raise NotOffered(str(error).splitlines()[0]) from error
            raise

    def stack(self) -> Stack:
        """See `command.Side`."""

        def on_device() -> AbstractContextManager[Any]:
            return jax.default_device(self.device)  # type: ignore[no-any-return]

        return stack.prove("jax", on_device, self._place_of, self._place(self.device))

    def _train(self, problem: Problem, case: Case) -> Observed:
        keras = loaded("jax")  # may be what is broken: then it is this training that fails
        weights = self._put({name: value.astype(np.float32) for name, value in problem.weights.items()})
        batch = self._put(_batch(problem))
        optimizer = adam(keras, problem)
        optimizer.build([keras.Variable(value, dtype="float32") for _, value in sorted(weights.items())])
        state = self._put([np.asarray(variable.value) for variable in optimizer.variables])
        step = jax.jit(lambda *given: _step(problem, case, optimizer, batch, *given))
        losses: list[float] = []
        history: list[dict[str, Array]] = []
        seen = Seen()
        for number in range(1, problem.num_steps + 1):
            loss, logits, gradients, moved, state = step(weights, state, keras_epsilon(problem, number))
            seen.look("parameters", map(self._description, (*weights.values(), *moved.values())))
            seen.look("gradients", map(self._description, gradients.values()))
            seen.look("outputs", [self._description(logits)])
            seen.devices["outputs"].add(self._place_of(loss))
            losses.append(float(loss))
            history.append({name: _array(value) for name, value in gradients.items()})
            weights = moved
        after = {name: _array(value) for name, value in weights.items()}
        return Observed(losses, history[0], history[-1], after, seen.devices, seen.dtypes)

    def _put(self, arrays: Any) -> Any:
        return jax.device_put(arrays, self.device)

    def _description(self, array: Any) -> tuple[str, str]:
        return self._place_of(array), str(array.dtype)

    def _place_of(self, array: Any) -> str:
        """Where an array lies, in the word that was asked for (``cuda:0`` for what JAX calls gpu)."""
        return " and ".join(sorted(self._place(device) for device in array.devices()))

    def _place(self, device: Any) -> str:
        kind = self.kind if device.platform in GPUS and self.kind in GPUS else device.platform
        return str(kind) if kind == "cpu" else f"{kind}:{device.id}"


# The model ------------------------------------------------------------------------------------------------------------


def _batch(problem: Problem) -> dict[str, Any]:
    return {
        "ids": problem.ids.astype(np.int32),  # (B, T)
        "mask": problem.mask,  # (B, T) bool, True for a token
        "labels": problem.labels.astype(np.int32),  # (B,)
        "weights": problem.example_weights.astype(np.float32),  # (B,)
    }


def _step(
    problem: Problem, case: Case, optimizer: Any, batch: Weights, weights: Weights, state: Any, epsilon: Any
) -> tuple[Any, Any, dict[str, Any], dict[str, Any], Any]:
    """One step of training: loss, logits, gradients, the weights after it and the optimiser's state after it."""
    loss, logits, gradients = _gradients(problem, case, weights, batch)
    names = sorted(weights)  # the order in which the optimiser was built
    ordered = [[values[name] for name in names] for values in (gradients, weights)]
    optimizer.epsilon = epsilon
    moved, state = optimizer.stateless_apply(state, *ordered)
    return loss, logits, gradients, dict(zip(names, moved, strict=True)), state


def _gradients(problem: Problem, case: Case, weights: Weights, batch: Weights) -> tuple[Any, Any, dict[str, Any]]:
    """Loss, logits, and the gradient of the loss with respect to every weight."""
    scale = loss_scale(case)

    def scaled(given: Weights) -> tuple[Any, tuple[Any, Any]]:
        logits = forward(problem, case, given, batch)
        loss = loss_of(logits, batch)
        return loss * scale, (loss, logits)

    found, (loss, logits) = jax.grad(scaled, has_aux=True)(weights)
    return loss, logits, {name: each / scale for name, each in found.items()}


def loss_of(logits: Any, batch: Weights) -> Any:
    """The weighted mean over the examples, in float32 whatever the logits are."""
    log_shares = jax.nn.log_softmax(logits.astype(jnp.float32))
    each = -jnp.take_along_axis(log_shares, batch["labels"][:, None], axis=-1)[:, 0]
    return (each * batch["weights"]).sum() / batch["weights"].sum()


def forward(problem: Problem, case: Case, weights: Weights, batch: Weights) -> Any:
    """The logits, (B, C), in the case's precision."""
    dtype = jnp.dtype(case.precision)
    x = weights["embedding.word"][batch["ids"]] + weights["embedding.position"]
    for layer in range(problem.num_layers):
        name = f"layer_{layer}"
        normed = norm(problem, weights, f"{name}.norm_1", x)
        x = x + attention(problem, weights, f"{name}.attention", normed, batch["mask"], dtype)
        normed = norm(problem, weights, f"{name}.norm_2", x)
        inner = jax.nn.gelu(linear(weights, f"{name}.feed_forward.inner", normed, dtype), approximate=False)
        x = x + linear(weights, f"{name}.feed_forward.outer", inner, dtype)
    share = batch["mask"] / batch["mask"].sum(axis=1, keepdims=True)
    pooled = (norm(problem, weights, "norm", x) * share[:, :, None]).sum(axis=1)
    return linear(weights, "classifier", pooled, dtype)


def attention(problem: Problem, weights: Weights, name: str, x: Any, mask: Any, dtype: Any) -> Any:
    """Multi-head self-attention; padding is no key. (B, T, D) -> (B, T, D)."""
    query, key, value = (
        linear(weights, f"{name}.{part}", x, dtype).reshape(*x.shape[:2], problem.num_heads, -1)  # (B, T, N, H)
        for part in ("query", "key", "value")
    )
    scores = jnp.einsum("binh,bjnh->bnij", query, key).astype(jnp.float32) / math.sqrt(query.shape[-1])
    shares = jax.nn.softmax(jnp.where(mask[:, None, None, :], scores, -jnp.inf)).astype(dtype)
    heads = jnp.einsum("bnij,bjnh->binh", shares, value)
    return linear(weights, f"{name}.output", heads.reshape(x.shape), dtype)


def linear(weights: Weights, name: str, x: Any, dtype: Any) -> Any:
    """x W + b in `dtype`."""
    return x.astype(dtype) @ weights[f"{name}.weight"].astype(dtype) + weights[f"{name}.bias"].astype(dtype)


def norm(problem: Problem, weights: Weights, name: str, x: Any) -> Any:
    """Layer normalisation over D, in float32."""
    scale, shift = weights[f"{name}.scale"], weights[f"{name}.shift"]
    return jax.nn.standardize(x, axis=-1, epsilon=problem.norm_epsilon) * scale + shift


def _array(value: Any) -> Array:
    return np.asarray(value, dtype=np.float64)


# The device -----------------------------------------------------------------------------------------------------------


def _require(asked: str) -> Any:
    """The device, tried. Raises MachineError where it is not there or does not compute."""
    kind, _, index = asked.partition(":")
    if kind not in KINDS or (index and not index.isdigit()):
        raise MachineError(f"JAX has no device {asked!r}", hint=f"--device is one of {', '.join(KINDS)}, cuda:1, …")
    try:
        found = jax.devices(kind)
        device = next(each for each in found if not index or each.id == int(index))
        (jax.device_put(np.ones(2, np.float32), device) + 1).block_until_ready()
    except (RuntimeError, ValueError, AssertionError, StopIteration) as error:
        reason = (str(error).splitlines() or ["it is not there"])[0]
        platforms = os.environ.get("JAX_PLATFORMS")
        said = f", JAX_PLATFORMS is {platforms!r}" if platforms else ""
        raise MachineError(
            f"JAX {jax.__version__} (built for {_built_for()}{said}) cannot use the device {asked!r}: {reason}",
            hint="`modelyard doctor` says why, and what mends it",
        ) from error
    return device


def _built_for() -> str:
    names = {
        "jax-cuda13-plugin": "CUDA 13",
        "jax-cuda12-plugin": "CUDA 12",
        "jax-rocm7-plugin": "ROCm 7",
        "libtpu": "TPU",
    }
    return next((named for package, named in names.items() if installed(package)), "cpu")


if __name__ == "__main__":
    raise SystemExit(command.main(JaxSide()))
