"""The loop with a learner that needs no framework."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelyard.errors import InputError, MachineError
from modelyard.training import checkpoints as checkpoints_module
from modelyard.training.schedule import Schedule, warmup_steps
from modelyard.training.steps import NonFiniteLoss


def losses(*values: float) -> Callable[[Any], dict[str, float]]:
    """Evaluations that give these losses, one after the other."""
    left = list(values)
    return lambda _: {"loss": left.pop(0), "f1": 0.5}


def test_an_undisturbed_training(trainer: Any, numpy_learner: Any) -> None:
    learner = numpy_learner()
    options = {"num_epochs": 3, "schedule": "cosine", "warmup_ratio": 0.25, "learning_rate": 0.4}
    result = trainer(learner, evaluate=losses(0.5, 0.4, 0.3), **options)
    schedule = Schedule("cosine", 0.4, 18, warmup_steps(18, 0.25))
    assert learner.learning_rates == [schedule.learning_rate(step) for step in range(18)]
    assert (result.num_steps, result.num_epochs, result.stopped) == (18, 3, "all epochs done")
    assert (result.best_step, result.best_epoch, result.best_value) == (18, 3, 0.3)
    assert result.resumed_from is None and result.checkpoint == trainer.checkpoints / "18"
    steps = trainer.events("step")
    assert [event["step"] for event in steps] == list(range(1, 19))
    assert [event["epoch"] for event in steps] == [1] * 6 + [2] * 6 + [3] * 6
    assert {event["num_steps"] for event in steps} == {18}
    assert steps[3]["learning_rate"] == schedule.learning_rate(3)
    assert steps[0]["loss"] == pytest.approx(np.log(2))  # two classes, weights zero
    assert steps[0]["tokens"] == 16 and steps[0]["memory_bytes"] == 1 << 20
    assert steps[0]["tokens_per_second"] == pytest.approx(16 / steps[0]["seconds"])
    assert [event["loss"] for event in trainer.events("evaluation")] == [0.5, 0.4, 0.3]
    epochs = trainer.events("epoch")
    assert epochs[1]["loss"] == pytest.approx(np.mean([event["loss"] for event in steps[6:12]]))
    assert epochs[1]["metrics"] == {"loss": 0.4, "f1": 0.5}
    assert [event["step"] for event in trainer.events("checkpoint")] == [6, 12, 18]


def test_the_same_examples_make_a_step_whatever_the_order_of_reading(
    tmp_path: Path, make_trainer: Callable[[Path], Any], numpy_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reading the losses late, as on a GPU, changes no number."""
    seen = []
    for name, seconds in (("early", 0.0), ("late", 1e9)):
        monkeypatch.setattr("modelyard.training.steps.READ_EVERY_SECONDS", seconds)
        trainer = make_trainer(tmp_path / name)
        trainer(numpy_learner(), num_epochs=2)
        seen.append((trainer.losses(), [event["loss"] for event in trainer.events("epoch")]))
    assert seen[0] == seen[1]


def test_the_learner_holds_the_best_weights_at_the_end(trainer: Any, numpy_learner: Any) -> None:
    learner = numpy_learner()
    weights = {}

    def evaluate(learner: Any) -> dict[str, float]:
        weights[learner.num_steps] = learner.weights.copy()
        return {"loss": {6: 0.5, 12: 0.2, 18: 0.2, 24: 0.4}[learner.num_steps]}

    result = trainer(learner, evaluate=evaluate, num_epochs=4, keep_checkpoints=1)
    assert (result.best_step, result.best_epoch, result.best_value) == (12, 2, 0.2)  # a tie keeps the earlier
    assert np.array_equal(learner.weights, weights[12])
    assert trainer.saved_steps() == [12, 24]


def test_without_validation_the_last_is_the_best(trainer: Any, numpy_learner: Any) -> None:
    result = trainer(numpy_learner(), num_epochs=2)
    assert (result.best_step, result.best_epoch, result.best_value) == (12, 2, None)
    assert trainer.events("evaluation") == []
    assert "the last weights are the best: there is no validation split" in trainer.events("note")[0]["text"]


def test_evaluations_that_give_no_number_keep_the_last(trainer: Any, numpy_learner: Any) -> None:
    result = trainer(numpy_learner(), evaluate=losses(float("nan"), float("nan")), num_epochs=2)
    assert (result.best_step, result.best_value) == (12, None)
    assert "no evaluation gave a number for loss; the last weights are kept" in trainer.events("note")[0]["text"]


def test_it_stops_when_nothing_gets_better(trainer: Any, numpy_learner: Any) -> None:
    result = trainer(numpy_learner(), evaluate=losses(0.5, 0.4, 0.6, 0.4), num_epochs=9, early_stopping_patience=2)
    assert (result.num_epochs, result.best_epoch, result.stopped) == (4, 2, "no better evaluation")
    again = trainer(numpy_learner(), evaluate=losses(), num_epochs=9, early_stopping_patience=2, resume=True)
    assert (again.num_epochs, again.best_epoch, again.stopped) == (4, 2, "no better evaluation")


def test_patience_needs_a_validation(trainer: Any, numpy_learner: Any) -> None:
    with pytest.raises(InputError, match="early_stopping_patience is 2, but there is no validation split"):
        trainer(numpy_learner(), early_stopping_patience=2)


def test_checkpoints_every_few_steps(trainer: Any, numpy_learner: Any) -> None:
    trainer(numpy_learner(), num_epochs=2, checkpoint_every_steps=4, keep_checkpoints=2)
    assert [event["step"] for event in trainer.events("checkpoint")] == [4, 6, 8, 12]
    assert trainer.saved_steps() == [8, 12]


def test_checkpoints_every_few_minutes(trainer: Any, numpy_learner: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("modelyard.training.loop.time.perf_counter", lambda: now[0])
    learner = numpy_learner()
    quick = learner.step

    def slow(*arguments: Any) -> Any:
        now[0] += 25.0
        return quick(*arguments)

    learner.step = slow
    trainer(learner, num_epochs=1, checkpoint_every_minutes=1.0)
    assert [event["step"] for event in trainer.events("checkpoint")] == [3, 6]


def test_a_finished_training_is_not_done_again(trainer: Any, numpy_learner: Any) -> None:
    trainer(numpy_learner(), evaluate=losses(0.1, 0.2), num_epochs=2)
    learner = numpy_learner()
    result = trainer(learner, evaluate=losses(), num_epochs=2, resume=True)
    assert (result.resumed_from, result.best_step, result.best_value) == (12, 6, 0.1)
    assert learner.learning_rates == [] and learner.num_steps == 6


def test_nothing_to_resume_begins_at_the_start_and_says_so(trainer: Any, numpy_learner: Any) -> None:
    result = trainer(numpy_learner(), num_epochs=1, resume=True)
    assert result.resumed_from is None and result.num_steps == 6
    assert any(event["text"].startswith("nothing to resume") for event in trainer.events("note"))


def test_a_training_is_not_overwritten(trainer: Any, numpy_learner: Any) -> None:
    trainer(numpy_learner(), num_epochs=1)
    with pytest.raises(InputError, match="already holds a training up to step 6") as caught:
        trainer(numpy_learner(), num_epochs=1)
    assert "--resume" in caught.value.hint and "--run" in caught.value.hint


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
    tmp_path: Path, make_trainer: Callable[[Path], Any], numpy_learner: Any
) -> None:
    undisturbed, damaged = make_trainer(tmp_path / "undisturbed"), make_trainer(tmp_path / "damaged")
    undisturbed(numpy_learner(), num_epochs=2, checkpoint_every_steps=4)
    damaged(numpy_learner(), num_epochs=2, checkpoint_every_steps=4)
    file = damaged.checkpoints / "12" / "learner.json"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    result = damaged(numpy_learner(), num_epochs=2, checkpoint_every_steps=4, resume=True)
    assert result.resumed_from == 8
    (note,) = [event["text"] for event in damaged.events("note") if "damaged" in event["text"]]
    assert str(damaged.checkpoints / "12") in note
    assert [event["step"] for event in damaged.events("step")[12:]] == [9, 10, 11, 12]
    assert damaged.losses() == undisturbed.losses()


def test_a_lost_best_checkpoint_is_said(trainer: Any, numpy_learner: Any) -> None:
    trainer(numpy_learner(), evaluate=losses(0.1, 0.2), num_epochs=2, keep_checkpoints=1)
    (trainer.checkpoints / "6" / "manifest.json").unlink()
    result = trainer(numpy_learner(), evaluate=losses(0.3), num_epochs=3, resume=True)
    assert (result.best_step, result.best_value) == (18, 0.3)
    assert any("the best checkpoint, step 6, is lost" in event["text"] for event in trainer.events("note"))


def test_only_damaged_checkpoints_are_an_error(trainer: Any, numpy_learner: Any) -> None:
    trainer(numpy_learner(), num_epochs=1)
    (trainer.checkpoints / "6" / "learner.json").write_text("{}")
    with pytest.raises(InputError, match=r"no checkpoint in .* is whole: .*6 is damaged \(learner\.json has SHA-256"):
        trainer(numpy_learner(), num_epochs=1, resume=True)


def test_a_resume_with_other_data_is_an_error(trainer: Any, numpy_learner: Any) -> None:
    trainer(numpy_learner(), num_epochs=1)
    whole = trainer.steps_of_epoch
    trainer.steps_of_epoch = lambda epoch: whole(epoch)[:5]
    with pytest.raises(InputError, match="was written with 6 steps an epoch, now there are 5"):
        trainer(numpy_learner(), num_epochs=2, resume=True)


def test_a_loss_that_is_no_number_stops_with_the_rows(trainer: Any, numpy_learner: Any) -> None:
    learner = numpy_learner()
    quick = learner.step

    def broken(micro_batches: Any, learning_rate: float) -> Any:
        outcome = quick(micro_batches, learning_rate)
        nan = type(outcome.loss)(float("nan"))
        return replace(outcome, loss=nan) if learner.num_steps == 9 else outcome

    learner.step = broken
    with pytest.raises(NonFiniteLoss) as caught:
        trainer(learner, num_epochs=3, schedule="constant", warmup_ratio=0.0)
    rows = [int(row) for batch in trainer.steps_of_epoch(2)[2] for row in batch.rows]
    assert "step 9 has loss nan and gradient norm" in caught.value.problem
    assert "at learning rate 0.1; the step was not applied" in caught.value.problem
    assert f"The last checkpoint is {trainer.checkpoints / '6'}" in caught.value.problem
    assert ", ".join(f"row {row}" for row in rows) in caught.value.problem
    assert "--set training.learning_rate=0.01" in caught.value.hint
    assert trainer.saved_steps() == [6]
    assert trainer.events("step")[8]["loss"] is None


def test_a_broken_first_step_says_that_there_is_no_checkpoint(trainer: Any, numpy_learner: Any) -> None:
    learner = numpy_learner()
    learner.weights[:] = np.inf
    with np.errstate(all="ignore"), pytest.raises(NonFiniteLoss, match="There is no checkpoint yet"):
        trainer(learner, num_epochs=1)


def test_too_little_room_is_said_before_the_first_step(
    trainer: Any, numpy_learner: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = checkpoints_module.shutil.disk_usage(trainer.folder)._replace(free=1000)
    monkeypatch.setattr(checkpoints_module.shutil, "disk_usage", lambda _: usage)
    learner = numpy_learner()
    with pytest.raises(MachineError, match="a checkpoint takes"):
        trainer(learner, num_epochs=1)
    assert learner.num_steps == 0


def test_the_loop_loads_no_framework() -> None:
    code = (
        "import sys, modelyard.training.loop\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'jax', 'tensorflow'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "[]"
