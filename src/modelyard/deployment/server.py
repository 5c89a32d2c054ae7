"""Running the service: a port, signals, a clean end.

On SIGTERM or Ctrl-C the server first says that it is not ready (so that a load balancer turns away), answers
what it has begun, then ends with exit code 0. A second signal ends it at once.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from modelyard.deployment.app import Service, create_app
from modelyard.errors import MachineError

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["create_app", "serve"]

LAST_CONNECTIONS_SECONDS = 5


def serve(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None] = lambda url: None,
) -> None:
    """Serve an app of `create_app` until SIGTERM or Ctrl-C.

    port: 0 takes a free one. on_ready: told the address (``http://127.0.0.1:8000``) once requests are taken.
    Raises MachineError when the address cannot be used.
    """
    listener = _listen(host, port)
    address = f"[{host}]" if ":" in host else host
    if not _is_loopback(host):
        print(
            f"warning: everyone who reaches {host} can use this model; it has no password, no encryption",
            file=sys.stderr,
        )
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # the app logs requests itself, without query strings
        server_header=False,
        proxy_headers=False,
        ws="none",
        lifespan="on",
        timeout_graceful_shutdown=LAST_CONNECTIONS_SECONDS,
    )
    url = f"http://{address}:{listener.getsockname()[1]}"
    _DrainingServer(config, app.state.service, lambda: on_ready(url)).run(sockets=[listener])


class _DrainingServer(uvicorn.Server):
    """Uvicorn closes its door at the first signal; this one answers health checks while it finishes."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not handed on to uvicorn, which would raise the signal again at the end and spoil the exit code.
        if self._service.stopping:
            self.should_exit = self.force_exit = True
            return
        self._service.stopping = True
        threading.Thread(target=self._exit_when_idle, name="drain", daemon=True).start()

    def _exit_when_idle(self) -> None:
        deadline = time.monotonic() + 2 * self._service.limits.request_timeout_seconds  # reading, then answering
        while self._service.num_in_flight and time.monotonic() < deadline:
            time.sleep(0.02)
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if not 0 <= port <= 65535:
        raise MachineError(f"port {port} does not exist; expected 0 to 65535", hint="use --port 8000")
    try:
        listener = socket.create_server((host, port), family=family)
        # Connections inherit it. asyncio sets it only on sockets made with the protocol's number; without,
        # an answer waits 40 ms for the client's delayed acknowledgement (measured: 48 ms became 4 ms).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listener
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise MachineError(
                f"port {port} of {host} is already taken",
                hint=f"use --port {_next_free_port(host, port, family)}",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise MachineError(
                f"port {port} of {host} may not be used by this user: {error.strerror}",
                hint="use --port 8000",
            ) from error
        raise MachineError(
            f"cannot listen on {host}, port {port}: {error.strerror}", hint="use --host 127.0.0.1 --port 8000"
        ) from error


def _next_free_port(host: str, port: int, family: socket.AddressFamily) -> int:
    """The first free port after `port`, or 0 (any free one) when the next 100 are taken."""
    for candidate in range(port + 1, min(port + 101, 65536)):
        try:
            socket.create_server((host, candidate), family=family).close()
        except OSError:
            continue
        return candidate
    return 0


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
