"""The only way in which probes touch the machine: read a file, run a command, ask NVML, open an address.

Probes take a `Host`, so a test can give them another machine, or garbage. No method raises for what it met on the
machine: what cannot be read is `None`, what failed says why.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Ran:
    """A command that ended, or was ended: `code` is None after the time limit, negative after a signal."""

    code: int | None
    output: str
    errors: str
    seconds: float


@dataclass(frozen=True)
class Answer:
    """What an address said. `status` is None when nothing came back, and `problem` says why in a few words."""

    status: int | None
    headers: Mapping[str, str] = field(default_factory=dict)  # names in lower case
    body: str = ""
    problem: str = ""
    seconds: float = 0.0


class Host:
    """The machine that this process runs on."""

    @property
    def environ(self) -> Mapping[str, str]:
        return os.environ

    @property
    def system(self) -> str:
        """``linux``, ``darwin`` or ``windows``."""
        return platform.system().lower()

    @property
    def home(self) -> str:
        return str(Path.home())

    @property
    def here(self) -> str:
        """The current folder, or "" when it was removed."""
        try:
            return str(Path.cwd())
        except OSError:
            return ""

    @property
    def python(self) -> str:
        """The Python that runs modelyard."""
        return sys.executable

    @property
    def prefix(self) -> str:
        """The environment of the Python that runs modelyard: pip reads a configuration file that lies in it."""
        return sys.prefix

    @property
    def uv(self) -> str:
        """The uv binary that comes with modelyard, else the name of the one on PATH."""
        with contextlib.suppress(ImportError, FileNotFoundError):
            from uv import find_uv_bin

            return str(find_uv_bin())
        return "uv"

    def read_text(self, path: str) -> str | None:
        """The first MiB of a file as UTF-8 (wrong bytes replaced), or None."""
        try:
            with Path(path).open("rb") as file:
                return file.read(MAX_TEXT_BYTES).decode("utf-8", errors="replace")
        except (OSError, ValueError):
            return None

    def exists(self, path: str) -> bool:
        try:
            return Path(path).exists()
        except (OSError, ValueError):
            return False

    def glob(self, folder: str, pattern: str) -> list[str]:
        """Sorted paths in `folder` that match, empty if there are none."""
        try:
            return sorted(str(each) for each in Path(folder).glob(pattern))
        except (OSError, ValueError):
            return []

    def resolve(self, path: str) -> str:
        """The path without links, as far as it can be read."""
        try:
            return str(Path(path).resolve())
        except (OSError, ValueError, RuntimeError):
            return path

    def accessible(self, path: str) -> bool | None:
        """Whether this process may read and write `path`; None when it is not there."""
        return os.access(path, os.R_OK | os.W_OK) if self.exists(path) else None

    def disk_bytes(self, path: str) -> tuple[int, int] | None:
        """(total, free for this user) of the file system under `path` or its nearest parent that exists."""
        import shutil

        for each in (Path(path), *Path(path).parents):
            if self.exists(str(each)):
                with contextlib.suppress(OSError):
                    usage = shutil.disk_usage(each)
                    return usage.total, usage.free
                return None
        return None

    def try_write(self, folder: str) -> str:
        """Write a small file into `folder` (or its nearest parent) and remove it: "" or the system's reason."""
        for each in (Path(folder), *Path(folder).parents):
            if self.exists(str(each)):
                try:
                    with tempfile.NamedTemporaryFile(dir=each, prefix=".modelyard-") as file:
                        file.write(b"1")
                        file.flush()
                        os.fsync(file.fileno())
                except OSError as error:
                    return error.strerror or str(error)
                return ""
        return "no such folder"

    def run(self, command: Sequence[str], seconds: float, environ: Mapping[str, str] | None = None) -> Ran | None:
        """Run a command with a time limit and no input; None when it is not there or may not be started.

        `environ` replaces the variables. The whole process group is ended at the limit.
        """
        started = time.monotonic()
        try:
            process = subprocess.Popen(
                list(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                env=None if environ is None else dict(environ), start_new_session=os.name != "nt",
            )  # fmt: skip
        except (OSError, ValueError):
            return None
        code: int | None = None
        try:
            output, errors = process.communicate(timeout=seconds)
            code = process.returncode
        except subprocess.TimeoutExpired:
            _end(process)
            try:
                output, errors = process.communicate(timeout=1)
            except subprocess.TimeoutExpired:  # a child that left the group still holds the pipes
                output, errors = b"", b""
                process.poll()
                for pipe in (process.stdout, process.stderr):
                    if pipe is not None:
                        pipe.close()
        text = [each[-MAX_TEXT_BYTES:].decode("utf-8", errors="replace") for each in (output, errors)]
        return Ran(code, text[0], text[1], time.monotonic() - started)

    def nvml(self) -> ModuleType | None:
        """NVIDIA's binding of NVML (not yet initialised), or None when it is not installed."""
        try:
            import pynvml
        except Exception:  # a shadowing or broken module of that name is a finding, not a crash
            return None
        return pynvml  # type: ignore[no-any-return]

    def memory_bytes(self) -> tuple[int, int, int] | None:
        """(total, available, swap total) of the machine."""
        import psutil

        try:
            memory, swap = psutil.virtual_memory(), psutil.swap_memory()
        except (OSError, RuntimeError, ValueError):
            return None
        return int(memory.total), int(memory.available), int(swap.total)

    def cores(self) -> tuple[int | None, int | None, int | None]:
        """(logical, physical, those that this process may be scheduled on)."""
        import psutil

        affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
        with contextlib.suppress(OSError, RuntimeError, ValueError):
            return psutil.cpu_count(), psutil.cpu_count(logical=False), affinity
        return os.cpu_count(), None, affinity

    def uname(self) -> tuple[str, str]:
        """(release of the kernel, or of macOS; machine)."""
        release = platform.mac_ver()[0] if self.system == "darwin" else platform.release()
        return release, platform.machine()

    def libc(self) -> tuple[str, str]:
        """(name, version) of the C library of the running Python, as its own build says."""
        return platform.libc_ver()

    def library_path(self, name: str) -> str:
        """Where the dynamic loader finds a library such as ``cuda``, or ""."""
        import ctypes.util

        with contextlib.suppress(OSError, ValueError, UnicodeError):
            return ctypes.util.find_library(name) or ""
        return ""

    def fetch(self, address: str, seconds: float, method: str = "GET", max_bytes: int = 1 << 18) -> Answer:
        """One request, redirects not followed, proxies of the environment respected, bounded in time and size."""
        started = time.monotonic()
        request = urllib.request.Request(address, method=method, headers={"User-Agent": "modelyard"})
        opener = urllib.request.build_opener(_NoRedirect())
        try:
            with opener.open(request, timeout=seconds) as reply:
                body = reply.read(max_bytes).decode("utf-8", errors="replace") if method == "GET" else ""
                headers = {name.lower(): value for name, value in reply.headers.items()}
                return Answer(reply.status, headers, body, seconds=time.monotonic() - started)
        except urllib.error.HTTPError as error:
            headers = {name.lower(): value for name, value in error.headers.items()}
            return Answer(error.code, headers, seconds=time.monotonic() - started)
        except (OSError, ValueError, http.client.HTTPException) as error:  # URLError is an OSError
            reason = getattr(error, "reason", error)
            return Answer(None, problem=_short(reason), seconds=time.monotonic() - started)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *arguments: Any, **named: Any) -> None:
        return None


def _short(reason: object) -> str:
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return str(text).splitlines()[0][:200]


def _end(process: subprocess.Popen[bytes]) -> None:
    if os.name == "nt":
        process.kill()
        return
    import signal

    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


T = TypeVar("T")


def within(seconds: float, work: Callable[[], T], otherwise: T) -> T:
    """`work()` in a thread of its own, or `otherwise` if it has not ended in time (a hanging driver call)."""
    result = [otherwise]
    thread = threading.Thread(target=lambda: result.__setitem__(0, work()), daemon=True)
    thread.start()
    thread.join(seconds)
    return result[0]
