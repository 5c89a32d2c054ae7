"""Building a Hugging Face classifier from a `ModelSpec`, and saying plainly what was done to a checkpoint.

Only safetensors are read, nothing is downloaded, no code of a checkpoint is run.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from modelyard.engines.base import ModelSpec
from modelyard.engines.torch.attention.longformer import accelerate
from modelyard.engines.torch.extend import extend_to, extended_config
from modelyard.engines.torch.optimizer import parts_of
from modelyard.errors import InputError

WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
PICKLED_WEIGHTS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
# Two-sided window of Longformer (arXiv 2004.05150, section 4.2), for extending without a window given.
DEFAULT_WINDOW = 512
# What families call the same probability.
HIDDEN_DROPOUT = ("hidden_dropout_prob", "hidden_dropout", "dropout", "resid_pdrop")
ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout", "attn_pdrop")


@dataclass(frozen=True)
class BuiltModel:
    """A float32 model on the CPU, and what a person should know of how it came about."""

    model: PreTrainedModel
    notes: tuple[str, ...]


def build_model(spec: ModelSpec, *, seed: int) -> BuiltModel:
    """Build the classifier of `spec`; weights that no checkpoint gives are drawn from `seed`.

    Raises InputError for a checkpoint that is missing, damaged, incomplete or unable to do what is asked.
    """
    with _quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if spec.source is None:
            built = _from_scratch(spec)
        elif spec.extend_to is None:
            built = _from_checkpoint(spec.source, spec)
        else:
            with tempfile.TemporaryDirectory(prefix="modelyard-") as folder:
                window = spec.attention_window or DEFAULT_WINDOW
                extended = Path(folder) / "extended"
                extend_to(
                    spec.source, extended, spec.extend_to, attention_window=window, global_token=spec.extend_global
                )
                built = _from_checkpoint(extended, spec)
    return built


def build_without_weights(spec: ModelSpec) -> PreTrainedModel:
    """The model that `build_model` builds, its weights not even drawn; of a source only ``config.json`` is read.

    Raises InputError for a configuration that is missing, of no use, or unable to do what is asked.
    """
    with _quiet(), no_init_weights():
        if spec.source is None:
            return _from_scratch(spec).model
        if spec.extend_to is None:
            config = _read_config(spec.source)
        else:
            window = spec.attention_window or DEFAULT_WINDOW
            config = extended_config(spec.source, spec.extend_to, attention_window=window)
        _change(config, spec)
        return _accelerated(_new_model(config))


def load_model(folder: Path, *, own_attention: bool = True) -> PreTrainedModel:
    """Load a classifier as `write_model` wrote it: float32, on the CPU, in evaluation mode.

    own_attention: put our attention into a Longformer; without it the model is what everybody else will load.

    Raises InputError when a weight is missing or the files cannot be read.
    """
    with _quiet():
        config = _read_config(folder)
        _require_weights(folder)
        model, missing, _ = _load(folder, config)
        if missing:
            raise InputError(
                f"{folder} lacks weights: {_some(missing)}",
                hint="name the model/ folder of a run, or another fine-tuned classifier",
            )
    if own_attention:
        model = _accelerated(model)
    model.train(False)
    return model


def _from_scratch(spec: ModelSpec) -> BuiltModel:
    keys = dict(spec.config)
    family = keys.pop("model_type", None)
    try:
        config = AutoConfig.for_model(family, **keys)
    except ValueError as error:
        raise InputError(
            f"model_type {family!r} is not a family that transformers {transformers.__version__} knows",
            hint="--set design.architecture.family=bert (or roberta, longformer)",
        ) from error
    notes = _change(config, spec)
    return BuiltModel(_accelerated(_new_model(config)), (*notes, "all weights start from random numbers"))


def _new_model(config: PretrainedConfig) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForSequenceClassification.from_config(  # type: ignore[no-untyped-call]
        config, dtype=torch.float32
    )
    return model


def _from_checkpoint(folder: Path, spec: ModelSpec) -> BuiltModel:
    config = _read_config(folder)
    _require_weights(folder)
    old_labels = _labels_of(config)
    notes = _change(config, spec)
    model, missing, reshaped = _load(folder, config)
    parts = parts_of(model)
    lost = [name for name in (*missing, *reshaped) if parts.get(name, "encoder") != "head"]
    if lost:
        raise InputError(
            f"{folder} does not hold the {config.model_type} that its config.json describes: "
            f"{_some(lost)} missing or of another shape",
            hint="download it again, or check that config.json and model.safetensors belong together",
        )
    notes += _notes_on_head(missing, reshaped, old_labels, spec.labels)
    return BuiltModel(_accelerated(model), tuple(notes))


def _notes_on_head(
    missing: list[str], reshaped: list[str], old_labels: tuple[str, ...], labels: tuple[str, ...]
) -> list[str]:
    if reshaped:
        return [f"the checkpoint classifies {len(old_labels)} labels, this task has {len(labels)}: new head"]
    if missing:
        return [f"the checkpoint has no whole classification head; these weights are new: {_some(missing)}"]
    generic = tuple(f"LABEL_{index}" for index in range(len(old_labels)))
    if old_labels == labels:
        return [f"the checkpoint's head is kept: it was trained for the same labels, {', '.join(labels)}"]
    meant = "unnamed labels" if old_labels == generic else ", ".join(old_labels)
    return [f"the checkpoint's head is kept, though it was trained for {meant}; now it learns {', '.join(labels)}"]


def _read_config(folder: Path) -> PretrainedConfig:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"{folder} is not a Hugging Face model: it has no config.json",
            hint="give a folder with config.json and model.safetensors",
        )
    try:
        return cast(
            PretrainedConfig,
            AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False),
        )
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder / 'config.json'} is of no use to transformers {transformers.__version__}: {_first_line(error)}",
            hint="use a checkpoint of a family that transformers contains; code in a checkpoint is never run",
        ) from error


def _require_weights(folder: Path) -> None:
    if not any((folder / name).is_file() for name in WEIGHTS):
        pickled = next((name for name in PICKLED_WEIGHTS if (folder / name).is_file()), None)
        found = f"only {pickled}, a pickle, which can run code when it is read" if pickled else "no weights"
        raise InputError(
            f"{folder} has no model.safetensors, {found}",
            hint="take a revision with model.safetensors, or convert it where you trust the file: "
            "AutoModel.from_pretrained(OLD).save_pretrained(NEW)",
        )


def _load(folder: Path, config: PretrainedConfig) -> tuple[PreTrainedModel, list[str], list[str]]:
    """The model, names of weights that the folder lacks, and of those that have another shape there."""
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=torch.float32,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"the weights in {folder} cannot be read: {_first_line(error)}",
            hint="download or copy the checkpoint again",
        ) from error
    except ValueError as error:
        raise InputError(
            f"{folder} holds a {config.model_type}, which has no text classifier: {_first_line(error)}",
            hint="use an encoder such as BERT, RoBERTa or Longformer",
        ) from error
    return model, sorted(report["missing_keys"]), sorted(name for name, *_ in report["mismatched_keys"])


def _change(config: PretrainedConfig, spec: ModelSpec) -> list[str]:
    """Write labels, layers, window and dropout into `config`; what could not be done is said."""
    config.id2label = dict(enumerate(spec.labels))
    config.label2id = {label: index for index, label in enumerate(spec.labels)}
    config.problem_type = "single_label_classification"
    notes = []
    if spec.num_layers is not None:
        notes += _keep_layers(config, spec.num_layers)
    if spec.attention_window is not None and spec.source is not None:
        if not hasattr(config, "attention_window"):
            raise InputError(
                f"attention_window is {spec.attention_window}, but a {config.model_type} has no such window",
                hint="use a Longformer, make one with design.extend_to, or remove design.attention_window",
            )
        config.attention_window = [spec.attention_window] * config.num_hidden_layers
    for names, value, option in (
        (HIDDEN_DROPOUT, spec.hidden_dropout, "dropout"),
        (ATTENTION_DROPOUT, spec.attention_dropout, "attention_dropout"),
    ):
        name = next((each for each in names if hasattr(config, each)), None)
        if value is not None and name is not None:
            setattr(config, name, value)
        elif value:
            raise InputError(
                f"{option} is {value}, but a {config.model_type} has no such probability",
                hint=f"--set design.{option}=null",
            )
    return notes


def _keep_layers(config: PretrainedConfig, num_layers: int) -> list[str]:
    had = config.num_hidden_layers
    if num_layers > had:
        raise InputError(
            f"num_layers is {num_layers}, but the checkpoint has {had} layers",
            hint=f"--set design.num_layers={had}",
        )
    # Settings of single layers are lists with one entry a layer (attention_window, layer_types).
    for name, value in config.to_dict().items():
        if isinstance(value, list) and len(value) == had and name != "architectures":
            setattr(config, name, value[:num_layers])
    config.num_hidden_layers = num_layers
    return [f"the first {num_layers} of {had} layers are kept"] if num_layers < had else []


def _labels_of(config: PretrainedConfig) -> tuple[str, ...]:
    names = cast(dict[int, str], config.id2label or {})
    return tuple(names[index] for index in sorted(names))


def _accelerated(model: PreTrainedModel) -> PreTrainedModel:
    return accelerate(model) if model.config.model_type == "longformer" else model


def _some(names: Iterable[str]) -> str:
    every = list(names)
    return ", ".join(every[:3]) + (f" and {len(every) - 3} more" if len(every) > 3 else "")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers reports in tables and progress bars; what matters of it is in our notes and errors."""
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
