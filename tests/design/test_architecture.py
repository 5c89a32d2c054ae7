"""Formulas against the models that Transformers builds, and against PyTorch's own count of operations."""

from __future__ import annotations

from typing import Any

import pytest

from modelyard.design.architecture import (
    choose_max_length,
    count_parameters,
    dimensions,
    flops_per_token,
    from_architecture,
    max_tokens,
)
from modelyard.errors import InputError, RecipeError
from modelyard.recipe.schema import ArchitectureSection, DesignSection

FAMILIES = ["bert", "roberta", "longformer"]
LONGFORMER_BASE = {
    "model_type": "longformer",
    "num_hidden_layers": 12,
    "hidden_size": 768,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 50265,
    "max_position_embeddings": 4098,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "attention_window": [512] * 12,
}


def scratch(**changes: Any) -> dict[str, Any]:
    section = ArchitectureSection(**{"family": "bert", "preset": "tiny", **changes})
    return from_architecture(section, vocab_size=500, pad_token_id=1, cls_token_id=0, sep_token_id=2)


def build(config: dict[str, Any], num_labels: int, device: str = "meta") -> Any:
    """The model that Transformers builds of `config`; on `meta` without memory for its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    values = {key: value for key, value in config.items() if key != "model_type"}
    loaded = AutoConfig.for_model(config["model_type"], **values, num_labels=num_labels)
    with torch.device(device):
        return AutoModelForSequenceClassification.from_config(loaded, attn_implementation="eager")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("preset", "num_labels"), [("tiny", 2), ("base", 7)])
def test_parameters_are_those_of_the_real_model(family: str, preset: str, num_labels: int) -> None:
    config = scratch(family=family, preset=preset)
    assert count_parameters(config, num_labels) == build(config, num_labels).num_parameters()


def test_parameters_of_published_checkpoints() -> None:
    """Longformer's paper has no count; 148.7 million is what the published weights hold with two classes."""
    assert count_parameters(LONGFORMER_BASE, 2) == build(LONGFORMER_BASE, 2).num_parameters() == 148_660_994
    xlm = {
        **LONGFORMER_BASE,
        "model_type": "xlm-roberta",
        "max_position_embeddings": 514,
        "vocab_size": 250002,
    }
    assert count_parameters(xlm, 2) == build(xlm, 2).num_parameters()


@pytest.mark.parametrize(("family", "num_tokens"), [("bert", 128), ("bert", 512), ("roberta", 256)])
def test_forward_operations_are_those_that_pytorch_counts(family: str, num_tokens: int) -> None:
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    config = scratch(family=family, preset="small")
    model = build(config, 2, device="cpu")
    ids = torch.full((1, num_tokens), 7)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=ids, attention_mask=torch.ones_like(ids))
    counted = counter.get_total_flops() / num_tokens
    # The head sees one token only and is left out by the formula.
    assert flops_per_token(config, num_tokens, training=False) == pytest.approx(counted, rel=0.003)


def test_training_is_three_forward_passes() -> None:
    forward = flops_per_token(LONGFORMER_BASE, 4096, training=False)
    assert flops_per_token(LONGFORMER_BASE, 4096, training=True) == 3 * forward


def test_longformer_operations_grow_linearly_with_the_length() -> None:
    assert flops_per_token(LONGFORMER_BASE, 4096, training=True) == flops_per_token(
        LONGFORMER_BASE, 1024, training=True
    )
    assert flops_per_token(LONGFORMER_BASE, 128, training=True) < flops_per_token(LONGFORMER_BASE, 1024, training=True)
    # By hand: 12 layers * (2*12*768^2 + 4*768^2 + 4*768*514 + 4*768) * 3.
    assert flops_per_token(LONGFORMER_BASE, 4096, training=True) == 12 * 3 * (28 * 768**2 + 4 * 768 * 515)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_scratch_model_takes_exactly_max_tokens(family: str) -> None:
    """One position more than `max_tokens` fails in the real model, so the limit is not off by one."""
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    section = ArchitectureSection(family=family, preset="tiny", num_layers=1)
    config = from_architecture(
        section,
        vocab_size=300,
        pad_token_id=3,
        cls_token_id=0,
        sep_token_id=2,
        max_length=64,
        attention_window=16 if family == "longformer" else None,
    )
    assert max_tokens(config) == 64
    values = {key: value for key, value in config.items() if key != "model_type"}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(family, **values)).eval()
    with torch.no_grad():
        logits = model(input_ids=torch.full((1, 64), 7), attention_mask=torch.ones(1, 64, dtype=torch.long)).logits
        assert logits.shape == (1, 2)
        with pytest.raises((IndexError, RuntimeError)):
            model(input_ids=torch.full((1, 65), 7), attention_mask=torch.ones(1, 65, dtype=torch.long))


def test_positions_of_published_configurations() -> None:
    roberta = {**LONGFORMER_BASE, "model_type": "roberta", "max_position_embeddings": 514}
    bert = {**LONGFORMER_BASE, "model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}
    assert [max_tokens(config) for config in (LONGFORMER_BASE, roberta, bert)] == [4096, 512, 512]


class TestFromArchitecture:
    def test_fields_override_the_preset(self) -> None:
        config = scratch(family="longformer", num_layers=3, hidden_size=192)
        found = dimensions(config)
        assert (found.num_layers, found.hidden_size, found.num_heads, found.intermediate_size) == (
            3,
            192,
            3,
            768,
        )
        assert found.attention_window == (64, 64, 64)
        assert found.max_tokens == 4096

    @pytest.mark.parametrize(("hidden", "heads"), [(8, 1), (96, 1), (200, 2), (768, 12)])
    def test_heads_divide_the_hidden_size(self, hidden: int, heads: int) -> None:
        assert dimensions(scratch(hidden_size=hidden)).num_heads == heads

    def test_heads_that_do_not_divide(self) -> None:
        with pytest.raises(RecipeError, match="hidden_size 100 is not a multiple of num_attention_heads 3") as caught:
            scratch(hidden_size=100, num_attention_heads=3)
        assert caught.value.hint == "--set design.architecture.hidden_size=99"

    def test_a_window_needs_a_longformer(self) -> None:
        with pytest.raises(RecipeError, match="`attention_window` is 64, but a bert model attends to all tokens"):
            from_architecture(
                ArchitectureSection(family="bert"),
                vocab_size=500,
                pad_token_id=0,
                cls_token_id=1,
                sep_token_id=2,
                attention_window=64,
            )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "gpt2"}, "model_type is `gpt2`; sizes are known of bert, roberta, xlm-roberta, longformer"),
        ({"model_type": None}, "model_type is `None`"),
        ({"hidden_size": None}, "`hidden_size` is None, expected a whole number of at least 1"),
        ({"num_hidden_layers": "12"}, "`num_hidden_layers` is '12'"),
        ({"vocab_size": True}, "`vocab_size` is True"),
        ({"attention_window": 7}, "`attention_window` is 7, expected an even number"),
        ({"attention_window": [512]}, "one for each of the 12 layers"),
    ],
)
def test_configurations_that_cannot_be_used(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        dimensions({**LONGFORMER_BASE, **changes})
    assert words in caught.value.problem
    assert caught.value.hint


BERT = {**LONGFORMER_BASE, "model_type": "bert", "max_position_embeddings": 512, "pad_token_id": 0}


class TestChooseMaxLength:
    @pytest.mark.parametrize(
        ("changes", "config", "expected"),
        [
            ({}, BERT, (512, "the most the model can take")),
            ({"max_length": 128}, BERT, (128, "as the recipe says")),
            ({"max_length": 512}, BERT, (512, "as the recipe says")),
            ({"extend_to": 2048}, BERT, (2048, "as far as design.extend_to goes")),
            (
                {"extend_to": 2048, "max_length": 1000, "attention_window": 64},
                BERT,
                (1000, "as the recipe says"),
            ),
            (
                {"attention_window": 64, "num_layers": 12},
                LONGFORMER_BASE,
                (4096, "the most the model can take"),
            ),
        ],
    )
    def test_value_and_reason(self, changes: Any, config: dict[str, Any], expected: tuple[int, str]) -> None:
        assert choose_max_length(DesignSection(model="a/b", **changes), config) == expected

    @pytest.mark.parametrize(
        ("changes", "config", "words", "hint"),
        [
            (
                {"max_length": 513},
                BERT,
                "`max_length` is 513 tokens, but the model can take 512",
                "design.extend_to=513",
            ),
            (
                {"max_length": 4097},
                LONGFORMER_BASE,
                "is 4097 tokens, but the model can take 4096",
                "--set design.max_length=4096",
            ),
            ({"max_length": 99, "extend_to": 64}, BERT, "can take 64", "--set design.max_length=64"),
            (
                {"num_layers": 13},
                BERT,
                "`num_layers` is 13, but the checkpoint has 12 layers",
                "num_layers=12",
            ),
            (
                {"attention_window": 64},
                BERT,
                "`attention_window` is 64, but a bert model",
                "attention_window=null",
            ),
        ],
    )
    def test_what_the_checkpoint_cannot_do(self, changes: Any, config: dict[str, Any], words: str, hint: str) -> None:
        with pytest.raises(RecipeError) as caught:
            choose_max_length(DesignSection(model="a/b", **changes), config)
        assert words in caught.value.problem
        assert hint in caught.value.hint
        assert caught.value.where.startswith("design.")


def test_other_encoders_are_taken_with_the_length_that_they_name() -> None:
    modern = {"model_type": "modernbert", "max_position_embeddings": 8192}
    assert choose_max_length(DesignSection(model="m"), modern)[0] == 8192
    assert choose_max_length(DesignSection(model="m", max_length=256), modern)[0] == 256
    assert choose_max_length(DesignSection(model="m"), {"model_type": "xlnet", "max_position_embeddings": -1})[0] == 512
    with pytest.raises(RecipeError, match="can take 8192"):
        choose_max_length(DesignSection(model="m", max_length=9000), modern)
    with pytest.raises(RecipeError, match="modernbert checkpoint cannot be turned into a Longformer"):
        choose_max_length(DesignSection(model="m", extend_to=4096), modern)
