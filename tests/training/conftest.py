"""A learner without a framework, so that the loop is tested as what it claims to be: independent of one."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from modelyard.engines.base import Batch, Learner, Predictions, StepOutcome
from modelyard.recipe.schema import TrainingSection
from modelyard.runs.events import EventLog, read_events
from modelyard.training.loop import TrainingResult, train_learner

WIDTH, NUM_CLASSES = 4, 2


@dataclass
class Number:
    value: float

    def item(self) -> float:
        return self.value


class NumpyLearner:
    """Softmax regression on the first ids of a text, by gradient descent."""

    def __init__(self) -> None:
        self.weights = np.zeros((WIDTH, NUM_CLASSES))
        self.num_steps = 0
        self.learning_rates: list[float] = []

    num_parameters = num_trainable_parameters = WIDTH * NUM_CLASSES

    def step(self, micro_batches: Sequence[Batch], learning_rate: float) -> StepOutcome:
        inputs = np.concatenate([batch.arrays["input_ids"] for batch in micro_batches]) / 10
        labels = np.concatenate([batch.arrays["labels"] for batch in micro_batches])
        scores = inputs @ self.weights
        chances = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
        loss = -np.log(chances[np.arange(len(labels)), labels]).mean()
        chances[np.arange(len(labels)), labels] -= 1
        gradient = inputs.T @ chances / len(labels)
        self.weights -= learning_rate * gradient
        self.num_steps += 1
        self.learning_rates.append(learning_rate)
        norm = float(np.sqrt((gradient**2).sum()))
        tokens = sum(batch.num_tokens for batch in micro_batches)
        return StepOutcome(Number(float(loss)), Number(norm), len(labels), tokens)

    def predict(self, batch: Batch) -> Predictions:
        return Predictions((batch.arrays["input_ids"] / 10 @ self.weights).astype(np.float32))

    def save(self, folder: Path) -> None:
        assert folder.is_dir() and not list(folder.iterdir())
        state = {"weights": self.weights.tolist(), "num_steps": self.num_steps}
        (folder / "learner.json").write_text(json.dumps(state))

    def load(self, folder: Path) -> None:
        state = json.loads((folder / "learner.json").read_text())
        self.weights, self.num_steps = np.asarray(state["weights"]), state["num_steps"]

    def write_model(self, folder: Path) -> None:
        raise NotImplementedError

    def peak_memory_bytes(self) -> int:
        return 1 << 20


def make_batch(rows: Sequence[int]) -> Batch:
    ids = np.stack([np.random.default_rng(row).integers(1, 10, size=WIDTH) for row in rows])
    return Batch(
        {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "labels": np.asarray([row % NUM_CLASSES for row in rows]),
        },
        weights=np.ones(len(rows), dtype=np.float32),
        rows=np.asarray(rows),
    )


def plan_of_epoch(epoch: int) -> list[list[Batch]]:
    """Six steps an epoch, each of two micro-batches of two rows; another order every epoch."""
    order = np.random.default_rng(epoch).permutation(24).tolist()
    return [
        [make_batch(order[start : start + 2]), make_batch(order[start + 2 : start + 4])] for start in range(0, 24, 4)
    ]


@pytest.fixture(name="make_batch")
def _make_batch() -> Callable[[Sequence[int]], Batch]:
    return make_batch


@pytest.fixture
def numpy_learner() -> type[NumpyLearner]:
    return NumpyLearner


class Trainer:
    """Trains in a folder, with what a test changes."""

    def __init__(self, folder: Path, steps_of_epoch: Callable[[int], list[list[Batch]]]) -> None:
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.steps_of_epoch = steps_of_epoch

    def __call__(
        self,
        learner: Learner,
        *,
        evaluate: Callable[[Learner], dict[str, float]] | None = None,
        resume: bool = False,
        listeners: tuple[Callable[[dict[str, Any]], None], ...] = (),
        **options: Any,
    ) -> TrainingResult:
        options = {"learning_rate": 0.1, "best_metric": "loss", **options}
        return train_learner(
            learner,
            steps_of_epoch=self.steps_of_epoch,
            evaluate=evaluate,
            options=TrainingSection(**options),
            events=EventLog(self.folder / "events.jsonl", listeners),
            checkpoints=self.checkpoints,
            resume=resume,
        )

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_events(self.folder / "events.jsonl") if event["kind"] == kind]

    def losses(self) -> dict[int, float]:
        """The loss of each step; of one that was done twice, the later."""
        return {event["step"]: event["loss"] for event in self.events("step")}

    def saved_steps(self) -> list[int]:
        return sorted(int(entry.name) for entry in self.checkpoints.iterdir() if entry.is_dir())


@pytest.fixture
def trainer(tmp_path: Path) -> Trainer:
    return Trainer(tmp_path, plan_of_epoch)


@pytest.fixture
def make_trainer() -> Callable[[Path], Trainer]:
    return lambda folder: Trainer(folder, plan_of_epoch)


@pytest.fixture
def child() -> ModuleType:
    """The module of ``child.py``, for what a child process and the test must do alike."""
    found = importlib.util.spec_from_file_location("training_child", Path(__file__).with_name("child.py"))
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
