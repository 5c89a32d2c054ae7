"""A hub of our own on the loopback, for the real client library: the few answers that a download needs."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

COMMIT = {"main": "a" * 40, "refs/pr/4": "b" * 40}


@dataclass
class Repository:
    """revisions: files by revision; gated: the API lists it, its files are refused."""

    revisions: dict[str, dict[str, bytes]]
    gated: bool
    discussions: list[dict[str, object]]


class Hub:
    """requests: what was asked, in order (``GET /api/…``); broken: every answer is an error of the server."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.broken = False
        self.endpoint = ""

    def add(
        self,
        name: str,
        *,
        gated: bool = False,
        discussions: Sequence[dict[str, object]] = (),
        **revisions: dict[str, bytes],
    ) -> None:
        """Publish a repository; the revision `pull_4` is that of pull request 4."""
        files = {revision.replace("pull_4", "refs/pr/4"): content for revision, content in revisions.items()}
        self.repositories[name] = Repository(files, gated, list(discussions))

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        parts = [unquote(part) for part in urlsplit(path).path.strip("/").split("/")]
        api = parts[:2] == ["api", "models"]
        parts = parts[2:] if api else parts
        repository = self.repositories.get("/".join(parts[:2]))
        if self.broken:
            return 500, {}, b"{}"
        if repository is None:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        return self._api(repository, parts) if api else self._file(repository, parts)

    def _api(self, repository: Repository, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        action = parts[2] if len(parts) > 2 else "revision"
        if action == "discussions":
            reply: object = {
                "discussions": repository.discussions,
                "count": len(repository.discussions),
                "start": 0,
            }
            return 200, {}, json.dumps(reply).encode()
        revision = "/".join(parts[3:]) or "main"
        files = next((files for name, files in repository.revisions.items() if revision in (name, COMMIT[name])), None)
        if files is None:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        if action == "tree":
            reply = [
                {"type": "file", "path": name, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for name, content in files.items()
            ]
        else:
            siblings = [{"rfilename": name} for name in files]
            reply = {"id": "/".join(parts[:2]), "sha": COMMIT.get(revision, revision), "siblings": siblings,
                     "private": False, "tags": [], "downloads": 0, "likes": 0}  # fmt: skip
        return 200, {}, json.dumps(reply).encode()

    def _file(self, repository: Repository, parts: list[str]) -> tuple[int, dict[str, str], bytes]:
        if repository.gated:
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        commit, name = parts[3], "/".join(parts[4:])
        content = next(files[name] for revision, files in repository.revisions.items() if COMMIT[revision] == commit)
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": commit}
        return 200, headers, content


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client library takes for the real one, with an empty cache."""
    from huggingface_hub import constants

    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    with serve(Hub()) as served:
        template = served.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        yield served


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests.append(f"{self.command} {self.path}")
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
