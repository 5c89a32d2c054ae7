"""The head fitted on the frozen encoder before the first step: LP-FT (Kumar et al. 2022, arXiv 2202.10054).

A head of random numbers sends random gradients into the encoder at first and spoils what it knows. A head that
fits the features as they are has only to refine them.

Legend: N examples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from modelyard.engines.base import Batch, Predictions
from modelyard.engines.torch.optimizer import parts_of
from modelyard.errors import InputError

# What a standardised feature is multiplied by before the tanh of a head: 0.2 keeps it nearly linear (5% off at two
# standard deviations), and the weights after it need not be large.
SLOPE = 0.2
# Inverse strength of the L2 penalty, as scikit-learn's LogisticRegression counts it, for features of unit variance.
INVERSE_PENALTY = 1.0
SMALLEST_DEVIATION = 1e-6  # a feature that never changes tells nothing; its rounding errors must not be blown up
MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class _Head:
    """The layer that gives the logits, and the one before it when nothing but a tanh lies between them."""

    last: nn.Linear
    dense: nn.Linear | None


@dataclass(frozen=True)
class _Call:
    """What one linear layer of the head took and gave."""

    layer: nn.Linear
    taken: Tensor
    given: Tensor


def fit_head(model: PreTrainedModel, predict: Callable[[Batch], Predictions], batches: Iterable[Batch]) -> float:
    """Write a multinomial logistic regression on the encoder's outputs into the head of `model`.

    predict: the logits of a batch by `model`, float32 in evaluation mode.
    batches: labelled examples; their ``weights`` weight the loss. All features, N * D float64, are held at once.

    Returns the share of the examples that the head then gets right. Raises InputError for a head that does not end
    in a linear layer over one vector a text.
    """
    head, features, labels, weights = _observe(model, predict, batches)
    mean, deviation = features.mean(0), features.std(0, correction=0) + SMALLEST_DEVIATION
    features = (features - mean) / deviation
    if head.dense is not None:
        features = torch.tanh(SLOPE * features) / SLOPE  # fitted as the head will see them, so nothing is lost
    coefficients, intercepts = _regress(features, labels, weights, head.last.out_features)
    if head.dense is None:
        _set(head.last, coefficients / deviation, intercepts - coefficients @ (mean / deviation))
    else:
        _set(head.dense, torch.diag(SLOPE / deviation), -SLOPE * mean / deviation)
        _set(head.last, coefficients / SLOPE, intercepts)
    right = F.linear(features, coefficients, intercepts).argmax(1) == labels
    return float(right.double().mean())


def _observe(
    model: PreTrainedModel, predict: Callable[[Batch], Predictions], batches: Iterable[Batch]
) -> tuple[_Head, Tensor, Tensor, Tensor]:
    """The head, what it is given (N, D) float64, labels (N,) int64 and weights (N,) float64, on the CPU."""
    calls: list[_Call] = []

    def remember(layer: nn.Module, taken: tuple[Tensor, ...], given: Tensor) -> None:
        assert isinstance(layer, nn.Linear)
        calls.append(_Call(layer, taken[0].detach(), given.detach()))

    parts = parts_of(model)
    layers = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and parts.get(f"{name}.weight") == "head"
    ]
    hooks = [layer.register_forward_hook(remember) for layer in layers]
    head: _Head | None = None
    features, labels, weights = [], [], []
    try:
        for batch in batches:
            calls.clear()
            logits = predict(batch).logits
            head = head or _find_head(model, calls, logits)
            layer = head.dense or head.last
            features.append(next(call.taken for call in calls if call.layer is layer).double().cpu())
            labels.append(torch.tensor(batch.arrays["labels"]))
            weights.append(torch.tensor(batch.weights).double())
    finally:
        for hook in hooks:
            hook.remove()
    assert head is not None, "a head needs examples to be fitted on"
    return head, torch.cat(features), torch.cat(labels), torch.cat(weights)


def _find_head(model: PreTrainedModel, calls: list[_Call], logits: np.ndarray) -> _Head:
    """Told by what the layers did, not by their names: every family has its own."""
    last = calls[-1] if calls else None
    if (
        last is None
        or last.layer.bias is None
        or last.taken.ndim != 2
        or last.given.shape != logits.shape
        or not np.array_equal(last.given.cpu().numpy(), logits)
    ):
        raise InputError(
            f"head_start is probe, but the head of a {model.config.model_type} does not end in a linear layer over "
            "one vector a text",
            hint="--set training.head_start=random",
        )
    before = calls[-2] if len(calls) > 1 else None
    if (
        before is not None
        and before.layer.bias is not None
        and before.layer.in_features == before.layer.out_features
        and before.given.shape == last.taken.shape
        and torch.allclose(torch.tanh(before.given), last.taken, atol=1e-6)
    ):
        return _Head(last.layer, before.layer)
    return _Head(last.layer, None)


def _regress(features: Tensor, labels: Tensor, weights: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Coefficients (C, D) and intercepts (C,) with the least weighted log loss and L2 penalty, by L-BFGS in float64.

    As scikit-learn's LogisticRegression: INVERSE_PENALTY * sum(w_i * loss_i) + |coefficients|^2 / 2, divided here by
    the sum of the weights; the intercepts carry no penalty.
    """
    coefficients = torch.zeros(num_classes, features.shape[1], dtype=torch.float64, requires_grad=True)
    intercepts = torch.zeros(num_classes, dtype=torch.float64, requires_grad=True)
    total = weights.sum()
    optimizer = torch.optim.LBFGS(
        [coefficients, intercepts],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-8,
        tolerance_change=1e-12,
        line_search_fn="strong_wolfe",
    )

    def objective() -> Tensor:
        optimizer.zero_grad()
        losses = F.cross_entropy(F.linear(features, coefficients, intercepts), labels, reduction="none")
        value = ((losses * weights).sum() + coefficients.square().sum() / (2 * INVERSE_PENALTY)) / total
        value.backward()  # type: ignore[no-untyped-call, unused-ignore]
        return value

    optimizer.step(objective)  # type: ignore[no-untyped-call, arg-type, unused-ignore]
    return coefficients.detach(), intercepts.detach()


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """In place, so that the optimiser and the gradients of `layer` stay what they are."""
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
