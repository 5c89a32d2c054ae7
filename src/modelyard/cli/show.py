"""What a person sees while stages work: a renderer of events, for a terminal and for a log file.

It reads nothing but the events that also go to ``events.jsonl``. On a terminal a progress line moves with step, loss,
speed, memory and time left; elsewhere only stages, choices, epochs and results are printed.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any

from modelyard.cli.main import language
from modelyard.cli.messages import say

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress, TaskID

STAGES = ("data", "design", "training", "evaluation", "deployment")


class Show:
    """Use as a context manager and pass as a listener of events. Text goes to stdout, with ``as_json`` to stderr."""

    def __init__(self, as_json: bool = False) -> None:
        from rich.console import Console
        from rich.theme import Theme

        self.stream: IO[str] = sys.stderr if as_json else sys.stdout
        self.language = language()
        self.console: Console = Console(
            file=self.stream,
            highlight=False,
            theme=Theme({"stage": "bold", "good": "green", "warn": "yellow", "dim": "dim"}),
        )
        self.progress: Progress | None = None
        self.task: TaskID | None = None
        self.last: dict[str, Any] = {}
        self.started = time.monotonic()

    def __enter__(self) -> Show:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_progress()

    def line(self, text: str = "", style: str = "") -> None:
        """One line of text, shown as it is; on a terminal it wraps at words, under its own beginning."""
        from rich.padding import Padding
        from rich.text import Text

        if not self.console.is_terminal:
            self.console.print(text, style=style or None, markup=False, soft_wrap=True)
            return
        body = text.lstrip(" ")
        self.console.print(Padding(Text(body, style=style), (0, 0, 0, len(text) - len(body))))

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler is not None:
            handler(event)

    def _on_stage(self, event: dict[str, Any]) -> None:
        self._end_progress()
        name, state = event["name"], event["state"]
        number = STAGES.index(name) + 1 if name in STAGES else "·"
        title = say(f"stage.{name}", self.language)
        if state == "start":
            self.line(f"\n{number} {title}", style="stage")
        elif state == "skipped":
            self.line(f"\n{number} {title}", style="stage")
            self.line("  " + say("skipped", self.language, reason=event.get("reason", "")), style="dim")
        else:
            self.line(f"  {event.get('text', '')}  ({_duration(event['seconds'])})".rstrip(), style="good")

    def _on_choice(self, event: dict[str, Any]) -> None:
        self.line(f"  {event['what']}: {event['value']}  — {event['reason']}")

    def _on_note(self, event: dict[str, Any]) -> None:
        self.line(f"  ! {event['text']}", "warn")

    def _on_result(self, event: dict[str, Any]) -> None:
        self._end_progress()
        self.line(f"  {event['text']}")

    def _on_resume(self, event: dict[str, Any]) -> None:
        self.line("  " + say("resumed", self.language, step=event["step"]))

    def _on_progress(self, event: dict[str, Any]) -> None:
        """``what`` is being worked at, ``done`` of ``total`` (None: unknown)."""
        self._advance(event["what"], event["done"], event["total"], "")

    def _on_step(self, event: dict[str, Any]) -> None:
        self.last = event
        details = [say("epoch", self.language, epoch=event["epoch"])]
        if event.get("loss") is not None:
            details.append(f"{say('loss', self.language)} {event['loss']:.3f}")
        if event.get("tokens_per_second"):
            details.append(f"{event['tokens_per_second']:,.0f} {say('tokens_per_second', self.language)}")
        details.append(f"{event['memory_bytes'] / 1e9:.1f} GB")
        self._advance(say("training", self.language), event["step"], event["num_steps"], "  ".join(details))

    def _on_epoch(self, event: dict[str, Any]) -> None:
        parts = [say("epoch", self.language, epoch=event["epoch"])]
        if event.get("loss") is not None:
            parts.append(f"{say('loss', self.language)} {event['loss']:.4f}")
        metrics = event.get("metrics") or {}
        parts += [f"{say(name, self.language)} {metrics[name]:.4f}" for name in ("accuracy", "f1") if name in metrics]
        self.line("  " + "  ".join(parts), "")

    def _advance(self, what: str, done: int, total: int | None, details: str) -> None:
        if not self.console.is_terminal:
            return
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        if self.progress is None:
            self.progress = Progress(
                TextColumn("  {task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:,.0f}/{task.total:,.0f}" if total else "{task.completed:,.0f}"),
                TextColumn("{task.fields[details]}"),
                TimeRemainingColumn(compact=True),
                console=self.console,
                transient=True,
            )
            self.progress.start()
            self.task = self.progress.add_task(what, total=total, details=details)
        assert self.task is not None
        self.progress.update(self.task, description=what, completed=done, total=total, details=details)

    def _end_progress(self) -> None:
        if self.progress is not None:
            self.progress.stop()
            self.progress = None
            self.task = None


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{int(seconds // 60)} min {int(seconds % 60)} s"
