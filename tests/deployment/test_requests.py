"""Whatever is sent, the server takes texts from it or says what is wrong."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelyard.deployment.requests import RequestRefused, ServerLimits, read_texts, texts_of
from modelyard.recipe.schema import DeploymentSection

LIMITS = ServerLimits(max_texts=3, max_characters=20, request_timeout_seconds=0.2)
JSON = {"content-type": "application/json"}


class Sent:
    """A request whose body comes in chunks, with pauses in seconds between them."""

    def __init__(self, *chunks: bytes, headers: Mapping[str, str] = JSON, pause: float = 0.0) -> None:
        self.chunks = chunks
        self.headers = headers
        self.pause = pause
        self.num_read = 0

    async def stream(self) -> AsyncIterator[bytes]:
        for chunk in self.chunks:
            await asyncio.sleep(self.pause)
            self.num_read += 1
            yield chunk


def read(sent: Sent) -> list[str]:
    return asyncio.run(read_texts(sent, LIMITS))


@pytest.mark.parametrize(
    ("body", "texts"),
    [
        (b'{"text": "one"}', ["one"]),
        (b'{"texts": ["one", "two"]}', ["one", "two"]),
        ('{"text": "一二三"}'.encode(), ["一二三"]),
        (b'{"text": "\\ud83d\\ude00"}', ["😀"]),
        (b'{"text": "' + b"x" * 20 + b'"}', ["x" * 20]),
        (json.dumps({"texts": ["😀" * 20] * 3}).encode(), ["😀" * 20] * 3),  # the most that is allowed
    ],
)
def test_texts_come_out_as_they_were(body: bytes, texts: list[str]) -> None:
    assert read(Sent(body)) == texts
    assert read(Sent(*[body[n : n + 1] for n in range(len(body))])) == texts


@pytest.mark.parametrize(
    ("body", "status", "problem"),
    [
        (b"", 400, "not valid JSON"),
        (b"{", 400, "not valid JSON: Expecting property name enclosed in double quotes at line 1, column 2"),
        (b'{"text": "\xff"}', 400, "not UTF-8: byte 10"),
        (b"[" * 50_000, 400, "nested too deeply"),
        (b"1" * 5000, 400, "a number that cannot be read"),
        (b"null", 422, "the body holds null; expected exactly one of 'text' and 'texts'"),
        (b"3", 422, "the body holds a number"),
        (b'["a"]', 422, "the body holds an array"),
        (b"{}", 422, "the keys []"),
        (b'{"text": "a", "texts": ["b"]}', 422, "the keys ['text', 'texts']"),
        (b'{"txt": "a"}', 422, "the keys ['txt']"),
        (b'{"text": 1.5}', 422, "'text' is a number; expected a string"),
        (b'{"text": null}', 422, "'text' is null"),
        (b'{"text": true}', 422, "'text' is a boolean"),
        (b'{"text": ""}', 422, "'text' is empty"),
        (b'{"text": " \\n\\t"}', 422, "'text' is empty"),
        (b'{"texts": "a"}', 422, "'texts' is a string; expected an array of texts"),
        (b'{"texts": []}', 422, "'texts' is an empty array"),
        (b'{"texts": ["a", {}]}', 422, "'texts'[1] is an object"),
        (b'{"texts": ["a", " "]}', 422, "'texts'[1] is empty"),
        (b'{"texts": ["a", "b", "c", "d"]}', 422, "holds 4 texts; at most 3"),
        (b'{"text": "' + b"x" * 21 + b'"}', 413, "'text' has 21 characters; at most 20"),
        (b'{"text": "\\ud800"}', 422, "half of a surrogate pair at character 0"),
        (b" " * (LIMITS.max_body_bytes + 1), 413, f"larger than {LIMITS.max_body_bytes:,} bytes"),
    ],
)
def test_what_is_wrong_is_said(body: bytes, status: int, problem: str) -> None:
    with pytest.raises(RequestRefused) as caught:
        read(Sent(body))
    assert caught.value.status == status
    assert problem in caught.value.problem
    assert caught.value.hint


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({}, "the content type is ''; expected 'application/json'"),
        ({"content-type": "text/plain"}, "'text/plain'"),
        ({"content-type": "multipart/form-data; boundary=x"}, "'multipart/form-data'"),
        ({"content-type": "application/json", "content-encoding": "gzip"}, "the content encoding is 'gzip'"),
    ],
)
def test_only_plain_json_is_read(headers: dict[str, str], problem: str) -> None:
    sent = Sent(b'{"text": "a"}', headers=headers)
    with pytest.raises(RequestRefused, match="expected") as caught:
        read(sent)
    assert caught.value.status == 415
    assert problem in caught.value.problem
    assert sent.num_read == 0


def test_a_charset_does_not_matter() -> None:
    assert read(Sent(b'{"text": "a"}', headers={"content-type": "Application/JSON; charset=utf-8"})) == ["a"]


def test_an_announced_excess_is_refused_unread() -> None:
    sent = Sent(b"x", headers=JSON | {"content-length": str(LIMITS.max_body_bytes + 1)})
    with pytest.raises(RequestRefused, match="larger than"):
        read(sent)
    assert sent.num_read == 0


def test_an_unannounced_excess_is_refused_as_it_comes() -> None:
    sent = Sent(*[b" " * 10_000] * 1000)
    with pytest.raises(RequestRefused, match="larger than"):
        read(sent)
    assert sent.num_read == LIMITS.max_body_bytes // 10_000 + 1


def test_a_body_that_does_not_end_times_out() -> None:
    with pytest.raises(RequestRefused, match=r"did not arrive within 0\.2 seconds") as caught:
        read(Sent(*[b" "] * 100, pause=0.05))
    assert caught.value.status == 408


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["text", "texts", "x"]), inner),
    max_leaves=8,
)


@given(VALUES)
def test_any_json_gives_texts_or_a_reason(value: Any) -> None:
    try:
        texts = texts_of(value, LIMITS)
    except RequestRefused as refused:
        assert refused.status in (413, 422)
        assert refused.problem and refused.hint
    else:
        assert 1 <= len(texts) <= 3
        assert all(text.strip() and len(text) <= 20 for text in texts)


def test_limits_of_a_recipe_leave_room_for_several_requests() -> None:
    limits = ServerLimits.of(DeploymentSection(max_texts=1000, max_characters=5))
    assert (limits.max_texts, limits.max_characters, limits.max_queued_texts) == (1000, 5, 4000)
    assert ServerLimits.of(DeploymentSection()).max_queued_texts == 256
