"""What a person sees while an environment is made, checked or repaired: one line for each step, with its seconds."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING, Any

from modelyard.cli.environment_messages import say
from modelyard.cli.page import Page, cells, padded

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

STEPS = ("choose", "project", "lock", "install", "proof")  # environment/building.py: STAGES
LOGGED = ("Downloading ", "Resolved ", "Prepared ", "Installed ")  # of uv's lines, where there is no moving line


class Progress:
    """Use as a context manager and pass as a listener of events; writes to `page`."""

    def __init__(self, page: Page, language: str, *, lines: bool = True) -> None:
        """`lines`: False for a command that tells the results of its steps itself."""
        self.page = page
        self.language = language
        self.lines = lines
        self.width = max(cells(say(f"step.{name}", language)) for name in STEPS)
        self.choices: list[str] = []
        self.live: Live | None = None
        self.step = ""
        self.doing = ""
        self.started = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._still()

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"_on_{event['kind']}", None)
        if handler is not None:
            handler(event)

    def _on_stage(self, event: dict[str, Any]) -> None:
        name, state = str(event["name"]), event["state"]
        title = say(f"step.{name}", self.language)
        self._still()
        if state == "started":
            self.step, self.started = title, time.monotonic()
            self._move("")
            return
        if not self.lines:
            return
        seconds = f"{event['seconds']:6.1f} s"
        failed = state == "failed"
        text = f"{padded(title, self.width)}  {seconds}" + (f"  {say('step.failed', self.language)}" if failed else "")
        self.page.line(text, "error" if failed else "")
        for choice in self.choices:
            self.page.line(choice, "dim", 2)
        self.choices = []

    def _on_choice(self, event: dict[str, Any]) -> None:
        self.choices.append(str(event["reason_zh" if self.language == "zh" else "reason"]))

    def _on_note(self, event: dict[str, Any]) -> None:
        self._still()
        self.page.line(f"! {event['text']}", "warning")

    def _on_progress(self, event: dict[str, Any]) -> None:
        text = str(event.get("text", ""))
        if self.page.terminal:
            self._move(text)
        elif text.startswith(LOGGED):
            self.page.line(text, "", 2)

    def _move(self, text: str) -> None:
        """The line that moves while a step runs: what it is, for how long, and what it does just now."""
        self.doing = text
        if not self.page.terminal or self.live is not None:
            return
        from rich.live import Live

        self.live = Live(console=self.page.console, get_renderable=self._moving, refresh_per_second=8, transient=True)
        self.live.start()

    def _moving(self) -> Text:
        from rich.text import Text

        head = f"{padded(self.step, self.width)}  {time.monotonic() - self.started:6.1f} s  "
        room = max(0, (self.page.width or 80) - cells(head) - 1)
        shown = self.doing if cells(self.doing) <= room else self.doing[: max(0, room - 1)] + "…"
        return Text.assemble((head, "bold"), (shown, "dim"), no_wrap=True, overflow="crop")

    def _still(self) -> None:
        if self.live is not None:
            self.live.stop()
            self.live = None
