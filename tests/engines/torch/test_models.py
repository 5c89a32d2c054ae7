"""Models from checkpoints and from scratch, against what transformers itself loads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from modelyard.engines.base import ModelSpec
from modelyard.engines.torch.models import build_model, load_model
from modelyard.errors import InputError

Checkpoint = Callable[..., tuple[Path, PreTrainedModel]]
ConfigOf = Callable[..., dict[str, Any]]
LABELS = ("a", "b", "c")


def logits(model: PreTrainedModel, length: int = 12) -> torch.Tensor:
    ids = torch.arange(4, 4 + length)[None]
    model.train(False)
    with torch.inference_mode():
        answer: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    return answer


@pytest.mark.parametrize("family", ["bert", "roberta", "longformer"])
def test_a_classifier_is_taken_up_whole(family: str, checkpoint: Checkpoint) -> None:
    folder, saved = checkpoint(family)
    built = build_model(ModelSpec(folder, {}, LABELS), seed=0)
    assert torch.allclose(logits(built.model), logits(saved), atol=1e-6)
    assert built.notes == ("the checkpoint's head is kept: it was trained for the same labels, a, b, c",)


def test_a_pretrained_model_gets_a_head_by_the_seed(checkpoint: Checkpoint) -> None:
    folder, saved = checkpoint(head="masked")
    one, same, other = (build_model(ModelSpec(folder, {}, LABELS), seed=seed) for seed in (1, 1, 2))
    heads = [built.model.get_parameter("classifier.weight") for built in (one, same, other)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])
    assert one.model.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert one.model.config.label2id == {"a": 0, "b": 1, "c": 2}
    body = "bert.encoder.layer.0.output.dense.weight"
    assert torch.equal(one.model.get_parameter(body), saved.get_parameter(body))
    assert len(one.notes) == 1 and "has no whole classification head; these weights are new: " in one.notes[0]


def test_building_leaves_the_global_random_state_alone(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint(head="masked")
    before = torch.get_rng_state()
    build_model(ModelSpec(folder, {}, LABELS), seed=1)
    assert torch.equal(before, torch.get_rng_state())


def test_a_head_for_another_number_of_labels_is_new_and_said(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint(labels=("x", "y"))
    built = build_model(ModelSpec(folder, {}, LABELS), seed=0)
    assert logits(built.model).shape == (1, 3)
    assert built.notes == ("the checkpoint classifies 2 labels, this task has 3: new head",)


def test_a_head_for_other_labels_is_kept_and_said(checkpoint: Checkpoint) -> None:
    folder, saved = checkpoint(labels=("x", "y", "z"))
    built = build_model(ModelSpec(folder, {}, LABELS), seed=0)
    assert torch.equal(built.model.get_parameter("classifier.weight"), saved.get_parameter("classifier.weight"))
    (note,) = built.notes
    assert note == "the checkpoint's head is kept, though it was trained for x, y, z; now it learns a, b, c"
    folder, _ = checkpoint(labels=("LABEL_0", "LABEL_1", "LABEL_2"))
    assert "trained for unnamed labels" in build_model(ModelSpec(folder, {}, LABELS), seed=0).notes[0]


@pytest.mark.parametrize("family", ["bert", "longformer"])
def test_the_first_layers_are_kept(family: str, checkpoint: Checkpoint) -> None:
    folder, saved = checkpoint(family)
    built = build_model(ModelSpec(folder, {}, LABELS, num_layers=1), seed=0)
    del saved.base_model.encoder.layer[1:]
    if family == "longformer":
        assert built.model.config.attention_window == [8]
    assert torch.allclose(logits(built.model), logits(saved), atol=1e-6)
    assert "the first 1 of 2 layers are kept" in built.notes


def test_more_layers_than_there_are_is_an_error(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    with pytest.raises(InputError, match="num_layers is 5, but the checkpoint has 2 layers") as caught:
        build_model(ModelSpec(folder, {}, LABELS, num_layers=5), seed=0)
    assert caught.value.hint == "--set design.num_layers=2"


def test_dropout_and_window_are_set(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint("longformer")
    spec = ModelSpec(folder, {}, LABELS, attention_window=4, hidden_dropout=0.3, attention_dropout=0.0)
    config = build_model(spec, seed=0).model.config
    assert config.attention_window == [4, 4]
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.3, 0.0)


def test_a_window_needs_a_longformer(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    with pytest.raises(InputError, match="attention_window is 4, but a bert has no such window"):
        build_model(ModelSpec(folder, {}, LABELS, attention_window=4), seed=0)


def test_a_probability_that_a_family_lacks_is_an_error() -> None:
    config = {
        "model_type": "funnel",
        "vocab_size": 60,
        "d_model": 16,
        "n_head": 2,
        "d_head": 8,
        "d_inner": 16,
    }
    config |= {"block_sizes": [1]}
    build_model(ModelSpec(None, config, LABELS, attention_dropout=0.0), seed=0)
    config = {"model_type": "fnet", "hidden_size": 16, "num_hidden_layers": 1, "vocab_size": 60}
    build_model(ModelSpec(None, config, LABELS, attention_dropout=0.0), seed=0)
    with pytest.raises(InputError, match=r"attention_dropout is 0\.1, but a fnet has no such probability"):
        build_model(ModelSpec(None, config, LABELS, attention_dropout=0.1), seed=0)


@pytest.mark.parametrize("family", ["bert", "roberta", "longformer"])
def test_from_scratch_follows_the_configuration_and_the_seed(family: str, config_of: ConfigOf) -> None:
    spec = ModelSpec(None, config_of(family), LABELS, hidden_dropout=0.25)
    one, same, other = (build_model(spec, seed=seed).model for seed in (1, 1, 2))
    assert one.config.model_type == family and one.config.hidden_size == 16
    assert one.config.hidden_dropout_prob == 0.25
    name = f"{one.base_model_prefix}.encoder.layer.1.output.dense.weight"
    assert torch.equal(one.get_parameter(name), same.get_parameter(name))
    assert not torch.equal(one.get_parameter(name), other.get_parameter(name))
    assert build_model(spec, seed=1).notes == ("all weights start from random numbers",)


def test_an_unknown_family_is_an_error() -> None:
    with pytest.raises(InputError, match="model_type 'brt' is not a family"):
        build_model(ModelSpec(None, {"model_type": "brt"}, LABELS), seed=0)


def test_a_bert_is_extended_to_long_texts(checkpoint: Checkpoint) -> None:
    folder, saved = checkpoint()
    built = build_model(ModelSpec(folder, {}, LABELS, extend_to=256, attention_window=32), seed=0)
    assert built.model.config.model_type == "longformer"
    assert built.model.config.attention_window == [32, 32]
    assert logits(built.model, length=56).shape == (1, 3)
    # No longer than the one-sided window, it answers as the source does; padding is not seen.
    assert torch.allclose(logits(built.model), logits(saved), atol=1e-5)
    ids = torch.randint(4, 60, (1, 250))
    assert built.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.shape == (1, 3)
    assert build_model(ModelSpec(folder, {}, LABELS, extend_to=600), seed=0).model.config.attention_window == [512] * 2


@pytest.mark.parametrize("own_attention", [True, False])
def test_a_mean_global_token_weighs_every_token_the_same(
    own_attention: bool, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    """The first token's attention is the mean of the global values over the tokens that are no padding."""
    folder, _ = checkpoint()
    spec = ModelSpec(folder, {}, LABELS, extend_to=256, attention_window=32, extend_global="mean")
    build_model(spec, seed=0).model.save_pretrained(tmp_path / "built")
    model = load_model(tmp_path / "built", own_attention=own_attention)
    layers = [layer.attention for layer in model.base_model.encoder.layer]
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    for layer in layers:
        layer.self.value_global.register_forward_hook(lambda _, taken, __: seen.append((taken[0], torch.empty(0))))
        layer.output.dense.register_forward_hook(lambda _, taken, __: seen.append((torch.empty(0), taken[0])))
    ids = torch.arange(4, 54).reshape(1, 50).repeat(2, 1)
    mask = torch.ones_like(ids)
    mask[1, 40:] = 0
    with torch.inference_mode():
        model(input_ids=ids, attention_mask=mask)
        for layer, (hidden, _), (_, attended) in zip(layers, seen[::2], seen[1::2], strict=True):
            if hidden.shape[0] != 2:
                hidden = hidden.transpose(0, 1)  # transformers holds positions first
            values = layer.self.value_global(hidden)[:, :50]
            for text, length in enumerate((50, 40)):
                assert torch.allclose(attended[text, 0], values[text, :length].mean(0), atol=1e-6)


def test_a_folder_without_config_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a Hugging Face model: it has no config\.json"):
        load_model(tmp_path)


def test_a_pickle_is_not_opened(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"has no model\.safetensors, only pytorch_model\.bin, a pickle"):
        build_model(ModelSpec(folder, {}, LABELS), seed=0)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match=r"has no model\.safetensors, no weights"):
        build_model(ModelSpec(folder, {}, LABELS), seed=0)


def test_code_inside_a_checkpoint_is_not_run(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    (folder / "evil.py").write_text("raise SystemExit('was run')\nclass Config: ...\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="is of no use to transformers") as caught:
        build_model(ModelSpec(folder, {}, LABELS), seed=0)
    assert "code in a checkpoint is never run" in caught.value.hint


def test_a_broken_config_is_an_error(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json is of no use"):
        build_model(ModelSpec(folder, {}, LABELS), seed=0)


def test_damaged_weights_are_an_error(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(InputError, match=r"the weights in .* cannot be read"):
        build_model(ModelSpec(folder, {}, LABELS), seed=0)


def test_missing_weights_are_named(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if ".layer.1." in name]:
        del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"bert\.encoder\.layer\.1\..* and 13 more missing or of another shape"):
        build_model(ModelSpec(folder, {}, LABELS), seed=0)
    with pytest.raises(InputError, match=r"lacks weights: bert\.encoder\.layer\.1\."):
        load_model(folder)


def test_weights_of_another_shape_are_named(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 99}))
    with pytest.raises(InputError, match=r"bert\.embeddings\.word_embeddings\.weight missing or of another shape"):
        build_model(ModelSpec(folder, {}, LABELS), seed=0)


def test_a_family_without_classifier_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="holds a vit, which has no text classifier"):
        build_model(ModelSpec(tmp_path, {}, LABELS), seed=0)


def test_half_precision_weights_become_float32(checkpoint: Checkpoint) -> None:
    folder, saved = checkpoint()
    saved.to(torch.bfloat16).save_pretrained(folder)
    model = build_model(ModelSpec(folder, {}, LABELS), seed=0).model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_load_model_loads_what_transformers_loads(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint("longformer")
    expected = AutoModelForSequenceClassification.from_pretrained(folder)
    model = load_model(folder)
    assert not model.training
    assert torch.allclose(logits(model), logits(expected), atol=1e-6)


def test_a_bare_checkpoint_is_no_classifier(checkpoint: Checkpoint) -> None:
    folder, _ = checkpoint(head="masked")
    with pytest.raises(InputError, match=r"lacks weights: bert\.pooler.* and 1 more"):
        load_model(folder)


def test_loading_prints_nothing(checkpoint: Checkpoint, capfd: pytest.CaptureFixture[str]) -> None:
    folder, _ = checkpoint(head="masked")
    capfd.readouterr()
    build_model(ModelSpec(folder, {}, LABELS), seed=0)
    output = capfd.readouterr()
    assert (output.out, output.err) == ("", "")
