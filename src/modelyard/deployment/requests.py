"""Reading a request: how large it may be, what must stand in it, and the errors that say so.

A body is counted while it arrives, so that nobody fills the memory; every refusal is JSON of the form
``{"error": {"problem": ..., "hint": ...}}`` and never quotes the text.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from modelyard.recipe.schema import DeploymentSection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# A character of JSON takes at most 12 bytes: two \uXXXX escapes outside the Basic Multilingual Plane.
MAX_BYTES_PER_CHARACTER = 12
ENVELOPE_BYTES = 64 * 1024


@dataclass(frozen=True)
class ServerLimits:
    """What the server takes; beyond it, it refuses at once and says so.

    max_texts, max_characters: in one request, and in one text.
    max_queued_texts: texts that wait or are computed at a time, over all requests.
    max_batch_tokens: tokens computed at once, padding included.
    request_timeout_seconds: from the first byte of a request to its answer.
    """

    max_texts: int = 64
    max_characters: int = 200_000
    max_queued_texts: int = 256
    max_batch_tokens: int = 8192
    request_timeout_seconds: float = 60.0

    @classmethod
    def of(cls, section: DeploymentSection) -> ServerLimits:
        """The limits of a recipe; the rest as by default, with room in the queue for four full requests."""
        return cls(
            max_texts=section.max_texts,
            max_characters=section.max_characters,
            max_queued_texts=max(256, 4 * section.max_texts),
        )

    @property
    def max_body_bytes(self) -> int:
        """So that one text of `max_characters` fits however it is escaped; several texts share it."""
        return MAX_BYTES_PER_CHARACTER * self.max_characters + ENVELOPE_BYTES


class RequestRefused(Exception):
    """A request that is answered with an error. headers: further headers of the answer."""

    def __init__(self, status: int, problem: str, *, hint: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(problem)
        self.status = status
        self.problem = problem
        self.hint = hint
        self.headers = dict(headers or {})


class IncomingRequest(Protocol):
    """The part of Starlette's Request that is used here."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def stream(self) -> AsyncIterator[bytes]: ...


EXAMPLE_BODY = '{"text": "..."} or {"texts": ["...", "..."]}'


async def read_texts(request: IncomingRequest, limits: ServerLimits) -> list[str]:
    """The texts of a request to ``/predict``. Raises RequestRefused (400, 408, 413, 415 or 422)."""
    _require_plain_json(request.headers)
    try:
        async with asyncio.timeout(limits.request_timeout_seconds):
            body = await _read_body(request, limits.max_body_bytes)
    except TimeoutError:
        raise RequestRefused(
            408,
            f"the request did not arrive within {limits.request_timeout_seconds:g} seconds",
            hint="send it once more over a faster connection, or send fewer texts at once",
        ) from None
    return texts_of(_parse(body), limits)


def _require_plain_json(headers: Mapping[str, str]) -> None:
    """Only ``application/json``: a browser asks this server before another site's page may send that."""
    content_type = headers.get("content-type", "")
    media_type = content_type.partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise RequestRefused(
            415,
            f"the content type is {media_type[:100]!r}; expected 'application/json'",
            hint="add the header `Content-Type: application/json`",
        )
    encoding = headers.get("content-encoding", "identity").strip().lower()
    if encoding != "identity":
        raise RequestRefused(
            415,
            f"the content encoding is {encoding[:100]!r}; expected none",
            hint="send the body uncompressed",
        )


async def _read_body(request: IncomingRequest, max_body_bytes: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > max_body_bytes:
        raise _too_large(max_body_bytes)
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > max_body_bytes:
            raise _too_large(max_body_bytes)
    return bytes(body)


def _too_large(max_body_bytes: int) -> RequestRefused:
    return RequestRefused(
        413,
        f"the request is larger than {max_body_bytes:,} bytes",
        hint="send fewer or shorter texts at once",
    )


def _parse(body: bytes) -> Any:
    try:
        return json.loads(body)
    except RecursionError:
        problem = "the body is nested too deeply"
    except json.JSONDecodeError as error:
        problem = f"the body is not valid JSON: {error.msg} at line {error.lineno}, column {error.colno}"
    except UnicodeDecodeError as error:
        problem = f"the body is not UTF-8: byte {error.start}"
    except ValueError:
        problem = "the body holds a number that cannot be read"
    raise RequestRefused(400, problem, hint=f"send {EXAMPLE_BODY}")


def texts_of(content: Any, limits: ServerLimits) -> list[str]:
    """The texts of a parsed body. Raises RequestRefused (413 or 422) naming the text by its position."""
    if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= {"text", "texts"}:
        found = f"the keys {[key[:40] for key in sorted(content)[:5]]}" if isinstance(content, dict) else _kind(content)
        raise RequestRefused(
            422,
            f"the body holds {found}; expected exactly one of 'text' and 'texts'",
            hint=f"send {EXAMPLE_BODY}",
        )
    several = "texts" in content
    texts: Any = content["texts"] if several else [content["text"]]
    if not isinstance(texts, list) or not texts:
        found = "an empty array" if texts == [] else _kind(texts)
        raise RequestRefused(422, f"'texts' is {found}; expected an array of texts", hint=f"send {EXAMPLE_BODY}")
    if len(texts) > limits.max_texts:
        raise RequestRefused(
            422,
            f"the request holds {len(texts):,} texts; at most {limits.max_texts:,} are taken",
            hint=f"send them in requests of up to {limits.max_texts:,} texts",
        )
    for position, text in enumerate(texts):
        _require_text(text, f"'texts'[{position}]" if several else "'text'", limits.max_characters)
    return texts


def _require_text(text: Any, where: str, max_characters: int) -> None:
    if not isinstance(text, str):
        raise RequestRefused(422, f"{where} is {_kind(text)}; expected a string", hint=f"send {EXAMPLE_BODY}")
    if not text.strip():
        raise RequestRefused(422, f"{where} is empty", hint="send a text with at least one word")
    if len(text) > max_characters:
        raise RequestRefused(
            413,
            f"{where} has {len(text):,} characters; at most {max_characters:,} are taken",
            hint="send a shorter text, or serve with a larger deployment.max_characters",
        )
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise RequestRefused(
            422,
            f"{where} is not valid Unicode: half of a surrogate pair at character {error.start}",
            hint="send the character as UTF-8 or as two \\u escapes",
        ) from None


def _kind(value: Any) -> str:
    names: Sequence[tuple[type, str]] = (
        (bool, "a boolean"),
        (int, "a number"),
        (float, "a number"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
    )
    return next((name for kind, name in names if isinstance(value, kind)), "null")
