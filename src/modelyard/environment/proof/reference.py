"""The right answer: forward, backward and Adam in NumPy float64, written from the formulas.

Shapes as in ``problem.py``: B examples, T positions, D width, N heads, H head width, F inner width, C classes. Every
``*_backward`` takes the gradient of the loss with respect to the output, and returns those with respect to the inputs.

Vaswani et al. 2017 (arXiv 1706.03762), Ba et al. 2016 (1607.06450), Hendrycks and Gimpel 2016 (1606.08415), Kingma and
Ba 2015 (1412.6980). The norms stand before the sub-layers, as in Xiong et al. 2020 (2002.04745), figure 1b.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelyard.environment.proof.problem import Array, Problem

Weights = Mapping[str, Array]
Gradients = dict[str, Array]


@dataclass(frozen=True)
class Reference:
    """What training the problem gives."""

    losses: tuple[float, ...]  # before each step
    first_gradients: Weights  # of the first step
    last_gradients: Weights  # of the last step
    weights: Weights  # after the last step


def solve(problem: Problem) -> Reference:
    """Train the problem."""
    weights = dict(problem.weights)
    first_moments = {name: np.zeros_like(value) for name, value in weights.items()}
    second_moments = {name: np.zeros_like(value) for name, value in weights.items()}
    losses: list[float] = []
    history: list[Gradients] = []
    for step in range(1, problem.num_steps + 1):
        loss, gradients = loss_and_gradients(problem, weights)
        losses.append(loss)
        history.append(gradients)
        for name, gradient in gradients.items():
            weights[name], first_moments[name], second_moments[name] = adam(
                problem, step, weights[name], gradient, first_moments[name], second_moments[name]
            )
    return Reference(tuple(losses), history[0], history[-1], weights)


def adam(
    problem: Problem, step: int, weight: Array, gradient: Array, first: Array, second: Array
) -> tuple[Array, Array, Array]:
    """Algorithm 1 of Kingma and Ba 2015; `step` counts from 1. Gives the weight and both moments after the step."""
    first = problem.beta_1 * first + (1 - problem.beta_1) * gradient
    second = problem.beta_2 * second + (1 - problem.beta_2) * gradient**2
    unbiased_first = first / (1 - problem.beta_1**step)
    unbiased_second = second / (1 - problem.beta_2**step)
    update = problem.learning_rate * unbiased_first / (np.sqrt(unbiased_second) + problem.adam_epsilon)
    return weight - update, first, second


def loss_and_gradients(problem: Problem, weights: Weights) -> tuple[float, Gradients]:
    """The loss, and its gradient with respect to every weight."""
    gradients: Gradients = {}
    x = weights["embedding.word"][problem.ids] + weights["embedding.position"]
    tapes = []
    for layer in range(problem.num_layers):
        x, tape = _layer(problem, weights, f"layer_{layer}", x)
        tapes.append(tape)
    normed, norm_tape = layer_norm(x, weights["norm.scale"], weights["norm.shift"], problem.norm_epsilon)
    share = problem.mask / problem.mask.sum(axis=1, keepdims=True)  # (B, T), of each position in the mean
    pooled = np.einsum("bt,btd->bd", share, normed)
    logits = linear(pooled, weights, "classifier")
    loss, d_logits = cross_entropy(logits, problem.labels, problem.example_weights)

    d_pooled = linear_backward(pooled, weights, "classifier", d_logits, gradients)
    d_normed = share[:, :, None] * d_pooled[:, None, :]
    d_x = layer_norm_backward(norm_tape, "norm", d_normed, gradients)
    for layer in reversed(range(problem.num_layers)):
        d_x = _layer_backward(problem, weights, f"layer_{layer}", tapes[layer], d_x, gradients)
    gradients["embedding.position"] = d_x.sum(axis=0)
    gradients["embedding.word"] = np.zeros_like(weights["embedding.word"])
    np.add.at(gradients["embedding.word"], problem.ids, d_x)  # a token that occurs twice gets the sum
    return loss, gradients


# One layer ------------------------------------------------------------------------------------------------------------


def _layer(problem: Problem, weights: Weights, name: str, x: Array) -> tuple[Array, dict[str, Any]]:
    tape: dict[str, Any] = {}
    tape["normed_1"], tape["norm_1"] = _norm(problem, weights, f"{name}.norm_1", x)
    attended, tape["attention"] = attention(problem, weights, f"{name}.attention", tape["normed_1"])
    x = x + attended
    tape["normed_2"], tape["norm_2"] = _norm(problem, weights, f"{name}.norm_2", x)
    tape["inner"] = linear(tape["normed_2"], weights, f"{name}.feed_forward.inner")
    tape["activated"] = gelu(tape["inner"])
    return x + linear(tape["activated"], weights, f"{name}.feed_forward.outer"), tape


def _layer_backward(
    problem: Problem, weights: Weights, name: str, tape: dict[str, Any], d_x: Array, gradients: Gradients
) -> Array:
    d_activated = linear_backward(tape["activated"], weights, f"{name}.feed_forward.outer", d_x, gradients)
    d_inner = d_activated * gelu_slope(tape["inner"])
    d_normed = linear_backward(tape["normed_2"], weights, f"{name}.feed_forward.inner", d_inner, gradients)
    d_x = d_x + layer_norm_backward(tape["norm_2"], f"{name}.norm_2", d_normed, gradients)
    d_normed = attention_backward(
        problem, weights, f"{name}.attention", tape["normed_1"], tape["attention"], d_x, gradients
    )
    return d_x + layer_norm_backward(tape["norm_1"], f"{name}.norm_1", d_normed, gradients)


def _norm(problem: Problem, weights: Weights, name: str, x: Array) -> tuple[Array, NormTape]:
    return layer_norm(x, weights[f"{name}.scale"], weights[f"{name}.shift"], problem.norm_epsilon)


# Attention ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttentionTape:
    query: Array  # (B, N, T, H)
    key: Array
    value: Array
    shares: Array  # (B, N, T, T): how much of each key's value a query takes; 0 for padding, each row sums to 1
    joined: Array  # (B, T, D): what the heads found, side by side


def attention(problem: Problem, weights: Weights, name: str, x: Array) -> tuple[Array, AttentionTape]:
    """Multi-head self-attention, Vaswani et al. 2017, equation 1 and section 3.2.2. (B, T, D) -> (B, T, D)."""
    query, key, value = (
        _split(linear(x, weights, f"{name}.{part}"), problem.num_heads) for part in ("query", "key", "value")
    )
    scores = np.einsum("bnih,bnjh->bnij", query, key) / math.sqrt(query.shape[-1])
    shares = softmax(np.where(problem.mask[:, None, None, :], scores, -np.inf))
    joined = _join(np.einsum("bnij,bnjh->bnih", shares, value))
    return linear(joined, weights, f"{name}.output"), AttentionTape(query, key, value, shares, joined)


def attention_backward(
    problem: Problem, weights: Weights, name: str, x: Array, tape: AttentionTape, d_out: Array, gradients: Gradients
) -> Array:
    """The chain rule through `attention`; the softmax's Jacobian is diag(p) - p p^T for a row p."""
    d_joined = linear_backward(tape.joined, weights, f"{name}.output", d_out, gradients)
    d_heads = _split(d_joined, problem.num_heads)
    d_value = np.einsum("bnij,bnih->bnjh", tape.shares, d_heads)
    d_shares = np.einsum("bnih,bnjh->bnij", d_heads, tape.value)
    d_scores = tape.shares * (d_shares - (d_shares * tape.shares).sum(axis=-1, keepdims=True))
    d_scores /= math.sqrt(tape.query.shape[-1])
    d_query = np.einsum("bnij,bnjh->bnih", d_scores, tape.key)
    d_key = np.einsum("bnij,bnih->bnjh", d_scores, tape.query)
    return sum(
        (
            linear_backward(x, weights, f"{name}.{part}", _join(d_part), gradients)
            for part, d_part in (("query", d_query), ("key", d_key), ("value", d_value))
        ),
        start=np.zeros_like(x),
    )


def _split(x: Array, num_heads: int) -> Array:
    """(B, T, D) -> (B, N, T, H)."""
    examples, positions, width = x.shape
    return x.reshape(examples, positions, num_heads, width // num_heads).transpose(0, 2, 1, 3)


def _join(x: Array) -> Array:
    """(B, N, T, H) -> (B, T, D)."""
    examples, num_heads, positions, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(examples, positions, num_heads * width)


def softmax(scores: Array) -> Array:
    """exp(s_j) / sum_k exp(s_k) over the last axis; taking off a constant first changes nothing but overflow."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=-1, keepdims=True))


# The small parts ------------------------------------------------------------------------------------------------------


def linear(x: Array, weights: Weights, name: str) -> Array:
    """x W + b over the last axis."""
    return np.asarray(x @ weights[f"{name}.weight"] + weights[f"{name}.bias"])


def linear_backward(x: Array, weights: Weights, name: str, d_out: Array, gradients: Gradients) -> Array:
    """Keeps dW = sum x^T d and db = sum d; gives dx = d W^T."""
    rows, d_rows = x.reshape(-1, x.shape[-1]), d_out.reshape(-1, d_out.shape[-1])
    gradients[f"{name}.weight"] = rows.T @ d_rows
    gradients[f"{name}.bias"] = d_rows.sum(axis=0)
    return np.asarray(d_out @ weights[f"{name}.weight"].T)


@dataclass(frozen=True)
class NormTape:
    normalised: Array
    deviation: Array  # (..., 1)
    scale: Array


def layer_norm(x: Array, scale: Array, shift: Array, epsilon: float) -> tuple[Array, NormTape]:
    """Ba et al. 2016, equation 4: (x - mean) / sqrt(variance + epsilon) * scale + shift, with the variance over D."""
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)
    normalised = centred / deviation
    return normalised * scale + shift, NormTape(normalised, deviation, scale)


def layer_norm_backward(tape: NormTape, name: str, d_out: Array, gradients: Gradients) -> Array:
    """With n the normalised input and g = d scale: dx = (g - mean(g) - n mean(g n)) / deviation."""
    flat = (-1, d_out.shape[-1])
    gradients[f"{name}.scale"] = (d_out * tape.normalised).reshape(flat).sum(axis=0)
    gradients[f"{name}.shift"] = d_out.reshape(flat).sum(axis=0)
    g = d_out * tape.scale
    along = (g * tape.normalised).mean(axis=-1, keepdims=True)
    return np.asarray((g - g.mean(axis=-1, keepdims=True) - tape.normalised * along) / tape.deviation)


def gelu(x: Array) -> Array:
    """x Phi(x), Hendrycks and Gimpel 2016, section 2, with the normal distribution itself and not an approximation."""
    return x * _normal_cdf(x)


def gelu_slope(x: Array) -> Array:
    """Phi(x) + x phi(x), with the density phi."""
    return np.asarray(_normal_cdf(x) + x * np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi))


def _normal_cdf(x: Array) -> Array:
    """Phi(x) = (1 + erf(x / sqrt 2)) / 2; erfc keeps the digits of the lower tail, and NumPy has neither."""
    return np.asarray([math.erfc(value) for value in (-x / math.sqrt(2)).ravel()]).reshape(x.shape) / 2


def cross_entropy(logits: Array, labels: np.ndarray[Any, Any], example_weights: Array) -> tuple[float, Array]:
    """-sum_b w_b log softmax(logits_b)[label_b] / sum_b w_b, and its gradient w_b (softmax - onehot) / sum w."""
    rows = np.arange(len(labels))
    highest = logits.max(axis=-1, keepdims=True)
    log_shares = logits - highest - np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
    share = example_weights / example_weights.sum()
    difference = np.exp(log_shares)
    difference[rows, labels] -= 1
    return float(-(share * log_shares[rows, labels]).sum()), share[:, None] * difference
