"""TensorFlow's side of the proof: the Transformer of ``environment/proof/problem.py`` in TensorFlow's own functions.

    python -I -m modelyard.engines.keras.proof_tensorflow --device cpu --out proof.json

Gradients are those of ``tf.GradientTape`` in a ``tf.function``, as Keras trains; the optimiser is Keras' Adam. B
examples, T positions, D width, N heads, H head width, as in ``problem.py``.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"  # this process proves TensorFlow, whatever the person trains with
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")  # what it says about its own loading is no part of the proof

import numpy as np
import tensorflow as tf

from modelyard.engines.keras import stack
from modelyard.engines.keras.numbers import Seen, adam, installed, keras_epsilon, loaded, loss_scale
from modelyard.environment.proof import command
from modelyard.environment.proof.command import NotOffered, Opened
from modelyard.environment.proof.judge import Observed
from modelyard.environment.proof.problem import Array, Case, Problem
from modelyard.environment.proof.record import Stack
from modelyard.errors import MachineError

KINDS = ("cpu", "gpu", "cuda", "rocm", "tpu")
GPUS = ("gpu", "cuda", "rocm")  # TensorFlow's own name of each is GPU

Weights = Mapping[str, Any]


class TensorFlowSide:
    """TensorFlow on one device."""

    def open(self, device: str) -> Opened:
        """See `command.Side`."""
        self.kind = device.partition(":")[0]
        self.device = _require(device)  # TensorFlow's name: "/GPU:0"
        return Opened(
            framework="tensorflow",
            version=str(tf.__version__),
            built_for=_built_for(),
            device=self._place(self.device),
            device_name=_device_name(self.device),
            versions={**_build_versions(), **installed("numpy", "tensorflow", "tensorflow-cpu", "keras", "ml-dtypes")},
        )

    def train(self, problem: Problem, case: Case) -> Observed:
        """See `command.Side`."""
        try:
            with _tensor_float_32(case.mode == "default"), tf.device(self.device):
                return self._train(problem, case)
        except (tf.errors.UnimplementedError, tf.errors.NotFoundError) as error:  # no kernel for this dtype
            if case.precision == "float32":
                raise
            raise NotOffered(str(error).splitlines()[0]) from error

    def stack(self) -> Stack:
        """See `command.Side`."""

        def on_device() -> AbstractContextManager[Any]:
            return tf.device(self.device)  # type: ignore[no-any-return]

        return stack.prove("tensorflow", on_device, self._place_of, self._place(self.device))

    def _train(self, problem: Problem, case: Case) -> Observed:
        keras = loaded("tensorflow")  # may be what is broken: then it is this training that fails
        weights = {name: tf.Variable(value.astype(np.float32)) for name, value in problem.weights.items()}
        batch = _Batch(problem)
        optimizer = adam(keras, problem)
        optimizer.build(list(weights.values()))
        differentiate = tf.function(lambda: _gradients(problem, case, weights, batch))
        losses: list[float] = []
        history: list[dict[str, Array]] = []
        seen = Seen()
        for step in range(1, problem.num_steps + 1):
            loss, logits, gradients = differentiate()
            seen.look("parameters", map(self._description, weights.values()))
            seen.look("gradients", map(self._description, gradients.values()))
            seen.look("outputs", [self._description(logits)])
            seen.devices["outputs"].add(self._place_of(loss))
            losses.append(float(loss))
            history.append({name: _array(value) for name, value in gradients.items()})
            optimizer.epsilon = keras_epsilon(problem, step)
            optimizer.apply([gradients[name] for name in weights])
        after = {name: _array(value) for name, value in weights.items()}
        return Observed(losses, history[0], history[-1], after, seen.devices, seen.dtypes)

    def _description(self, value: Any) -> tuple[str, str]:
        return self._place_of(value), str(value.dtype.name)

    def _place_of(self, value: Any) -> str:
        """Where a tensor's memory is, in the word that was asked for (``cuda:0`` for what TensorFlow calls GPU)."""
        return self._place(tf.convert_to_tensor(value).backing_device)

    def _place(self, device: str) -> str:
        """``cpu``, ``gpu:0`` from ``/job:localhost/replica:0/task:0/device:GPU:0`` or ``/GPU:0``."""
        kind, index = device.rpartition("/")[2].lower().removeprefix("device:").split(":")
        if kind == "gpu" and self.kind in GPUS:
            kind = self.kind
        return kind if kind == "cpu" else f"{kind}:{index}"


# The model ------------------------------------------------------------------------------------------------------------


class _Batch:
    """The batch on the device."""

    def __init__(self, problem: Problem) -> None:
        self.ids = tf.constant(problem.ids, tf.int32)  # (B, T)
        self.mask = tf.constant(problem.mask)  # (B, T) bool, True for a token
        self.labels = tf.constant(problem.labels, tf.int32)  # (B,)
        self.weights = tf.constant(problem.example_weights, tf.float32)  # (B,)


def _gradients(problem: Problem, case: Case, weights: Weights, batch: _Batch) -> tuple[Any, Any, dict[str, Any]]:
    """Loss, logits, and the gradient of the loss with respect to every weight."""
    scale = loss_scale(case)
    with tf.GradientTape() as tape:
        logits = forward(problem, case, weights, batch)
        loss = loss_of(logits, batch)
        scaled = loss * scale
    found = tape.gradient(scaled, dict(weights))
    # The gradient of a lookup comes as its rows; a weight without a gradient is missing, which the judge sees.
    return loss, logits, {name: tf.convert_to_tensor(each) / scale for name, each in found.items() if each is not None}


def loss_of(logits: Any, batch: _Batch) -> Any:
    """The weighted mean over the examples, in float32 whatever the logits are."""
    each = tf.nn.sparse_softmax_cross_entropy_with_logits(batch.labels, tf.cast(logits, tf.float32))
    return tf.reduce_sum(each * batch.weights) / tf.reduce_sum(batch.weights)


def forward(problem: Problem, case: Case, weights: Weights, batch: _Batch) -> Any:
    """The logits, (B, C), in the case's precision."""
    dtype = tf.as_dtype(case.precision)
    x = tf.nn.embedding_lookup(weights["embedding.word"], batch.ids) + weights["embedding.position"]
    for layer in range(problem.num_layers):
        name = f"layer_{layer}"
        normed = norm(problem, weights, f"{name}.norm_1", x)
        x += tf.cast(attention(problem, weights, f"{name}.attention", normed, batch.mask, dtype), tf.float32)
        normed = norm(problem, weights, f"{name}.norm_2", x)
        inner = tf.nn.gelu(linear(weights, f"{name}.feed_forward.inner", normed, dtype), approximate=False)
        x += tf.cast(linear(weights, f"{name}.feed_forward.outer", inner, dtype), tf.float32)
    real = tf.cast(batch.mask, tf.float32)
    share = real / tf.reduce_sum(real, axis=1, keepdims=True)
    pooled = tf.reduce_sum(norm(problem, weights, "norm", x) * share[:, :, None], axis=1)
    return linear(weights, "classifier", pooled, dtype)


def attention(problem: Problem, weights: Weights, name: str, x: Any, mask: Any, dtype: Any) -> Any:
    """Multi-head self-attention; padding is no key. (B, T, D) -> (B, T, D)."""
    query, key, value = (
        tf.reshape(linear(weights, f"{name}.{part}", x, dtype), (*x.shape[:2], problem.num_heads, -1))  # (B, T, N, H)
        for part in ("query", "key", "value")
    )
    scores = tf.cast(tf.einsum("binh,bjnh->bnij", query, key), tf.float32) / math.sqrt(query.shape[-1])
    shares = tf.nn.softmax(tf.where(mask[:, None, None, :], scores, tf.float32.min))
    heads = tf.einsum("bnij,bjnh->binh", tf.cast(shares, dtype), value)
    return linear(weights, f"{name}.output", tf.reshape(heads, x.shape), dtype)


def linear(weights: Weights, name: str, x: Any, dtype: Any) -> Any:
    """x W + b in `dtype`, as Keras' layers do it.

    Not by an einsum with an ellipsis: TensorFlow 2.21 with oneDNN on a processor with AVX512-FP16 gives wrong numbers
    there in float16, and wrong gradients in bfloat16; TF_ENABLE_ONEDNN_OPTS=0 mends it. No
    layer of Keras does so unless asked to.
    """
    product = tf.tensordot(tf.cast(x, dtype), tf.cast(weights[f"{name}.weight"], dtype), axes=1)
    return tf.nn.bias_add(product, tf.cast(weights[f"{name}.bias"], dtype))


def norm(problem: Problem, weights: Weights, name: str, x: Any) -> Any:
    """Layer normalisation over D, in float32."""
    mean, variance = tf.nn.moments(x, axes=[-1], keepdims=True)
    scale, shift = weights[f"{name}.scale"], weights[f"{name}.shift"]
    return tf.nn.batch_normalization(x, mean, variance, shift, scale, problem.norm_epsilon)


def _array(value: Any) -> Array:
    return np.asarray(value.numpy(), dtype=np.float64)


@contextmanager
def _tensor_float_32(allowed: bool) -> Iterator[None]:
    """Whether products of float32 may round to TensorFloat-32; as before afterwards."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    if not allowed:
        tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


# The device -----------------------------------------------------------------------------------------------------------


def _require(asked: str) -> str:
    """TensorFlow's name of the device, tried. Raises MachineError where it is not there or does not compute."""
    kind, _, index = asked.partition(":")
    if kind not in KINDS or (index and not index.isdigit()):
        raise MachineError(
            f"TensorFlow has no device {asked!r}", hint=f"--device is one of {', '.join(KINDS)}, gpu:1, …"
        )
    name = "GPU" if kind in GPUS else kind.upper()
    try:
        found = tf.config.list_physical_devices(name)
        number = int(index or 0)
        if number >= len(found):
            raise ValueError(f"it sees {len(found)} {name} devices")
        for each in found if name == "GPU" else []:
            # A proof needs a few MB; TensorFlow would take the whole GPU from whoever else works on it.
            tf.config.experimental.set_memory_growth(each, True)
        with tf.device(f"/{name}:{number}"):
            (tf.ones(2) + 1).numpy()
    except (RuntimeError, ValueError, tf.errors.OpError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise MachineError(
            f"TensorFlow {tf.__version__} (built for {_built_for()}) cannot use the device {asked!r}: {reason}",
            hint="`modelyard doctor` says why, and what mends it",
        ) from error
    return f"/{name}:{number}"


def _build_info() -> dict[str, Any]:
    return dict(tf.sysconfig.get_build_info())


def _built_for() -> str:
    build = _build_info()
    if build.get("is_cuda_build"):
        return f"CUDA {build.get('cuda_version', '')}".strip()
    if build.get("is_rocm_build"):
        return "ROCm"
    return "cpu"


def _build_versions() -> dict[str, str]:
    build = _build_info()
    return {"cudnn": str(build["cudnn_version"])} if build.get("cudnn_version") else {}


def _device_name(name: str) -> str:
    kind, index = name.strip("/").split(":")
    if kind == "CPU":
        return command.processor_name()
    details = tf.config.experimental.get_device_details(tf.config.list_physical_devices(kind)[int(index)])
    return str(details.get("device_name", kind))


if __name__ == "__main__":
    raise SystemExit(command.main(TensorFlowSide()))
