"""Our Longformer attention against upstream's, against the dense formula in float64, and against itself.

Legend: B batch, T positions, D width, N heads, H head width, W one-sided window, G global tokens.
"""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    LongformerConfig,
    LongformerForMaskedLM,
    LongformerForQuestionAnswering,
    LongformerForSequenceClassification,
    LongformerModel,
)
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

from modelyard.engines.torch.attention.longformer import (
    GlobalLayers,
    accelerate,
    global_attention,
    sdpa_attention,
)
from modelyard.engines.torch.attention.window import (
    TokenRoles,
    _DropoutKernel,
    blocked_attention,
    keep_mask,
)
from modelyard.errors import InputError


def make_config(windows: list[int], dropout: float = 0.0) -> LongformerConfig:
    return LongformerConfig(
        vocab_size=40,
        hidden_size=32,
        num_hidden_layers=len(windows),
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=260,
        type_vocab_size=2,
        attention_window=windows,
        attention_probs_dropout_prob=dropout,
        hidden_dropout_prob=0.0,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
        sep_token_id=2,
    )


def make_pair(windows: list[int], kind: type[nn.Module] = LongformerModel, dropout: float = 0.0) -> tuple[Any, Any]:
    """Upstream's model and an accelerated copy, both with weights large enough for sharp attention."""
    upstream: Any = kind(make_config(windows, dropout))
    for parameter in upstream.parameters():
        parameter.data.normal_(0, 0.2)
    return upstream, accelerate(copy.deepcopy(upstream))


def make_inputs(length: int, batch: int = 3, most_global: int = 4) -> dict[str, Tensor]:
    """Token ids with padding right, left and none, and 0 to ``most_global`` global tokens an example."""
    ids = torch.randint(3, 40, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length - length // 2 :] = 0
    mask[batch - 1, : length // 3] = 0
    is_global = torch.zeros_like(mask)
    for row in range(batch):
        count = (row * 2) % (most_global + 1)
        is_global[row, torch.randperm(length)[:count]] = 1
    return {"input_ids": ids * mask + (1 - mask), "attention_mask": mask, "global_attention_mask": is_global}


def dense_reference(
    query: Tensor, key: Tensor, value: Tensor, padded: Tensor, is_global: Tensor, window: int
) -> Tensor:
    """softmax(Q Kᵀ / √H) V with a mask over all T × T pairs; (B, T, N, H); rows of padding are zero."""
    at = torch.arange(query.shape[1])
    near = (at[:, None] - at[None, :]).abs() <= window
    sees = (near | is_global[:, None, :]) & ~padded[:, None, :]
    scores = torch.einsum("btnh,bsnh->bnts", query, key) / math.sqrt(query.shape[-1])
    weights = scores.masked_fill(~sees[:, None], -math.inf).softmax(-1).nan_to_num()
    return torch.einsum("bnts,bsnh->btnh", weights, value) * ~padded[:, :, None, None]


def make_roles(batch: int, length: int) -> TokenRoles:
    mask = make_inputs(length, batch)
    padded = mask["attention_mask"] == 0
    return TokenRoles.of(padded, (mask["global_attention_mask"] == 1) & ~padded)


def random_heads(batch: int, length: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    return [torch.randn(batch, length, 2, 8, dtype=dtype, requires_grad=True) for _ in range(3)]


# --- against the formula in float64 ----------------------------------------------------------------


@pytest.mark.parametrize("attend", [blocked_attention, sdpa_attention])
@pytest.mark.parametrize(("length", "window"), [(1, 3), (37, 1), (150, 40), (300, 130)])
def test_local_queries_match_the_dense_formula(attend: Any, length: int, window: int) -> None:
    torch.manual_seed(length)
    roles, heads = make_roles(3, length), random_heads(3, length)
    local = (~(roles.padded | roles.is_global))[:, :, None, None]
    expected = dense_reference(*heads, roles.padded, roles.is_global, window) * local
    answers = torch.zeros(3, roles.positions.shape[1], 2, 8, dtype=torch.float64)
    found = attend(*heads, answers, roles, window, 0.0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    probe = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, heads, probe), torch.autograd.grad(expected, heads, probe), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("fold", [True, False])
def test_global_queries_match_the_dense_formula(fold: bool) -> None:
    torch.manual_seed(1)
    roles = make_roles(3, 23)
    hidden = torch.randn(3, 23, 16, dtype=torch.float64, requires_grad=True)
    layers = [nn.Linear(16, 16, dtype=torch.float64) for _ in range(3)]
    query, key, value = (layer(hidden).unflatten(-1, (2, 8)) for layer in layers)
    everyone = dense_reference(query, key, value, roles.padded, torch.zeros_like(roles.padded), 23)
    expected = roles.take(everyone)[roles.valid]
    found = global_attention(hidden, GlobalLayers(*layers), roles, 2, 0.0, fold=fold)[roles.valid]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    leaves = [hidden, *(parameter for layer in layers for parameter in layer.parameters())]
    probe = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, leaves, probe), torch.autograd.grad(expected, leaves, probe), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_answers_of_global_tokens_are_passed_through() -> None:
    roles, heads = make_roles(3, 20), random_heads(3, 20)
    answers = torch.randn(3, roles.positions.shape[1], 2, 8, dtype=torch.float64, requires_grad=True)
    for attend in (blocked_attention, sdpa_attention):
        out = attend(*heads, answers, roles, 2, 0.0)
        torch.testing.assert_close(out[roles.is_global], answers[roles.valid])
        (grad,) = torch.autograd.grad(out.sum(), answers)
        torch.testing.assert_close(grad, roles.valid[..., None, None].expand_as(grad).double())


# --- against upstream ------------------------------------------------------------------------------


def assert_same_step(upstream: Any, ours: Any, inputs: dict[str, Tensor], **more: Tensor) -> None:
    """Outputs and the gradient of every parameter, to 1e-5 of the largest."""
    grads = []
    outputs = []
    probe = None
    for model in (upstream, ours):
        model.zero_grad()
        output = model(**inputs, **more)[0]
        if output.dim() == 3:
            output = output * inputs["attention_mask"][..., None]
        probe = torch.randn_like(output) if probe is None else probe
        (output * probe).sum().backward()
        outputs.append(output.detach())
        grads.append({name: p.grad for name, p in model.named_parameters()})
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-5, rtol=1e-5)
    for name, theirs in grads[0].items():
        mine = grads[1][name]
        assert (mine is None) == (theirs is None), name
        if theirs is not None:
            scale = max(1.0, float(theirs.abs().max()))
            assert float((mine - theirs).abs().max()) <= 1e-5 * scale, name


@settings(max_examples=20, deadline=None)
@given(
    # Upstream itself fails at a window of 2; the dense formula above covers W = 1.
    windows=st.lists(st.sampled_from([4, 8, 16, 32]), min_size=1, max_size=2),
    length=st.integers(1, 90),
    most_global=st.integers(0, 6),
    seed=st.integers(0, 1000),
)
def test_forward_and_gradients_match_upstream(windows: list[int], length: int, most_global: int, seed: int) -> None:
    torch.manual_seed(seed)
    upstream, ours = make_pair(windows)
    assert_same_step(upstream.train(), ours.train(), make_inputs(length, most_global=most_global))


@pytest.mark.parametrize("kind", [LongformerForSequenceClassification, LongformerForMaskedLM])
def test_heads_match_upstream(kind: type[nn.Module]) -> None:
    torch.manual_seed(2)
    upstream, ours = make_pair([8, 4], kind)
    labels = torch.randint(0, 2, (3,)) if kind is LongformerForSequenceClassification else None
    inputs = make_inputs(45)
    inputs["attention_mask"][:, 0] = 1
    more = {} if labels is None else {"labels": labels}
    assert_same_step(upstream.train(), ours.train(), inputs, **more)


def test_question_answering_with_many_global_tokens_matches_upstream() -> None:
    torch.manual_seed(3)
    upstream, ours = make_pair([8, 4], LongformerForQuestionAnswering)
    ids = torch.randint(3, 40, (2, 61))
    ids[:, [20, 21, 60]] = 2  # the first 20 tokens are the question: more than half a head's width, so no folding
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert_same_step(upstream.train(), ours.train(), inputs)


def test_a_long_text_with_large_blocks_matches_upstream() -> None:
    torch.manual_seed(4)
    upstream, ours = make_pair([64])
    assert_same_step(upstream.train(), ours.train(), make_inputs(250, batch=2))


def test_output_attentions_match_upstream() -> None:
    torch.manual_seed(5)
    upstream, ours = make_pair([8, 16])
    inputs = make_inputs(45)
    with torch.no_grad():
        theirs = upstream.eval()(**inputs, output_attentions=True)
        mine = ours.eval()(**inputs, output_attentions=True)
    for one, other in zip(mine.attentions, theirs.attentions, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    for one, other in zip(mine.global_attentions, theirs.global_attentions, strict=True):
        torch.testing.assert_close(one, other[:, :, :45], atol=1e-6, rtol=1e-5)  # upstream leaves its padding in
    torch.testing.assert_close(mine.last_hidden_state, theirs.last_hidden_state, atol=1e-5, rtol=1e-5)


# --- the model stays the model ---------------------------------------------------------------------


def test_parameters_are_shared_and_names_kept() -> None:
    upstream: Any = LongformerForSequenceClassification(make_config([4, 4]))
    before = {name: p.data_ptr() for name, p in upstream.named_parameters()}
    ours = accelerate(upstream)
    assert ours is upstream
    assert accelerate(ours) is upstream
    assert {name: p.data_ptr() for name, p in ours.named_parameters()} == before
    assert all(isinstance(layer.attention.self, LongformerSelfAttention) for layer in ours.longformer.encoder.layer)
    again = pickle.loads(pickle.dumps(ours))
    assert list(again.state_dict()) == list(before)


def test_a_saved_model_loads_as_upstreams_own(tmp_path: Any) -> None:
    ours = accelerate(LongformerForSequenceClassification(make_config([4, 4]))).eval()
    ours.save_pretrained(tmp_path)
    loaded = LongformerForSequenceClassification.from_pretrained(tmp_path).eval()
    assert loaded.config.architectures == ["LongformerForSequenceClassification"]
    inputs = make_inputs(19)
    torch.testing.assert_close(ours(**inputs).logits, loaded(**inputs).logits, atol=1e-5, rtol=1e-5)


def test_a_model_without_longformer_attention_is_refused() -> None:
    bert = BertModel(
        BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    )
    with pytest.raises(InputError, match="BertModel has no Longformer self-attention") as caught:
        accelerate(bert)
    assert "LongformerModel" in caught.value.hint


def test_no_token_is_computed_beyond_the_text() -> None:
    ours = accelerate(LongformerModel(make_config([32]))).eval()
    seen: list[tuple[int, ...]] = []
    ours.encoder.layer[0].register_forward_pre_hook(lambda module, inputs: seen.append(tuple(inputs[0].shape)))
    with torch.inference_mode():
        ours(**make_inputs(33))
    assert seen == [(3, 33, 32)]


def test_batched_answers_equal_single_answers() -> None:
    torch.manual_seed(6)
    _, ours = make_pair([8, 16])
    ours.eval()
    inputs = make_inputs(50)
    with torch.no_grad():
        together = ours(**inputs).last_hidden_state
        for row in range(3):
            real = inputs["attention_mask"][row] == 1
            alone = ours(**{name: tensor[row : row + 1, real] for name, tensor in inputs.items()})
            torch.testing.assert_close(together[row, real], alone.last_hidden_state[0], atol=1e-5, rtol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    torch.manual_seed(7)
    _, plain = make_pair([8, 4], dropout=0.3)
    plain.train()
    checkpointed = copy.deepcopy(plain)
    enable = getattr(checkpointed, "activation_checkpointing_enable", checkpointed.gradient_checkpointing_enable)
    enable()  # the name changed in transformers 5
    inputs = make_inputs(41)
    grads = []
    for model in (plain, checkpointed):
        torch.manual_seed(8)
        model(**inputs).last_hidden_state.square().sum().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    for one, other in zip(*grads, strict=True):
        torch.testing.assert_close(one, other)


def test_bfloat16_autocast_stays_near_float32() -> None:
    torch.manual_seed(9)
    upstream, ours = make_pair([8, 4])
    inputs = make_inputs(45)
    with torch.no_grad():
        exact = upstream.eval()(**inputs).last_hidden_state
    with torch.autocast("cpu", torch.bfloat16):
        theirs = upstream(**inputs).last_hidden_state
        mine = ours.train()(**inputs).last_hidden_state
    mine.square().sum().backward()
    rounding = float((theirs - exact).detach().abs().mean())
    assert float((mine - exact).detach().abs().mean()) <= 1.2 * rounding
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in ours.parameters())


def test_an_adapter_on_a_global_projection_is_not_folded_away() -> None:
    """A wrapper whose ``weight`` is not all it does, as LoRA's layers are."""

    class Doubled(nn.Linear):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    torch.manual_seed(10)
    upstream, _ = make_pair([4])
    layer = upstream.encoder.layer[0].attention.self.value_global
    layer.__class__ = Doubled
    ours = accelerate(copy.deepcopy(upstream))
    assert_same_step(upstream.train(), ours.train(), make_inputs(30))


# --- dropout ---------------------------------------------------------------------------------------


def test_keep_mask_has_the_asked_probability() -> None:
    torch.manual_seed(11)
    for dropout in (0.0, 0.1, 0.5, 1.0):
        kept = keep_mask((999, 401), dropout).float().mean().item()
        assert abs(kept - (1 - dropout)) <= 4 * math.sqrt(dropout * (1 - dropout) / (999 * 401))


def test_attention_dropout_equals_the_formula_with_the_masks_it_drew() -> None:
    """Dense softmax times the very masks, in float64: forward and backward must both use them."""
    torch.manual_seed(12)
    length, window, dropout = 60, 200, 0.4  # one block sees everything, so its mask is (N, T, T)
    heads = [torch.randn(1, length, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    nothing = torch.zeros(1, length, dtype=torch.bool)
    roles = TokenRoles.of(nothing, nothing)
    state = torch.get_rng_state()
    found = blocked_attention(*heads, None, roles, window, dropout)
    torch.set_rng_state(state)
    kernel = _DropoutKernel(dropout, int(torch.randint(2**62, ())))
    keep = kernel.keep(torch.empty(2, length, length, dtype=torch.float64)) / (1 - dropout)
    query, key, value = (head[0].transpose(0, 1) for head in heads)
    weights = (query @ key.transpose(1, 2) / math.sqrt(8)).softmax(-1) * keep
    expected = (weights @ value).transpose(0, 1)[None]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-9)
    probe = torch.randn_like(found)
    for ours, theirs in zip(
        torch.autograd.grad(found, heads, probe), torch.autograd.grad(expected, heads, probe), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-9)


def test_attention_dropout_backward_is_the_derivative_of_forward() -> None:
    """Several blocks, padding and global tokens; the seed is drawn from the default generator."""
    torch.manual_seed(13)
    roles, heads = make_roles(2, 45), random_heads(2, 45)
    answers = torch.zeros(2, roles.positions.shape[1], 2, 8, dtype=torch.float64)

    def attend(*tensors: Tensor) -> Tensor:
        torch.manual_seed(14)
        return blocked_attention(tensors[0], tensors[1], tensors[2], answers, roles, 6, 0.25)

    assert torch.autograd.gradcheck(attend, heads, fast_mode=True)


def test_attention_dropout_is_unbiased_and_only_in_training() -> None:
    torch.manual_seed(15)
    upstream, ours = make_pair([8], dropout=0.2)
    inputs = make_inputs(30)
    attention = ours.encoder.layer[0].attention.self
    hidden = torch.randn(3, 30, 32)
    padded = inputs["attention_mask"] == 0
    is_global = (inputs["global_attention_mask"] == 1) & ~padded
    masks = {
        "attention_mask": is_global.float() - padded.float(),
        "is_index_masked": padded,
        "is_index_global_attn": is_global,
        "is_global_attn": True,
    }
    with torch.no_grad():
        still = attention.eval()(hidden, **masks)[0]
        torch.testing.assert_close(still, attention(hidden, **masks)[0])
        attention.train()
        draws = torch.stack([attention(hidden, **masks)[0] for _ in range(800)])
    error = (draws.mean(0) - still).abs()
    spread = draws.std(0) / math.sqrt(len(draws))
    assert float((error / spread.clamp_min(1e-6)).max()) < 5.5  # of 2,880 values; 5.5 sigma happens once in 10,000 runs
    # The same variance as upstream's dropout, so the same probability acts on the same probabilities.
    extra = -30 % 8
    theirs = upstream.encoder.layer[0].attention.self.train()
    wide = {
        "attention_mask": nn.functional.pad(masks["attention_mask"], (0, extra), value=-1),
        "is_index_masked": nn.functional.pad(padded, (0, extra), value=True),
        "is_index_global_attn": nn.functional.pad(is_global, (0, extra)),
        "is_global_attn": True,
    }
    with torch.no_grad():
        others = torch.stack(
            [theirs(nn.functional.pad(hidden, (0, 0, 0, extra)), **wide)[0][:, :30] for _ in range(800)]
        )
    assert float(draws.var(0).sum() / others.var(0).sum()) == pytest.approx(1.0, abs=0.04)


# --- memory ----------------------------------------------------------------------------------------


def saved_bytes(model: Any, inputs: dict[str, Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps for backward, parameters left out."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**inputs)[0].sum()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def test_saved_activations_are_less_than_a_third_of_upstreams() -> None:
    config = make_config([64] * 2)
    # As in the base model, N · 2W probabilities a token are eight times D.
    config.hidden_size, config.num_attention_heads, config.intermediate_size = 64, 8, 256
    config.hidden_dropout_prob = 0.1
    upstream = LongformerModel(config).train()
    ours = accelerate(copy.deepcopy(upstream))
    ids = torch.randint(3, 40, (1, 256))
    is_global = torch.zeros_like(ids)
    is_global[:, 0] = 1
    inputs = {"input_ids": ids, "global_attention_mask": is_global}
    assert saved_bytes(ours, inputs) < saved_bytes(upstream, inputs) / 3
