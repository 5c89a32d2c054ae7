"""Servers on this machine that are not what they should be: mirrors, proxies, certificates."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from tests.environment.provoked.shells import Shell, only

ELSEWHERE = "https://files.example"
PAGE = '<a href="{base}/torch-2.13.0%2Bcpu-cp312-cp312-linux_x86_64.whl">torch</a>'


class Server(ThreadingHTTPServer):
    """Answers each request with `status`, `headers` and `body`; `asked` are the paths."""

    daemon_threads = True
    status = 200
    headers: dict[str, str]
    body = ""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Replies)
        self.headers = {}
        self.asked: list[str] = []

    @property
    def port(self) -> int:
        return int(self.server_address[1])

    def say(self, status: int = 200, body: str = "", **headers: str) -> None:
        self.status, self.body = status, body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


class Replies(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        body = self.server.body.encode()
        self.send_response(self.server.status)
        for name, value in {**self.server.headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *given: object) -> None:
        pass


@contextmanager
def serving(secure: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server()
    server.handle_error = lambda *given: None  # type: ignore[method-assign]  # a client that does not trust it hangs up
    if secure is not None:
        server.socket = secure.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def online(shell: Shell) -> Shell:
    """A shell that asks the hub, at an environment without frameworks."""
    del shell.variables["HF_HUB_OFFLINE"]
    shell.environment()
    return shell


def test_a_mirror_of_the_hub_that_only_redirects(online: Shell, server: Server) -> None:
    endpoint = f"http://127.0.0.1:{server.port}"
    server.say(x_repo_commit="0123456789abcdef")
    clean = online.doctor(HF_ENDPOINT=endpoint)
    server.say(302, location=f"{ELSEWHERE}/config.json")
    provoked = online.doctor(HF_ENDPOINT=endpoint)
    found = only("hub-mirror-redirects", clean, provoked, "unset HF_ENDPOINT")
    assert provoked.code == 3
    assert found["evidence"] == f"{endpoint} does not answer as a hub: redirects to files.example"
    assert len(server.asked) == 2


def test_a_mirror_of_pytorch_whose_links_lead_elsewhere(shell: Shell, server: Server) -> None:
    shell.environment()
    mirror = f"http://127.0.0.1:{server.port}/whl"
    server.say(body=PAGE.format(base=""))
    clean = shell.doctor(MODELYARD_PYTORCH_INDEX=mirror)
    server.say(body=PAGE.format(base=ELSEWHERE))
    provoked = shell.doctor(MODELYARD_PYTORCH_INDEX=mirror)
    found = only("pytorch-mirror-links-upstream", clean, provoked, "unset MODELYARD_PYTORCH_INDEX")
    assert found["evidence"] == f"{mirror}: its links lead to files.example"


def test_a_mirror_of_python_builds_without_the_file(shell: Shell, server: Server) -> None:
    shell.environment()
    mirror = f"http://127.0.0.1:{server.port}/python"
    server.say(status=200)
    clean = shell.doctor(UV_PYTHON_INSTALL_MIRROR=mirror)
    server.say(status=404)
    provoked = shell.doctor(UV_PYTHON_INSTALL_MIRROR=mirror)
    found = only("python-mirror-lacks-builds", clean, provoked, "unset UV_PYTHON_INSTALL_MIRROR")
    assert found["evidence"].startswith(f"{mirror}: answers 404 for /") and "cpython-3." in found["evidence"]


def test_a_proxy_that_is_not_there(online: Shell, server: Server) -> None:
    endpoint = f"http://127.0.0.1:{server.port}"
    server.say(x_repo_commit="0123456789abcdef")
    clean = online.doctor(HF_ENDPOINT=endpoint)
    with socket.socket() as closed:  # bound and not listening: nobody else can listen there meanwhile
        closed.bind(("127.0.0.1", 0))
        proxy = f"http://ann:secret@127.0.0.1:{closed.getsockname()[1]}"
        provoked = online.doctor(HF_ENDPOINT=endpoint, HTTP_PROXY=proxy)
        unset = "unset HTTP_PROXY http_proxy"
        assert online.doctor(HF_ENDPOINT=endpoint, HTTP_PROXY=proxy, typed=unset).rules == clean.rules
    found = only("proxy-unreachable", clean, provoked)
    assert unset in found["fix"]
    assert f"proxy {proxy.replace('ann:secret@', '')}" in found["evidence"]
    assert "secret" not in str(provoked.snapshot)


def test_a_proxy_that_wants_a_password(online: Shell, server: Server) -> None:
    endpoint = f"http://127.0.0.1:{server.port}"
    server.say(x_repo_commit="0123456789abcdef")
    clean = online.doctor(HF_ENDPOINT=endpoint)
    with serving() as proxy:
        proxy.say(407)
        provoked = online.doctor(HF_ENDPOINT=endpoint, HTTP_PROXY=f"http://127.0.0.1:{proxy.port}")
        assert proxy.asked
    assert "wants a password" in only("proxy-unreachable", clean, provoked)["evidence"]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl to make a certificate")
def test_a_certificate_of_the_company(online: Shell, tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=company", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", key, "-out", certificate],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    secure = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    secure.load_cert_chain(certificate, key)
    with serving(secure) as server:
        server.say(x_repo_commit="0123456789abcdef")
        endpoint = f"https://127.0.0.1:{server.port}"
        clean = online.doctor(HF_ENDPOINT=endpoint, SSL_CERT_FILE=str(certificate))  # as the fix says
        assert clean.snapshot["reach"][0]["serves"] is True
        provoked = online.doctor(HF_ENDPOINT=endpoint)
    only("certificate-not-trusted", clean, provoked, "export SSL_CERT_FILE=/path/company-ca.pem")


def test_a_hub_that_is_not_reached(online: Shell, server: Server) -> None:
    server.say(x_repo_commit="0123456789abcdef")
    clean = online.doctor(HF_ENDPOINT=f"http://127.0.0.1:{server.port}")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        provoked = online.doctor(HF_ENDPOINT=f"http://127.0.0.1:{closed.getsockname()[1]}")
        mended = online.doctor(HF_ENDPOINT=provoked.snapshot["reach"][0]["address"], typed="export HF_HUB_OFFLINE=1")
    found = only("hub-not-reachable", clean, provoked, "export HF_HUB_OFFLINE=1")
    assert mended.rules == clean.rules
    assert found["evidence"].endswith("connection refused")
