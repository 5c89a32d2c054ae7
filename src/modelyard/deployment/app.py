"""The HTTP service of a bundle: a page for people, ``/predict`` for programs, health and metrics.

    POST /predict        {"text": ...} or {"texts": [...]} -> label, probabilities, tokens read and cut
    GET  /               the page                GET /docs          the interface's description
    GET  /health/live    the process answers     GET /health/ready  it takes requests (503 while it stops)
    GET  /info           what the model is       GET /metrics       Prometheus

Texts are never logged, stored or quoted in a log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from importlib.resources import files
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.exceptions import HTTPException

from modelyard.deployment.batcher import MicroBatcher, PredictionFailed, QueueFull, TextModel
from modelyard.deployment.guard import Guard, error_response
from modelyard.deployment.info import BundleInfo
from modelyard.deployment.measures import Measures
from modelyard.deployment.predict import TextPrediction
from modelyard.deployment.replies import (
    ErrorReply,
    Health,
    PredictionReply,
    PredictReply,
    predict_description,
)
from modelyard.deployment.requests import RequestRefused, ServerLimits, read_texts
from modelyard.errors import InputError

PAGE_FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/docs": ("docs.html", "text/html; charset=utf-8"),
    "/assets/style.css": ("style.css", "text/css; charset=utf-8"),
    "/assets/app.js": ("app.js", "text/javascript; charset=utf-8"),
    "/assets/strings.js": ("strings.js", "text/javascript; charset=utf-8"),
    "/assets/docs.js": ("docs.js", "text/javascript; charset=utf-8"),
    "/assets/icon.svg": ("icon.svg", "image/svg+xml"),
}
API_PATHS = ("/predict", "/info", "/metrics", "/health/live", "/health/ready", "/openapi.json")


class Service:
    """What one running server holds: the queue, its counters, and whether it is stopping."""

    def __init__(self, model: TextModel, limits: ServerLimits) -> None:
        self.limits = limits
        self.measures = Measures()
        self.batcher = MicroBatcher(
            model,
            max_batch_tokens=limits.max_batch_tokens,
            max_queued_texts=limits.max_queued_texts,
            on_batch=self.measures.batch_texts.observe,
        )
        self.measures.queued_texts.set_function(lambda: self.batcher.num_texts)
        self.stopping = False
        self.num_in_flight = 0

    async def predict(self, request: Request) -> list[TextPrediction]:
        """Read one request and wait for its answers. Raises RequestRefused."""
        if self.stopping:
            raise RequestRefused(
                503, "the server is stopping", hint="try again in a moment", headers={"Retry-After": "2"}
            )
        self.num_in_flight += 1
        try:
            if self.batcher.is_full:  # refused before its body takes memory
                raise self._busy()
            started = time.monotonic()
            texts = await read_texts(request, self.limits)
            return await self._answer(texts, started + self.limits.request_timeout_seconds - time.monotonic())
        finally:
            self.num_in_flight -= 1

    async def _answer(self, texts: list[str], timeout_seconds: float) -> list[TextPrediction]:
        try:
            future = self.batcher.submit(texts)
        except QueueFull:
            raise self._busy() from None
        try:
            async with asyncio.timeout(timeout_seconds):
                return await asyncio.wrap_future(future)  # a timeout takes the texts out of the queue
        except TimeoutError:
            raise RequestRefused(
                504,
                f"there was no answer within {self.limits.request_timeout_seconds:g} seconds",
                hint="send fewer or shorter texts at once, or try again when the server is less busy",
            ) from None
        except PredictionFailed:
            raise RequestRefused(
                500,
                "the model failed on this request",
                hint="look into the server's log; the text is not in it",
            ) from None
        except InputError as error:
            raise RequestRefused(422, error.problem, hint=error.hint) from None

    def _busy(self) -> RequestRefused:
        return RequestRefused(
            429,
            f"the server is busy with {self.batcher.num_texts:,} texts; at most {self.limits.max_queued_texts:,} wait",
            hint="try again after the seconds in the header Retry-After",
            headers={"Retry-After": "1"},
        )


def create_app(model: TextModel, info: BundleInfo, limits: ServerLimits | None = None) -> FastAPI:
    """The service for one model, for `serve` or any ASGI server. limits: else those of the bundle."""
    limits = limits or ServerLimits.of(info.limits)
    service = Service(model, limits)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service.batcher.start()
        yield
        service.stopping = True
        service.batcher.stop()
        await asyncio.to_thread(service.batcher.join, limits.request_timeout_seconds)

    app = FastAPI(
        title=info.name,
        version=version("modelyard"),
        description=f"{info.task}: {', '.join(info.labels)}",
        docs_url=None,  # FastAPI's own pages load scripts from a foreign server; ours is page/docs.html
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.add_middleware(Guard, measures=service.measures, known_paths=frozenset([*PAGE_FILES, *API_PATHS]))
    app.add_exception_handler(RequestRefused, _refuse)
    app.add_exception_handler(HTTPException, _not_found)
    _add_predict(app, service)
    _add_facts(app, service, info)
    for path, (file_name, media_type) in PAGE_FILES.items():
        _add_page_file(app, path, file_name, media_type)
    return app


def _add_predict(app: FastAPI, service: Service) -> None:
    limits = service.limits
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorReply} for status in (400, 408, 413, 415, 422, 429, 500, 503, 504)
    }

    @app.post(
        "/predict",
        response_model=PredictReply,
        responses=errors,
        openapi_extra=predict_description(limits.max_texts, limits.max_characters),
        summary="Label one text or several",
    )
    async def predict(request: Request) -> PredictReply:
        started = time.perf_counter()
        predictions = await service.predict(request)
        seconds = time.perf_counter() - started
        service.measures.count_predictions(predictions, seconds)
        return PredictReply(
            predictions=[PredictionReply.of(prediction) for prediction in predictions],
            seconds=round(seconds, 6),
        )


def _add_facts(app: FastAPI, service: Service, info: BundleInfo) -> None:
    limits = service.limits
    facts = info.model_dump(mode="json") | {
        "limits": {
            "max_texts": limits.max_texts,
            "max_characters": limits.max_characters,
            "max_body_bytes": limits.max_body_bytes,
            "request_timeout_seconds": limits.request_timeout_seconds,
        }
    }

    @app.get("/info", summary="What the model is and how well it does")
    async def tell_info() -> dict[str, Any]:
        return facts

    @app.get("/health/live", response_model=Health, summary="The process answers")
    async def live() -> Health:
        return Health(status="live")

    @app.get("/health/ready", responses={200: {"model": Health}, 503: {"model": Health}}, summary="Takes requests")
    async def ready() -> JSONResponse:
        if service.stopping:
            return JSONResponse({"status": "stopping"}, status_code=503)
        return JSONResponse({"status": "ready"})

    @app.get("/metrics", response_class=Response, summary="Counters in Prometheus' text format")
    async def metrics() -> Response:
        return Response(generate_latest(service.measures.registry), media_type=CONTENT_TYPE_LATEST)


def _add_page_file(app: FastAPI, path: str, file_name: str, media_type: str) -> None:
    content = (files("modelyard.deployment") / "page" / file_name).read_bytes()

    @app.api_route(path, methods=["GET", "HEAD"], include_in_schema=False)
    async def page_file() -> Response:
        return Response(content, headers={"Content-Type": media_type, "Cache-Control": "no-cache"})


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestRefused)
    return error_response(error.status, error.problem, error.hint, error.headers)


async def _not_found(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    problem, hint = {
        404: ("there is nothing at this address", "the addresses are listed at /docs"),
        405: (f"{request.method} is not possible here", "the methods are listed at /docs"),
    }.get(error.status_code, (str(error.detail), "the addresses are listed at /docs"))
    return error_response(error.status_code, problem, hint, error.headers)
