"""Faults in the numerics of PyTorch, to be planted one at a time while the proof runs.

``proof_sabotage.py`` shows which check catches which fault; the tests hold that all are caught.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from modelyard.engines.torch import proof
from proof_planting import (
    Plant,
    adam,
    adam_by_hand,
    adam_of,
    added_in_float16,
    after_backward,
    after_step,
    at_one_place,
    attended,
    batch,
    bias_dropped,
    cut_to_ten_bits,
    function,
    gradient,
    masked,
    products,
    residual_dropped,
    rounded_inputs,
    to_bfloat16,
    weights_seen,
)


@dataclass(frozen=True)
class Fault:
    """Something wrong. `plant` puts it in place for as long as it is entered."""

    name: str
    plant: Plant
    device: str = "cpu"  # the device that is asked for


class _LastGradientOnly(torch.autograd.Function):
    """An embedding whose backward pass writes where it should add."""

    @staticmethod
    def forward(ctx: Any, ids: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(ids, table)
        return table[ids]

    @staticmethod
    def backward(ctx: Any, d: torch.Tensor) -> tuple[None, torch.Tensor]:
        ids, table = ctx.saved_tensors
        return None, torch.zeros_like(table).index_put((ids,), d)


def _unbiased_norm(run: Any, x: Any, shape: Any, scale: Any, shift: Any, eps: float) -> Any:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True) + eps).sqrt() * scale + shift


def _uncentred_norm(run: Any, x: Any, shape: Any, scale: Any, shift: Any, eps: float) -> Any:
    return x / (x.square().mean(-1, keepdim=True) + eps).sqrt() * scale + shift


def _deviation_plus_epsilon(run: Any, x: Any, shape: Any, scale: Any, shift: Any, eps: float) -> Any:
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0).sqrt() + eps) * scale + shift


def _in_bfloat16(run: Any, problem: Any, weights: Any, batch: Any) -> Any:
    with torch.autocast("cpu", torch.bfloat16):
        return run(problem, weights, batch).float()


def _heads(order: list[int]) -> Any:
    return function(
        F, "scaled_dot_product_attention", lambda run, q, k, v, attn_mask: run(q, k, v, attn_mask=attn_mask)[:, order]
    )


def _no_correction(first: Any, second: Any, step: int, beta_1: float, beta_2: float, eps: float) -> Any:
    return first / (second.sqrt() + eps)


def _epsilon_inside(first: Any, second: Any, step: int, beta_1: float, beta_2: float, eps: float) -> Any:
    return first / (1 - beta_1**step) / (second / (1 - beta_2**step) + eps**2).sqrt()


def _epsilon_before_correction(first: Any, second: Any, step: int, beta_1: float, beta_2: float, eps: float) -> Any:
    """Section 2 of the paper names this order as the quicker one; it has another epsilon."""
    return first / (1 - beta_1**step) / ((second.sqrt() + eps) / (1 - beta_2**step) ** 0.5)


def _step_from_zero(first: Any, second: Any, step: int, beta_1: float, beta_2: float, eps: float) -> Any:
    return first / (1 - beta_1 ** (step + 1)) / ((second / (1 - beta_2 ** (step + 1))).sqrt() + eps)


def _moments_in_bfloat16(first: Any, second: Any, step: int, beta_1: float, beta_2: float, eps: float) -> Any:
    corrected = to_bfloat16(second) / (1 - beta_2**step)
    return to_bfloat16(first) / (1 - beta_1**step) / (corrected.sqrt() + eps)


def _gradients_elsewhere(run: Any, self: Any, *arguments: Any) -> None:
    run(self, *arguments)
    self.devices["gradients"].add("meta")


def _clip(weights: dict[str, torch.Tensor], step: int) -> None:
    torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)


def _mean_over_examples(run: Any, problem: Any, logits: Any, batch: Any) -> Any:
    return F.cross_entropy(logits, batch.labels)


def _sum_over_examples(run: Any, problem: Any, logits: Any, batch: Any) -> Any:
    return (F.cross_entropy(logits, batch.labels, reduction="none") * batch.weights).sum()


def _first_twice(batch: Any) -> None:
    batch.ids[1], batch.mask[1], batch.labels[1] = batch.ids[0], batch.mask[0], batch.labels[0]


def _labels_off_by_one(batch: Any) -> None:
    batch.labels = (batch.labels + 1) % 3


def _padding_pooled(batch: Any) -> None:
    batch.mask = torch.ones_like(batch.mask)


Q0 = "layer_0.attention.query.weight"
O1 = "layer_1.attention.output.weight"
FIRST_INNER = "layer_0.feed_forward.inner.weight"
LINEARS = ("query", "value", "output", "inner", "outer", "classifier")  # dropping the keys' bias changes nothing
NORMS = ("layer_0.norm_1", "layer_1.norm_2", "norm")

FAULTS = (
    # attention
    Fault("softmax scale 1/H, not 1/sqrt(H)", attended(scale=1 / 8)),
    Fault("softmax scale 1/sqrt(D)", attended(scale=32**-0.5)),
    Fault("softmax not scaled", attended(scale=1.0)),
    Fault("mask ignored", masked(lambda mask: torch.ones_like(mask))),
    Fault("mask inverted", masked(lambda mask: ~mask)),
    Fault("mask added as 0 and 1", masked(lambda mask: mask.float())),
    Fault("mask of -10, not of minus infinity", masked(lambda mask: (~mask).float() * -10)),
    Fault("mask also causal", masked(lambda mask: mask & torch.ones(16, 16, dtype=torch.bool).tril())),
    Fault("heads permuted", _heads([1, 0, 2, 3])),
    Fault(
        "query and key swapped",
        weights_seen(lambda w: {Q0: w[Q0.replace("query", "key")], Q0.replace("query", "key"): w[Q0]}),
    ),
    Fault(
        "no gradient through the keys",
        function(F, "scaled_dot_product_attention", lambda run, q, k, v, **n: run(q, k.detach(), v, **n)),
    ),
    Fault("attention dropout left on", attended(dropout_p=0.1)),
    # linears
    *(Fault(f"bias of {name} dropped", bias_dropped(name)) for name in LINEARS),
    Fault("weight transposed", weights_seen(lambda w: {O1: w[O1].t()})),
    Fault("layer 0's weight used in layer 1", weights_seen(lambda w: {O1: w[O1.replace("1", "0")]})),
    Fault("products rounded to ten bits (TF32)", rounded_inputs(cut_to_ten_bits)),
    Fault("TF32 in the backward pass only", rounded_inputs(cut_to_ten_bits, also_forward=False)),
    Fault("forward in bfloat16, output float32", function(proof, "forward", _in_bfloat16)),
    Fault(
        "forward in bfloat16",
        function(proof, "_mixed", lambda run, case, device: torch.autocast("cpu", torch.bfloat16)),
    ),
    Fault("products added up in float16", products(added_in_float16)),
    # the small parts
    Fault("GELU by tanh", function(F, "gelu", lambda run, x: run(x, approximate="tanh"))),
    Fault("ReLU", function(F, "gelu", lambda run, x: x.relu())),
    Fault("SiLU", function(F, "gelu", lambda run, x: F.silu(x))),
    Fault("dropout left on", function(F, "gelu", lambda run, x: F.dropout(run(x), 0.1))),
    Fault("norm epsilon 1e-5", function(F, "layer_norm", lambda run, *args: run(*args[:-1], 1e-5))),
    Fault("norm epsilon outside the root", function(F, "layer_norm", _deviation_plus_epsilon)),
    Fault("norm with the variance over D - 1", function(F, "layer_norm", _unbiased_norm)),
    Fault("norm without the mean", function(F, "layer_norm", _uncentred_norm)),
    *(
        Fault(f"scale of {n} dropped", weights_seen(lambda w, n=n: {f"{n}.scale": w[f"{n}.scale"] * 0 + 1}))
        for n in NORMS
    ),
    *(Fault(f"shift of {n} dropped", weights_seen(lambda w, n=n: {f"{n}.shift": w[f"{n}.shift"] * 0})) for n in NORMS),
    Fault("residual around attention dropped", residual_dropped("norm_1", "attention", "attention")),
    Fault("residual around the feed-forward dropped", residual_dropped("norm_2", "linear", "outer")),
    Fault(
        "positions shifted by one", weights_seen(lambda w: {"embedding.position": w["embedding.position"].roll(1, 0)})
    ),
    Fault("positions dropped", weights_seen(lambda w: {"embedding.position": w["embedding.position"] * 0})),
    Fault("padding counted in the mean", batch(_padding_pooled)),
    # the loss and the batch
    Fault("example weights ignored", function(proof, "loss_of", _mean_over_examples)),
    Fault("sum instead of mean", function(proof, "loss_of", _sum_over_examples)),
    Fault(
        "label smoothing 0.001",
        function(F, "cross_entropy", lambda run, *args, **n: run(*args, label_smoothing=1e-3, **n)),
    ),
    Fault("labels off by one", batch(_labels_off_by_one)),
    Fault("an example twice", batch(_first_twice)),
    # gradients
    Fault("a gradient times 1.001", gradient(O1, lambda g: g * 1.001)),
    Fault("a gradient times 1.001, last step only", gradient(O1, lambda g: g * 1.001, from_step=3)),
    Fault(
        "one element off by 1e-3 of the largest", gradient(FIRST_INNER, at_one_place(lambda g: 1e-3 * g.abs().max()))
    ),
    Fault(
        "one element off by 1e-4 of the largest", gradient(FIRST_INNER, at_one_place(lambda g: 1e-4 * g.abs().max()))
    ),
    Fault("a sign flipped", gradient(Q0, lambda g: -g)),
    Fault("a gradient zero", gradient("layer_1.norm_1.shift", lambda g: g * 0)),
    Fault("a gradient missing", gradient("layer_1.norm_1.shift", lambda g: None)),
    Fault("gradients clipped to norm 1", after_backward(_clip)),
    Fault("gradients not zeroed", function(torch.optim.Adam, "zero_grad", lambda run, self: None)),
    Fault(
        "the last of repeated tokens only", function(F, "embedding", lambda run, *args: _LastGradientOnly.apply(*args))
    ),
    Fault("a NaN", gradient(FIRST_INNER, at_one_place(lambda g: float("nan")))),
    Fault("an infinity", gradient(FIRST_INNER, at_one_place(lambda g: float("inf")))),
    Fault("a NaN in the last step only", gradient(FIRST_INNER, at_one_place(lambda g: float("nan")), from_step=3)),
    # Adam
    Fault("betas swapped", adam(betas=(0.95, 0.8))),
    Fault("beta 1 of 0.9, not 0.8", adam(betas=(0.9, 0.95))),
    Fault("beta 2 of 0.999, not 0.95", adam(betas=(0.8, 0.999))),
    Fault("epsilon 1e-8", adam(eps=1e-8)),
    Fault("weight decay 0.01 in the gradient", adam(weight_decay=0.01)),
    Fault("weight decay 0.01 of the weight", adam(weight_decay=0.01, decoupled_weight_decay=True)),
    Fault("AMSGrad", adam(amsgrad=True)),
    Fault("uphill", adam(maximize=True)),
    Fault("learning rate 1% too high", adam(lr=0.0101)),
    Fault("learning rate 0.1% too high", adam(lr=0.01001)),
    Fault("no bias correction", adam_by_hand(_no_correction)),
    Fault("epsilon inside the root", adam_by_hand(_epsilon_inside)),
    Fault("epsilon before the correction", adam_by_hand(_epsilon_before_correction)),
    Fault("correction one step late", adam_by_hand(_step_from_zero)),
    Fault("moments in bfloat16", adam_by_hand(_moments_in_bfloat16)),
    Fault("one weight not updated", adam_of(lambda weights: weights[:6] + weights[7:])),
    Fault("weights kept in bfloat16", after_step(lambda weight: weight.copy_(to_bfloat16(weight)))),
    Fault("one weight off by 1% of the learning rate", after_step(lambda weight: weight.view(-1)[5:6].add_(1e-4))),
    # the device
    Fault("a silent fall-back to the CPU", nullcontext, device="cuda"),
    Fault("gradients elsewhere", function(proof._Seen, "look", _gradients_elsewhere)),
)
