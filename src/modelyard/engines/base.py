"""The wall between modelyard and a framework: what an engine must offer, in plain numpy.

Legend: B examples in a batch, T positions (tokens), C classes.

Nothing in this file imports a framework. ``training/loop.py`` drives any `Learner`; it never sees a tensor.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Precision = Literal["float32", "bfloat16"]
MemoryCause = Literal["weights", "gradients", "optimizer", "activations", "temporaries", "inputs"]


@dataclass(frozen=True)
class Batch:
    """One micro-batch as named arrays.

    arrays: ``input_ids`` (B, T) int64; ``attention_mask`` (B, T) int64, 1 = a token, 0 = padding;
        in training and evaluation also ``labels`` (B,) int64.
    weights: (B,) float32, the weight of each example in the loss; 0 for an example that only fills the batch.
    rows: (B,) int64, positions in the prepared split, so that an error can name them.
    """

    arrays: Mapping[str, NDArray[Any]]
    weights: NDArray[np.float32]
    rows: NDArray[np.int64]

    @property
    def num_examples(self) -> int:
        return len(self.rows)

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding."""
        return int(self.arrays["attention_mask"].sum())


@dataclass(frozen=True)
class Predictions:
    """What a model says of a batch, in the order of the batch. logits: (B, C) float32."""

    logits: NDArray[np.float32]


class LossValue(Protocol):
    """A number that may still be on its way from the device; asking for it waits."""

    def item(self) -> float: ...


@dataclass(frozen=True)
class StepOutcome:
    """One optimiser step.

    loss: the weighted mean over the step's examples, sum(w_i * loss_i) / sum(w_i), whatever the micro-batches were.
    gradient_norm: L2 norm of all gradients before clipping.
    """

    loss: LossValue
    gradient_norm: LossValue
    num_examples: int
    num_tokens: int


@dataclass(frozen=True)
class Device:
    """A device that an engine can compute on. kind: ``cpu`` or ``cuda``; name as the person writes it (``cuda:0``)."""

    name: str
    kind: Literal["cpu", "cuda"]
    description: str
    memory_bytes: int
    num_threads: int
    fast_bfloat16: bool


@dataclass(frozen=True)
class ModelSpec:
    """The model to build: a checkpoint folder with changes to it, or a configuration to start from scratch.

    source: a Hugging Face folder (``config.json``, ``model.safetensors``), or None to start from ``config``.
    config: keys of the Hugging Face configuration when there is no source (``model_type`` among them).
    labels: class names in the order of the logits.
    extend_to: positions that a BERT- or RoBERTa-like source is extended to (as a Longformer), or None.
    extend_global: how the global token of an extended source starts: ``copy`` of the local attention, or the ``mean``
        of all tokens.
    attention_window: two-sided window as ``LongformerConfig.attention_window`` counts it, or None to keep the source's.
    num_layers: keep the first so many layers of the source, or None for all.
    hidden_dropout, attention_dropout: probabilities, or None to keep the source's.
    """

    source: Path | None
    config: Mapping[str, Any]
    labels: tuple[str, ...]
    extend_to: int | None = None
    extend_global: Literal["copy", "mean"] = "copy"
    attention_window: int | None = None
    num_layers: int | None = None
    hidden_dropout: float | None = None
    attention_dropout: float | None = None


@dataclass(frozen=True)
class OptimizerSpec:
    """The optimiser of one run. The learning rate comes with every step; the rest is constant.

    name: ``adam`` (Kingma and Ba, arXiv 1412.6980; weight decay as L2) or ``adamw`` (arXiv 1711.05101).
    head_multiplier: factor on the learning rate of the task's head.
    embedding_multiplier: factor on the learning rate of the embeddings.
    freeze: parts whose parameters do not move.
    average_decay: decay of the exponential moving average of the weights that predicts and is written, or None for the
        weights themselves (Polyak and Juditsky 1992; the decay of step t is at most (1 + t) / (10 + t)).
    """

    name: Literal["adam", "adamw"]
    betas: tuple[float, float] = (0.9, 0.999)
    epsilon: float = 1e-8
    weight_decay: float = 0.0
    max_gradient_norm: float | None = 1.0
    label_smoothing: float = 0.0
    head_multiplier: float = 1.0
    embedding_multiplier: float = 1.0
    freeze: tuple[Literal["embeddings", "encoder"], ...] = ()
    average_decay: float | None = None


@dataclass(frozen=True)
class Plan:
    """How the model is trained on this device.

    Nothing here changes what is learned but ``precision``, which the recipe names.

    max_micro_batch_tokens: B * T of a micro-batch, padding included, at most (one example alone may exceed it).
    """

    device: str
    precision: Precision
    max_micro_batch_tokens: int
    activation_checkpointing: bool = False
    compile: bool = False
    seed: int = 42
    reasons: Mapping[str, str] = field(default_factory=dict)


class StorageEvent(NamedTuple):
    """A storage was allocated, or freed.

    storage: a number of its own within one trace.
    num_bytes: what it added to the live bytes: negative where it was freed. A storage that was resized has several.
    operation: what returned it first, ``aten.bmm.default`` say; empty for what the model and the optimiser hold.
    """

    storage: int
    num_bytes: int
    cause: MemoryCause
    operation: str


@dataclass(frozen=True)
class MemoryUse:
    """Live bytes at one moment, by cause.

    weights: parameters and buffers. optimizer: its moments, and the moving average of the weights.
    activations: what a forward pass (or its repetition under activation checkpointing) left for backward.
    temporaries: everything else that an operation returned. inputs: the arrays of the batch.
    """

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    activations: int = 0
    temporaries: int = 0
    inputs: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.activations + self.temporaries + self.inputs


@dataclass(frozen=True)
class MemoryTrace:
    """Where the memory of a training step and of an evaluation goes: bytes of tensors, each storage once.

    What an operation takes and gives back before it returns is not in it, nor what an allocator adds.

    step_peak, evaluation_peak: at the moment when the live bytes are largest (the first one).
    held: what is alive when the step begins: weights, the optimiser's state and the gradients of the step before.
    step: what the step then allocates and frees, in order.
    evaluation: the same for the evaluation batch, which follows the step; empty without one.
    """

    step_peak: MemoryUse
    evaluation_peak: MemoryUse | None
    held: tuple[StorageEvent, ...]
    step: tuple[StorageEvent, ...]
    evaluation: tuple[StorageEvent, ...]
    num_parameters: int
    num_trainable_parameters: int

    @property
    def peak_bytes(self) -> int:
        """The larger of the two peaks."""
        return max(self.step_peak.total, self.evaluation_peak.total if self.evaluation_peak else 0)


class Learner(Protocol):
    """A model in training. notes: what a person should know of how it was built (a new head, say)."""

    notes: list[str]

    @property
    def num_parameters(self) -> int: ...

    @property
    def num_trainable_parameters(self) -> int: ...

    def fit_head(self, batches: Iterable[Batch]) -> float:
        """Before the first step: fit the head by logistic regression on what the frozen encoder says of `batches`.

        The loss weights each example by its weight. Returns the share of the examples that the fitted head gets right.
        Raises InputError for a head that cannot be fitted so.
        """

    def step(self, micro_batches: Sequence[Batch], learning_rate: float) -> StepOutcome:
        """One optimiser step over all examples of `micro_batches`, each weighted by its weight over the step's sum.

        The loss stays on the device until asked for.
        """

    def predict(self, batch: Batch) -> Predictions:
        """Logits in evaluation mode; the state of training (dropout's random numbers too) is left untouched."""

    def save(self, folder: Path) -> None:
        """Everything that an exact resume needs, as files in `folder`, which exists and is empty."""

    def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote.

        Raises InputError when the files do not fit this model.
        """

    def write_model(self, folder: Path) -> None:
        """The model as a Hugging Face folder (``config.json``, ``model.safetensors``), without tokenizer files."""

    def peak_memory_bytes(self) -> int:
        """Most memory held since the start: of the device (CUDA) or of this process (CPU, resident)."""


class Predictor(Protocol):
    """A trained model for use: no optimiser, no gradients."""

    def predict(self, batch: Batch) -> Predictions: ...


class Engine(Protocol):
    """One framework; chosen by ``environment.framework``."""

    name: str

    def versions(self) -> dict[str, str]:
        """Versions that belong into the manifest (the framework, CUDA, its model library)."""

    def devices(self) -> list[Device]:
        """Devices that work now, the best first."""

    def trace(
        self,
        model: ModelSpec,
        optimizer: OptimizerSpec,
        plan: Plan,
        *,
        training: Sequence[Batch],
        evaluation: Batch | None = None,
    ) -> MemoryTrace:
        """The memory of one optimiser step over the micro-batches `training`, then of predicting `evaluation`.

        Nothing is read but the configuration, and nothing is computed. Raises InputError for a model that cannot be
        built, and MachineError, with the name as ``operation``, for code that an operation makes untraceable.
        """

    def learner(self, model: ModelSpec, optimizer: OptimizerSpec, plan: Plan) -> Learner:
        """Build the model of `model` on the plan's device, ready for its first step.

        Raises InputError (a checkpoint that does not fit) or MachineError (a device that is not there).
        """

    def predictor(self, folder: Path, device: str, precision: Precision = "float32") -> Predictor:
        """Load what `Learner.write_model` wrote, for prediction only."""

    def reference_predictor(self, folder: Path, device: str) -> Predictor:
        """The same through the model library's own classes alone, in float32: what everybody else will load."""
