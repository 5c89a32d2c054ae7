"""Running the uv binary, which resolves and installs: its progress as events, its failures as our errors.

What the person configured for uv counts (mirrors, certificates, cache, offline), except what a build decides itself:
which project, which folder, which Python, which strategy.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelyard.environment.redaction import without_secrets
from modelyard.errors import MachineError
from modelyard.runs.events import Listener

# Variables that would make uv work on another project, another environment or by other rules than the build says.
DECIDED_HERE = frozenset({
    "UV_ACTIVE", "UV_CONSTRAINT", "UV_ENV_FILE", "UV_FORK_STRATEGY", "UV_FROZEN", "UV_ISOLATED", "UV_LINK_MODE",
    "UV_LOCKED", "UV_NO_BINARY", "UV_NO_BINARY_PACKAGE", "UV_NO_DEFAULT_GROUPS", "UV_NO_DEV", "UV_NO_EDITABLE",
    "UV_NO_GROUP", "UV_NO_INSTALL_PROJECT", "UV_NO_INSTALL_WORKSPACE", "UV_NO_PROJECT", "UV_NO_SOURCES",
    "UV_NO_SOURCES_PACKAGE", "UV_NO_SYNC", "UV_NO_VERIFY_HASHES", "UV_OVERRIDE", "UV_PRERELEASE", "UV_PROJECT",
    "UV_PROJECT_ENVIRONMENT", "UV_PYTHON", "UV_RESOLUTION", "UV_SYSTEM_PYTHON", "UV_TORCH_BACKEND", "UV_WORKING_DIR",
    "VIRTUAL_ENV",
})  # fmt: skip
# A hard link shares its bytes with uv's cache: whatever spoils a file of an environment would spoil the cache, every
# other environment, and the one that is to repair it. Copying torch's CPU build (917 MB) costs 4 to 9 s instead of 0.4;
# where the file system shares blocks between copies (btrfs, xfs, APFS) it costs nothing.
LINK_MODE = "copy"
AIR_GAPPED = "on a machine that has the network, `modelyard env export NAME --air-gapped DIR`, and carry DIR over"
_MAX_LINES = 4000  # kept of what uv says; the cause stands at the end


class Uv:
    """The uv binary with what it is told on every call: `arguments` and `variables` say where packages come from."""

    def __init__(
        self,
        binary: str | None = None,
        *,
        arguments: Sequence[str] = (),
        variables: Mapping[str, str] | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """`environ`: the variables of the person, else those of this process. Raises MachineError without uv."""
        self.binary = binary or find_uv()
        self.arguments = tuple(arguments)
        given = os.environ if environ is None else environ
        self.environ = {name: value for name, value in given.items() if name not in DECIDED_HERE}
        self.environ |= variables or {}

    def lock(self, project: Path, python: str, listener: Listener, *, upgrade: Sequence[str] = ()) -> None:
        """Resolve `project` and write its uv.lock; versions of a lock that is there stay, except those of `upgrade`."""
        again = [f"--upgrade-package={name}" for name in upgrade]
        self.run(["lock", "--python", python, *again, *self.arguments], project, listener)

    def sync(self, project: Path, python: str, listener: Listener) -> list[str]:
        """Install exactly what the lock says into ``.venv``; the warnings about files that two packages claim."""
        said = self.run(
            ["sync", "--locked", "--python", python, "--link-mode", LINK_MODE,
             "--preview-features", "detect-module-conflicts", *self.arguments],
            project, listener,
        )  # fmt: skip
        return [line for line in said if line.startswith("warning:") and "module" in line]

    def not_cached(self, project: Path, python: str) -> list[str] | None:
        """Names of the packages that a sync would have to download; None when uv does not say which."""
        said = self.run(
            ["sync", "--locked", "--dry-run", "--verbose", "--python", python, *self.arguments], project, ignore
        )
        if not any(line.startswith("Would download") for line in said):
            return []
        found = [re.match(r"DEBUG Identified uncached distribution: ([\w.-]+)", line) for line in said]
        return [each[1] for each in found if each] or None

    def cache_folder(self) -> Path:
        """Where uv keeps what it downloaded."""
        return Path(self.ask(["cache", "dir"]).strip())

    def pythons(self) -> list[tuple[str, str]]:
        """(version, path) of the Pythons on this machine, as far as uv sees them."""
        try:
            rows = json.loads(self.ask(["python", "list", "--only-installed", "--offline", "--output-format", "json"]))
            found = {(str(row["version"]), str(row.get("path") or "")) for row in rows}
        except (MachineError, ValueError, KeyError, TypeError):  # only asked to make an error more helpful
            return []
        return sorted(found, reverse=True)

    def ask(self, arguments: Sequence[str], folder: Path | None = None) -> str:
        """What a short command prints on stdout. Raises MachineError when it fails."""
        with self._started(arguments, folder, subprocess.PIPE) as process:
            output, errors = process.communicate()
        if process.returncode:
            raise explain(arguments[0], errors.splitlines(), process.returncode)
        return str(output)

    def run(self, arguments: Sequence[str], folder: Path, listener: Listener) -> list[str]:
        """Run a command on the project in `folder`; each line that uv says becomes a ``progress`` event.

        Returns the lines. Raises MachineError with cause and next command when uv fails. uv is ended when this
        process is interrupted.
        """
        lines: list[str] = []
        stage = {"sync": "install"}.get(arguments[0], arguments[0])
        with self._started(arguments, folder, subprocess.STDOUT) as process:
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    text = without_secrets(line.rstrip())
                    lines.append(text)
                    del lines[:-_MAX_LINES]
                    if text.strip():
                        listener({"kind": "progress", "stage": stage, "text": text.strip(), "raw": text})
                process.wait()
            except BaseException:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(5)
                process.kill()
                raise
        if process.returncode:
            raise explain(arguments[0], lines, process.returncode, self.pythons)
        return lines

    def _started(self, arguments: Sequence[str], folder: Path | None, errors: int) -> subprocess.Popen[str]:
        command = [self.binary, "--color", "never", "--no-progress", *arguments]
        try:
            return subprocess.Popen(
                command, cwd=folder, env=self.environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
                text=True, encoding="utf-8", errors="replace",
            )  # fmt: skip
        except OSError as error:
            raise MachineError(
                f"uv cannot be started: {self.binary}: {error.strerror or error}",
                hint="pip install --force-reinstall uv",
            ) from error


def find_uv() -> str:
    """The uv binary of the Python that runs modelyard, else the one on PATH. Raises MachineError without one."""
    with suppress(ImportError, FileNotFoundError):  # uv's UvNotFound is a FileNotFoundError
        from uv import find_uv_bin

        return str(find_uv_bin())
    found = shutil.which("uv")
    if found is None:
        raise MachineError(
            "uv, which installs environments, is neither in this Python nor on PATH", hint="pip install uv"
        )
    return found


def ignore(event: dict[str, Any]) -> None:
    """A listener that does not."""


def explain(
    command: str, lines: Sequence[str], code: int, pythons: Callable[[], Sequence[tuple[str, str]]] = tuple
) -> MachineError:
    """Our error for what uv said. The first kind that fits decides; the cause is quoted from uv."""
    text = "\n".join(lines)
    for kind in (_no_space, _not_writable, _wrong_hash, _no_python, _certificate, _no_network, _login, _no_versions):
        error = kind(text, pythons)
        if error is not None:
            return error
    if code < 0:
        return MachineError(
            f"uv {command} was ended by signal {-code}, perhaps by the system for want of memory",
            hint="type the same command again; what was downloaded is kept",
        )
    return MachineError(f"uv {command} did not work: {_said(lines)}", hint="modelyard doctor")


_Pythons = Callable[[], Sequence[tuple[str, str]]]


def _no_space(text: str, _: _Pythons) -> MachineError | None:
    found = re.search(r"cause: (.*(?:os error (?:28|112|122)\b|No space left|quota exceeded).*)", text, re.IGNORECASE)
    found = found or re.search(r"(.*(?:os error (?:28|112|122)\b).*)", text)
    if not found:
        return None
    return MachineError(
        f"the disk became full while uv was writing: {found[1].strip()}",
        hint="free some space (`uv cache prune` empties uv's cache of what is not used), or choose other disks with "
        "MODELYARD_ENVIRONMENTS and UV_CACHE_DIR; then type the same command again",
    )


def _not_writable(text: str, _: _Pythons) -> MachineError | None:
    found = re.search(r"(?:error|cause): (.*os error (?:30|13|1)\).*)", text)
    if not found:
        return None
    return MachineError(
        f"uv cannot write: {found[1].strip()}",
        hint="choose folders that you may write to with MODELYARD_ENVIRONMENTS and UV_CACHE_DIR",
    )


def _wrong_hash(text: str, _: _Pythons) -> MachineError | None:
    found = re.search(r"Hash mismatch for `([^`]+)`.*?Expected:\s*(\S+).*?Computed:\s*(\S+)", text, re.DOTALL)
    if not found:
        return None
    what = without_secrets(found[1])
    return MachineError(
        f"{what} is not the file that was locked, so it was refused: expected {found[2]}, it has {found[3]}",
        hint="the file was changed or damaged on its way: get it again from where it comes from (`uv cache clean` "
        "empties uv's cache), and ask who keeps that index if it stays so",
    )


def _no_python(text: str, pythons: _Pythons) -> MachineError | None:
    found = re.search(r"No interpreter found for (Python [\w.]+|path `[^`]+`|[^\n]+)", text)
    build = re.search(r"(?:download|fetch).{0,6}https?://\S*?cpython-(\d+\.\d+)[^\n]*", text)
    if not found and not build:
        return None
    wanted = found[1] if found else f"Python {build[1]}"  # type: ignore[index]
    cause = "" if found else f" and cannot be downloaded ({_deepest(text)})"
    here = ", ".join(f"{version} ({path})" for version, path in pythons()) or "none that uv can find"
    return MachineError(
        f"{wanted} is not on this machine{cause}; here are: {here}",
        hint="choose one that is here with --python, install that Python, or name a mirror in UV_PYTHON_INSTALL_MIRROR",
    )


def _certificate(text: str, _: _Pythons) -> MachineError | None:
    found = re.search(r"invalid peer certificate[^\n]*|certificate verify failed[^\n]*", text)
    if not found:
        return None
    return MachineError(
        f"the certificate of {_host(text)} is not trusted: {found[0]}",
        hint="name your organisation's certificate once, where pip finds it too: pip config set global.cert FILE",
    )


_UNREACHED = re.compile(
    r"error sending request|client error \(Connect\)|dns error|failed to lookup address|tcp connect error|timed out"
    r"|Network connectivity is disabled|network was disabled|HTTP status server error|connection (?:reset|closed)"
    r"|error decoding response body|end of file before message",
    re.IGNORECASE,
)


def _no_network(text: str, _: _Pythons) -> MachineError | None:
    if not _UNREACHED.search(text):
        return None
    package = re.search(r"Failed to (?:download|fetch|prepare distributions|read)[^`\n]*`([^`]+)`", text)
    listing = re.search(r"Failed to fetch:? `?https?://\S+?/([\w.-]+)/?(?=[`\s]|$)", text)
    missing = package[1] if package else listing[1] if listing else "a package"
    if listing and not package and not listing[1].endswith((".whl", ".metadata", ".gz", ".zip")):
        missing = f"the list of versions of {listing[1]}"
    return MachineError(
        f"cannot get {without_secrets(missing)} from {_host(text)}: {_deepest(text)}",
        hint=f"`modelyard doctor` checks network, proxy and mirrors; then type the same command again, what was "
        f"downloaded is kept. Without any network: {AIR_GAPPED}",
    )


def _login(text: str, _: _Pythons) -> MachineError | None:
    found = re.search(r"\((https?://[^)]+)\)[^\n]*\b(401 Unauthorized|403 Forbidden)", text)
    if not found:
        return None
    return MachineError(
        f"{without_secrets(found[1])} refuses to serve ({found[2]})",
        hint="give user name and password where pip finds them too, in the index address of its configuration or in "
        "~/.netrc, and check the address",
    )


def _no_versions(text: str, _: _Pythons) -> MachineError | None:
    if "No solution found" not in text and "for the current platform" not in text:
        return None
    said = [re.sub(r"^(?:error|cause|hint): ", "", line.strip()) for line in text.splitlines()]
    kept = [line for line in said if line and not line.startswith(("Using ", "Creating ", "Resolved ", "No solution"))]
    return MachineError(
        "the packages that this build needs do not fit this machine: " + " ".join(kept)[:1500],
        hint="choose another Python with --python or another build with --accelerator; `modelyard doctor` shows which "
        "indexes are asked",
    )


def _host(text: str) -> str:
    found = re.search(r"https?://[^\s`)>\"']+", text)
    return (urlsplit(found[0]).hostname or "the index") if found else "the index"


def _deepest(text: str) -> str:
    """The last cause that uv names: the one nearest to the system."""
    causes = re.findall(r"cause: ([^\n]+)", text)
    return str(causes[-1]).strip() if causes else (re.findall(r"error: ([^\n]+)", text) or ["no answer"])[-1].strip()


def _said(lines: Sequence[str]) -> str:
    """uv's own words from its first error on, on one line."""
    start = next((number for number, line in enumerate(lines) if line.startswith("error")), max(0, len(lines) - 5))
    words = " ".join(line.strip() for line in lines[start:] if line.strip())
    return words[:1500] or "it said nothing"
