"""Real signals and real kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from modelyard.runs.events import read_events
from modelyard.training.interrupt import StopRequest, TrainingInterrupted

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no POSIX signals")


def signal_at_step(step: int, number: signal.Signals) -> Callable[[dict[str, Any]], None]:
    """A listener that sends this process a signal when the event of `step` is written."""

    def listen(event: dict[str, Any]) -> None:
        if event["kind"] == "step" and event["step"] == step:
            os.kill(os.getpid(), number)

    return listen


def start_child(kind: str, folder: Path, seconds_per_step: float) -> subprocess.Popen[str]:
    program = [
        sys.executable,
        str(Path(__file__).with_name("child.py")),
        kind,
        str(folder),
        str(seconds_per_step),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True, env=environment)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    for _ in range(6000):
        if condition():
            return
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    raise AssertionError("the child took more than a minute")


def test_a_killed_training_goes_on_to_the_bit(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_trainer: Callable[[Path], Any],
    make_batch: Any,
    child: ModuleType,
) -> None:
    """kill -9 in the middle of training, at a place that nobody chose; then resume in another process."""
    torch = pytest.importorskip("torch")
    undisturbed, killed = make_trainer(tmp_path / "undisturbed"), make_trainer(tmp_path / "killed")
    process = start_child("torch", killed.folder, 0.05)
    wait_until(lambda: (killed.checkpoints / "8" / "manifest.json").exists(), process)
    process.kill()
    process.communicate()
    assert process.returncode != 0
    done = max(killed.losses())
    assert 8 <= done < 18

    request.addfinalizer(partial(torch.set_num_threads, torch.get_num_threads()))
    torch.set_num_threads(1)  # as in the child: another number adds in another order
    expected = undisturbed(child.torch_learner(), evaluate=child.make_evaluate(make_batch), **child.OPTIONS)
    found = killed(child.torch_learner(), evaluate=child.make_evaluate(make_batch), resume=True, **child.OPTIONS)
    assert found.resumed_from is not None and 8 <= found.resumed_from <= 18
    assert killed.losses() == undisturbed.losses()  # to the bit: JSON keeps every bit of a float
    assert [event["loss"] for event in killed.events("evaluation")] == [
        event["loss"] for event in undisturbed.events("evaluation")
    ]
    assert killed.events("epoch")[-1]["loss"] == undisturbed.events("epoch")[-1]["loss"]
    assert (found.best_step, found.best_value) == (expected.best_step, expected.best_value)
    files = ("model.safetensors", "optimizer.safetensors")
    for name in files:
        assert (killed.checkpoints / "18" / name).read_bytes() == (undisturbed.checkpoints / "18" / name).read_bytes()


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_process_after_a_checkpoint(number: signal.Signals, tmp_path: Path) -> None:
    process = start_child("numpy", tmp_path, 0.1)
    wait_until((tmp_path / "checkpoints" / "4" / "manifest.json").exists, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    step = max(event["step"] for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "checkpoint")
    assert "stopping after a checkpoint; once more stops at once" in errors
    assert f"{number.name} ended the training after step {step} of 18" in errors
    assert "hint: type the same command with --resume" in errors
    assert (tmp_path / "checkpoints" / str(step) / "manifest.json").exists()


@posix
def test_a_second_signal_ends_the_process_at_once(tmp_path: Path) -> None:
    process = start_child("numpy", tmp_path, 30)  # the first step would take half a minute
    wait_until(lambda: _catches_signals(process.pid), process)
    started = time.perf_counter()
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "stopping after a checkpoint" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=20)
    assert process.returncode == -signal.SIGINT
    assert time.perf_counter() - started < 20
    assert not (tmp_path / "checkpoints").exists()


def _catches_signals(pid: int) -> bool:
    """Whether SIGTERM is caught: Python itself leaves it alone, so the loop has begun."""
    status = Path(f"/proc/{pid}/status")
    if not status.is_file():
        pytest.skip("needs /proc to see whether the child catches SIGTERM")
    caught = next(line for line in status.read_text().splitlines() if line.startswith("SigCgt"))
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@posix
@pytest.mark.parametrize("step", [3, 6, 12, 18])
def test_an_interrupted_training_resumes_exactly(
    step: int,
    tmp_path: Path,
    make_trainer: Callable[[Path], Any],
    numpy_learner: Any,
    make_batch: Any,
    child: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("modelyard.training.steps.READ_EVERY_SECONDS", 0)
    undisturbed, stopped = make_trainer(tmp_path / "undisturbed"), make_trainer(tmp_path / "stopped")
    evaluate = child.make_evaluate(make_batch)
    expected_learner, learner = numpy_learner(), numpy_learner()
    expected = undisturbed(expected_learner, evaluate=evaluate, num_epochs=3)
    with pytest.raises(TrainingInterrupted, match=f"SIGINT ended the training after step {step} of 18"):
        stopped(numpy_learner(), evaluate=evaluate, num_epochs=3, listeners=(signal_at_step(step, signal.SIGINT),))
    assert stopped.saved_steps()[-1] == step
    result = stopped(learner, evaluate=evaluate, num_epochs=3, resume=True)
    assert result.resumed_from == step
    assert (result.num_steps, result.best_step, result.best_value) == (
        18,
        expected.best_step,
        expected.best_value,
    )
    assert stopped.losses() == undisturbed.losses()
    assert (learner.weights == expected_learner.weights).all()
    assert [event["loss"] for event in stopped.events("epoch")] == [
        event["loss"] for event in undisturbed.events("epoch")
    ]


@posix
def test_a_signal_does_not_wait_for_an_evaluation(trainer: Any, numpy_learner: Any) -> None:
    asked = []

    def evaluate(_: Any) -> dict[str, float]:
        asked.append(1)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(30)
        return {"loss": 1.0 / len(asked)}

    started = time.perf_counter()
    with pytest.raises(TrainingInterrupted, match="SIGTERM ended the training after step 12 of 18"):
        trainer(numpy_learner(), evaluate=evaluate, num_epochs=3)
    assert time.perf_counter() - started < 20
    result = trainer(numpy_learner(), evaluate=evaluate, num_epochs=3, resume=True)
    assert result.resumed_from == 12
    assert [event["step"] for event in trainer.events("evaluation")] == [6, 12, 18]
    assert [event["step"] for event in trainer.events("step")] == list(range(1, 19))  # none was done twice


@posix
def test_handlers_are_given_back_and_ignored_signals_stay_ignored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop.signal_name is None
            assert signal.getsignal(signal.SIGINT) != signal.default_int_handler
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_training_in_a_thread_takes_no_signals(trainer: Any, numpy_learner: Any) -> None:
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(trainer(numpy_learner(), num_epochs=1)))
    thread.start()
    thread.join()
    assert results[0].num_steps == 6
