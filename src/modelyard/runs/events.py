"""``events.jsonl``: what happened in a run, one JSON object a line, only ever appended to.

It is the one source for progress bars, TensorBoard and the report. Kinds: ``stage`` (name, state), ``choice``
(what, value, reason), ``step`` (step, epoch, loss, learning_rate, gradient_norm, tokens, seconds, memory_bytes),
``evaluation`` (step, epoch, split, loss and the metrics), ``epoch`` (epoch, step, loss, metrics), ``checkpoint``
(step, folder), ``resume`` (step), ``result`` and ``note`` (text).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelyard.runs.files import space_errors

Event = dict[str, Any]
Listener = Callable[[Event], None]


class EventLog:
    """Appends events to a file and tells listeners (a progress bar, TensorBoard) of each."""

    def __init__(self, path: Path, listeners: tuple[Listener, ...] = ()) -> None:
        self.path = path
        self.listeners = list(listeners)
        with space_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._end_broken_line()

    def _end_broken_line(self) -> None:
        """A process that was killed in the middle of a line must not spoil the next one."""
        if self.path.exists() and self.path.stat().st_size:
            with self.path.open("rb+") as file:
                file.seek(-1, 2)
                if file.read(1) != b"\n":
                    file.write(b"\n")

    def append(self, kind: str, **fields: Any) -> Event:
        """Write one event; ``time`` (seconds since 1970) is added. Numbers that are no numbers become null."""
        event: Event = {
            "time": round(time.time(), 3),
            "kind": kind,
            **{key: _finite(value) for key, value in fields.items()},
        }
        with space_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(event, ensure_ascii=False, allow_nan=False) + "\n")
        for listener in self.listeners:
            listener(event)
        return event


def _finite(value: Any) -> Any:
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_events(path: Path) -> Iterator[Event]:
    """All whole events of a file, in order; a line that a killed process left unfinished is passed over."""
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and "kind" in event:
                yield event
