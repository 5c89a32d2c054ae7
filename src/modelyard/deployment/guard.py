"""The outermost layer of the server: security headers on every answer, a log line each, no error escapes.

A foreign error's message may quote a text, so it reaches neither the log nor the client; its kind and place
are logged.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from modelyard.deployment.measures import Measures

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger("modelyard.deployment")

SECURITY_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Cross-Origin-Resource-Policy": "same-origin",
}


def error_response(status: int, problem: str, hint: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The one form of every error."""
    return JSONResponse({"error": {"problem": problem, "hint": hint}}, status_code=status, headers=dict(headers or {}))


class Guard:
    """ASGI middleware. known_paths: those that may stand in logs and metrics; others may hold anything."""

    def __init__(self, app: ASGIApp, measures: Measures, known_paths: frozenset[str]) -> None:
        self.app = app
        self.measures = measures
        self.known_paths = known_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def send_guarded(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        try:
            await self.app(scope, receive, send_guarded)
        except ClientDisconnect:
            pass
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            logger.error("request failed: %s at %s:%s", type(error).__name__, place.filename, place.lineno)
            if not status:
                response = error_response(500, "the server failed on this request", "look into the server's log")
                await response(scope, receive, send_guarded)
        path = scope["path"] if scope["path"] in self.known_paths else "(other)"
        self.measures.requests.labels(path, str(status) if status else "disconnected").inc()
        milliseconds = (time.perf_counter() - started) * 1000
        logger.info("%s %s %d %.0f ms", scope["method"], path, status, milliseconds)
