"""What all stages have in common: telling listeners what they do, and holding the run's folder while they do it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from modelyard.runs.events import EventLog, Listener
from modelyard.runs.folder import RunFolder

Listeners = Sequence[Listener]


class Stage:
    """Tells listeners that a stage began and ended, with its seconds and one line of what came out."""

    def __init__(self, name: str, tell: Callable[..., Any]) -> None:
        self.name, self.tell, self.text = name, tell, ""

    def __enter__(self) -> Stage:
        self.started = time.monotonic()
        self.tell("stage", name=self.name, state="start")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            seconds = round(time.monotonic() - self.started, 2)
            self.tell("stage", name=self.name, state="done", seconds=seconds, text=self.text)

    def choice(self, what: str, value: object, reason: str) -> None:
        """Say what was chosen and why."""
        self.tell("choice", what=what, value=str(value), reason=reason)


def teller(listeners: Listeners) -> Callable[..., None]:
    """Tell listeners of events that are not kept."""

    def tell(kind: str, **fields: Any) -> None:
        for listener in listeners:
            listener({"kind": kind, **fields})

    return tell


@contextmanager
def working(run_folder: RunFolder, listeners: Listeners, *, overwrite: bool = False) -> Iterator[EventLog]:
    with run_folder.locked():
        if overwrite:
            clear(run_folder)
        try:
            yield EventLog(run_folder.events, tuple(listeners))
        except BaseException:
            if not run_folder.exists():  # wrong input: nothing was begun, so nothing stays
                clear(run_folder)
            raise


def clear(run_folder: RunFolder) -> None:
    """Remove what a run consists of, and nothing else that may lie in the folder."""
    for path in (
        run_folder.data,
        run_folder.checkpoints,
        run_folder.model,
        run_folder.evaluation,
        run_folder.bundle,
    ):
        shutil.rmtree(path, ignore_errors=True)
    for path in (run_folder.recipe, run_folder.manifest, run_folder.events, run_folder.plan):
        path.unlink(missing_ok=True)
