"""Architecture as data: dimensions from a Hugging Face configuration, and what follows from them without
building a model.

Legend: L layers, H hidden size, I feed-forward width, V vocabulary, P position rows, C classes, T tokens of a
sequence, W attention window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from modelyard.errors import InputError, RecipeError
from modelyard.recipe.schema import ArchitectureSection, DesignSection

Family = Literal["bert", "roberta", "longformer"]
FAMILIES: Mapping[str, Family] = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "longformer": "longformer",
}


@dataclass(frozen=True)
class Dimensions:
    """The sizes of a model.

    max_positions: rows of the position table; RoBERTa and Longformer keep the first ``pad_token_id + 1`` of
    them. attention_window: two-sided window in tokens of each layer (Longformer), or None for full attention.
    """

    family: Family
    num_layers: int
    hidden_size: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    type_vocab_size: int
    pad_token_id: int
    attention_window: tuple[int, ...] | None = None

    @property
    def max_tokens(self) -> int:
        """Longest sequence in tokens, special tokens included."""
        if self.family == "bert":
            return self.max_positions
        return self.max_positions - self.pad_token_id - 1


def dimensions(config: Mapping[str, Any]) -> Dimensions:
    """The dimensions in a Hugging Face configuration (the content of ``config.json``).

    Raises InputError for a family whose layers are not described here, or a key that is missing or no whole number.
    """
    model_type = str(config.get("model_type"))
    if model_type not in FAMILIES:
        raise InputError(
            f"the checkpoint's model_type is `{model_type}`; sizes are known of {', '.join(FAMILIES)}",
            hint="name another checkpoint: --set design.model=google-bert/bert-base-uncased",
        )
    family = FAMILIES[model_type]
    num_layers = _number(config, "num_hidden_layers")
    return Dimensions(
        family=family,
        num_layers=num_layers,
        hidden_size=_number(config, "hidden_size"),
        num_heads=_number(config, "num_attention_heads"),
        intermediate_size=_number(config, "intermediate_size"),
        vocab_size=_number(config, "vocab_size"),
        max_positions=_number(config, "max_position_embeddings"),
        type_vocab_size=_number(config, "type_vocab_size", least=0),
        pad_token_id=_number(config, "pad_token_id", 0 if family == "bert" else 1, least=0),
        attention_window=_window(config, num_layers) if family == "longformer" else None,
    )


def _number(config: Mapping[str, Any], key: str, default: int | None = None, least: int = 1) -> int:
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(
            f"config.json: `{key}` is {value!r}, expected a whole number of at least {least}",
            hint="take config.json from the place where the checkpoint was published",
        )
    return value


def _window(config: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    value = config.get("attention_window", 512)  # LongformerConfig's own default
    windows = value if isinstance(value, list) else [value] * num_layers
    if len(windows) < num_layers or not all(isinstance(w, int) and w >= 2 and w % 2 == 0 for w in windows):
        raise InputError(
            f"config.json: `attention_window` is {value!r}, expected an even number or one for each of the "
            f"{num_layers} layers",
            hint="take config.json from the place where the checkpoint was published",
        )
    return tuple(windows[:num_layers])


def max_tokens(config: Mapping[str, Any]) -> int:
    """Longest sequence in tokens, special tokens included, that a model of this configuration can take."""
    return dimensions(config).max_tokens


def count_parameters(config: Mapping[str, Any], num_labels: int) -> int:
    """Parameters of the ``…ForSequenceClassification`` model of this configuration with `num_labels` classes.

    Counted from the layers as Vaswani et al. 2017 (arXiv 1706.03762) and Devlin et al. 2018 (arXiv
    1810.04805) define them; Longformer has a second set of query, key and value projections for global tokens
    (arXiv 2004.05150, 3.1).
    """
    d = dimensions(config)
    hidden = d.hidden_size
    embeddings = (d.vocab_size + d.max_positions + d.type_vocab_size + 2) * hidden
    projections = 7 if d.family == "longformer" else 4
    attention = projections * (hidden * hidden + hidden)
    feed_forward = 2 * hidden * d.intermediate_size + d.intermediate_size + hidden
    normalisations = 4 * hidden
    # BERT's pooler and RoBERTa's first head layer have one shape: H to H, then H to C.
    head = hidden * hidden + hidden + hidden * num_labels + num_labels
    return embeddings + d.num_layers * (attention + feed_forward + normalisations) + head


def flops_per_token(config: Mapping[str, Any], num_tokens: int, *, training: bool) -> float:
    """Floating-point operations for each token of a sequence of `num_tokens`, a multiply-add counted as two.

    Forward: 2 operations for each weight of the matrix products, and 4 H for each key that a query meets
    (scores and weighted values), after Kaplan et al. 2020 (arXiv 2001.08361, table 1). Training is three
    times that: the backward pass computes gradients of both inputs and weights (there, 2.1). Longformer's
    queries meet W + 1 keys and one global token, which itself meets all keys through projections of its own
    (arXiv 2004.05150, 3.1). Embeddings, normalisations, softmax and the head, which sees one token, are left
    out; so is recomputation by activation checkpointing.
    """
    d = dimensions(config)
    hidden = d.hidden_size
    weights = 4 * hidden * hidden + 2 * hidden * d.intermediate_size
    total = 0.0
    for layer in range(d.num_layers):
        if d.attention_window is None:
            total += 2 * weights + 4 * hidden * num_tokens
        else:
            global_keys_and_values = 2 * 2 * hidden * hidden
            keys = min(num_tokens, d.attention_window[layer] + 1) + 1
            global_query = 4 * hidden  # T keys for one query, shared by T tokens
            total += 2 * weights + global_keys_and_values + 4 * hidden * keys + global_query
    return 3 * total if training else total


@cache
def _presets() -> dict[str, Any]:
    text = (files("modelyard.design") / "presets.yaml").read_text(encoding="utf-8")
    presets: dict[str, Any] = yaml.safe_load(text)
    return presets


def from_architecture(
    architecture: ArchitectureSection,
    *,
    vocab_size: int,
    pad_token_id: int,
    cls_token_id: int,
    sep_token_id: int,
    max_length: int | None = None,
    attention_window: int | None = None,
) -> dict[str, Any]:
    """The Hugging Face configuration of a model from scratch.

    max_length: longest input in tokens, None for the family's; attention_window: two-sided (Longformer), None
    for the preset's. The token ids are those of the tokenizer that was trained on the data.
    Raises RecipeError when the hidden size cannot be divided among the heads, or a window is set for full
    attention.
    """
    presets = _presets()
    family, size = presets["families"][architecture.family], presets["sizes"][architecture.preset]
    hidden = architecture.hidden_size or size["hidden_size"]
    config: dict[str, Any] = {
        "model_type": architecture.family,
        **presets["common"],
        **family["config"],
        "num_hidden_layers": architecture.num_layers or size["num_layers"],
        "hidden_size": hidden,
        "num_attention_heads": _num_heads(architecture, hidden, size, presets["head_width"]),
        "intermediate_size": presets["feed_forward_factor"] * hidden,
        "vocab_size": vocab_size,
        "pad_token_id": pad_token_id,
    }
    kept_positions = 0
    if architecture.family != "bert":
        config |= {"bos_token_id": cls_token_id, "eos_token_id": sep_token_id}
        kept_positions = pad_token_id + 1
    if architecture.family == "longformer":
        window = attention_window or family["attention_window"][architecture.preset]
        config |= {"attention_window": [window] * config["num_hidden_layers"], "sep_token_id": sep_token_id}
    elif attention_window is not None:
        raise _window_without_longformer(attention_window, architecture.family)
    config["max_position_embeddings"] = (max_length or family["max_length"]) + kept_positions
    return config


def _num_heads(architecture: ArchitectureSection, hidden: int, size: Mapping[str, int], head_width: int) -> int:
    heads = architecture.num_attention_heads
    if heads is None and architecture.hidden_size is None:
        heads = size["num_attention_heads"]
    if heads is None:  # the most heads of at least the usual width that divide the hidden size
        heads = next(n for n in range(max(1, hidden // head_width), 0, -1) if hidden % n == 0)
    if hidden % heads:
        raise RecipeError(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}",
            where="design.architecture",
            hint=f"--set design.architecture.hidden_size={hidden // heads * heads or heads}",
        )
    return heads


def _window_without_longformer(window: int, family: str) -> RecipeError:
    return RecipeError(
        f"`attention_window` is {window}, but a {family} model attends to all tokens",
        where="design.attention_window",
        hint="--set design.attention_window=null, or make it a Longformer with --set design.extend_to=4096",
    )


def choose_max_length(design: DesignSection, config: Mapping[str, Any]) -> tuple[int, str]:
    """The longest input in tokens and the reason for it; `config` is the checkpoint's, before it is extended.

    Raises RecipeError when `design` asks for something that this checkpoint cannot do: more tokens, more
    layers, or a window in full attention.
    """
    if config.get("model_type") not in FAMILIES:
        return _length_of_other_family(design, config)
    model = dimensions(config)
    if design.num_layers is not None and design.num_layers > model.num_layers:
        raise RecipeError(
            f"`num_layers` is {design.num_layers}, but the checkpoint has {model.num_layers} layers",
            where="design.num_layers",
            hint=f"--set design.num_layers={model.num_layers}, or null for all",
        )
    if design.attention_window is not None and model.family != "longformer" and design.extend_to is None:
        raise _window_without_longformer(design.attention_window, model.family)
    limit = design.extend_to or model.max_tokens
    if design.max_length is None:
        return limit, "as far as design.extend_to goes" if design.extend_to else "the most the model can take"
    if design.max_length <= limit:
        return design.max_length, "as the recipe says"
    hint = f"--set design.max_length={limit}"
    if design.extend_to is None and model.family != "longformer":
        hint = f"--set design.extend_to={design.max_length} (as a Longformer), or {hint}"
    raise RecipeError(
        f"`max_length` is {design.max_length} tokens, but the model can take {limit}",
        where="design.max_length",
        hint=hint,
    )


def _length_of_other_family(design: DesignSection, config: Mapping[str, Any]) -> tuple[int, str]:
    """The same for an encoder that this room has no formulas for; transformers builds and trains it all the same."""
    family = str(config.get("model_type"))
    for key, value in (("extend_to", design.extend_to), ("attention_window", design.attention_window)):
        if value is not None:
            raise RecipeError(
                f"`{key}` is {value}, but a {family} checkpoint cannot be turned into a Longformer",
                where=f"design.{key}",
                hint=f"--set design.{key}=null, or take a BERT- or RoBERTa-like checkpoint",
            )
    limit = config.get("max_position_embeddings")
    if not isinstance(limit, int) or limit < 4:  # relative positions have no limit of their own
        return design.max_length or 512, "512 tokens: the checkpoint names no limit"
    if design.max_length is not None and design.max_length > limit:
        raise RecipeError(
            f"`max_length` is {design.max_length} tokens, but the model can take {limit}",
            where="design.max_length",
            hint=f"--set design.max_length={limit}",
        )
    return design.max_length or limit, "the most that the model can take"
