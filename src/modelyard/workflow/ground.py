"""What a recipe stands on: the model's folder and configuration, its tokenizer, the prepared data.

Everything that was left open in the recipe (``auto``, None) is found here or in `choose_plan`; the value and the reason
go into the resolved recipe.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelyard.data.prepare import prepare, training_texts
from modelyard.data.prepared import Prepared
from modelyard.data.tokenizer import TextTokenizer
from modelyard.design.architecture import choose_max_length, from_architecture
from modelyard.design.sources import resolve_model
from modelyard.engines.base import Device, Engine, ModelSpec, OptimizerSpec, Plan
from modelyard.errors import InputError, MachineError
from modelyard.recipe.schema import Recipe
from modelyard.recipe.write import set_values
from modelyard.runs.places import cache_folder
from modelyard.tasks.text_classification import TASKS

ENGINES = {"torch": "modelyard.engines.torch.engine:TorchEngine"}
# Tokens computed at once: enough that matrix products run at full rate, little enough that activations of a 12-layer
# base model stay near 4 GB (CPU) or well below the smallest cards' memory share. A guess that the planner will replace.
CPU_MICRO_BATCH_TOKENS = 4096
DEFAULT_VOCAB_SIZE = 8192  # a guess: a tenth of a large vocabulary, for data sets that are small too
CUDA_TOKENS_PER_GB = 1024

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True)
class Ground:
    """The recipe with everything found out that does not need a framework, and what it stands on."""

    recipe: Recipe
    reasons: dict[str, str]
    source: Path | None
    config: dict[str, Any]
    tokenizer: TextTokenizer
    prepared: Prepared


def load_engine(name: str) -> Engine:
    """The engine of that name. Its framework is imported here and nowhere before."""
    module_name, class_name = ENGINES[name].split(":")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] == "modelyard":
            raise
        raise MachineError(
            f"the recipe's framework is {name}, but `{error.name}` is not installed in this Python",
            hint=f"pip install 'modelyard[{name}]'",
        ) from error
    engine: Engine = getattr(module, class_name)()
    return engine


def stand_on(recipe: Recipe, data_folder: Path | None, progress: Progress | None = None) -> Ground:
    """Find the model, load or train its tokenizer, and prepare the data.

    data_folder: where ``rejected.jsonl`` goes when bad rows are skipped.
    """
    design = recipe.design
    reasons: dict[str, str] = {}
    source: Path | None = None
    if design.model is not None:
        source = resolve_model(design.model)
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        tokenizer = TextTokenizer.load(source)
    else:
        config, tokenizer = _from_scratch(recipe, progress)
    require_own_tokenizer(tokenizer, config, design.model)
    max_length, reason = choose_max_length(design, config)
    if design.max_length is None:
        reasons["design.max_length"] = reason
        recipe = set_values(recipe, {"design.max_length": max_length})
    rejected = None if data_folder is None else data_folder / "rejected.jsonl"
    prepared = _prepare(recipe, tokenizer, max_length, rejected, progress)
    if recipe.data.labels is None:
        reasons["data.labels"] = "the labels found in train, sorted"
        recipe = set_values(recipe, {"data.labels": prepared.labels})
    return Ground(recipe, reasons, source, config, tokenizer, prepared)


def examples_of_run(recipe: Recipe, model: Path) -> Prepared:
    """The prepared data of a trained run. Its own tokenizer in `model` is the one that it was made with."""
    assert recipe.design.max_length is not None
    return _prepare(recipe, TextTokenizer.load(model), recipe.design.max_length, None, None)


def _prepare(
    recipe: Recipe, tokenizer: TextTokenizer, max_length: int, rejected: Path | None, progress: Progress | None
) -> Prepared:
    return prepare(
        recipe.data,
        TASKS[recipe.task],
        tokenizer,
        max_length=max_length,
        on_too_long=recipe.design.on_too_long,
        cache_folder=cache_folder(),
        rejected_path=rejected,
        progress=progress,
    )


def require_own_tokenizer(tokenizer: TextTokenizer, config: Mapping[str, Any], model: str | None) -> None:
    """Raises InputError when the tokenizer makes ids that the model has no embedding for: they are not a pair."""
    rows = config.get("vocab_size")
    if isinstance(rows, int) and tokenizer.vocab_size > rows:
        raise InputError(
            f"the tokenizer of {model} has {tokenizer.vocab_size:,} entries, but the model only {rows:,} embeddings: "
            "they do not belong together",
            hint="put the tokenizer files of this very checkpoint into its folder",
        )


def _from_scratch(recipe: Recipe, progress: Progress | None) -> tuple[dict[str, Any], TextTokenizer]:
    """A configuration of the family's preset, and a vocabulary learned from the training texts alone."""
    architecture = recipe.design.architecture
    assert architecture is not None
    tokenizer = TextTokenizer.train(
        training_texts(recipe.data, TASKS[recipe.task], progress),
        vocab_size=architecture.vocab_size or DEFAULT_VOCAB_SIZE,
        family=architecture.family,
    )
    special = tokenizer.special_token_ids()
    config = from_architecture(
        architecture,
        vocab_size=tokenizer.vocab_size,
        pad_token_id=special["pad"],
        cls_token_id=special["cls"],
        sep_token_id=special["sep"],
        max_length=recipe.design.max_length,
        attention_window=recipe.design.attention_window,
    )
    return config, tokenizer


def micro_tokens(recipe: Recipe) -> int:
    """Tokens computed at once, of a recipe that `choose_plan` has resolved."""
    tokens = recipe.training.max_micro_batch_tokens
    assert isinstance(tokens, int)
    return tokens


def model_spec(ground: Ground) -> ModelSpec:
    """The wall's description of the model that the recipe asks for."""
    design = ground.recipe.design
    return ModelSpec(
        source=ground.source,
        config=ground.config,
        labels=ground.prepared.labels,
        extend_to=design.extend_to,
        extend_global=design.extend_global,
        attention_window=design.attention_window,
        num_layers=design.num_layers,
        hidden_dropout=design.dropout,
        attention_dropout=design.attention_dropout,
    )


def optimizer_spec(recipe: Recipe) -> OptimizerSpec:
    """The wall's description of the optimiser that the recipe asks for."""
    training = recipe.training
    return OptimizerSpec(
        name=training.optimizer,
        betas=(training.adam_beta1, training.adam_beta2),
        epsilon=training.adam_epsilon,
        weight_decay=training.weight_decay,
        max_gradient_norm=training.max_gradient_norm,
        label_smoothing=training.label_smoothing,
        head_multiplier=training.head_multiplier,
        embedding_multiplier=training.embedding_multiplier,
        freeze=training.freeze,
        average_decay=training.average_decay,
    )


def choose_device(engine: Engine, wanted: str) -> tuple[Device, str]:
    """The device that the recipe names, or the best one. Raises MachineError when it is not there."""
    devices = engine.devices()
    if wanted == "auto":
        return devices[0], f"the best device that works: {devices[0].description}"
    for device in devices:
        if device.name == wanted or (wanted == "cuda" and device.kind == "cuda"):
            return device, "asked for"
    found = "; ".join(f"{device.name} ({device.description})" for device in devices)
    raise MachineError(
        f"the device {wanted!r} was asked for, but it is not there or does not work; found: {found}",
        hint=f"--set environment.device={devices[0].name}",
    )


def choose_plan(recipe: Recipe, engine: Engine) -> tuple[Plan, Device, Recipe, dict[str, str]]:
    """How to train on this machine, with reasons; what was ``auto`` is written into the recipe."""
    training = recipe.training
    device, device_reason = choose_device(engine, recipe.environment.device)
    reasons = {"environment.device": device_reason}
    precision = training.precision
    if precision == "auto":
        precision = "bfloat16" if device.fast_bfloat16 else "float32"
        reasons["training.precision"] = (
            f"{device.name} computes bfloat16 faster" if device.fast_bfloat16 else f"{device.name} has no fast bfloat16"
        )
    if isinstance(training.max_micro_batch_tokens, int):
        tokens = training.max_micro_batch_tokens
    else:
        longest = recipe.design.max_length or 0
        room = CPU_MICRO_BATCH_TOKENS if device.kind == "cpu" else int(device.memory_bytes / 1e9 * CUDA_TOKENS_PER_GB)
        tokens = max(longest, room)
        reasons["training.max_micro_batch_tokens"] = f"the longest input, or {room:,} for {device.kind}"
    plan = Plan(
        device=device.name,
        precision=precision,
        max_micro_batch_tokens=tokens,
        activation_checkpointing=training.activation_checkpointing,
        compile=training.compile,
        seed=training.seed,
        reasons=reasons,
    )
    resolved = set_values(
        recipe,
        {
            "environment.device": device.name,
            "training.precision": precision,
            "training.max_micro_batch_tokens": tokens,
        },
    )
    changed = {
        key: reason
        for key, reason in reasons.items()
        if key != "environment.device" or recipe.environment.device != device.name
    }
    return plan, device, resolved, changed
