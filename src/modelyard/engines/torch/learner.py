"""A model in training, and one in use.

Legend: B examples in a batch, T positions (tokens), C classes.

Random numbers: every step seeds PyTorch's generators from (plan.seed, the step's number). So nothing outside,
such as an evaluation, can disturb the dropout of later steps, and a checkpoint needs no random state.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from modelyard.engines.base import Batch, MemoryCause, OptimizerSpec, Plan, Precision, Predictions, StepOutcome
from modelyard.engines.torch.optimizer import build_optimizer, freeze_parts
from modelyard.engines.torch.probe import fit_head
from modelyard.errors import InputError, MachineError

MODEL_FILE = "model.safetensors"
OPTIMIZER_FILE = "optimizer.safetensors"
AVERAGE_FILE = "average.safetensors"
STATE_FILE = "state.json"
FORMAT = 1


class TorchPredictor:
    """A classifier on a device; float32 logits, whatever the precision of its matrix products."""

    def __init__(self, model: PreTrainedModel, device: torch.device, precision: Precision) -> None:
        # It was built on the CPU; moving it there once more would fail where trace.py only pretends.
        self.model: PreTrainedModel = model if device.type == "cpu" else model.to(device)  # type: ignore[arg-type]
        self.device = device
        self.precision = precision
        # What computes; `TorchLearner` may put the compiled model here.
        self.call: Callable[..., Any] = model
        self._num_embeddings = int(cast(Any, model.get_input_embeddings()).weight.shape[0])

    def predict(self, batch: Batch) -> Predictions:
        """Logits (B, C) float32 in evaluation mode."""
        with torch.inference_mode(), _memory_errors(self.device):
            return Predictions(self.evaluate(batch).cpu().numpy())

    def evaluate(self, batch: Batch) -> Tensor:
        """The logits of `predict`, still on the device; whether gradients are kept is the caller's to say."""
        was_training = self.model.training
        self.model.train(False)
        try:
            return self.logits(batch)
        finally:
            self.model.train(was_training)

    def logits(self, batch: Batch) -> Tensor:
        """(B, C) float32 on the device, in the model's present mode.

        Raises InputError for an id that has no embedding (on a GPU it would end the process without a word).
        """
        ids = batch.arrays["input_ids"]
        wrong = ids[(ids < 0) | (ids >= self._num_embeddings)]
        if wrong.size:
            raise InputError(
                f"token id {int(wrong[0])} has no embedding: the model has {self._num_embeddings}, so the "
                "tokenizer is not this model's",
                hint="put the tokenizer files of this very checkpoint into its folder",
            )
        inputs = {name: self.on_device(batch.arrays[name]) for name in ("input_ids", "attention_mask")}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            logits: Tensor = self.call(**inputs).logits
        return logits.float()

    def on_device(self, array: np.ndarray[Any, Any]) -> Tensor:
        tensor = torch.tensor(array)
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor


class TorchLearner:
    """The `Learner` of PyTorch: float32 weights and optimiser, matrix products in the plan's precision.

    notes: what a person should know of how the model was built.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerSpec,
        plan: Plan,
        device: torch.device,
        notes: Sequence[str] = (),
    ) -> None:
        self.notes = list(notes)
        self._spec = optimizer
        self._seed = plan.seed
        self._device = device
        self._num_steps = 0
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        self._predictor = TorchPredictor(model, device, plan.precision)
        self._model = self._predictor.model.train()
        freeze_parts(self._model, optimizer.freeze)
        self._optimizer = build_optimizer(self._model, optimizer)
        # Not the optimiser's weights but their moving average, where the recipe asks for one.
        self._average: dict[str, Tensor] = {}
        if optimizer.average_decay is not None:
            self._average = {name: each.detach().clone() for name, each in self._learning().items()}
        if plan.activation_checkpointing:
            _enable_activation_checkpointing(self._model)
        if plan.compile:
            self._predictor.call = torch.compile(self._model, dynamic=True)

    @property
    def num_parameters(self) -> int:
        return sum(each.numel() for each in self._model.parameters())

    @property
    def num_trainable_parameters(self) -> int:
        return sum(each.numel() for each in self._learning().values())

    def fit_head(self, batches: Iterable[Batch]) -> float:
        """Fit the head by logistic regression on the frozen encoder; returns the share it then gets right.

        The features are computed in float32; the average of the weights, if any, starts from the fitted head.
        Raises InputError for a head that does not end in a linear layer over one vector a text.
        """
        assert self._num_steps == 0, "the head is fitted before the first step"
        share = fit_head(self._model, TorchPredictor(self._model, self._device, "float32").predict, batches)
        learning = self._learning()
        for name, tensor in self._average.items():
            tensor.copy_(learning[name].detach())
        return share

    def step(self, micro_batches: Sequence[Batch], learning_rate: float) -> StepOutcome:
        """One optimiser step on sum(w_i * loss_i) / sum(w_i) over all examples of all micro-batches.

        A step whose loss or gradient is infinite or no number changes nothing; the outcome's numbers tell.
        Raises MachineError when the memory does not suffice.
        """
        total_weight = float(sum(batch.weights.sum(dtype=np.float64) for batch in micro_batches))
        assert total_weight > 0, "a step needs an example that counts"
        self._seed_step()
        self._optimizer.zero_grad(set_to_none=True)
        loss = torch.zeros((), device=self._device)
        with _memory_errors(self._device), _compile_errors():
            for batch in micro_batches:
                part = self._weighted_loss(batch) / total_weight
                part.backward()  # type: ignore[no-untyped-call, unused-ignore]
                loss += part.detach()
            norm = self._clip_gradients()
            self._update(learning_rate, skip=~(torch.isfinite(norm) & torch.isfinite(loss)))
        self._num_steps += 1
        self._follow()
        return StepOutcome(
            loss=loss,
            gradient_norm=norm,
            num_examples=sum(int((batch.weights > 0).sum()) for batch in micro_batches),
            num_tokens=sum(batch.num_tokens for batch in micro_batches),
        )

    def predict(self, batch: Batch) -> Predictions:
        """Logits (B, C) float32 in evaluation mode; training goes on as if this had not been asked."""
        with self._averaged():
            return self._predictor.predict(batch)

    def evaluate(self, batch: Batch) -> Tensor:
        """The logits (B, C) of `predict`, still on the device; whether gradients are kept is the caller's to say."""
        with self._averaged():
            return self._predictor.evaluate(batch)

    def held_tensors(self) -> dict[MemoryCause, list[Tensor]]:
        """What is kept between steps, by what it is: ``weights`` (buffers too), ``gradients``, ``optimizer``."""
        learning = self._learning().values()
        state = [tensor for each in learning for tensor in self._optimizer.state.get(each, {}).values()]
        return {
            "weights": list(self._tensors().values()),
            "gradients": [each.grad for each in learning if each.grad is not None],
            "optimizer": [*state, *self._average.values()],
        }

    def save(self, folder: Path) -> None:
        """Write all weights and buffers, the optimiser's moments, and the number of steps done. No pickle."""
        with _disk_errors():
            _write_tensors(self._tensors(), folder / MODEL_FILE)
            _write_tensors(self._moments(), folder / OPTIMIZER_FILE)
            if self._average:
                _write_tensors(self._average, folder / AVERAGE_FILE)
        state = {"format": FORMAT, "num_steps": self._num_steps, "optimizer": self._spec.name}
        (folder / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")

    def load(self, folder: Path) -> None:
        """Take up the state that `save` wrote.

        Raises InputError when the files do not fit this model and optimiser; nothing was changed then.
        """
        try:
            state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
            weights, moments = load_file(folder / MODEL_FILE), load_file(folder / OPTIMIZER_FILE)
            average = load_file(folder / AVERAGE_FILE) if self._average else {}
        except (OSError, ValueError, SafetensorError) as error:
            raise InputError(
                f"the checkpoint {folder} cannot be read: {error}",
                hint="type the same command with --resume to go on from another checkpoint",
            ) from error
        if (state.get("format"), state.get("optimizer")) != (FORMAT, self._spec.name):
            raise InputError(
                f"the checkpoint {folder} has format {state.get('format')} and optimizer "
                f"{state.get('optimizer')!r}, here they are {FORMAT} and {self._spec.name!r}",
                hint="resume with the recipe that the training began with",
            )
        own = self._tensors()
        _require_fit(folder, weights, {name: tuple(tensor.shape) for name, tensor in own.items()})
        shapes = {name: tuple(parameter.shape) for name, parameter in self._learning().items()}
        names = {key.rsplit(".", 1)[0] for key in moments}  # a parameter that no loss depends on has no moments
        _require_fit(
            folder,
            moments,
            {
                f"{name}.{what}": () if what == "step" else shapes.get(name, ())
                for name in names
                for what in ("exp_avg", "exp_avg_sq", "step")
            },
        )
        _require_fit(folder, average, {name: tuple(tensor.shape) for name, tensor in self._average.items()})
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(weights[name])
            for name, tensor in self._average.items():
                tensor.copy_(average[name])
        self._num_steps = int(state["num_steps"])
        self._take_moments(moments)

    def write_model(self, folder: Path) -> None:
        """``config.json`` and ``model.safetensors``, as ``AutoModelForSequenceClassification`` reads them."""
        with _disk_errors(), self._averaged():
            self._model.save_pretrained(folder)

    def peak_memory_bytes(self) -> int:
        """Most memory since the start: of tensors on a GPU, or resident of this process on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return _peak_resident_bytes()

    def _seed_step(self) -> None:
        # Two numbers into one of 64 bits by numpy's hash for this purpose; neighbouring seeds share nothing.
        words = np.random.SeedSequence((self._seed, self._num_steps)).generate_state(2, np.uint32)
        torch.manual_seed(int(words[0]) << 32 | int(words[1]))

    def _weighted_loss(self, batch: Batch) -> Tensor:
        """sum(w_i * loss_i) of a batch, (), float32."""
        losses = F.cross_entropy(
            self._predictor.logits(batch),
            self._predictor.on_device(batch.arrays["labels"]),
            reduction="none",
            label_smoothing=self._spec.label_smoothing,
        )
        return (losses * self._predictor.on_device(batch.weights)).sum()

    def _clip_gradients(self) -> Tensor:
        """The L2 norm () of all gradients before they are scaled down to the recipe's norm."""
        parameters = [each for each in self._learning().values() if each.grad is not None]
        norm = torch.nn.utils.get_total_norm([each.grad for each in parameters if each.grad is not None])
        if self._spec.max_gradient_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(parameters, self._spec.max_gradient_norm, norm)
        return norm

    def _update(self, learning_rate: float, *, skip: Tensor) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate * group["multiplier"]
        # The way of torch.amp.GradScaler: a fused optimiser changes nothing where `found_inf` is 1, and
        # decides so on the device.
        self._optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        self._optimizer.step()

    def _follow(self) -> None:
        """Move the average towards the weights; quickly at first, so that it does not remember random ones."""
        decay = self._spec.average_decay
        if decay is None:
            return
        decay = min(decay, (1 + self._num_steps) / (10 + self._num_steps))
        learning = self._learning()
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self._average.values()), [learning[name].detach() for name in self._average], 1 - decay
            )

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with the averaged weights in it; the weights in training are put back after."""
        learning = self._learning()
        kept = {name: learning[name].data for name in self._average}
        for name, tensor in self._average.items():
            learning[name].data = tensor
        try:
            yield
        finally:
            for name, tensor in kept.items():
                learning[name].data = tensor

    def _learning(self) -> dict[str, torch.nn.Parameter]:
        return {name: each for name, each in self._model.named_parameters() if each.requires_grad}

    def _tensors(self) -> dict[str, Tensor]:
        """Every parameter and buffer, shared ones once."""
        named = (*self._model.named_parameters(), *self._model.named_buffers())
        return {name: tensor.detach() for name, tensor in named}

    def _moments(self) -> dict[str, Tensor]:
        """The optimiser's tensors as ``<parameter>.<what>``: exp_avg, exp_avg_sq, step."""
        return {
            f"{name}.{what}": tensor
            for name, parameter in self._learning().items()
            for what, tensor in self._optimizer.state[parameter].items()
        }

    def _take_moments(self, moments: dict[str, Tensor]) -> None:
        learning = self._learning()
        self._optimizer.state.clear()
        for key, tensor in moments.items():
            name, what = key.rsplit(".", 1)
            self._optimizer.state[learning[name]][what] = tensor.to(self._device)


def _enable_activation_checkpointing(model: PreTrainedModel) -> None:
    """transformers gave the method its present name after 5.14."""
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _require_fit(folder: Path, found: dict[str, Tensor], expected: dict[str, tuple[int, ...]]) -> None:
    """Raises InputError when a tensor of the checkpoint is missing, unknown or of another shape than here."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    for name in sorted({*shapes, *expected}):
        if shapes.get(name) != expected.get(name):
            raise InputError(
                f"the checkpoint {folder} does not fit this model: {name} has shape "
                f"{shapes.get(name, 'none')} there and {expected.get(name, 'none')} here",
                hint="resume with the recipe that the training began with",
            )


@contextmanager
def _memory_errors(device: torch.device) -> Iterator[None]:
    """Turn "out of memory" into an error that says what to change."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise MachineError(
            f"{device} has not enough memory: {str(error).splitlines()[0]}",
            hint="halve training.max_micro_batch_tokens (the result stays the same), or "
            "--set training.activation_checkpointing=true",
        ) from error


@contextmanager
def _compile_errors() -> Iterator[None]:
    """torch.compile works at the first step; its errors come from PyTorch's compiler packages."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        raise MachineError(
            f"torch.compile failed: {next(iter(str(error).splitlines()), type(error).__name__)}",
            hint="--set training.compile=false, or install a C++ compiler (on Debian: apt install g++)",
        ) from error


def _write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """safetensors hides what the system said in its text; give it back as the OSError that it was."""
    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def _peak_resident_bytes() -> int:
    """Most resident memory of this process since it began."""
    status = Path("/proc/self/status")
    if status.is_file():  # getrusage would count the parent's memory at the fork, too
        high_water = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        if high_water is not None:
            return int(high_water[1]) * 1024
    memory = psutil.Process().memory_info()
    return int(getattr(memory, "peak_wset", memory.rss))  # Windows knows the peak; macOS only what is held now
