"""Stopping on request: Ctrl-C or SIGTERM ends the training after a checkpoint, a second one at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import Any, TypeVar

from modelyard.errors import ModelyardError

_Result = TypeVar("_Result")
_HEARD = b"\nstopping after a checkpoint; once more stops at once, without one\n"


class TrainingInterrupted(ModelyardError):
    """The person, or the machine's scheduler, asked to stop; a checkpoint was written.

    The exit code is what shells give a program that Ctrl-C ended.
    """

    exit_code = 130


class _StopNowError(Exception):
    """Leaves work that may be dropped in the middle, because it is done again after a resume."""


class StopRequest:
    """Notes the first SIGINT or SIGTERM while it is entered; `signal_name` tells which.

    After the first signal the system's own handling is in force, so a second one ends the process even in the
    middle of a step that takes minutes. Outside the main thread no signal can be caught, and none is; a
    signal that the process was started to ignore (``nohup``, a shell's background job) stays ignored.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._may_leave_now = False

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in self.SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        for each in self._previous:
            signal.signal(each, signal.SIG_DFL)
        self.signal_name = signal.Signals(number).name
        # Straight to the descriptor, because the main program may be in the middle of printing; and now,
        # because the step under way can take minutes.
        with suppress(OSError):
            os.write(2, _HEARD)
        if self._may_leave_now:
            raise _StopNowError

    def until_stopped(self, work: Callable[[], _Result]) -> _Result | None:
        """The result of `work`, or None when a signal ended it in the middle."""
        try:
            self._may_leave_now = True
            result = work()
            self._may_leave_now = False
            return result
        except _StopNowError:
            return None
        finally:
            self._may_leave_now = False
