"""The recipe: the typed, frozen description of a run.

Every field carries its description (unit included) and its default here and nowhere else; ``docs/recipes.md`` is
generated from this file. ``auto`` and ``None`` mean "found out for you": the resolved recipe that is stored with a run
holds the value that was found and the reason for it.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

TaskName = Literal["text-classification", "sentiment"]
MetricName = Literal["accuracy", "precision", "recall", "f1"]


class Section(BaseModel):
    """Common to all sections: unknown keys are errors, values cannot change once loaded."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class EnvironmentSection(Section):
    """What computes."""

    framework: Literal["torch"] = Field("torch", description="Framework that trains the model.")
    device: Annotated[str, Field(pattern=r"^(auto|cpu|cuda|cuda:\d+)$")] = Field(
        "auto", examples=["auto", "cpu", "cuda", "cuda:0"], description="`auto` (a working GPU, else the processor), `cpu`, `cuda` or `cuda:N`."
    )


class SplitSection(Section):
    """How examples are divided when no separate files are given."""

    validation: float = Field(0.1, ge=0.0, lt=1.0, description="Share of the training examples held out to select the model.")
    test: float = Field(0.2, ge=0.0, lt=1.0, description="Share of all examples held out to judge the model once.")
    seed: int = Field(7, ge=0, description="Seed of the division.")
    stratify: bool = Field(True, description="Keep the share of each class equal in all parts.")
    group: str | None = Field(None, description="Column whose equal values must stay in one part (an author, a patient).")
    column: str | None = Field(None, description="Column that already names the part: `train`, `validation` or `test`.")


class DataSection(Section):
    """Where the examples come from and which of them are used."""

    train: str = Field(min_length=1, description="A file (CSV, TSV, JSONL, Parquet; also .gz), a folder with one subfolder per class, or a dataset id of the Hugging Face hub.")
    validation: str | None = Field(None, min_length=1, description="The same for validation; else `split.validation` of train.")
    test: str | None = Field(None, min_length=1, description="The same for the test; else `split.test` of train.")
    text: str = Field("text", description="Column of the text.")
    label: str = Field("label", description="Column of the label.")
    labels: tuple[str, ...] | None = Field(None, description="Class names in a fixed order; else those found in train, sorted.")
    label_names: dict[str, str] | None = Field(None, description="Readable names for raw labels, such as `{\"0\": negative}`.")
    remove: str | None = Field(None, description="Regular expression; what it matches is taken out of every text, in training and in use.")
    split: SplitSection = Field(default_factory=SplitSection, description="How examples are divided.")
    on_bad_row: Literal["error", "skip"] = Field("error", description="`error` stops at the first bad row and names it; `skip` writes it to rejected.jsonl and goes on.")
    max_examples: int | None = Field(None, ge=2, description="Use only so many examples of each source, drawn by `split.seed`.")

    @field_validator("remove")
    @classmethod
    def _regular_expression(cls, value: str | None) -> str | None:
        try:
            re.compile(value or "")
        except re.error as error:
            raise ValueError(f"`remove` is `{value}`, which is not a regular expression: {error}") from None
        return value


class ArchitectureSection(Section):
    """A model from scratch: a family and its dimensions."""

    family: Literal["bert", "roberta", "longformer"] = Field(description="Model family.")
    preset: Literal["tiny", "small", "base"] = Field("small", description="Dimensions, from design/presets.yaml; the fields below override them.")
    num_layers: int | None = Field(None, ge=1, description="Transformer layers.")
    hidden_size: int | None = Field(None, ge=8, description="Width of the hidden states; a multiple of num_attention_heads.")
    num_attention_heads: int | None = Field(None, ge=1, description="Attention heads a layer.")
    vocab_size: int | None = Field(None, ge=300, description="Entries of the tokenizer that is trained on the data.")


class DesignSection(Section):
    """The model: a pretrained checkpoint, or an architecture from scratch."""

    model: str | None = Field(None, min_length=1, description="Checkpoint: an id of the Hugging Face hub (`name` or `name@revision`), a local folder with config.json and model.safetensors, or `package:NAME/FOLDER` inside an installed Python package.")
    architecture: ArchitectureSection | None = Field(None, description="Instead of `model`: train from scratch.")
    extend_to: int | None = Field(None, ge=16, description="Turn a BERT- or RoBERTa-like checkpoint into a Longformer of so many positions (tokens).")
    extend_global: Literal["copy", "mean"] = Field("copy", description="How the global token of an extended Longformer starts: `copy` of the local attention, or the `mean` of all tokens (its query is zero, so that every token weighs the same until it learns otherwise).")
    attention_window: int | None = Field(None, ge=2, multiple_of=2, description="Tokens that a token attends to, both sides together (Longformer); else the checkpoint's.")
    num_layers: int | None = Field(None, ge=1, description="Keep only the first so many layers of the checkpoint.")
    max_length: int | None = Field(None, ge=4, description="Longest input in tokens, special tokens included; else the most that the model can take.")
    on_too_long: Literal["truncate", "error"] = Field("truncate", description="What happens to longer texts; how much is lost is always reported.")
    dropout: float | None = Field(None, ge=0.0, lt=1.0, description="Dropout of hidden states; else the checkpoint's.")
    attention_dropout: float | None = Field(0.0, ge=0.0, lt=1.0, description="Dropout of attention probabilities. 0 by default, because it makes attention about twice as slow; null keeps the checkpoint's.")

    @model_validator(mode="after")
    def _one_source(self) -> DesignSection:
        if (self.model is None) == (self.architecture is None):
            raise ValueError("give exactly one of `model` (a checkpoint) and `architecture` (from scratch)")
        if self.architecture is not None and (self.extend_to is not None or self.num_layers is not None):
            raise ValueError("`extend_to` and `num_layers` change a checkpoint; from scratch, set the dimensions under `architecture`")
        if self.extend_global == "mean" and self.extend_to is None:
            raise ValueError("`extend_global` is `mean`, but it changes only a checkpoint that `extend_to` makes longer: give `extend_to` too, or leave `extend_global` out")
        return self


class TrainingSection(Section):
    """How the model learns."""

    optimizer: Literal["adam", "adamw"] = Field("adamw", description="`adam` (weight decay as L2) or `adamw` (decoupled weight decay).")
    learning_rate: float = Field(5e-5, gt=0.0, le=10.0, description="Highest learning rate of the schedule.")
    weight_decay: float = Field(0.01, ge=0.0, le=1.0, description="Weight decay; biases and normalisations are left out.")
    adam_beta1: float = Field(0.9, ge=0.0, lt=1.0, description="Decay of the first moment.")
    adam_beta2: float = Field(0.999, ge=0.0, lt=1.0, description="Decay of the second moment.")
    adam_epsilon: float = Field(1e-8, gt=0.0, description="Added to the denominator of the update.")
    head_start: Literal["random", "probe"] = Field("random", description="`probe` fits the head by logistic regression on the frozen encoder's outputs before the first step (LP-FT, Kumar et al. 2022, arXiv 2202.10054).")
    head_multiplier: float = Field(1.0, gt=0.0, le=10000.0, description="Factor on the learning rate of the classification head.")
    embedding_multiplier: float = Field(1.0, gt=0.0, le=10000.0, description="Factor on the learning rate of the embeddings.")
    freeze: tuple[Literal["embeddings", "encoder"], ...] = Field((), description="Parts that do not learn.")
    average_decay: float | None = Field(None, gt=0.0, lt=1.0, description="Judge and keep an exponential moving average of the weights with this decay a step (0.98 averages about 50 steps, fewer at the beginning) instead of the last ones.")
    num_epochs: int = Field(3, ge=1, description="Passes over the training examples.")
    steps_per_epoch: int | None = Field(None, ge=1, description="Optimiser steps that are called an epoch; else one pass over the examples.")
    batch_size: int = Field(16, ge=1, description="Examples an optimiser step, over all devices; kept exactly, whatever fits into memory at once.")
    train_window: int | None = Field(None, ge=16, description="Train on random windows of so many tokens of each document, a new one every epoch; evaluation always reads whole documents.")
    schedule: Literal["constant", "linear", "cosine"] = Field("linear", description="Course of the learning rate after the warm-up.")
    warmup_ratio: float = Field(0.06, ge=0.0, le=1.0, description="Share of all steps in which the learning rate rises from 0.")
    max_gradient_norm: float | None = Field(1.0, gt=0.0, description="Gradients are scaled down to this L2 norm; null never clips.")
    label_smoothing: float = Field(0.0, ge=0.0, lt=1.0, description="Share of the target spread over all classes.")
    class_weights: Literal["none", "balanced"] = Field("none", description="`balanced` weights each example by examples / (classes * examples of its class).")
    precision: Literal["auto", "float32", "bfloat16"] = Field("float32", description="Number format of matrix products; `auto` takes bfloat16 where the device computes it faster, and says so.")
    activation_checkpointing: bool = Field(False, description="Recompute activations in the backward pass: less memory, about a third more time.")
    compile: bool = Field(False, description="Compile the model with torch.compile.")
    padding: Literal["batch", "max_length"] = Field("batch", description="`batch` sorts by length and pads to the longest of a micro-batch; `max_length` pads everything to design.max_length.")
    max_micro_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=16)] = Field("auto", description="Tokens computed at once, padding included; changes memory and speed, not what is learned.")
    early_stopping_patience: int | None = Field(None, ge=1, description="Stop after so many evaluations without a better `best_metric`.")
    best_metric: Literal["loss", "accuracy", "precision", "recall", "f1"] = Field("f1", description="Validation metric (macro average) that selects the best model.")
    checkpoint_every_steps: int | None = Field(None, ge=1, description="Optimiser steps between checkpoints.")
    checkpoint_every_minutes: float | None = Field(10.0, gt=0.0, description="Minutes between checkpoints; one is also written after each epoch.")
    keep_checkpoints: int = Field(2, ge=1, description="Newest checkpoints kept, besides the best.")
    seed: int = Field(42, ge=0, description="Seed of initial weights, order of examples and dropout.")


class EvaluationSection(Section):
    """How the model is judged."""

    metrics: tuple[MetricName, ...] = Field(("accuracy", "precision", "recall", "f1"), min_length=1, description="Metrics in the order of the report.")
    baseline: Literal["auto", "none"] = Field("auto", description="`auto`: majority class, and TF-IDF with logistic regression, on the same split.")
    confidence: float = Field(0.95, gt=0.5, lt=1.0, description="Confidence level of all intervals.")
    num_resamples: int = Field(2000, ge=100, description="Bootstrap resamples.")
    seed: int = Field(0, ge=0, description="Seed of the bootstrap.")


class DeploymentSection(Section):
    """What is made of the trained model."""

    formats: tuple[Literal["huggingface"], ...] = Field(("huggingface",), min_length=1, description="Formats of the bundle; each is compared with the trained model before it is published.")
    max_texts: int = Field(64, ge=1, description="Most texts in one request to the server.")
    max_characters: int = Field(200_000, ge=1, description="Most characters in one text sent to the server.")


class Recipe(Section):
    """One run, from data to deployment."""

    task: TaskName = Field(description="What is learned; `sentiment` is text classification with its own defaults.")
    environment: EnvironmentSection = Field(default_factory=EnvironmentSection, description="What computes.")
    data: DataSection = Field(description="Where the examples come from.")
    design: DesignSection = Field(description="The model.")
    training: TrainingSection = Field(default_factory=TrainingSection, description="How it learns.")
    evaluation: EvaluationSection = Field(default_factory=EvaluationSection, description="How it is judged.")
    deployment: DeploymentSection = Field(default_factory=DeploymentSection, description="What is made of it.")
