"""A training in a process of its own, slow enough to be killed in the middle.

usage: python child.py numpy|torch FOLDER SECONDS_PER_STEP
"""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modelyard.engines.base import Batch, Learner, ModelSpec, OptimizerSpec, Plan, StepOutcome
from modelyard.errors import ModelyardError

OPTIONS: dict[str, Any] = {
    "learning_rate": 0.01,
    "num_epochs": 3,
    "checkpoint_every_steps": 4,
    "best_metric": "loss",
    "keep_checkpoints": 2,
}


def torch_learner() -> Learner:
    """A tiny BERT with dropout."""
    from modelyard.engines.torch.engine import TorchEngine

    config = {
        "model_type": "bert",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "vocab_size": 12,
        "max_position_embeddings": 8,
    }
    spec = ModelSpec(None, config, ("a", "b"), hidden_dropout=0.2, attention_dropout=0.1)
    return TorchEngine().learner(spec, OptimizerSpec("adamw"), Plan("cpu", "float32", 64))


def make_evaluate(make_batch: Callable[[Sequence[int]], Batch]) -> Callable[[Learner], dict[str, float]]:
    """The loss on rows that are not trained on."""
    batch = make_batch(range(100, 116))

    def evaluate(learner: Learner) -> dict[str, float]:
        logits = learner.predict(batch).logits.astype(np.float64)
        chances = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return {"loss": float(-np.log(chances[np.arange(16), batch.arrays["labels"]]).mean())}

    return evaluate


def _main(kind: str, folder: Path, seconds_per_step: float) -> int:
    found = importlib.util.spec_from_file_location("training_conftest", Path(__file__).with_name("conftest.py"))
    assert found is not None and found.loader is not None
    conftest = importlib.util.module_from_spec(found)
    sys.modules["training_conftest"] = conftest
    found.loader.exec_module(conftest)
    learner = torch_learner() if kind == "torch" else conftest.NumpyLearner()
    quick_step = learner.step

    def slow_step(micro_batches: Sequence[Batch], learning_rate: float) -> StepOutcome:
        time.sleep(seconds_per_step)
        return quick_step(micro_batches, learning_rate)

    learner.step = slow_step
    trainer = conftest.Trainer(folder, conftest.plan_of_epoch)
    try:
        trainer(learner, evaluate=make_evaluate(conftest.make_batch), **OPTIONS)
    except ModelyardError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))
