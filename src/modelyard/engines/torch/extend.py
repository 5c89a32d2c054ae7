"""BERT and RoBERTa checkpoints made ready for long texts, as Longformer was (arXiv 2004.05150, section 5).

The learned position embeddings are repeated up to the new length, the global projections start as copies of
the local ones, everything else is kept. On a text no longer than the one-sided window the result answers as
the source does. With the global query zero instead, the global token starts as the mean of all tokens.

The output is a plain Hugging Face folder that ``AutoModel`` or ``AutoModelForSequenceClassification`` loads.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    LongformerConfig,
    LongformerForSequenceClassification,
    LongformerModel,
)

from modelyard.errors import InputError

# For each supported model type: the prefix of its base model's parameters and the tokenizer that a folder
# without ``tokenizer_class`` means (in the new folder its absence would mean Longformer's own, a RoBERTa
# one).
_SUPPORTED: Mapping[str, tuple[str, str]] = {
    "bert": ("bert.", "BertTokenizer"),
    "roberta": ("roberta.", "RobertaTokenizer"),
    "camembert": ("roberta.", "CamembertTokenizer"),
    "xlm-roberta": ("roberta.", "XLMRobertaTokenizer"),
}
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "sentencepiece.bpe.model",
)
_KEPT_SETTINGS = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "id2label",
    "label2id",
    "problem_type",
    "dtype",
)
# Buffers that some versions of transformers saved, and heads of pre-training that a longer model does not
# use.
_DROPPED = ("embeddings.position_ids", "embeddings.token_type_ids", "cls.", "lm_head.")
_GLOBAL = {"query": "query_global", "key": "key_global", "value": "value_global"}


@dataclass(frozen=True)
class _Source:
    """A checkpoint folder, read."""

    folder: Path
    config: Any
    weights: dict[str, Tensor]
    """Parameters without the base model's prefix."""

    @property
    def model_type(self) -> str:
        return str(self.config.model_type)

    @property
    def offset(self) -> int:
        """Rows of the position table before the first position: BERT has none, RoBERTa pad_token_id + 1."""
        return 0 if self.model_type == "bert" else int(self.config.pad_token_id) + 1

    @property
    def is_classifier(self) -> bool:
        return any(name.startswith("classifier.") for name in self.weights)


def extend_to(
    source_folder: Path,
    target_folder: Path,
    max_positions: int,
    *,
    attention_window: int | Sequence[int] = 512,
    global_token: Literal["copy", "mean"] = "copy",
) -> None:
    """Write ``source_folder``'s checkpoint to ``target_folder`` as a Longformer for ``max_positions`` tokens.

    ``attention_window`` is upstream's two-sided window, even: a token sees half of it on each side; one
    number, or one for each layer. ``global_token``: the global projections start as copies of the local ones; with
    ``mean`` the query is zero instead, so that every token weighs the same. Labels, dropout, activation, token types
    and the tokenizer are kept. A sequence classifier becomes a ``LongformerForSequenceClassification``; a base or a
    masked-language model becomes a ``LongformerModel``.

    Nothing is left behind when it fails: ``target_folder`` appears whole or not at all. Raises InputError.
    """
    if target_folder.exists():
        raise InputError(f"{target_folder} exists already.", hint="name a new folder, or remove the old one first")
    source = _read(source_folder)
    config = _longformer_config(source, max_positions, attention_window)
    weights = _convert(source, max_positions, global_token)
    _check(source, config, weights)

    partial = target_folder.with_name(f".{target_folder.name}.partial-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        config.save_pretrained(partial)
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})
        _copy_tokenizer(source, partial, max_positions)
        partial.rename(target_folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def extended_config(
    source_folder: Path, max_positions: int, *, attention_window: int | Sequence[int] = 512
) -> LongformerConfig:
    """The configuration that ``extend_to`` writes, from ``config.json`` alone. Raises InputError."""
    source = _Source(source_folder, _read_config(source_folder), {})
    return _longformer_config(source, max_positions, attention_window)


# --- reading --------------------------------------------------------------------------------------


def _read(folder: Path) -> _Source:
    config = _read_config(folder)
    prefix = _SUPPORTED[config.model_type][0]
    weights = {_rename(name, prefix): tensor for name, tensor in _load(folder).items()}
    return _Source(folder, config, {k: v for k, v in weights.items() if not k.startswith(_DROPPED)})


def _read_config(folder: Path) -> Any:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} has no config.json, so it is no Hugging Face checkpoint.",
            hint="give the folder that save_pretrained wrote",
        )
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    model_type = raw.get("model_type")
    if model_type not in _SUPPORTED:
        raise InputError(
            f"{folder} is of the model type {model_type!r}; supported are {', '.join(_SUPPORTED)}.",
            hint="start from a BERT- or RoBERTa-like encoder",
        )
    kind = raw.get("position_embedding_type") or "absolute"
    if kind != "absolute":
        raise InputError(
            f"{folder} has {kind!r} position embeddings; only 'absolute' ones can be repeated.",
            hint="start from a checkpoint with position_embedding_type absolute",
        )
    for name in raw.get("architectures") or ():
        if not name.endswith(("Model", "ForSequenceClassification", "ForMaskedLM", "ForPreTraining")):
            raise InputError(
                f"{folder} holds a {name}, whose head would be lost.",
                hint="give a base model, a masked-language model or a ForSequenceClassification",
            )
    return AutoConfig.from_pretrained(folder, local_files_only=True)


def _rename(name: str, prefix: str) -> str:
    """Parameter name without the base model's prefix; the first BERT files said gamma and beta."""
    name = name.removeprefix(prefix)
    return name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


def _load(folder: Path) -> dict[str, Tensor]:
    """All tensors of ``model.safetensors``, or of the shards that its index names."""
    index = folder / "model.safetensors.index.json"
    names = {"model.safetensors"}
    if index.is_file():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    missing = sorted(name for name in names if not (folder / name).is_file())
    if not missing:
        return {key: tensor for name in sorted(names) for key, tensor in load_file(folder / name).items()}
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    if pickled:
        raise InputError(
            f"{folder} has its weights only as {', '.join(pickled)}, which can run code when it is opened.",
            hint="load it where you trust it and save_pretrained(folder) again: it writes model.safetensors",
        )
    raise InputError(
        f"{folder} has no {', '.join(missing)}.", hint="copy the whole checkpoint folder, weights included"
    )


def _windows(attention_window: int | Sequence[int], num_layers: int) -> list[int]:
    one = isinstance(attention_window, int)
    windows = [attention_window] * num_layers if isinstance(attention_window, int) else list(attention_window)
    if len(windows) != num_layers:
        raise InputError(
            f"attention_window has {len(windows)} values for {num_layers} layers.",
            hint="give one number, or one for each layer",
        )
    for layer, window in enumerate(windows):
        if window <= 0 or window % 2:
            where = "" if one else f" of layer {layer}"
            raise InputError(
                f"attention_window{where} is {window}; it must be even and positive, half for each side.",
                hint=f"use {max(2, window + window % 2)}",
            )
    return windows


# --- converting -----------------------------------------------------------------------------------


def _longformer_config(source: _Source, max_positions: int, attention_window: int | Sequence[int]) -> LongformerConfig:
    positions = int(source.config.max_position_embeddings) - source.offset
    if max_positions < positions:
        raise InputError(
            f"max_positions is {max_positions}, but {source.folder} already reads {positions} tokens.",
            hint=f"ask for more than {positions} positions, or use the checkpoint as it is",
        )
    windows = _windows(attention_window, int(source.config.num_hidden_layers))
    old = source.config.to_dict()
    settings = {name: old[name] for name in _KEPT_SETTINGS if old.get(name) is not None}
    architecture = "LongformerForSequenceClassification" if source.is_classifier else "LongformerModel"
    separator = _separator(source)
    if separator is not None:
        settings["sep_token_id"] = separator
    return LongformerConfig(
        **settings,
        architectures=[architecture],
        attention_window=windows,
        # Longformer counts its positions from pad_token_id + 1, as RoBERTa does.
        max_position_embeddings=max_positions + int(source.config.pad_token_id) + 1,
    )


def _separator(source: _Source) -> int | None:
    """The separator token's id, if the tokenizer says so; Longformer's question answering looks for it."""
    path = source.folder / "tokenizer.json"
    special = source.folder / "special_tokens_map.json"
    config = source.folder / "tokenizer_config.json"
    if not path.is_file():
        return None
    tokens: dict[str, Any] = {}
    for extra in (special, config):
        if extra.is_file():
            tokens.update(json.loads(extra.read_text(encoding="utf-8")))
    token = tokens.get("sep_token") or ("[SEP]" if source.model_type == "bert" else "</s>")
    content = token["content"] if isinstance(token, dict) else token
    for added in json.loads(path.read_text(encoding="utf-8")).get("added_tokens", ()):
        if added["content"] == content:
            return int(added["id"])
    return None


def _convert(source: _Source, max_positions: int, global_token: str) -> dict[str, Tensor]:
    """Longformer's parameters by name, each with storage of its own (safetensors refuses shared ones)."""
    weights: dict[str, Tensor] = {}
    prefix = "longformer." if source.is_classifier else ""
    for name, tensor in source.weights.items():
        if name.startswith("classifier."):
            # RoBERTa's head is classifier.dense and classifier.out_proj already.
            is_out = source.model_type == "bert"
            weights[name.replace("classifier.", "classifier.out_proj.") if is_out else name] = tensor
        elif name.startswith("pooler.") and source.is_classifier:
            weights[name.replace("pooler.", "classifier.")] = tensor
        elif name == "embeddings.position_embeddings.weight":
            weights[prefix + name] = _repeat_positions(source, tensor, max_positions)
        else:
            weights[prefix + name] = tensor
        for local, other in _GLOBAL.items():
            if f".attention.self.{local}." in name:
                zero = global_token == "mean" and local == "query"
                start = torch.zeros_like(tensor) if zero else tensor.clone()
                weights[prefix + name.replace(f".self.{local}.", f".self.{other}.")] = start
    return weights


def _repeat_positions(source: _Source, table: Tensor, max_positions: int) -> Tensor:
    """(old rows, D) → (pad_token_id + 1 + max_positions, D): the old positions over and over."""
    first = int(source.config.pad_token_id) + 1
    positions = table[source.offset :]
    repeated = positions[torch.arange(max_positions) % len(positions)]
    head = table[: source.offset] if source.offset else table.new_zeros(first, table.shape[1])
    return torch.cat([head, repeated])


def _check(source: _Source, config: LongformerConfig, weights: Mapping[str, Tensor]) -> None:
    """Every parameter of the new model is there in its shape, and none of the encoder's is left over."""
    with torch.device("meta"):
        # A copy, because the constructor writes into the configuration.
        copy = LongformerConfig.from_dict(config.to_dict())
        model = (LongformerForSequenceClassification if source.is_classifier else LongformerModel)(copy)
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    # A masked-language model has no pooler; AutoModel starts a new one and says so.
    missing = [name for name in expected if name not in found and not name.startswith("pooler.")]
    surplus = [name for name in found if name not in expected]
    shapes = [name for name in expected if name in found and found[name] != expected[name]]
    for problem, names in (("lacks", missing), ("has unknown", surplus), ("has misshapen", shapes)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise InputError(
                f"{source.folder} {problem} parameters: {', '.join(names[:3])}{more}.",
                hint="check that config.json and the weights belong together; merge adapters first",
            )


def _copy_tokenizer(source: _Source, target: Path, max_positions: int) -> None:
    for name in _TOKENIZER_FILES:
        if (source.folder / name).is_file():
            shutil.copyfile(source.folder / name, target / name)
    copied = [name for name in _TOKENIZER_FILES if (target / name).is_file()]
    if not copied:
        return
    settings_path = target / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8")) if settings_path.is_file() else {}
    settings["model_max_length"] = max_positions
    settings.setdefault("tokenizer_class", _SUPPORTED[source.model_type][1])
    settings_path.write_text(json.dumps(settings, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    fast_path = target / "tokenizer.json"
    if fast_path.is_file():
        fast = json.loads(fast_path.read_text(encoding="utf-8"))
        if fast.get("truncation"):
            fast["truncation"]["max_length"] = max_positions
            fast_path.write_text(json.dumps(fast, ensure_ascii=False), encoding="utf-8")
