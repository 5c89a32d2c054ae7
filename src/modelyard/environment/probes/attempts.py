"""Probes that cannot hurt each other: what one raises or never answers becomes an `Unread`, nothing more."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from modelyard.environment.snapshot import Unread

T = TypeVar("T")


class Begin(Protocol):
    """Start work now; the function that comes back waits that many seconds for its result.

    It raises TimeoutError when the work has not ended by then, and what the work raised otherwise.
    """

    def __call__(self, work: Callable[[], T]) -> Callable[[float], T]: ...


def in_thread(work: Callable[[], T]) -> Callable[[float], T]:
    """`Begin` with a thread that does not keep the process alive when it hangs in a driver or a file system."""
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def wait(seconds: float) -> T:
        thread.join(seconds)
        if errors:
            raise errors[0]
        if not results:
            raise TimeoutError
        return results[0]

    return wait


def at_once(work: Callable[[], T]) -> Callable[[float], T]:
    """`Begin` without threads, for tests: the work is done on the spot."""
    result = work()
    return lambda seconds: result


class Attempts:
    """Runs probes and keeps a note of those that failed."""

    def __init__(self, begin: Begin = in_thread) -> None:
        self._begin = begin
        self.unread: list[Unread] = []

    def now(self, probe: str, look: Callable[[], T], otherwise: T) -> T:
        """What `look` finds, or `otherwise` if it fails."""
        try:
            return look()
        except Exception as error:
            self._failed(probe, error)
            return otherwise

    def begin(self, probe: str, look: Callable[[], T], otherwise: T, seconds: float) -> Callable[[], T]:
        """Start `look` beside everything else; the function that comes back waits until `seconds` from now at most."""
        ends = time.monotonic() + seconds
        try:
            wait = self._begin(look)
        except Exception as error:  # no thread can be started, or the work was done on the spot
            self._failed(probe, error)
            return lambda: otherwise

        def collect() -> T:
            try:
                return wait(max(0.0, ends - time.monotonic()))
            except TimeoutError:
                self.unread.append(Unread(probe=probe, problem=f"no answer within {seconds:g} s"))
            except Exception as error:
                self._failed(probe, error)
            return otherwise

        return collect

    def _failed(self, probe: str, error: Exception) -> None:
        lines = str(error).strip().splitlines()
        problem = f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
        self.unread.append(Unread(probe=probe, problem=problem))
