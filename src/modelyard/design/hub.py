"""Checkpoints of the Hugging Face hub: found in the local cache or downloaded, within seconds told if neither
works."""

from __future__ import annotations

import difflib
import errno
import os
import re
import socket
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from modelyard.design.checkpoint import WEIGHTS, WEIGHTS_INDEX, check_checkpoint, convert_command
from modelyard.errors import InputError, MachineError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

ALLOWED_FILES = ("*.json", "*.txt", "*.safetensors", "*.model")
REACH_SECONDS = 5.0
ANSWER_SECONDS = 10.0
# The hub's own conversion service proposes safetensors for older checkpoints as a pull request under this
# name.
CONVERSION_AUTHOR = "SFconvertbot"
CONVERSION_TITLE = "Adding `safetensors` variant of this model"
HUB_ID = re.compile(r"(\w[\w.-]*/)?\w[\w.-]*", re.ASCII)
STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
WELL_KNOWN = ("google-bert/bert-base-uncased", "FacebookAI/roberta-base", "allenai/longformer-base-4096")


def from_hub(name: str, other_ways: list[str]) -> Path:
    """The folder of a hub checkpoint, ``ORGANISATION/NAME`` or with ``@REVISION`` behind it.

    The hub is asked for the newest version when it answers; else the cached one is taken. The usual variables
    hold: HF_HUB_OFFLINE, HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HTTPS_PROXY. No file but
    configuration, vocabulary and safetensors is downloaded.

    other_ways: what the person can do when the checkpoint is not to be had, for the error's hint.
    Raises InputError (no such model, not allowed, not reachable, no safetensors), MachineError (no library,
    no space).
    """
    try:
        from huggingface_hub import constants
    except ImportError as error:
        raise MachineError("huggingface_hub is not installed", hint="pip install 'modelyard[torch]'") from error
    repository, _, revision = name.partition("@")
    if not HUB_ID.fullmatch(repository):
        raise InputError(
            f"`{name}` is neither an existing folder nor an id of the hub (ORGANISATION/NAME)",
            hint=_options(other_ways),
        )
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        cached = _cached(repository, revision)
        if cached is not None:
            return check_checkpoint(cached)
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} could not be reached"
        raise InputError(f"`{name}` is not in {constants.HF_HUB_CACHE}, and {why}", hint=_options(other_ways))
    return check_checkpoint(_download(repository, revision, host))


def _options(other_ways: list[str]) -> str:
    cached = cached_models()
    ways = [f"one of the cached models: {', '.join(cached[:5])}"] if cached else []
    return (
        f"set design.model to {', or '.join([*ways, *other_ways])}; or train from scratch with "
        "`design.architecture: {family: bert}` in its place"
    )


def _reachable(endpoint: str) -> bool:
    """Whether the hub, or the proxy before it, takes a connection; the name's look-up is bounded too."""
    parts = urlsplit(endpoint)
    if not urllib.request.proxy_bypass(parts.hostname or ""):
        proxies = urllib.request.getproxies()
        proxy = proxies.get(parts.scheme) or proxies.get("all")
        if proxy:
            parts = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    port = parts.port or (80 if parts.scheme == "http" else 443)
    answered = threading.Event()

    def connect() -> None:
        try:
            socket.create_connection((parts.hostname, port), timeout=REACH_SECONDS).close()
        except OSError:
            return
        answered.set()

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(REACH_SECONDS)
    return answered.is_set()


def _snapshots() -> list[tuple[str, frozenset[str], Path]]:
    """Cached versions with safetensors: repository, its references (``main``, a commit …) and folder, newest
    first."""
    from huggingface_hub import CacheNotFound, constants, scan_cache_dir

    try:
        cache = scan_cache_dir(constants.HF_HUB_CACHE)
    except CacheNotFound:
        return []
    revisions = [
        (revision.last_modified, repo.repo_id, revision.refs | {revision.commit_hash}, revision.snapshot_path)
        for repo in cache.repos
        if repo.repo_type == "model"
        for revision in repo.revisions
        if any((revision.snapshot_path / weights).exists() for weights in (WEIGHTS, WEIGHTS_INDEX))
    ]
    revisions.sort(key=lambda revision: revision[0], reverse=True)
    return [(repository, names, folder) for _, repository, names, folder in revisions]


def cached_models() -> list[str]:
    """Ids of the models in the Hugging Face cache that have safetensors."""
    try:
        return sorted({repository for repository, _, _ in _snapshots()})
    except (ImportError, OSError):
        return []


def _cached(repository: str, revision: str) -> Path | None:
    there = [(names, folder) for cached, names, folder in _snapshots() if cached == repository]
    if revision:
        return next((folder for names, folder in there if revision in names), None)
    main = [folder for names, folder in there if "main" in names]
    return next(iter([*main, *(folder for _, folder in there)]), None)


def _download(repository: str, revision: str, host: str) -> Path:
    from huggingface_hub import HfApi, constants, errors, snapshot_download

    api = HfApi(endpoint=constants.ENDPOINT)
    # The base class of the errors of the HTTP library, whose name differs between versions of
    # huggingface_hub.
    connection_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        chosen = revision or _revision_with_safetensors(api, repository)
        return Path(
            snapshot_download(
                repository,
                revision=chosen,
                cache_dir=constants.HF_HUB_CACHE,
                endpoint=constants.ENDPOINT,
                allow_patterns=list(ALLOWED_FILES),
                etag_timeout=ANSWER_SECONDS,
            )
        )
    except errors.GatedRepoError as error:
        raise InputError(
            f"`{repository}` is gated: {host} gives it only to those who accepted its conditions",
            hint=f"accept them at {constants.ENDPOINT}/{repository}, then `hf auth login` (or set HF_TOKEN)",
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(f"`{repository}` has no version `{revision}`", hint=f"design.model: {repository}") from error
    except errors.RepositoryNotFoundError as error:
        near = difflib.get_close_matches(repository, {*WELL_KNOWN, *cached_models()}, n=1)
        guess = f"did you mean {near[0]}? If" if near else "check the spelling; if"
        raise InputError(
            f"{host} has no model `{repository}`, or it is private",
            hint=f"{guess} it is private: `hf auth login`",
        ) from error
    except (connection_error, OSError) as error:
        if isinstance(error, OSError) and error.errno in STORAGE_ERRORS:
            raise MachineError(
                f"cannot store `{repository}` in {constants.HF_HUB_CACHE}: {error.strerror}",
                hint="free some space, or set HF_HOME to a folder on another disk",
            ) from error
        first_line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"downloading `{repository}` from {host} failed: {first_line}",
            hint="type the same command again: what has arrived is kept",
        ) from error


def _revision_with_safetensors(api: HfApi, repository: str) -> str:
    """``main``, or the hub's own conversion of it to safetensors.

    Raises InputError when there is neither.
    """
    files = [sibling.rfilename for sibling in api.model_info(repository, timeout=ANSWER_SECONDS).siblings or []]
    if WEIGHTS in files or WEIGHTS_INDEX in files:
        return "main"
    for discussion in api.get_repo_discussions(repository, discussion_type="pull_request"):
        if (discussion.author, discussion.title) == (CONVERSION_AUTHOR, CONVERSION_TITLE):
            return f"refs/pr/{discussion.num}"
    target = os.path.basename(repository) + "-safetensors"  # noqa: PTH119 - an id of the hub, not a path
    raise InputError(
        f"`{repository}` has no {WEIGHTS}; only safetensors are loaded, because other formats can run code "
        f"(there: {', '.join(files[:8]) or 'nothing'})",
        hint=f"{convert_command(repository, target)}, then --set design.model=./{target}",
    )
