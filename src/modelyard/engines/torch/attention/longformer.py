"""Hugging Face Longformer with exact, faster and smaller attention, on its own parameters.

``accelerate(model)`` changes the *class* of some modules inside any Longformer model. Parameters, their
names, hooks and submodules stay where they are, so checkpoints, optimizers and adapters see the model they
know.

=====================  ==============================================================================
module                 what changes
=====================  ==============================================================================
self-attention         blocks instead of upstream's sliding chunks; no copy of the probabilities is kept
feed-forward           the activation's output is computed again in backward instead of kept
dropout                keeps a mask of one byte a value instead of a float32 noise tensor
base model             the text is no longer padded to a multiple of the window
=====================  ==============================================================================

The paths: on a CPU our own autograd function (window.py, ``blocked_attention``); elsewhere PyTorch's SDPA
block by block (``sdpa_attention``), which has not been timed on CUDA. ``output_attentions=True`` runs
upstream's own code, because only that has the probabilities in upstream's layout. ``torch.compile`` is not
supported.

Legend: B batch, T positions, D width, N heads, H head width, W one-sided window, G global tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.models.longformer.modeling_longformer import (
    LongformerLayer,
    LongformerModel,
    LongformerSelfAttention,
)

from modelyard.engines.torch.attention.window import (
    MASKED_SCORE,
    SMALLEST_BLOCK,
    TokenRoles,
    blocked_attention,
    keep_mask,
)
from modelyard.errors import InputError

ModelT = TypeVar("ModelT", bound=nn.Module)

# Folding costs T·D·N·G, projecting 2·T·D² and the heads' own products; measured crossover in
# docs/experiments.md.
FOLD_UP_TO_HEAD_WIDTHS = 0.5


@dataclass(frozen=True)
class GlobalLayers:
    """The projections of the global queries; ``nn.Linear`` unless an adapter or quantiser replaced one."""

    query: Any
    key: Any
    value: Any


def global_attention(
    hidden: Tensor, layers: GlobalLayers, roles: TokenRoles, heads: int, dropout: float, *, fold: bool
) -> Tensor:
    """Answers of the global queries over every token that is no padding; (B, T, D) → (B, G, N, H).

    With ``fold`` the key and value layers are never applied to the T tokens: q·(W x + b) = (Wᵀ q)·x + q·b and
    Σ p (W x + b) = W (Σ p x) + b Σ p, which costs T·D·N·G instead of 2·T·D² (Σ p is not 1 under dropout). It
    needs plain linear layers.
    """
    by_head = (heads, hidden.shape[-1] // heads)
    query = layers.query(roles.take(hidden)).unflatten(-1, by_head) / math.sqrt(by_head[1])  # (B, G, N, H)
    if fold:
        weight, bias = layers.key.weight.view(*by_head, -1), layers.key.bias.view(by_head)
        folded = torch.einsum("bgnh,nhd->bngd", query, weight)
        scores = _per_head(folded.flatten(1, 2) @ hidden.transpose(1, 2), heads)
        scores = scores + torch.einsum("bgnh,nh->bng", query, bias)[..., None]
    else:
        scores = torch.einsum("bgnh,btnh->bngt", query, layers.key(hidden).unflatten(-1, by_head))
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    scores = scores.masked_fill(roles.padded[:, None, None, :], MASKED_SCORE)
    weights = F.dropout(scores.softmax(-1), dropout).to(query.dtype)  # (B, N, G, T)
    if not fold:
        return torch.einsum("bngt,btnh->bgnh", weights, layers.value(hidden).unflatten(-1, by_head))
    mixed = _per_head(weights.flatten(1, 2) @ hidden, heads)  # (B, N, G, D)
    weight, bias = layers.value.weight.view(*by_head, -1), layers.value.bias.view(by_head)
    answers = torch.einsum("bngd,nhd->bgnh", mixed, weight)
    return answers + torch.einsum("bng,nh->bgnh", weights.sum(-1), bias)


def _per_head(rows: Tensor, heads: int) -> Tensor:
    """(B, N·G, …) → (B, N, G, …)."""
    return rows.view(rows.shape[0], heads, -1, rows.shape[-1])


def sdpa_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    global_answers: Tensor | None,
    roles: TokenRoles,
    window: int,
    dropout: float,
) -> Tensor:
    """The same as ``blocked_attention`` through PyTorch's own kernels and plain autograd, for any device.

    **Not timed**: it was written without a CUDA device at hand, so no speed is claimed. A mask rules out
    PyTorch's flash kernel; the memory-efficient one takes it.
    """
    length, size = query.shape[1], max(window, SMALLEST_BLOCK)
    lowest = torch.finfo(query.dtype).min / 2
    query, key, value = (tensor.transpose(1, 2) for tensor in (query, key, value))
    local = ~(roles.padded | roles.is_global)
    key_global = roles.take(key.transpose(1, 2)).transpose(1, 2)
    value_global = roles.take(value.transpose(1, 2)).transpose(1, 2)
    at = torch.arange(length, device=query.device)
    parts = []
    for start in range(0, length, size):
        stop, low, high = (
            min(start + size, length),
            max(0, start - window),
            min(length, start + size + window),
        )
        near = (at[start:stop, None] - at[None, low:high]).abs() <= window
        sees = torch.cat(
            [
                roles.valid[:, None, :].expand(-1, stop - start, -1),
                near & local[:, None, low:high],
            ],
            dim=-1,
        )
        mask = torch.zeros(sees.shape, dtype=query.dtype, device=query.device).masked_fill_(~sees, lowest)
        keys = torch.cat([key_global, key[:, :, low:high]], dim=2)
        values = torch.cat([value_global, value[:, :, low:high]], dim=2)
        parts.append(
            F.scaled_dot_product_attention(
                query[:, :, start:stop], keys, values, attn_mask=mask[:, None], dropout_p=dropout
            )
        )
    out = torch.cat(parts, dim=2).transpose(1, 2)
    out = out.masked_fill(~local[:, :, None, None], 0)
    if global_answers is not None:
        out = out.index_put(roles.is_global.nonzero(as_tuple=True), global_answers[roles.valid].to(out.dtype))
    return out


class _Dropout(nn.Dropout):
    """``nn.Dropout`` that keeps a bool mask for backward; on CUDA upstream's kernel does so already."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0 or input.device.type != "cpu":
            return super().forward(input)
        function: Any = _DropoutFunction  # torch leaves ``apply`` untyped
        return cast(Tensor, function.apply(input, self.p))


class _DropoutFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, dropout: float) -> Tensor:
        keep = keep_mask(tuple(values.shape), dropout)
        ctx.save_for_backward(keep)
        ctx.scale = 1 / (1 - dropout) if dropout < 1 else 0.0
        return values.mul(keep).mul_(ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (keep,) = ctx.saved_tensors
        return grad.mul(keep).mul_(ctx.scale), None


class _ActivatedLinear(torch.autograd.Function):
    """``linear(activation(x))`` that saves x (…, 4D) alone; the activation is computed again in backward."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, weight: Tensor, bias: Tensor, activation: Any) -> Tensor:
        ctx.activation = activation
        ctx.save_for_backward(values, weight)
        with torch.autocast(values.device.type, enabled=False):
            return F.linear(activation(values), weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        values, weight = ctx.saved_tensors
        rows = grad.reshape(-1, grad.shape[-1])
        grad_values = grad_weight = None
        with torch.autocast(values.device.type, enabled=False):
            with torch.enable_grad():
                leaf = values.detach().requires_grad_()
                activated = ctx.activation(leaf)
            if ctx.needs_input_grad[1]:
                grad_weight = rows.t() @ activated.detach().reshape(-1, activated.shape[-1])
            if ctx.needs_input_grad[0]:
                (grad_values,) = torch.autograd.grad(activated, leaf, grad @ weight)
        return grad_values, grad_weight, rows.sum(0) if ctx.needs_input_grad[2] else None, None


class _Layer(LongformerLayer):  # type: ignore[no-untyped-call]
    """A layer whose feed-forward keeps one tensor of width 4D instead of two."""

    def ff_chunk(self, attn_output: Tensor) -> Tensor:
        """(B, T, D) → (B, T, D)."""
        dense = self.output.dense
        plain = _is_plain(dense) and not _has_hooks(self.intermediate) and not _has_hooks(self.output)
        if not (plain and torch.is_grad_enabled()):
            return cast(Tensor, super().ff_chunk(attn_output))  # type: ignore[no-untyped-call]
        wide = self.intermediate.dense(attn_output)
        weight, bias = dense.weight.to(wide.dtype), dense.bias.to(wide.dtype)
        function: Any = _ActivatedLinear
        narrow = function.apply(wide, weight, bias, self.intermediate.intermediate_act_fn)
        return cast(Tensor, self.output.LayerNorm(self.output.dropout(narrow) + attn_output))


class _SelfAttention(LongformerSelfAttention):
    """Upstream's parameters and signature, the arithmetic of window.py."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        """(B, T, D) → a tuple with (B, T, D) first.

        ``attention_mask`` (B, T) float: negative is padding, 0 local, positive global; ``is_index_masked``
        and ``is_index_global_attn`` (B, T) bool say the same and are what is read here.
        """
        assert attention_mask is not None and is_index_masked is not None and is_index_global_attn is not None
        if output_attentions:
            return self._upstream(hidden_states, attention_mask, is_index_masked, is_index_global_attn, is_global_attn)
        roles = TokenRoles.of(is_index_masked, is_index_global_attn)
        hidden = _autocast_once(hidden_states)
        query, key, value = (
            layer(hidden).unflatten(-1, (self.num_heads, self.head_dim)) for layer in (self.query, self.key, self.value)
        )
        dropout = float(self.dropout) if self.training else 0.0
        answers = None
        if roles.positions.shape[1]:
            layers = GlobalLayers(self.query_global, self.key_global, self.value_global)
            small = roles.positions.shape[1] <= FOLD_UP_TO_HEAD_WIDTHS * self.head_dim
            fold = small and _is_plain(self.key_global) and _is_plain(self.value_global)
            answers = global_attention(hidden, layers, roles, self.num_heads, dropout, fold=fold)
        attend = blocked_attention if hidden.device.type == "cpu" else sdpa_attention
        out = attend(query, key, value, answers, roles, self.one_sided_attn_window_size, dropout)
        return (out.flatten(2),)

    def _upstream(
        self, hidden: Tensor, mask: Tensor, padded: Tensor, is_global: Tensor, any_global: bool | None
    ) -> tuple[Tensor, ...]:
        """Upstream's own answer with its probabilities; only here is the text padded."""
        length = hidden.shape[1]
        extra = -length % (2 * self.one_sided_attn_window_size)
        outputs = super().forward(  # type: ignore[no-untyped-call]
            F.pad(hidden, (0, 0, 0, extra)),
            attention_mask=F.pad(mask, (0, extra), value=torch.finfo(mask.dtype).min),
            is_index_masked=F.pad(padded, (0, extra), value=True),
            is_index_global_attn=F.pad(is_global, (0, extra), value=False),
            is_global_attn=any_global,
            output_attentions=True,
        )
        answer, local, *rest = outputs  # (B, T, D), (B, T, N, G + 2W + 1) and, with global tokens, (B, N, G, T)
        return (
            answer[:, :length],
            local[:, :length],
            *(probabilities[..., :length] for probabilities in rest),
        )


def _no_padding(
    input_ids: Tensor | None,
    attention_mask: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    pad_token_id: int,
) -> tuple[int, Tensor | None, Tensor, Tensor, Tensor | None, Tensor | None]:
    """In place of ``LongformerModel._pad_to_window_size``; no method, so copies of a model stay apart."""
    return 0, input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds


def _autocast_once(hidden: Tensor) -> Tensor:
    """Under autocast, one cast for all projections: each layer alone would cast, and keep, its own copy."""
    device = hidden.device.type
    if torch.is_autocast_enabled(device) and hidden.dtype != torch.float64:
        return hidden.to(torch.get_autocast_dtype(device))
    return hidden


def _has_hooks(module: nn.Module) -> bool:
    kinds = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    return any(kinds)


def _is_plain(layer: Any) -> bool:
    """Whether ``weight`` and ``bias`` say all there is: no adapter, quantisation, parametrisation or hook."""
    return type(layer) is nn.Linear and layer.bias is not None and not _has_hooks(layer)


_REPLACEMENTS: dict[type[nn.Module], type[nn.Module]] = {
    LongformerSelfAttention: _SelfAttention,
    LongformerLayer: _Layer,
    nn.Dropout: _Dropout,
}


def accelerate(model: ModelT) -> ModelT:
    """Make any Hugging Face Longformer ``model`` faster and smaller in place, and return it.

    Answers and gradients stay the same within float32 rounding. Calling it twice is harmless. Models that
    hold no Longformer self-attention are refused.
    """
    found = False
    for module in model.modules():
        found = found or isinstance(module, LongformerSelfAttention)
        replacement = _REPLACEMENTS.get(type(module))
        if replacement is not None:
            # The class and not the module: whatever holds, hooks or wraps the module goes on holding the same
            # one.
            module.__class__ = replacement
        if isinstance(module, LongformerModel):
            module._pad_to_window_size = _no_padding  # type: ignore[method-assign]
    if not found:
        raise InputError(
            f"{type(model).__name__} has no Longformer self-attention, which is what is made faster.",
            hint="pass a transformers LongformerModel or one of its LongformerFor… classes",
        )
    return model
