"""The server as a process: its address, its signals, its end."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import httpx
import pytest

from modelyard.deployment.server import create_app, serve
from modelyard.errors import MachineError

Process = Callable[..., tuple["subprocess.Popen[str]", str]]
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")


@needs_signals
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_it_finish_what_it_began(process: Process, sent: signal.Signals) -> None:
    child, url = process()
    assert url.startswith("http://127.0.0.1:")
    slow = {"texts": ["slow"]}
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url, timeout=20) as client:
        answer = pool.submit(httpx.post, f"{url}/predict", json=slow, timeout=20)
        while "modelyard_queued_texts 1.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        child.send_signal(sent)
        while (ready := client.get("/health/ready")).status_code == 200:
            time.sleep(0.01)
        assert (ready.status_code, ready.json()["status"]) == (503, "stopping")
        assert client.get("/health/live").status_code == 200
        refused = client.post("/predict", json={"text": "late"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert answer.result().json()["predictions"][0]["label"] == "even"
    output, _ = child.communicate(timeout=20)
    assert child.returncode == 0
    assert output == "ended\n"


@needs_signals
def test_an_idle_server_ends_at_once(process: Process) -> None:
    child, url = process()
    assert httpx.get(f"{url}/health/live").json() == {"status": "live"}
    started = time.monotonic()
    child.terminate()
    assert child.wait(20) == 0
    assert time.monotonic() - started < 5
    with pytest.raises(httpx.ConnectError):
        httpx.get(url)


@needs_signals
def test_a_second_signal_ends_it_though_busy(process: Process) -> None:
    child, url = process()
    with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
        lines = ("POST /predict HTTP/1.1", "Host: x", "Content-Type: application/json", "Content-Length: 99")
        connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n{")  # a request that never comes whole
        time.sleep(0.3)
        child.terminate()
        time.sleep(0.3)
        assert child.poll() is None
        child.terminate()
        assert child.wait(20) == 0


def test_the_log_of_the_process_holds_no_text(process: Process) -> None:
    child, url = process()
    for text in ("confidential words", "fail"):
        httpx.post(f"{url}/predict", json={"text": text})
    httpx.get(f"{url}/confidential?q=confidential")
    child.terminate()
    _, log = child.communicate(timeout=20)
    assert "POST /predict 200" in log
    assert "prediction failed: ValueError" in log
    assert "confidential" not in log and "secret" not in log


def test_an_answer_is_not_held_back(process: Process) -> None:
    _, url = process()
    with httpx.Client(base_url=url) as client:
        waits = []
        for _ in range(30):
            started = time.perf_counter()
            seconds = client.post("/predict", json={"text": "ab"}).json()["seconds"]
            waits.append(time.perf_counter() - started - seconds)
    assert sorted(waits)[3] < 0.03  # a delayed acknowledgement costs 0.04 each time; a busy machine, only sometimes


def test_it_says_nothing_of_its_software(process: Process) -> None:
    _, url = process()
    assert "server" not in httpx.get(url).headers


def test_a_taken_port_names_the_next_free_one(fake: ModuleType) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=f"port {port} of 127.0.0.1 is already taken") as caught:
            serve(create_app(fake.FakeModel(), fake.fake_info()), port=port)
        free = int(caught.value.hint.removeprefix("use --port "))
        assert port < free <= port + 100
        socket.create_server(("127.0.0.1", free)).close()


@pytest.mark.parametrize(
    ("host", "port", "problem"),
    [
        ("192.0.2.1", 8000, "cannot listen on 192.0.2.1, port 8000"),
        ("no-such-host.invalid", 8000, "cannot listen on no-such-host.invalid"),
        ("127.0.0.1", 70000, "port 70000 does not exist"),
    ],
)
def test_an_address_that_cannot_be_used_is_said(fake: ModuleType, host: str, port: int, problem: str) -> None:
    with pytest.raises(MachineError) as caught:
        serve(create_app(fake.FakeModel(), fake.fake_info()), host, port)
    assert problem in caught.value.problem
    assert "--port" in caught.value.hint


def test_a_port_that_needs_rights_is_said(fake: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> socket.socket:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(socket, "create_server", refuse)
    with pytest.raises(MachineError, match=r"port 80 of 127\.0\.0\.1 may not be used by this user"):
        serve(create_app(fake.FakeModel(), fake.fake_info()), port=80)


@pytest.mark.skipif(os.environ.get("CI_NO_OPEN_PORTS") == "1", reason="no port may be opened to the network")
def test_an_open_host_is_warned_of(process: Process) -> None:
    child, url = process("0.0.0.0")
    assert httpx.get(url.replace("0.0.0.0", "127.0.0.1") + "/health/ready").status_code == 200
    child.terminate()
    _, log = child.communicate(timeout=20)
    assert "warning: everyone who reaches 0.0.0.0 can use this model" in log


def test_loopback_is_not_warned_of(process: Process) -> None:
    child, _ = process()
    child.terminate()
    _, log = child.communicate(timeout=20)
    assert "warning" not in log
