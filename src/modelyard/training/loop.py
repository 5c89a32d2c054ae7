"""The one training loop. It drives any `Learner` and knows no framework.

    for each epoch:  for each step:  learner.step → event → checkpoint when due
                     evaluate → best so far? → checkpoint → patience?
    at the end:      the learner holds the weights of the best checkpoint

Order of examples, learning rate and the learner's random numbers depend on the step's number alone, so a
resume at (epoch, step) goes on exactly as the undisturbed training would have.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NoReturn

from modelyard.engines.base import Batch, Learner
from modelyard.errors import InputError
from modelyard.recipe.schema import TrainingSection
from modelyard.runs.events import EventLog
from modelyard.training.checkpoints import Checkpoints, damage_of
from modelyard.training.interrupt import StopRequest, TrainingInterrupted
from modelyard.training.progress import Progress
from modelyard.training.schedule import Schedule, warmup_steps
from modelyard.training.steps import StepPlan, StepReader

Evaluate = Callable[[Learner], Mapping[str, float]]


@dataclass(frozen=True)
class TrainingResult:
    """How a training ended.

    best_step: step of the checkpoint whose weights the learner now holds.
    best_value: its `best_metric`, or None when no evaluation gave a number.
    checkpoint: folder of that checkpoint.
    seconds: training and evaluation, over all resumes.
    resumed_from: step at which this process took up the training, or None.
    """

    num_steps: int
    num_epochs: int
    best_step: int
    best_epoch: int
    best_metric: str
    best_value: float | None
    checkpoint: Path
    seconds: float
    stopped: Literal["all epochs done", "no better evaluation"]
    resumed_from: int | None


def train_learner(
    learner: Learner,
    *,
    steps_of_epoch: Callable[[int], StepPlan],
    evaluate: Evaluate | None,
    options: TrainingSection,
    events: EventLog,
    checkpoints: Path,
    resume: bool = False,
    describe_rows: Callable[[Sequence[int]], Sequence[str]] | None = None,
) -> TrainingResult:
    """Train until all epochs are done or no evaluation gets better; the learner then holds the best weights.

    steps_of_epoch: the steps of an epoch, counted from 1; every epoch has equally many.
    evaluate: metrics on the validation examples, the loss among them; or None (the last is the best).
    checkpoints: the run's folder of checkpoints.
    resume: go on from the newest whole checkpoint, if there is one; otherwise the folder must hold none.
    describe_rows: names rows of the training split as the person knows them, for errors.

    Raises NonFiniteLoss, TrainingInterrupted (Ctrl-C, SIGTERM; after a checkpoint), MachineError (disk),
    InputError (no whole checkpoint, early stopping without validation, a folder that holds another training).
    """
    if evaluate is None and options.early_stopping_patience is not None:
        raise InputError(
            f"early_stopping_patience is {options.early_stopping_patience}, but there is no validation split",
            hint="--set data.split.validation=0.1, or --set training.early_stopping_patience=null",
        )
    store = Checkpoints(checkpoints, keep=options.keep_checkpoints)
    num_steps = len(steps_of_epoch(1))
    if evaluate is None:
        events.append("note", text="the last weights are the best: there is no validation split")
    progress, resumed_from = _begin(learner, store, num_steps, events, resume=resume)
    store.prepare(learner)
    with StopRequest() as stop:
        training = _Training(learner, steps_of_epoch, evaluate, options, events, store, progress, stop, describe_rows)
        training.run()
    return training.finish(resumed_from)


def _begin(
    learner: Learner, store: Checkpoints, steps_per_epoch: int, events: EventLog, *, resume: bool
) -> tuple[Progress, int | None]:
    """The progress to start from: fresh, or the newest whole checkpoint's, which the learner takes up."""
    existing = store.steps()
    if existing and not resume:
        raise InputError(
            f"{store.folder} already holds a training up to step {existing[-1]}",
            hint="go on with it with --resume, or begin anew with --overwrite or --run FOLDER",
        )
    if not existing:
        if resume:
            events.append("note", text=f"nothing to resume: {store.folder} holds no checkpoint; beginning at step 0")
        return Progress(steps_per_epoch), None
    found = store.newest_complete()
    for note in found.notes:
        events.append("note", text=note)
    if found.checkpoint is None:
        raise InputError(
            f"no checkpoint in {store.folder} is whole: {'; '.join(found.notes)}",
            hint="begin again in a new folder: --run FOLDER",
        )
    progress = found.checkpoint.progress
    if progress.steps_per_epoch != steps_per_epoch:
        raise InputError(
            f"{found.checkpoint.path} was written with {progress.steps_per_epoch} steps an epoch, now there "
            f"are {steps_per_epoch}: data or batch size changed",
            hint="resume with the recipe that the training began with, or begin anew with --run FOLDER",
        )
    learner.load(found.checkpoint.path)
    if progress.best_step is not None and damage_of(store.path(progress.best_step)) is not None:
        events.append(
            "note",
            text=f"the best checkpoint, step {progress.best_step}, is lost; the search for it begins anew",
        )
        progress.best_step = progress.best_epoch = progress.best_value = None
    store.remove_after(progress.step)
    store.point(progress)
    events.append("resume", step=progress.step, epoch=progress.epoch, folder=str(found.checkpoint.path))
    return progress, progress.step


class _Training:
    """One training from where `progress` stands to its end."""

    def __init__(
        self,
        learner: Learner,
        steps_of_epoch: Callable[[int], StepPlan],
        evaluate: Evaluate | None,
        options: TrainingSection,
        events: EventLog,
        store: Checkpoints,
        progress: Progress,
        stop: StopRequest,
        describe_rows: Callable[[Sequence[int]], Sequence[str]] | None,
    ) -> None:
        self.learner = learner
        self.steps_of_epoch = steps_of_epoch
        self.evaluate = evaluate
        self.options = options
        self.events = events
        self.store = store
        self.progress = progress
        self.stop = stop
        num_steps = progress.steps_per_epoch * options.num_epochs
        self.schedule = Schedule(
            options.schedule, options.learning_rate, num_steps, warmup_steps(num_steps, options.warmup_ratio)
        )
        self.reader = StepReader(
            events,
            num_steps=num_steps,
            memory_bytes=learner.peak_memory_bytes,
            describe_rows=describe_rows or (lambda rows: [f"row {row}" for row in rows]),
            last_good=self._last_good,
        )
        self.clock = time.perf_counter()
        self.last_checkpoint_at = self.clock
        self.last_saved = (progress.step, progress.epoch) if progress.step else None

    def run(self) -> None:
        while self.progress.epoch <= self.options.num_epochs and not self._patience_is_spent():
            self._run_epoch()

    def finish(self, resumed_from: int | None) -> TrainingResult:
        """Give the learner the best weights and say how it went."""
        progress = self.progress
        if progress.best_step is None:
            metric = self.options.best_metric
            self.events.append("note", text=f"no evaluation gave a number for {metric}; the last weights are kept")
        best_step = progress.step if progress.best_step is None else progress.best_step
        checkpoint = self.store.verified(best_step)
        if best_step != progress.step:
            self.learner.load(checkpoint)
        return TrainingResult(
            num_steps=progress.step,
            num_epochs=progress.epoch - 1,
            best_step=best_step,
            best_epoch=progress.best_epoch or progress.epoch - 1,
            best_metric=self.options.best_metric,
            best_value=progress.best_value,
            checkpoint=checkpoint,
            seconds=progress.seconds,
            stopped="no better evaluation" if progress.epoch <= self.options.num_epochs else "all epochs done",
            resumed_from=resumed_from,
        )

    def _run_epoch(self) -> None:
        progress = self.progress
        steps = self.steps_of_epoch(progress.epoch)
        assert len(steps) == progress.steps_per_epoch, (len(steps), progress.steps_per_epoch)
        self.reader.restart_clock()
        while progress.step_in_epoch < len(steps):
            self._run_step(steps[progress.step_in_epoch])
            if self.stop.signal_name is not None:
                self._leave()
            if progress.step_in_epoch < len(steps) and self._checkpoint_is_due():
                self._checkpoint()
        self._read_losses()
        self._end_epoch()
        self._checkpoint()
        if self.stop.signal_name is not None:
            self._leave()

    def _run_step(self, micro_batches: Sequence[Batch]) -> None:
        progress = self.progress
        learning_rate = self.schedule.learning_rate(progress.step)
        outcome = self.learner.step(micro_batches, learning_rate)
        progress.step += 1
        progress.step_in_epoch += 1
        self.reader.add(micro_batches, outcome, step=progress.step, epoch=progress.epoch, learning_rate=learning_rate)
        if self.reader.is_due:
            self._read_losses()

    def _read_losses(self) -> None:
        for loss in self.reader.read():
            self.progress.epoch_loss_sum += loss

    def _end_epoch(self) -> None:
        """Evaluate, note whether it is the best so far, and move on to the next epoch."""
        progress = self.progress
        metrics: Mapping[str, float] = {}
        if self.evaluate is None:
            progress.best_step, progress.best_epoch = progress.step, progress.epoch
        else:
            metrics = self._evaluated(self.evaluate)
            progress.take_evaluation(metrics, self.options.best_metric)
        loss = progress.epoch_loss_sum / progress.steps_per_epoch
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self.events.append("epoch", epoch=progress.epoch, step=progress.step, loss=loss, metrics=finite)
        progress.epoch, progress.step_in_epoch, progress.epoch_loss_sum = progress.epoch + 1, 0, 0.0

    def _evaluated(self, evaluate: Evaluate) -> Mapping[str, float]:
        metrics = self.stop.until_stopped(lambda: evaluate(self.learner))
        if metrics is None:  # the resume evaluates again
            self._leave()
        self.events.append(
            "evaluation", step=self.progress.step, epoch=self.progress.epoch, split="validation", **metrics
        )
        return metrics

    def _checkpoint_is_due(self) -> bool:
        steps, minutes = self.options.checkpoint_every_steps, self.options.checkpoint_every_minutes
        if steps is not None and self.progress.step % steps == 0:
            return True
        return minutes is not None and time.perf_counter() - self.last_checkpoint_at >= 60 * minutes

    def _checkpoint(self) -> None:
        """Write where the training stands; nothing broken is written, because the losses are read first."""
        self._read_losses()
        progress = self.progress
        if self.last_saved == (progress.step, progress.epoch):
            return
        progress.seconds += time.perf_counter() - self.clock
        self.clock = time.perf_counter()
        path = self.store.save(self.learner, progress)
        self.events.append("checkpoint", step=progress.step, folder=str(path))
        self.last_saved = (progress.step, progress.epoch)
        self.last_checkpoint_at = time.perf_counter()
        self.reader.restart_clock()

    def _leave(self) -> NoReturn:
        self._checkpoint()
        raise TrainingInterrupted(
            f"{self.stop.signal_name} ended the training after step {self.progress.step} of "
            f"{self.schedule.num_steps}; the checkpoint is {self.store.path(self.progress.step)}",
            hint="type the same command with --resume to go on",
        )

    def _patience_is_spent(self) -> bool:
        patience = self.options.early_stopping_patience
        return patience is not None and self.progress.evaluations_without_better >= patience

    def _last_good(self) -> str:
        if self.last_saved is None:
            return "There is no checkpoint yet"
        return f"The last checkpoint is {self.store.path(self.last_saved[0])}"
