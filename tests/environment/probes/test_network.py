"""Real servers on loopback that play a hub, a mirror that only redirects, a page whose links lead away, and silence."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from tests.environment.machines import FakeHost

from modelyard.environment.host import Answer, Host
from modelyard.environment.probes import take
from modelyard.environment.probes.network import HUB, PYTORCH, Question, ask, proxied, questions
from modelyard.environment.snapshot import Configuration, IndexSettings, Reach

Reply = tuple[int, dict[str, str], str]


class Server:
    """What was asked of one server on loopback."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[str] = []


@contextmanager
def serving(reply: Callable[[str], Reply]) -> Iterator[Server]:
    """A server that answers a path with a status, headers and a text."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.asked.append(f"{self.command} {self.path}")
            status, headers, text = reply(self.path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(text)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(text.encode())

        do_HEAD = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server = Server(f"http://127.0.0.1:{running.server_port}")
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        running.shutdown()
        thread.join()
        running.server_close()


@pytest.fixture(autouse=True)
def _no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def hub_at(address: str) -> Reach:
    return ask(Host(), Question("hub", address), {})


def pytorch_at(address: str) -> Reach:
    return ask(Host(), Question("pytorch", address), {})


def test_a_hub_is_told_by_its_commit_header() -> None:
    with serving(lambda path: (200, {"X-Repo-Commit": "abc"}, "{}")) as server:
        found = hub_at(server.address)
    assert (found.reached, found.status, found.serves, found.problem) == (True, 200, True, "")
    assert len(server.asked) == 1 and server.asked[0].startswith("HEAD /google-bert/")


def test_a_hub_may_redirect_within_itself_and_to_its_storage() -> None:
    """The header may come after a redirect on the same host, or on the redirect to other storage itself."""

    def reply(path: str) -> Reply:
        if path.startswith("/cache"):
            return 302, {"Location": "https://storage.example/blob?signed=1", "X-Repo-Commit": "abc"}, ""
        return 307, {"Location": "/cache?etag=1"}, ""

    with serving(reply) as server:
        found = hub_at(server.address)
    assert (found.serves, found.status) == (True, 302) and server.asked[-1] == "HEAD /cache?etag=1"


def test_a_mirror_that_only_redirects_does_not_serve() -> None:
    with serving(lambda path: (308, {"Location": f"https://huggingface.co{path}"}, "")) as server:
        found = hub_at(server.address)
    assert (found.reached, found.serves, found.detail) == (True, False, "redirects to huggingface.co")


def test_a_page_that_is_no_hub_does_not_serve_and_a_refusal_says_nothing() -> None:
    with serving(lambda path: (200, {}, "welcome")) as server:
        assert hub_at(server.address).detail == "answers 200 without the header x-repo-commit"
    for status in (401, 404, 503):
        with serving(lambda path, status=status: (status, {}, "")) as server:  # type: ignore[misc]
            found = hub_at(server.address)
        assert (found.reached, found.status, found.serves) == (True, status, None)


def test_a_redirect_loop_ends() -> None:
    with serving(lambda path: (302, {"Location": path}, "")) as server:
        assert hub_at(server.address).reached
    assert len(server.asked) == 3


WHEEL = "torch-2.13.0%2Bcpu-cp312-cp312-manylinux_2_28_x86_64.whl"


def test_a_mirror_of_pytorch_serves_its_own_files() -> None:
    with serving(lambda path: (200, {}, f'<a href="/whl/cpu/{WHEEL}#sha256=1">torch</a>')) as server:
        assert pytorch_at(f"{server.address}/whl").serves is True


def test_a_mirror_whose_links_lead_upstream_does_not_serve() -> None:
    page = f"<html><a class='x' href='https://download-r2.pytorch.org/whl/cpu/{WHEEL}'>torch</a>"
    with serving(lambda path: (200, {}, page)) as server:
        found = pytorch_at(f"{server.address}/whl/")
    assert (found.serves, found.detail) == (False, "its links lead to download-r2.pytorch.org")
    assert server.asked == ["GET /whl/cpu/torch/"]


def test_a_mirror_that_is_a_plain_folder_of_files() -> None:
    page = f"<a href={WHEEL}>"
    with serving(lambda path: (404, {}, "") if path.endswith("/torch/") else (200, {}, page)) as server:
        found = pytorch_at(f"{server.address}/wheels")
    assert (found.serves, server.asked) == (True, ["GET /wheels/cpu/torch/", "GET /wheels/cpu/"])


def test_a_mirror_without_wheels_and_one_that_is_elsewhere() -> None:
    with serving(lambda path: (200, {}, "<a href='about.html'>")) as server:
        found = pytorch_at(server.address)
    assert (found.serves, found.detail) == (None, "no link to a wheel on its page")
    with serving(lambda path: (302, {"Location": "https://download.pytorch.org/whl/cpu/"}, "")) as server:
        found = pytorch_at(server.address)
    assert (found.serves, found.detail) == (False, "redirects to download.pytorch.org")


def test_the_own_hosts_of_pytorch_are_no_reproach() -> None:
    page = Answer(200, body=f"<a href='https://download-r2.pytorch.org/whl/cpu/{WHEEL}'>")
    found = ask(FakeHost(answers={PYTORCH: page}), Question("pytorch", PYTORCH), {})
    assert (found.reached, found.serves) == (True, True)


def test_an_index_that_wants_a_password_is_reached() -> None:
    with serving(lambda path: (401, {}, "")) as server:
        found = ask(Host(), Question("packages", f"{server.address}/simple/"), {})
    assert (found.reached, found.status, found.serves) == (True, 401, None) and server.asked == ["HEAD /simple/pip/"]


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_nobody_there_and_a_name_that_no_one_knows() -> None:
    assert hub_at(f"http://127.0.0.1:{closed_port()}").problem == "connection refused"
    assert hub_at("https://hub.invalid").problem == "name not known"


def test_a_proxy_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = f"http://ann:secret@127.0.0.1:{closed_port()}"
    monkeypatch.setenv("HTTPS_PROXY", proxy)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.example")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "MODELYARD_PYTORCH_INDEX"):
        monkeypatch.delenv(name, raising=False)
    snapshot = take(Host(), ask="never")
    found = next(each for each in snapshot.reach if each.purpose == "hub")
    assert (found.reached, found.problem) == (False, "proxy: connection refused")
    assert "secret" not in snapshot.model_dump_json()


def test_a_proxy_that_wants_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(lambda path: (407, {}, "")) as server:
        monkeypatch.setenv("HTTP_PROXY", server.address)
        found = ask(Host(), Question("hub", "http://hub.example"), {"http": server.address})
    assert (found.reached, found.problem) == (False, "proxy: wants a password")


@pytest.mark.parametrize(
    ("address", "proxies", "through"),
    [
        ("https://a.example", {}, False),
        ("https://a.example", {"http": "http://p"}, False),
        ("https://a.example", {"https": "http://p"}, True),
        ("https://a.example", {"all": "http://p", "no": "b.example, .other"}, True),
        ("https://a.corp.example", {"https": "http://p", "no": "localhost,.corp.example"}, False),
        ("https://corp.example", {"https": "http://p", "no": "corp.example"}, False),
        ("https://notcorp.example", {"https": "http://p", "no": "corp.example"}, True),
        ("https://a.example", {"https": "http://p", "no": "*"}, False),
    ],
)
def test_which_requests_go_through_a_proxy(address: str, proxies: dict[str, str], through: bool) -> None:
    assert proxied(address, proxies) is through


def test_silence_costs_two_seconds_in_all_however_many_places_are_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three servers accept and never answer."""
    with ExitStack() as stack:
        silent = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(3)]
        addresses = [f"http://127.0.0.1:{each.getsockname()[1]}" for each in silent]
        monkeypatch.setenv("HF_ENDPOINT", addresses[0])
        monkeypatch.setenv("MODELYARD_PYTORCH_INDEX", addresses[1])
        monkeypatch.setenv("UV_DEFAULT_INDEX", addresses[2])
        for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "PIP_INDEX_URL"):
            monkeypatch.delenv(name, raising=False)
        started = time.monotonic()
        snapshot = take(Host(), ask="never")
        seconds = time.monotonic() - started
    assert {each.purpose: each.problem for each in snapshot.reach} == {
        "hub": "timed out after 2 s", "pytorch": "timed out after 2 s", "packages": "timed out after 2 s",
    }  # fmt: skip
    assert seconds < 4


def test_what_is_asked_depends_on_the_machine() -> None:
    def purposes(configuration: Configuration, gpu: bool = False) -> list[tuple[str, str]]:
        return [(each.purpose, each.address) for each in questions(configuration, gpu)]

    assert purposes(Configuration()) == [("hub", HUB)]
    assert purposes(Configuration(hub_offline=True)) == []
    assert purposes(Configuration(), gpu=True) == [("hub", HUB), ("pytorch", PYTORCH)]
    index = IndexSettings(tool="pip", index_url="https://pkgs.example/simple")
    assert purposes(Configuration(indexes=(index,), pytorch_mirror="https://m.example/whl", hub_offline=True)) == [
        ("pytorch", "https://m.example/whl"),
        ("packages", "https://pkgs.example/simple"),
    ]
    folder = IndexSettings(tool="pip", index_url="file:///srv/simple")
    assert purposes(Configuration(indexes=(folder,), hub_offline=True)) == []
