"""Where packages come from, as the person told pip: said once, it holds for uv too, which does not read pip's settings.

pip merges its files key by key, system first, then user, then the environment of its Python, then the file in
PIP_CONFIG_FILE. Of the merged keys the section ``[install]`` beats ``[global]`` whatever file it came from, and a
variable ``PIP_…`` beats both. A list is replaced, never added to. An empty value counts as not said.
"""

from __future__ import annotations

import configparser
import os
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from modelyard.environment.host import Host
from modelyard.environment.redaction import plain_address
from modelyard.environment.snapshot import IndexSettings

SECTIONS = ("global", "install", ":env:")  # later wins
# Option names of pip (both spellings where it has two) and the field of Sources that each fills.
_SINGLE = {"index-url": "index_url", "pypi-url": "index_url", "cert": "certificate",
           "client-cert": "client_certificate", "proxy": "proxy"}  # fmt: skip
_LISTS = {"extra-index-url": "extra_index_urls", "find-links": "find_links", "trusted-host": "trusted_hosts"}
_TIMES = {"timeout": "timeout_seconds", "default-timeout": "timeout_seconds"}
_TRUE, _FALSE = {"y", "yes", "t", "true", "on", "1"}, {"n", "no", "f", "false", "off", "0"}
# Any of these says that the person has told uv itself where packages are.
_UV_VARIABLES = ("UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS")
_UV_KEYS = ("index", "index-url", "extra-index-url", "find-links", "no-index")


@dataclass(frozen=True, repr=False)
class Sources:
    """Indexes, folders and the way to them. Addresses may hold passwords: `repr` shows none."""

    index_url: str = ""  # "": PyPI
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    certificate: str = ""
    client_certificate: str = ""
    proxy: str = ""
    trusted_hosts: tuple[str, ...] = ()
    no_index: bool = False
    timeout_seconds: float | None = None
    told_by: tuple[str, ...] = ()  # files and variables that said any of this
    problems: tuple[str, ...] = ()  # what pip would stop at: a broken file, a value that is no number
    uv_configured: bool = False  # the indexes above are uv's own settings, which it finds without being told

    def __repr__(self) -> str:
        return f"Sources({', '.join(f'{each.name}={self._shown(each.name)}' for each in fields(self))})"

    def _shown(self, name: str) -> str:
        value = getattr(self, name)
        if isinstance(value, tuple):
            return repr(tuple(plain_address(each) for each in value))
        return repr(plain_address(value) if isinstance(value, str) else value)


@dataclass(frozen=True)
class Mirrors:
    """One setting for each place that is no package index; "" where the person named none."""

    pytorch: str = ""  # base of the PyTorch wheel index: <base>/cpu, <base>/cu130 …
    python: str = ""  # builds of Python that uv fetches
    hub: str = ""  # of Hugging Face


def read_sources(host: Host) -> Sources:
    """pip's settings; where uv has its own for indexes, those instead."""
    pip, uv = _read_pip(host), _read_uv(host)
    if not uv.told_by:
        return replace(pip, problems=pip.problems + uv.problems)
    return replace(
        pip, index_url=uv.index_url, extra_index_urls=uv.extra_index_urls, find_links=uv.find_links,
        no_index=uv.no_index, told_by=(*uv.told_by, *pip.told_by), problems=pip.problems + uv.problems,
        uv_configured=True,
    )  # fmt: skip


def pip_settings(host: Host) -> IndexSettings:
    """How pip is configured, for the snapshot: without passwords and tokens."""
    return _settings("pip", _read_pip(host))


def uv_settings(host: Host) -> IndexSettings:
    """What uv's own variables and files say about indexes, for the snapshot: without passwords and tokens."""
    return _settings("uv", _read_uv(host))


def mirrors(host: Host) -> Mirrors:
    """The three settings for people who reach the public addresses slowly or not at all."""
    said = {name: host.environ.get(name, "").strip() for name in (
        "MODELYARD_PYTORCH_INDEX", "UV_TORCH_BACKEND_INDEX", "UV_PYTHON_INSTALL_MIRROR", "HF_ENDPOINT",
    )}  # fmt: skip
    return Mirrors(
        pytorch=(said["MODELYARD_PYTORCH_INDEX"] or said["UV_TORCH_BACKEND_INDEX"]).rstrip("/"),
        python=said["UV_PYTHON_INSTALL_MIRROR"].rstrip("/"),
        hub=said["HF_ENDPOINT"].rstrip("/"),
    )


def uv_variables(sources: Sources) -> dict[str, str]:
    """Environment variables that tell uv the same. Not as arguments: other users of a machine can read those."""
    said: dict[str, str] = {}
    if not sources.uv_configured and not sources.no_index:
        if sources.index_url:
            said["UV_DEFAULT_INDEX"] = as_address(sources.index_url)
        if sources.extra_index_urls:
            said["UV_INDEX"] = " ".join(as_address(each) for each in sources.extra_index_urls)
            # pip takes the best version of all indexes. uv's own rule, the first index that knows a name, guards
            # against somebody who puts a higher version of a private name on a public index; with best-match that
            # guard is gone. It is told so only to people whose pip works that way already, and the lock's hashes hold.
            said["UV_INDEX_STRATEGY"] = "unsafe-best-match"
    if not sources.uv_configured and sources.find_links:
        said["UV_FIND_LINKS"] = ",".join(as_address(each).replace(",", "%2C") for each in sources.find_links)
    if sources.certificate:
        said["SSL_CERT_FILE"] = sources.certificate
    if sources.client_certificate:
        said["SSL_CLIENT_CERT"] = sources.client_certificate
    if sources.proxy:
        said |= dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), sources.proxy)
    if sources.trusted_hosts:
        said["UV_INSECURE_HOST"] = " ".join(sources.trusted_hosts)
    if 0 < (sources.timeout_seconds or 0) < 1e9:  # pip takes any number
        said["UV_HTTP_TIMEOUT"] = str(max(1, round(sources.timeout_seconds or 0)))
    return said


def uv_arguments(sources: Sources) -> list[str]:
    """Arguments for uv's lock, sync and pip commands: what has no variable."""
    return ["--no-index"] if sources.no_index and not sources.uv_configured else []


def as_address(place: str) -> str:
    """An address as it is; a path of this machine as ``file://``, in which blanks and commas are safe."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", place):
        return place.replace(" ", "%20")
    windows = re.match(r"[A-Za-z]:[\\/]", place) is not None
    path: PurePath = PureWindowsPath(place) if windows else PurePosixPath(Path(place).absolute())
    return path.as_uri()


def local_path(place: str) -> str | None:
    """The path of a ``file://`` address or of a plain path, None for an address elsewhere."""
    if place.lower().startswith("file:"):
        try:
            return url2pathname(unquote(urlsplit(place).path) if os.name == "nt" else urlsplit(place).path)
        except ValueError:
            return None
    return None if re.match(r"[A-Za-z][A-Za-z0-9+.-]+:", place) else place


def _settings(tool: Any, sources: Sources) -> IndexSettings:
    return IndexSettings(
        tool=tool,
        index_url=plain_address(sources.index_url),
        extra_index_urls=tuple(plain_address(each) for each in sources.extra_index_urls),
        find_links=tuple(plain_address(each) for each in sources.find_links),
        certificate=sources.certificate,
        client_certificate=sources.client_certificate,
        proxy=plain_address(sources.proxy),
        trusted_hosts=sources.trusted_hosts,
        no_index=sources.no_index,
        sources=sources.told_by,
    )


def _read_pip(host: Host) -> Sources:
    merged: dict[str, tuple[str, str]] = {}  # "section.key": (value, who said it)
    problems: list[str] = []
    for path in _pip_files(host):
        text = host.read_text(path) if host.exists(path) else None
        if text is None:
            continue
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(text, source=path)
            items = [(section, name, value) for section in parser.sections() for name, value in parser.items(section)]
        except configparser.Error as error:
            problems.append(f"{path}: {str(error).splitlines()[0]}")
            continue
        merged |= {f"{section}.{_option(name)}": (value or "", path) for section, name, value in items}
    for name, value in host.environ.items():
        if name.startswith("PIP_"):
            merged[f":env:.{_option(name[4:])}"] = (value, name)
    return _as_sources(merged, problems, host)


def _option(name: str) -> str:
    return name.lower().replace("_", "-").removeprefix("--")


def _pip_files(host: Host) -> Iterator[str]:
    """Configuration files in pip's order; a later one wins."""
    variables = host.environ
    named = variables.get("PIP_CONFIG_FILE")
    if named is not None and named == ("nul" if host.system == "windows" else os.devnull):
        return
    yield from (_join(host, folder, "pip.ini" if host.system == "windows" else "pip.conf") for folder in _folders(host))
    if named:
        yield named


def _folders(host: Host) -> Iterator[str]:
    variables, home = host.environ, host.home
    named = variables.get("PIP_CONFIG_FILE")
    if host.system == "windows":
        yield _join(host, variables.get("PROGRAMDATA") or variables.get("ALLUSERSPROFILE") or r"C:\ProgramData", "pip")
        user = [_join(host, home, "pip"), _join(host, variables.get("APPDATA") or rf"{home}\AppData\Roaming", "pip")]
    elif host.system == "darwin":
        yield "/Library/Application Support/pip"
        support = _join(host, home, "Library/Application Support/pip")
        user = [_join(host, home, ".pip"), support if host.exists(support) else _join(host, home, ".config/pip")]
    else:
        shared = variables.get("XDG_CONFIG_DIRS", "")
        for folder in (shared if shared.strip() else "/etc/xdg").split(":"):
            yield _join(host, _home(folder, host), "pip")
        yield "/etc"
        own = variables.get("XDG_CONFIG_HOME", "")
        user = [_join(host, home, ".pip"), _join(host, own if own.strip() else _join(host, home, ".config"), "pip")]
    if not (named and host.exists(named)):  # a file that the person names stands in for their own
        yield from user
    yield host.prefix


def _join(host: Host, *parts: str) -> str:
    return str(PureWindowsPath(*parts) if host.system == "windows" else PurePosixPath(*parts))


def _home(path: str, host: Host) -> str:
    return host.home + path[1:] if path == "~" or path.startswith(("~/", "~\\")) else path


def _as_sources(merged: dict[str, tuple[str, str]], problems: list[str], host: Host) -> Sources:
    found: dict[str, Any] = {}
    told: dict[str, str] = {}
    for section in SECTIONS:
        for key, (value, origin) in merged.items():
            of, _, option = key.partition(".")
            if of != section or not value:
                continue
            try:
                field, read = _read_option(option, value, host)
            except ValueError:
                problems.append(f"{origin}: {option} = {value!r} is no value for it")
                continue
            if field:
                found[field], told[field] = read, origin
    for field in ("extra_index_urls", "find_links"):
        found[field] = tuple(each for each in found.get(field, ()) if not _missing(each, host))
    if not found.get("certificate"):  # pip's network library looks there
        for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            if host.environ.get(name):
                found["certificate"], told["certificate"] = host.environ[name], name
                break
    return Sources(**found, told_by=tuple(dict.fromkeys(told.values())), problems=tuple(problems))


def _read_option(option: str, value: str, host: Host) -> tuple[str, Any]:
    """(field of Sources, its value), ("", None) for an option that does not matter here."""
    if option in _SINGLE:
        field = _SINGLE[option]
        return field, _home(value, host) if field.endswith("certificate") else value
    if option in _LISTS:
        entries = value.split()
        return _LISTS[option], tuple(_home(each, host) if option == "find-links" else each for each in entries)
    if option in _TIMES:
        return _TIMES[option], float(value)
    if option == "no-index":
        if value.lower() not in _TRUE | _FALSE:
            raise ValueError(value)
        return "no_index", value.lower() in _TRUE
    return "", None


def _missing(place: str, host: Host) -> bool:
    """A folder of this machine that is not there. pip only warns about it, uv stops."""
    path = local_path(place)
    return path is not None and not host.exists(path)


def _read_uv(host: Host) -> Sources:
    """uv's settings of indexes: its files (user before system), and its variables above them."""
    said: dict[str, Any] = {}
    told: list[str] = []
    problems: list[str] = []
    for path in _uv_files(host):
        text = host.read_text(path) if host.exists(path) else None
        try:
            found = {key: value for key, value in tomllib.loads(text or "").items() if key in _UV_KEYS}
        except (tomllib.TOMLDecodeError, RecursionError):
            problems.append(f"{path}: not readable as TOML")
            continue
        if found:
            told.append(path)
            said = found | said
    indexes = [each for each in _tables(said.get("index")) if not each.get("explicit")]
    default = [str(each.get("url", "")) for each in indexes if each.get("default")] + [str(said.get("index-url", ""))]
    more = [str(each.get("url", "")) for each in indexes if not each.get("default")]
    sources = Sources(
        index_url=default[0],
        extra_index_urls=tuple(each for each in [*more, *_texts(said.get("extra-index-url"))] if each),
        find_links=tuple(_home(each, host) for each in _texts(said.get("find-links"))),
        no_index=said.get("no-index") is True,
    )
    variables = {name: host.environ[name].strip() for name in _UV_VARIABLES if host.environ.get(name, "").strip()}
    index = variables.get("UV_DEFAULT_INDEX") or variables.get("UV_INDEX_URL")
    extra = f"{variables.get('UV_INDEX', '')} {variables.get('UV_EXTRA_INDEX_URL', '')}".split()
    links = [each.strip() for each in variables.get("UV_FIND_LINKS", "").split(",") if each.strip()]
    return replace(
        sources, index_url=_unnamed(index) if index else sources.index_url,
        extra_index_urls=tuple(_unnamed(each) for each in extra) or sources.extra_index_urls,
        find_links=tuple(_home(each, host) for each in links) or sources.find_links,
        told_by=(*variables, *told), problems=tuple(problems),
    )  # fmt: skip


def _uv_files(host: Host) -> list[str]:
    variables, home = host.environ, host.home
    if variables.get("UV_NO_CONFIG", "").lower() in _TRUE:
        return []
    if variables.get("UV_CONFIG_FILE"):
        return [variables["UV_CONFIG_FILE"]]
    if host.system == "windows":
        user = variables.get("APPDATA") or rf"{home}\AppData\Roaming"
        return [
            _join(host, each, "uv", "uv.toml") for each in (user, variables.get("PROGRAMDATA") or r"C:\ProgramData")
        ]
    user = variables.get("XDG_CONFIG_HOME", "").strip() or _join(host, home, ".config")
    shared = (variables.get("XDG_CONFIG_DIRS", "").strip() or "/etc/xdg").split(":")
    system = [_join(host, each, "uv", "uv.toml") for each in shared if each] + ["/etc/uv/uv.toml"]
    # Of the system's files uv reads the first that is there.
    return [_join(host, user, "uv", "uv.toml"), next((each for each in system if host.exists(each)), system[-1])]


def _unnamed(index: str) -> str:
    """The address of ``name=https://…``, uv's way to name an index."""
    return re.sub(r"^[A-Za-z0-9._-]+=", "", index)


def _tables(value: object) -> list[dict[str, Any]]:
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _texts(value: object) -> list[str]:
    return [each for each in value if isinstance(each, str)] if isinstance(value, list) else []
