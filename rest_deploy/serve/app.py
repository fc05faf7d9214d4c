"""The routes: what is asked by HTTP, answered by the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from rest_deploy import __version__
from rest_deploy.runtime.classifier import Prediction, best, most_probable
from rest_deploy.serve import images, openapi, protocol
from rest_deploy.serve.bodies import body_of, unread
from rest_deploy.serve.edge import Edge
from rest_deploy.serve.model import VERSION, Served
from rest_deploy.serve.pending import Answer, Images
from rest_deploy.serve.refusals import CLIENT_GONE, ClientGone, Refused, refusal
from rest_deploy.serve.service import Outcome, Service

HEADER_LENGTH = "inference-header-content-length"
INLINE = 2_000_000
"""Bytes of a body that is parsed at once, and of tensors that are written at once; larger ones in a
thread, so that others are served."""

MOST_LOAD_BODY = 10_000

Load = Callable[[Sequence[str]], Awaitable[Outcome]]
"""Open the engine file again and serve with it; argument: what of the contract may change."""


class Classified(msgspec.Struct):
    """predictions: best first; the probabilities of all classes add up to 1."""

    model_name: str
    model_version: str
    predictions: list[Prediction]


class Embedded(msgspec.Struct):
    """embedding: pooled features, one number a dimension; of L2 norm 1 where the model says so."""

    model_name: str
    model_version: str
    embedding: list[float]


class LoadRequest(msgspec.Struct):
    """parameters.accept: fields of the contract that may change, separated by commas."""

    parameters: dict[str, protocol.Parameter] = {}


class LoadResponse(msgspec.Struct):
    """outcome: "loaded", or "unchanged" when the file is the one that serves."""

    outcome: str


class IndexEntry(msgspec.Struct):
    name: str
    version: str
    state: str
    reason: str


class Health(msgspec.Struct, omit_defaults=True):
    """Of `live` and `ready`: true with 200, false with 503."""

    live: bool | None = None
    ready: bool | None = None


def application(service: Service, load: Load) -> Edge:
    """The ASGI application. load: how engines are changed here."""
    routes = _Routes(service, load)
    model, version = "/v2/models/{model}", "/v2/models/{model}/versions/{version}"
    paths: list[tuple[str, str, Callable[[Request], Awaitable[Response]]]] = [
        ("GET", "/v2", routes.server),
        ("GET", "/v2/health/live", routes.live),
        ("GET", "/v2/health/ready", routes.ready),
        ("GET", model, routes.metadata),
        ("GET", version, routes.metadata),
        ("GET", f"{model}/ready", routes.model_ready),
        ("GET", f"{version}/ready", routes.model_ready),
        ("POST", f"{model}/infer", routes.infer),
        ("POST", f"{version}/infer", routes.infer),
        ("POST", "/v2/repository/index", routes.index),
        ("POST", "/v2/repository/models/{model}/load", routes.load),
        ("POST", "/classify", routes.classify),
        ("POST", "/embed", routes.embed),
        ("GET", "/metrics", routes.metrics),
        ("GET", "/openapi.json", routes.openapi),
    ]
    app = Starlette(
        routes=[Route(path, call, methods=[method]) for method, path, call in paths],
        exception_handlers={
            Refused: _refused,
            HTTPException: _refused_by_starlette,
            ClientGone: _gone,
            Exception: _failed,
        },
    )
    app.router.redirect_slashes = False
    return Edge(app, service)


class _Routes:
    def __init__(self, service: Service, load: Load) -> None:
        self.service, self._load = service, load
        self._schema = msgspec.json.encode(openapi.document())

    # --- health and metadata -------------------------------------------------------------------

    async def server(self, _request: Request) -> Response:
        return _json(
            protocol.ServerMetadataResponse("rest-deploy", __version__, [*protocol.EXTENSIONS])
        )

    async def live(self, _request: Request) -> Response:
        return _json(Health(live=True))

    async def ready(self, _request: Request) -> Response:
        return _json(Health(ready=self.service.ready), 200 if self.service.ready else 503)

    async def model_ready(self, request: Request) -> Response:
        self._served(request)
        return await self.ready(request)

    async def metadata(self, request: Request) -> Response:
        return _json(self._served(request).metadata())

    async def index(self, _request: Request) -> Response:
        served = self._serving()
        state = "READY" if self.service.ready else "UNAVAILABLE"
        return _json([IndexEntry(served.accepts.name, VERSION, state, "")])

    async def metrics(self, _request: Request) -> Response:
        text, kind = self.service.metrics.render()
        return Response(text, headers={"content-type": kind})

    async def openapi(self, _request: Request) -> Response:
        return Response(self._schema, media_type="application/json")

    # --- inference -----------------------------------------------------------------------------

    async def infer(self, request: Request) -> Response:
        served = self._served(request)
        self._room(request)
        length = _header_length(request)
        async with body_of(request, self.service, length or 0) as body:
            if len(body) > INLINE:
                asked = await self._in_thread(protocol.parse, body, length, served.accepts)
            else:
                asked = self._try(protocol.parse, body, length, served.accepts)
            names = tuple(wanted.name for wanted in asked.outputs)
            answer = await self._answer(request, asked.images, names, asked.timeout_s)
        encode = partial(protocol.respond, asked, answer.outputs, answer.engine.accepts, {})
        large = sum(values.nbytes for values in answer.outputs.values()) > INLINE
        return _inferred(answer, *(await self._in_thread(encode) if large else encode()))

    async def classify(self, request: Request) -> Response:
        served = self._serving()
        scores = served.accepts.scores
        if scores is None:
            route = "POST /embed" if served.accepts.embedding else "POST /v2/models/…/infer"
            raise Refused(
                409, f"{served.accepts.name} gives no classes, but {served.accepts.gives}: "
                f"{route}; an export of a checkpoint with a head classifies: rest-deploy export "
                "--output logits --checkpoint F", close=unread(request),
            )  # fmt: skip
        top = _top(request)
        answer = await self._encoded(request, served, scores.name)
        accepts, row = answer.engine.accepts, answer.outputs[scores.name][0]
        if scores.kind == "probabilities":
            predictions = most_probable(row.astype(np.float64), accepts.labels, top)
        else:
            predictions = best(row, accepts.labels, top)
        return _json(Classified(accepts.name, accepts.version, predictions))

    async def embed(self, request: Request) -> Response:
        served = self._serving()
        embedding = served.accepts.embedding
        if embedding is None:
            route = "POST /classify" if served.accepts.scores else "POST /v2/models/…/infer"
            raise Refused(
                409, f"{served.accepts.name} gives no embedding, but {served.accepts.gives}: "
                f"{route}; embeddings come from rest-deploy export --output embedding",
                close=unread(request),
            )  # fmt: skip
        answer = await self._encoded(request, served, embedding.name)
        accepts, row = answer.engine.accepts, answer.outputs[embedding.name][0]
        return _json(Embedded(accepts.name, accepts.version, row.tolist()))

    async def load(self, request: Request) -> Response:
        self._served(request)
        if not self.service.settings.loading:
            raise Refused(403, "this service was started with --no-loading; SIGHUP loads too")
        async with body_of(request, self.service) as body:
            accept = _accept(bytes(body))
        try:
            outcome = await self._load(accept)
        except Refused:
            raise
        except Exception as error:
            refused = refusal(error)
            # What is wrong with the file is what the caller wants to know.
            said = str(error) if refused.status != 500 else f"the new engine was refused: {error}"
            raise Refused(409, said) from error
        return _json(LoadResponse(outcome))

    async def _encoded(self, request: Request, served: Served, output: str) -> Answer[Served]:
        """One output for one encoded image in the body."""
        self._room(request)
        service = self.service
        if service.decoding >= service.settings.queue:
            raise Refused(429, "too many images wait to be decoded", 1, close=unread(request))
        kind = request.headers.get("content-type", "")
        if kind.startswith("multipart/"):
            raise Refused(
                415, "got a form; expected the image itself as the body: "
                "curl --data-binary @photo.jpg URL", close=unread(request),
            )  # fmt: skip
        async with body_of(request, service) as body:
            service.decoding += 1
            try:
                preprocessing = served.session.metadata.card.preprocessing
                tensor = await self._in_thread(
                    images.tensor, body, served.accepts.input_kind, preprocessing,
                    service.settings.max_pixels,
                )  # fmt: skip
            finally:
                service.decoding -= 1
            return await self._answer(request, tensor, (output,), None)

    async def _answer(
        self, request: Request, tensor: Images, names: tuple[str, ...], timeout_s: float | None
    ) -> Answer[Served]:
        """Raises `Refused` with what went wrong; `ClientGone` when nobody waits any more."""
        batcher = self.service.batcher
        assert batcher is not None
        allowed = self.service.settings.deadline_ms / 1e3
        allowed = min(allowed, timeout_s) if timeout_s is not None else allowed
        deadline = time.monotonic() + allowed
        future = self._try(batcher.submit, tensor, deadline, names)
        self.service.metrics.queue.set(batcher.depth)
        answered = asyncio.wrap_future(future)
        gone = asyncio.ensure_future(request.receive())  # nothing but the end of the connection
        try:
            await asyncio.wait(
                (answered, gone), timeout=allowed, return_when=asyncio.FIRST_COMPLETED
            )
            if not answered.done():
                answered.cancel()
                if gone.done():
                    raise ClientGone
                raise Refused(504, f"not answered within {allowed:.3g} s")
            answer: Answer[Served] = self._try(answered.result)
        finally:
            gone.cancel()
        self.service.metrics.queued.observe(answer.queued_s)
        request.state.timing = answer
        return answer

    # --- what may be refused -------------------------------------------------------------------

    def _try(self, call: Callable[..., Any], *arguments: Any) -> Any:
        """Its errors as answers."""
        try:
            return call(*arguments)
        except Exception as error:
            raise self._refusal(error) from error

    async def _in_thread(self, call: Callable[..., Any], *arguments: Any) -> Any:
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.service.decoders, call, *arguments)
        except Exception as error:
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> Refused:
        batcher = self.service.batcher
        return refusal(error, batcher.backlog_seconds if batcher else 0.0)

    def _serving(self) -> Served:
        batcher = self.service.batcher
        if batcher is None:
            raise Refused(503, "the engine is not ready yet", retry_after=1, close=True)
        return batcher.engine

    def _served(self, request: Request) -> Served:
        """The model of that name in the path. Raises `Refused` (404, 503)."""
        served = self._serving()
        name, version = request.path_params["model"], request.path_params.get("version", VERSION)
        if (name, version) != (served.accepts.name, VERSION):
            raise Refused(
                404, f"no model {name[:100]!r}, version {version[:20]!r}; here is "
                f"{served.accepts.name!r}, version {VERSION!r}", close=unread(request),
            )  # fmt: skip
        return served

    def _room(self, request: Request) -> None:
        """Refuse before the body is read when it could not be queued."""
        batcher = self.service.batcher
        assert batcher is not None
        most = batcher.limits.queue
        if batcher.depth >= most or self.service.reading >= most:
            raise Refused(
                429, f"{batcher.depth} images wait and {self.service.reading} requests are being "
                f"read; expected at most {most} of each",
                max(1.0, batcher.backlog_seconds), close=unread(request),
            )  # fmt: skip


def _inferred(answer: Answer[Served], body: bytes, length: int | None) -> Response:
    headers = {"x-model-sha256": answer.engine.sha256[:12]}
    if length is None:
        return Response(body, media_type="application/json", headers=headers)
    headers[HEADER_LENGTH] = str(length)
    return Response(body, media_type="application/octet-stream", headers=headers)


def _header_length(request: Request) -> int | None:
    text = request.headers.get(HEADER_LENGTH)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise Refused(
            400, f"{HEADER_LENGTH} is {text[:40]!r}; expected a number of bytes",
            close=unread(request),
        )  # fmt: skip
    return int(text)


def _top(request: Request) -> int:
    text = request.query_params.get("top", "5")
    if not (text.isascii() and text.isdigit() and len(text) < 7 and int(text) >= 1):
        raise Refused(
            400, f"top is {text[:40]!r}; expected 1 to 999999", close=unread(request)
        )  # fmt: skip
    return int(text)


def _accept(body: bytes) -> tuple[str, ...]:
    if len(body) > MOST_LOAD_BODY:
        raise Refused(413, f"got {len(body)} bytes; expected at most {MOST_LOAD_BODY}")
    try:
        wishes = msgspec.json.decode(body, type=LoadRequest) if body else LoadRequest()
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise Refused(400, f"not a load request: {error}") from error
    others = wishes.parameters.keys() - {"accept"}
    accept = wishes.parameters.get("accept", "")
    if others or not isinstance(accept, str):
        raise Refused(
            400, f"got the parameters {sorted(wishes.parameters)}; expected none, or accept as "
            "text: the file that the service was started with is opened again",
        )  # fmt: skip
    return tuple(word.strip() for word in accept.split(",") if word.strip())


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    body = msgspec.json.encode(protocol.ErrorResponse(error.message))
    return Response(body, error.status, error.all_headers(), media_type="application/json")


async def _gone(_request: Request, _error: Exception) -> Response:
    """For the log and the figures; nobody is there to get it."""
    return Response(status_code=CLIENT_GONE)


async def _failed(request: Request, _error: Exception) -> Response:
    """Starlette raises the error again afterwards, and `Edge` puts it into the log."""
    return await _refused(request, Refused(500, "internal error", close=True))


async def _refused_by_starlette(request: Request, error: Exception) -> Response:
    """404 and 405."""
    assert isinstance(error, HTTPException)
    message = {
        404: f"nothing at {request.url.path[:100]!r}; /openapi.json lists what there is",
        405: f"{request.method} is not for {request.url.path[:100]!r}",
    }.get(error.status_code, error.detail)
    refused = Refused(
        error.status_code, message, headers=dict(error.headers or {}), close=unread(request)
    )
    return await _refused(request, refused)
