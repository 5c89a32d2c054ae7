"""How large the model of a recipe is, in numbers and in one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from modelyard.design.architecture import count_parameters, dimensions, flops_per_token
from modelyard.errors import InputError
from modelyard.recipe.schema import DesignSection


def changed_config(design: DesignSection, config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration after what `design` changes: fewer layers, a longer Longformer, another window."""
    changed = dict(config)
    if design.num_layers is not None:
        changed["num_hidden_layers"] = design.num_layers
    if design.extend_to is not None:
        changed["model_type"] = "longformer"
        changed["max_position_embeddings"] = design.extend_to + int(config.get("pad_token_id") or 0) + 1
        changed.setdefault("attention_window", 512)
    if design.attention_window is not None:
        changed["attention_window"] = design.attention_window
    return changed


def describe_model(
    design: DesignSection, config: Mapping[str, Any], *, num_labels: int, num_tokens: float
) -> dict[str, Any]:
    """Sizes of the model, exact for the families that `architecture` knows.

    num_tokens: mean length of the training examples, for the FLOPs of one example.
    ``num_parameters`` and ``training_flops_per_token`` are None for other families, which are trained all the
    same.
    """
    changed = changed_config(design, config)
    family = str(changed.get("model_type"))
    try:
        sizes = dimensions(changed)
    except InputError:
        return {
            "family": family,
            "num_parameters": None,
            "training_flops_per_token": None,
            "summary": f"{family}: its size is known once it is built",
        }
    num_parameters = count_parameters(changed, num_labels)
    window = f", window {sizes.attention_window[0]}" if sizes.attention_window else ""
    return {
        "family": family,
        "num_layers": sizes.num_layers,
        "hidden_size": sizes.hidden_size,
        "max_tokens": sizes.max_tokens,
        "attention_window": list(sizes.attention_window) if sizes.attention_window else None,
        "num_parameters": num_parameters,
        "training_flops_per_token": flops_per_token(changed, round(num_tokens), training=True),
        "summary": (
            f"{family}, {sizes.num_layers} layers of width {sizes.hidden_size}, {num_parameters / 1e6:.1f} "
            f"M parameters, "
            f"up to {sizes.max_tokens:,} tokens{window}"
        ),
    }
