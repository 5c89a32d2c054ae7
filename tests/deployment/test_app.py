"""The service over real HTTP: a real uvicorn on a real port."""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

from modelyard.deployment.app import create_app
from modelyard.deployment.requests import ServerLimits

Start = Callable[[FastAPI], str]
LIMITS = ServerLimits(max_texts=8, max_characters=1000, max_queued_texts=10, request_timeout_seconds=5)


@pytest.fixture
def served(fake: ModuleType, start: Start) -> Iterator[tuple[Any, httpx.Client]]:
    """A fake model and a client of its server."""
    model = fake.FakeModel()
    with httpx.Client(base_url=start(create_app(model, fake.fake_info(), LIMITS)), timeout=20) as client:
        yield model, client


@pytest.fixture
def client(served: tuple[Any, httpx.Client]) -> httpx.Client:
    return served[1]


def test_one_text(client: httpx.Client) -> None:
    reply = client.post("/predict", json={"text": "a bcd"})
    assert reply.status_code == 200
    content = reply.json()
    assert 0 <= content["seconds"] < 5
    assert content["predictions"] == [
        {
            "label": "odd",
            "probability": 0.9,
            "probabilities": [
                {"label": "odd", "probability": 0.9},
                {"label": "even", "probability": pytest.approx(0.1)},
            ],
            "num_tokens": 2,
            "truncated": False,
            "num_tokens_cut": 0,
        }
    ]


def test_several_texts_and_what_was_cut(client: httpx.Client) -> None:
    content = client.post("/predict", json={"texts": ["ab", "abc " * 60, "a"]}).json()
    assert [one["label"] for one in content["predictions"]] == ["even", "odd", "odd"]
    assert [one["truncated"] for one in content["predictions"]] == [False, True, False]
    assert content["predictions"][1]["num_tokens_cut"] == 10


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("POST", "/predict", {"content": b"{", "headers": {"content-type": "application/json"}}, 400),
        ("POST", "/predict", {"content": b'{"text": "a"}'}, 415),
        ("POST", "/predict", {"data": {"text": "a"}}, 415),
        ("POST", "/predict", {"json": {"text": ""}}, 422),
        ("POST", "/predict", {"json": {"texts": ["a"] * 9}}, 422),
        ("POST", "/predict", {"json": {"text": "unreadable"}}, 422),
        ("POST", "/predict", {"json": {"text": "x" * 1001}}, 413),
        ("POST", "/predict", {"json": {"text": "fail"}}, 500),
        ("GET", "/predict", {}, 405),
        ("DELETE", "/", {}, 405),
        ("GET", "/nothing", {}, 404),
        ("GET", "/assets/../app.py", {}, 404),
        ("GET", "/assets/%2e%2e/app.py", {}, 404),
    ],
)
def test_errors_are_json_with_a_hint(
    client: httpx.Client, method: str, path: str, options: dict[str, Any], status: int
) -> None:
    reply = client.request(method, path, **options)
    assert reply.status_code == status
    error = reply.json()["error"]
    assert sorted(error) == ["hint", "problem"] and error["hint"] and error["problem"]
    assert "secret" not in reply.text
    if status == 405:
        assert reply.headers["allow"]
    assert reply.headers["content-security-policy"]


def test_a_huge_body_is_refused_and_the_server_lives(client: httpx.Client) -> None:
    def chunks() -> Any:
        for _ in range(40):
            yield b" " * 100_000

    reply = client.post("/predict", content=chunks(), headers={"content-type": "application/json"})
    assert (reply.status_code, "larger than" in reply.text) == (413, True)
    reply = client.post("/predict", content=b" " * 4_000_000, headers={"content-type": "application/json"})  # announced
    assert reply.status_code == 413
    assert client.post("/predict", json={"text": "ab"}).status_code == 200


def test_every_answer_carries_security_headers(client: httpx.Client) -> None:
    for path in ("/", "/docs", "/info", "/metrics", "/assets/app.js", "/health/live", "/openapi.json", "/no"):
        headers = client.get(path).headers
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] in ("no-store", "no-cache")


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    for page in ("/", "/docs"):
        html = client.get(page).text
        links = re.findall(r'(?:src|href)="([^"]+)"', html)
        assert links and all(link.startswith("/") and not link.startswith("//") for link in links)
        for link in links:
            assert client.get(link).status_code == 200
        assert client.head(page).status_code == 200
    for file in ("app.js", "strings.js", "docs.js", "style.css"):
        assert not re.search(r"https?://|innerHTML|eval\(", client.get(f"/assets/{file}").text)


def test_info_tells_quality_with_its_interval(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert info["labels"] == ["even", "odd"]
    assert info["preprocessing"]["max_length"] == 50
    assert info["metrics"]["num_examples"] == 1000
    assert info["metrics"]["metrics"]["accuracy"] == {"value": 0.923, "low": 0.905, "high": 0.938}
    assert info["versions"] == {"modelyard": "0.1.0"}
    assert info["limits"]["max_texts"] == 8


def test_the_interface_is_described(client: httpx.Client) -> None:
    description = client.get("/openapi.json").json()
    assert sorted(description["paths"]) == ["/health/live", "/health/ready", "/info", "/metrics", "/predict"]
    predict = description["paths"]["/predict"]["post"]
    variants = predict["requestBody"]["content"]["application/json"]["schema"]["oneOf"]
    assert [variant["required"] for variant in variants] == [["text"], ["texts"]]
    assert {"200", "400", "413", "415", "422", "429", "504"} <= predict["responses"].keys()


def test_metrics_count(client: httpx.Client) -> None:
    client.post("/predict", json={"texts": ["ab", "abc " * 60]})
    client.get("/a-private-path")
    samples = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(client.get("/metrics").text)
        for sample in family.samples
    }
    assert samples["modelyard_texts_total",] == 2
    assert samples["modelyard_tokens_total",] == 51
    assert samples["modelyard_cut_texts_total",] == 1
    assert samples["modelyard_queued_texts",] == 0
    assert samples["modelyard_requests_total", "/predict", "200"] == 1
    assert samples["modelyard_requests_total", "(other)", "404"] == 1
    assert samples["modelyard_predict_seconds_count",] == 1
    assert samples["modelyard_batch_texts_sum",] == 2


def test_concurrent_requests_get_the_answers_of_single_ones(served: tuple[Any, httpx.Client]) -> None:
    model, client = served
    texts = [f"{'x' * (1 + n % 7)} {'ab ' * (n % 5)}".strip() for n in range(40)]

    def ask(text: str) -> Any:
        while (reply := client.post("/predict", json={"text": text})).status_code == 429:
            time.sleep(0.02)
        return reply.json()["predictions"]

    single = [ask(text) for text in texts]
    before = len(model.batches)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, texts)) == single
    assert sum(len(batch) for batch in model.batches[before:]) == len(texts)


def test_a_full_queue_refuses_at_once_and_recovers(served: tuple[Any, httpx.Client]) -> None:
    model, client = served
    model.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(client.post, "/predict", json={"texts": ["ab"] * 5}) for _ in range(2)]
        while "modelyard_queued_texts 10.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        started = time.monotonic()
        refused = client.post("/predict", json={"text": "ab"})
        assert time.monotonic() - started < 2  # not queued behind the model, which is held
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert "busy with 10 texts; at most 10 wait" in refused.json()["error"]["problem"]
        model.gate.set()
        assert [future.result().status_code for future in waiting] == [200, 200]
    assert client.post("/predict", json={"text": "ab"}).status_code == 200


def test_an_answer_that_takes_too_long_is_given_up(fake: ModuleType, start: Start) -> None:
    model = fake.FakeModel()
    limits = ServerLimits(request_timeout_seconds=0.3)
    model.gate.clear()
    with httpx.Client(base_url=start(create_app(model, fake.fake_info(), limits)), timeout=20) as client:
        first = client.post("/predict", json={"text": "ab"})
        second = client.post("/predict", json={"text": "abc def"})  # waits behind the first, which still runs
        model.gate.set()
        assert (first.status_code, second.status_code) == (504, 504)
        assert "no answer within 0.3 seconds" in second.json()["error"]["problem"]
        while "modelyard_queued_texts 0.0" not in client.get("/metrics").text:
            time.sleep(0.01)
        assert model.batches == [[1]]  # the second was taken out of the queue
        assert client.post("/predict", json={"text": "ab"}).status_code == 200


def test_no_text_reaches_the_log(client: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        client.post("/predict", json={"text": "confidential words"})
        client.post("/predict", json={"text": "fail"})
        client.post("/predict", json={"confidential": "words"})
        client.post("/predict", content=b'{"text": "confidential', headers={"content-type": "application/json"})
        client.get("/confidential?text=confidential")
        client.get("/info?text=confidential")
    ours = [record for record in caplog.records if record.name.startswith("modelyard")]
    text = "\n".join(logging.Formatter().format(record) for record in ours)
    assert "confidential" not in text and "secret" not in text
    assert "POST /predict 200" in text and "GET (other) 404" in text


def test_a_client_that_leaves_half_way_harms_nothing(client: httpx.Client) -> None:
    host, port = client.base_url.host, client.base_url.port
    for body in (b"", b'{"te'):
        with socket.create_connection((host, port)) as connection:
            lines = (
                "POST /predict HTTP/1.1",
                "Host: x",
                "Content-Type: application/json",
                "Content-Length: 99",
            )
            connection.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
            time.sleep(0.05)
    assert client.post("/predict", json={"text": "ab"}).status_code == 200
    assert client.get("/health/ready").json() == {"status": "ready"}


def test_an_error_of_our_own_is_json_too(fake: ModuleType, start: Start, caplog: pytest.LogCaptureFixture) -> None:
    app = create_app(fake.FakeModel(), fake.fake_info(), LIMITS)

    @app.get("/broken")
    async def broken() -> None:
        raise KeyError("a secret word")

    with caplog.at_level(logging.DEBUG):
        reply = httpx.get(start(app) + "/broken")
    assert reply.status_code == 500
    assert json.loads(reply.text)["error"]["hint"] == "look into the server's log"
    assert "request failed: KeyError at" in caplog.text
    assert "secret" not in reply.text + caplog.text
    assert reply.headers["x-content-type-options"] == "nosniff"
