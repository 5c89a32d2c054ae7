"""Parts of models of several families, and what the optimiser makes of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from modelyard.engines.base import OptimizerSpec
from modelyard.engines.torch.optimizer import build_optimizer, freeze_parts, parts_of

SMALL = {
    "distilbert": {"dim": 16, "n_heads": 2, "n_layers": 1, "hidden_dim": 16, "vocab_size": 60},
    "modernbert": {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "intermediate_size": 16,
    },
    "gpt2": {"n_embd": 16, "n_head": 2, "n_layer": 1, "vocab_size": 60},
}


def model_of(family: str, config_of: Callable[..., dict[str, Any]]) -> PreTrainedModel:
    keys = SMALL[family] if family in SMALL else config_of(family)
    keys = {key: value for key, value in keys.items() if key != "model_type"}
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **keys))
    return model


@pytest.mark.parametrize(
    ("family", "embedding", "layer", "head"),
    [
        (
            "bert",
            "bert.embeddings.position_embeddings.weight",
            "bert.encoder.layer.1.",
            "bert.pooler.dense.weight",
        ),
        (
            "roberta",
            "roberta.embeddings.LayerNorm.bias",
            "roberta.encoder.layer.1.",
            "classifier.dense.weight",
        ),
        (
            "longformer",
            "longformer.embeddings.LayerNorm.bias",
            "longformer.encoder.",
            "classifier.out_proj.bias",
        ),
        (
            "distilbert",
            "distilbert.embeddings.position_embeddings.weight",
            "distilbert.transformer.",
            "classifier.bias",
        ),
        ("modernbert", "model.embeddings.norm.weight", "model.layers.0.", "model.final_norm.weight"),
        ("gpt2", "transformer.wpe.weight", "transformer.h.0.", "score.weight"),
    ],
)
def test_parts_of_many_families(
    family: str, embedding: str, layer: str, head: str, config_of: Callable[..., dict[str, Any]]
) -> None:
    model = model_of(family, config_of)
    parts = parts_of(model)
    assert set(parts) == {name for name, _ in model.named_parameters()}
    assert parts[embedding] == "embeddings" and parts[head] == "head"
    assert {part for name, part in parts.items() if name.startswith(layer)} == {"encoder"}
    words = next(name for name, each in model.named_parameters() if each is model.get_input_embeddings().weight)
    assert parts[words] == "embeddings"


def test_decay_spares_biases_and_normalisations(config_of: Callable[..., dict[str, Any]]) -> None:
    model = model_of("bert", config_of)
    optimizer = build_optimizer(model, OptimizerSpec("adamw", weight_decay=0.1, head_multiplier=3.0))
    decay = {id(each): group["weight_decay"] for group in optimizer.param_groups for each in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for name, parameter in model.named_parameters():
        assert decay[id(parameter)] == (0.0 if name.endswith("bias") or "LayerNorm" in name else 0.1), name
    assert {group["multiplier"] for group in optimizer.param_groups} == {1.0, 3.0}


def test_frozen_parts_are_not_optimised(config_of: Callable[..., dict[str, Any]]) -> None:
    model = model_of("bert", config_of)
    freeze_parts(model, ("embeddings", "encoder"))
    optimizer = build_optimizer(model, OptimizerSpec("adam"))
    optimised = {id(each) for group in optimizer.param_groups for each in group["params"]}
    names = {name for name, each in model.named_parameters() if id(each) in optimised}
    assert names == {
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "classifier.weight",
        "classifier.bias",
    }
