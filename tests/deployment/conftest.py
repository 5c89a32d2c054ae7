"""Servers to ask: in a thread of this process, or in a process of their own."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI

FAKE_SERVER = Path(__file__).with_name("fake_server.py")


@pytest.fixture(scope="session")
def fake() -> ModuleType:
    """The module ``fake_server``."""
    spec = importlib.util.spec_from_file_location("fake_server", FAKE_SERVER)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fake_server"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def start() -> Iterator[Callable[[FastAPI], str]]:
    """Serves an app in a thread until the test ends; returns its address."""
    running: list[tuple[uvicorn.Server, threading.Thread]] = []

    def start_app(app: FastAPI) -> str:
        listener = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(
            uvicorn.Config(app, log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=2)
        )
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        running.append((server, thread))
        while not server.started:
            thread.join(0.01)
            assert thread.is_alive()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start_app
    for server, thread in running:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture
def process() -> Iterator[Callable[..., tuple[subprocess.Popen[str], str]]]:
    """Starts ``fake_server.py`` as a process; returns it and the first line that it prints, its address."""
    started: list[subprocess.Popen[str]] = []

    def start_process(host: str = "127.0.0.1", port: int = 0) -> tuple[subprocess.Popen[str], str]:
        child: subprocess.Popen[Any] = subprocess.Popen(
            [sys.executable, FAKE_SERVER, host, str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(child)
        assert child.stdout is not None
        return child, child.stdout.readline().strip()

    yield start_process
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate(timeout=20)
