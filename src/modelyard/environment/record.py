"""A snapshot as a file that can be given to others: what names a person, a machine or a company is taken out first.

Redaction works on every text of the snapshot, not on chosen fields, so that a field added later is covered too. What is
left out of it is only the vocabulary (names and versions of packages, kinds, purposes), where a user called "torch"
must not make PyTorch disappear; secrets are looked for there as well.
"""

from __future__ import annotations

import getpass
import json
import os
import platform
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pydantic import ValidationError

from modelyard.environment.probes.settings import HARMLESS
from modelyard.environment.redaction import plain_address
from modelyard.environment.snapshot import FORMAT, Snapshot
from modelyard.errors import InputError, MachineError
from modelyard.runs.files import write_text

HOME, USER, HOST, SECRET = "~", "<user>", "<host>", "<secret>"

# Hosts that everybody may know: they say which mirror it is, and nothing about the person.
PUBLIC_HOSTS = frozenset((
    "localhost", "127.0.0.1", "::1", "huggingface.co", "hf-mirror.com", "download.pytorch.org",
    "download-r2.pytorch.org", "pytorch.org", "pypi.nvidia.com", "github.com", "conda.anaconda.org",
    "repo.anaconda.com", "mirrors.aliyun.com", "mirrors.cloud.tencent.com", "mirrors.huaweicloud.com",
    "mirrors.tuna.tsinghua.edu.cn", "pypi.tuna.tsinghua.edu.cn", "mirrors.bfsu.edu.cn", "mirror.sjtu.edu.cn",
    "mirror.nju.edu.cn", "mirrors.nju.edu.cn", "mirrors.ustc.edu.cn", "mirrors.zju.edu.cn", "mirrors.sustech.edu.cn",
))  # fmt: skip

# Fields whose texts are words of ours or of packages; names of users and machines are not looked for in them.
VOCABULARY = frozenset((
    "format", "modelyard", "taken", "purpose", "tool", "version", "machine", "libc", "libc_version", "container",
    "kind", "bits", "pip", "uv", "instructions", "capability", "architectures", "framework", "accelerator", "state",
    "built_for", "built_version", "outcome", "backend", "probe", "driver_version", "cuda_version",
    "kernel_module_version", "toolkit_version", "rocm_version", "tpu", "owners", "locale",
))  # fmt: skip
NAMED_IN_VOCABULARY = ("packages", "frameworks", "system", "gpus", "cpu", "intel", "apple")  # parts whose `name` is one

# Both begin where a word begins, so that a long text is gone through once and not from each of its letters.
ADDRESS = re.compile(r"(?<![A-Za-z0-9+.-])[A-Za-z0-9+.-]*://[^\s'\"<>|]*(?:<[a-z]+>[^\s'\"<>|]*)*")
AT = re.compile(r"(?<![^\s'\"<>])[^\s'\"<>]+@[^\s'\"<>]*")  # mail, user@machine, user:password@machine
OTHER_HOMES = re.compile(r"(?P<start>(?:/home|/Users|[A-Za-z]:\\+Users)[/\\]+)(?P<name>[^/\\\s:;,'\"]+)")
IP_ADDRESS = re.compile(
    r"(?<![\w.])(?!127\.)\d{1,3}(?:\.\d{1,3}){3}(?![\w.])|(?<![\w:])(?:[0-9a-f]{1,4}:){3,7}[0-9a-f]{1,4}"
)
TOKENS = re.compile(
    r"""\b(?:hf_|gh[opusr]_|github_pat_|glpat-|pypi-AgE|sk-|xox[a-z]-|AKIA|ASIA|AIza|npm_|dckr_pat_)[A-Za-z0-9_\-]{8,}
      | \beyJ[A-Za-z0-9_\-]{6,}(?:\.[A-Za-z0-9_\-]+)*
      | (?i:\b(?:bearer|basic)\s+)[A-Za-z0-9+/=._\-]{6,}
      | (?i:(?:pass(?:word|wd|phrase)?|token|secret|credentials?|api[_-]?key|access[_-]?key|authorization)
          ["']?\s*[=:]\s*)\S+""",
    re.VERBOSE,
)


def redact(
    snapshot: Snapshot,
    *,
    home: str | None = None,
    users: Iterable[str] | None = None,
    hosts: Iterable[str] | None = None,
) -> Snapshot:
    """The snapshot without home folder, names of users and machines, private addresses, passwords and tokens.

    `home`, `users` and `hosts` are those of this machine unless given.
    """
    cleaner = _Cleaner(
        str(Path.home()) if home is None else home,
        _own_names() if users is None else users,
        [platform.node()] if hosts is None else hosts,
    )
    value = snapshot.model_dump(mode="json")
    configuration = value["configuration"]
    configuration["variables"] = {k: v for k, v in configuration["variables"].items() if k in HARMLESS}
    proxies = {k: v for k, v in configuration["proxies"].items() if k in ("http", "https", "all", "no")}
    cleaned = cleaner.clean(value, ())
    # A proxy may be written without a scheme, and the hosts that need none are a company's own
    cleaned["configuration"]["proxies"] = {name: _proxy(text) for name, text in proxies.items()}
    for index in cleaned["configuration"]["indexes"]:
        index["proxy"] = _proxy(index["proxy"]) if index["proxy"] else ""
        index["trusted_hosts"] = [each if each in PUBLIC_HOSTS else HOST for each in index["trusted_hosts"]]
    return Snapshot.model_validate(cleaned)


def _own_names() -> list[str]:
    """Who runs this, and who they were before sudo."""
    names = [os.environ.get("SUDO_USER", "")]
    with suppress(OSError, KeyError, ImportError):  # a number without a name, as containers have it
        names.append(getpass.getuser())
    return names


def _proxy(text: str) -> str:
    scheme = re.match(r"(https?|socks[45]h?)://", text)
    return f"{scheme[0]}{HOST}" if scheme else HOST


class _Cleaner:
    """What is to be taken out of the texts of one snapshot."""

    def __init__(self, home: str, users: Iterable[str], hosts: Iterable[str]) -> None:
        homes = {home, home.replace("\\", "/"), home.replace("\\", "\\\\")} if home.strip("/\\") else set()
        self._home = _Names({each.rstrip("/\\"): HOME for each in homes})
        machines = {part: HOST for host in hosts for part in (host, host.partition(".")[0]) if part != "localhost"}
        self._names = _Names({**machines, **dict.fromkeys(users, USER)})

    def clean(self, value: Any, path: tuple[str, ...]) -> Any:
        """Every text in `value`, which lies at `path` of the snapshot."""
        if isinstance(value, dict):
            return {key: self.clean(each, (*path, key)) for key, each in value.items()}
        if isinstance(value, list):
            return [self.clean(each, path) for each in value]
        return self.text(value, path) if isinstance(value, str) else value

    def text(self, text: str, path: tuple[str, ...]) -> str:
        """One text without what must not be given away."""
        key, part = path[-1] if path else "", path[-2] if len(path) > 1 else ""
        text = ADDRESS.sub(lambda match: self._address(match[0]), text)
        text = TOKENS.sub(SECRET, text)
        if key in VOCABULARY or (key == "name" and part in NAMED_IN_VOCABULARY):
            return text
        text = AT.sub(f"{USER}@{HOST}", text)
        text = self._folders(text)
        return IP_ADDRESS.sub(HOST, self._names.taken_out(text))

    def _folders(self, text: str) -> str:
        return OTHER_HOMES.sub(lambda match: f"{match['start']}{USER}", self._home.taken_out(text))

    def _address(self, address: str) -> str:
        """A public address without user and query; of a private one only the scheme: its path may hold a token too."""
        plain = plain_address(address)
        try:
            parts = urlsplit(plain)
            host = (parts.hostname or "").lower()
        except ValueError:
            host, parts = "?", urlsplit("")
        scheme = address.partition("://")[0]
        if scheme.lower() == "file" and host in ("", HOME):
            return f"file://{host}{self._folders(unquote(parts.path))}"
        return plain if host in PUBLIC_HOSTS else f"{scheme}://{HOST}"


class _Names:
    """Names and what stands for each. A longer one goes before a shorter one that is part of it."""

    def __init__(self, placeholders: dict[str, str]) -> None:
        known = {name: by for name, by in placeholders.items() if any(letter.isalnum() for letter in name)}
        self._placeholders = {name.casefold(): by for name, by in known.items()}
        pieces = "|".join(re.escape(each) for each in sorted(known, key=len, reverse=True))
        # As a whole word: "ann" in "/data/ann_old", not in "annealing"
        self._pattern = re.compile(rf"(?<![^\W_])(?:{pieces})(?![^\W_])", re.IGNORECASE) if known else None

    def taken_out(self, text: str) -> str:
        """The text with placeholders, except inside placeholders: someone's name may be "user"."""

        def replacement(match: re.Match[str]) -> str:
            around = text[max(0, match.start() - 1) : match.end() + 1]
            return match[0] if around in (USER, HOST, SECRET) else self._placeholders.get(match[0].casefold(), USER)

        return self._pattern.sub(replacement, text) if self._pattern else text


def write(snapshot: Snapshot, path: Path) -> Path:
    """Write a snapshot as readable JSON, at once or not at all. It is not redacted here.

    Raises MachineError when the place cannot be written.
    """
    try:
        return write_text(path, snapshot.model_dump_json(indent=2) + "\n")
    except MachineError as error:
        raise MachineError(error.problem, hint="choose another file: modelyard doctor --record FILE") from error


def read(path: Path) -> Snapshot:
    """Read a snapshot that `write` made, here or elsewhere.

    Raises InputError when there is no such file, it is no snapshot, or a newer modelyard wrote it in a newer format.
    """
    again = f"modelyard doctor --record {path.name}"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(
            f"cannot read the snapshot {str(path)!r}: {error.strerror}", hint=f"make one on that machine with: {again}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{str(path)!r} is not JSON: {_first_line(error)}", hint=f"make a snapshot on that machine with: {again}"
        ) from error
    number = value.get("format") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(number, int) or isinstance(number, bool) or "system" not in value:
        raise InputError(
            f"{str(path)!r} is JSON, but not a snapshot of a machine: it has no format and no system",
            hint=f"make a snapshot on that machine with: {again}",
        )
    if number > FORMAT:
        raise InputError(
            f"{str(path)!r} has the format {number}, and this modelyard reads up to {FORMAT}",
            hint="pip install --upgrade modelyard",
        )
    try:
        return Snapshot.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(each) for each in first["loc"])
        raise InputError(
            f"{str(path)!r} is not a whole snapshot: {place} is {str(first['input'])[:80]!r}, {first['msg'].lower()}",
            hint=f"make a snapshot on that machine with: {again}",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
