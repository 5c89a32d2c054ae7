"""The engine of PyTorch: what `engines.base.Engine` promises."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors
import tokenizers
import torch
import transformers

from modelyard.engines.base import Batch, Device, MemoryTrace, ModelSpec, OptimizerSpec, Plan, Precision
from modelyard.engines.torch.devices import find_devices, require_device
from modelyard.engines.torch.learner import TorchLearner, TorchPredictor
from modelyard.engines.torch.models import build_model, load_model
from modelyard.engines.torch.trace import trace
from modelyard.errors import InputError


class TorchEngine:
    """PyTorch with Hugging Face models."""

    name = "torch"

    def versions(self) -> dict[str, str]:
        """Versions that belong into the manifest; ``cuda`` is what PyTorch was built for, or ``none``."""
        return {
            "torch": torch.__version__,
            "cuda": torch.version.cuda or "none",
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
            "safetensors": safetensors.__version__,
        }

    def devices(self) -> list[Device]:
        """GPUs that gave the right answer to a small product, then the CPU."""
        return find_devices()

    def trace(
        self,
        model: ModelSpec,
        optimizer: OptimizerSpec,
        plan: Plan,
        *,
        training: Sequence[Batch],
        evaluation: Batch | None = None,
    ) -> MemoryTrace:
        """The memory of a step and of a prediction, without weights and without computing.

        Raises InputError (a model that cannot be built) or UntraceableError (code that needs computed values).
        """
        return trace(model, optimizer, plan, training=training, evaluation=evaluation)

    def learner(self, model: ModelSpec, optimizer: OptimizerSpec, plan: Plan) -> TorchLearner:
        """Build the model on the plan's device, ready for its first step.

        Raises InputError (a checkpoint that does not fit, an option that the model lacks) or MachineError (a
        device that is not there).
        """
        device = require_device(plan.device)
        built = build_model(model, seed=plan.seed)
        if plan.compile and built.model.config.model_type == "longformer":
            raise InputError(
                "compile is true, but the attention of a longformer is our own and cannot be compiled",
                hint="--set training.compile=false",
            )
        return TorchLearner(built.model, optimizer, plan, device, built.notes)

    def predictor(self, folder: Path, device: str, precision: Precision = "float32") -> TorchPredictor:
        """Load a Hugging Face classifier for prediction only.

        Raises InputError (files missing or damaged) or MachineError (a device that is not there).
        """
        return TorchPredictor(load_model(folder), require_device(device), precision)

    def reference_predictor(self, folder: Path, device: str) -> TorchPredictor:
        """The same through transformers' own classes alone, in float32. Raises what `predictor` raises."""
        return TorchPredictor(load_model(folder, own_attention=False), require_device(device), "float32")
