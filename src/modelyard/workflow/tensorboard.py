"""TensorBoard as a listener of the same events that go to ``events.jsonl`` (extra ``tensorboard``)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from modelyard.errors import MachineError

STEP_SCALARS = ("loss", "learning_rate", "gradient_norm", "tokens_per_second", "memory_bytes")


class TensorBoard:
    """Writes scalars of ``step`` and ``evaluation`` events below `folder`; ``tensorboard --logdir`` shows them.

    Raises MachineError when the package is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from tensorboard.summary.writer.event_file_writer import EventFileWriter
        except ImportError as error:
            raise MachineError(
                f"--tensorboard needs a package that is not installed: {error.name}",
                hint="pip install 'modelyard[tensorboard]'",
            ) from error
        folder.mkdir(parents=True, exist_ok=True)
        self.writer: Any = EventFileWriter(str(folder))

    def __call__(self, event: dict[str, Any]) -> None:
        if event["kind"] == "step":
            values = {f"train/{name}": event.get(name) for name in STEP_SCALARS}
        elif event["kind"] == "evaluation":
            other = ("time", "kind", "step", "epoch", "split")
            values = {f"{event['split']}/{name}": value for name, value in event.items() if name not in other}
        else:
            return
        self._add({name: value for name, value in values.items() if value is not None}, event)

    def _add(self, values: dict[str, float], event: dict[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self.writer.add_event(Event(wall_time=event["time"], step=event["step"], summary=Summary(value=scalars)))

    def close(self) -> None:
        """Write what is still held."""
        self.writer.close()
