"""What TensorBoard itself reads back is what the events said."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelyard.runs.events import read_events
from modelyard.workflow.tensorboard import TensorBoard


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scalars_are_read_back(finished_run: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    listener = TensorBoard(tmp_path)
    events = list(read_events(finished_run / "events.jsonl"))
    for event in events:
        listener(event)
    listener.close()
    read = accumulator.EventAccumulator(str(tmp_path))
    read.Reload()
    losses = {event["step"]: event["loss"] for event in events if event["kind"] == "step"}
    assert {scalar.step: pytest.approx(scalar.value, rel=1e-6) for scalar in read.Scalars("train/loss")} == losses
    assert len(read.Scalars("validation/accuracy")) == 2
