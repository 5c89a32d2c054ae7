"""Parts of a model, and the optimiser over them.

Parts are found by the order in which a Hugging Face base model holds its modules, not by their names: what
comes before the stack of layers is ``embeddings``, the stack is ``encoder``, what comes after it (a pooler)
and everything outside the base model is ``head``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from modelyard.engines.base import OptimizerSpec

Part = Literal["embeddings", "encoder", "head"]


def parts_of(model: PreTrainedModel) -> dict[str, Part]:
    """The part of every parameter, by its name in ``model.named_parameters()``."""
    base = model.base_model
    parts: dict[int, Part] = {}
    part: Part = "embeddings"
    for child in base.children():
        holds_layers = any(isinstance(module, nn.ModuleList) for module in child.modules())
        if holds_layers:
            part = "encoder"
        elif part == "encoder":
            part = "head"
        parts |= {id(parameter): part for parameter in child.parameters()}
    directly = {id(parameter) for parameter in base.parameters(recurse=False)}
    return {
        name: "embeddings" if id(parameter) in directly else parts.get(id(parameter), "head")
        for name, parameter in model.named_parameters()
    }


def freeze_parts(model: PreTrainedModel, frozen: tuple[str, ...]) -> None:
    """Let the parameters of these parts take no gradient."""
    parts = parts_of(model)
    for name, parameter in model.named_parameters():
        if parts[name] in frozen:
            parameter.requires_grad_(False)


def build_optimizer(model: PreTrainedModel, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that learn; each group has the ``multiplier`` of its learning rate.

    Weight decay leaves out vectors: biases, and scales of normalisations (as in BERT, arXiv 1810.04805).
    """
    multipliers: dict[Part, float] = {
        "embeddings": spec.embedding_multiplier,
        "encoder": 1.0,
        "head": spec.head_multiplier,
    }
    groups = [
        {
            "params": parameters,
            "weight_decay": spec.weight_decay if decay else 0.0,
            "multiplier": multipliers[part],
        }
        for part, decay, parameters in _groups(model)
    ]
    kind = torch.optim.Adam if spec.name == "adam" else torch.optim.AdamW
    # The learning rate comes with every step. Fused: one kernel for all, and an update that can be left out
    # without asking the device (see `TorchLearner.step`).
    return kind(groups, lr=0.0, betas=spec.betas, eps=spec.epsilon, fused=True)


def _groups(model: PreTrainedModel) -> Iterator[tuple[Part, bool, list[nn.Parameter]]]:
    parts = parts_of(model)
    learning = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    for part in ("embeddings", "encoder", "head"):
        for decay in (True, False):
            parameters = [each for name, each in learning if parts[name] == part and (each.ndim > 1) == decay]
            if parameters:
                yield part, decay, parameters
