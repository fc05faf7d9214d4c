"""The service of `rest-deploy serve` as a Ray Serve application: replicas that come and go with the
load, each with an engine, its batcher, and the same routes.

Ray's proxy takes the connections, reads a body whole and chooses a replica; from there on it is the
ASGI application of `serve.app`. What is different: the limits on slow clients are the proxy's, the
figures at /metrics are those of whichever replica answers, and engines are not changed in place.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from rest_deploy.contracts import Struct
from rest_deploy.errors import InputError, OutputError, RestDeployError, require
from rest_deploy.serve.settings import Settings

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.types import Message

IMPORT_PATH = "rest_deploy.serve.ray_app:build"
DEPLOYMENT = "Engine"
OBJECT_STORE = 200_000_000
"""Bytes, of a Ray that is started here: requests travel in messages."""


class RaySettings(Struct, frozen=True):
    """service: of each replica; its `threads` are the cores that Ray reserves for one.

    ongoing: requests of one replica at which Ray starts another. most_ongoing: of one replica, more
    wait in the proxy; waiting: in the proxy, more get 503. gpus: of one replica.
    """

    service: Settings
    min_replicas: int = 1
    max_replicas: int = 1
    ongoing: int = 16
    most_ongoing: int = 32
    waiting: int = 256
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.min_replicas <= self.max_replicas or self.max_replicas < 1:
            raise InputError(
                f"{self.min_replicas} to {self.max_replicas} replicas; expected "
                "0 <= --min-replicas <= --max-replicas and one at most, at least"
            )
        if self.ongoing > self.most_ongoing:
            raise InputError(
                f"another replica at {self.ongoing} requests, and no more than "
                f"{self.most_ongoing} at one: it would never come"
            )
        if self.service.loading or self.service.workers != 1:
            raise InputError("replicas do not load engines in place, and have one worker each")


def config(settings: RaySettings, name: str) -> dict[str, Any]:
    """What `serve deploy` and a RayService take. name: of the application."""
    service = settings.service
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": service.host, "port": service.port},
        "applications": [
            {
                "name": name,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": msgspec.to_builtins(settings),
                "deployments": [{"name": DEPLOYMENT, **_options(settings)}],
            }
        ],
    }


def build(args: dict[str, Any]) -> Any:
    """The application, for Serve; args: `RaySettings` as plain values."""
    require("ray", "ray")
    from ray import serve

    settings = msgspec.convert(args, RaySettings)
    made = serve.deployment(Replica, name=DEPLOYMENT).options(**_options(settings))
    return made.bind(msgspec.to_builtins(settings.service))


def run(settings: RaySettings, name: str, address: str | None = None) -> int:
    """Serve until SIGTERM or SIGINT; returns the exit code. address: of a cluster, where the
    application stays when this ends; None: a Ray of this machine alone.

    Raises `MissingDependencyError`, `OutputError` for a port that is taken, and `RestDeployError`
    when no replica starts.
    """
    require("ray", "ray")
    import ray
    from ray import serve

    service, stop = settings.service, threading.Event()
    _check_port(service)
    if address:
        ray.init(address=address, logging_level="WARNING")
    else:
        ray.init(include_dashboard=False, object_store_memory=OBJECT_STORE, logging_level="WARNING")
    try:
        serve.start(http_options={"host": service.host, "port": service.port})
        try:
            serve.run(build(msgspec.to_builtins(settings)), name=name, route_prefix="/")
        except RuntimeError as error:  # what Serve raises when a deployment does not start
            raise RestDeployError(
                f"Ray Serve could not start {name}: {str(error).strip().splitlines()[-1][:300]}"
            ) from error
        if address:
            return 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        print(f"listening on http://{service.host}:{service.port}", flush=True)
        stop.wait()
        serve.shutdown()
    finally:
        ray.shutdown()
    return 0


class Replica:
    """One engine. Serve calls it with each request."""

    def __init__(self, service: dict[str, Any]) -> None:
        """service: `Settings` as plain values. Returns when the engine is warm."""
        from rest_deploy.serve.app import application
        from rest_deploy.serve.metrics import Metrics
        from rest_deploy.serve.service import Service

        self.service = Service(msgspec.convert(service, Settings), Metrics())
        self.service.start()
        self.service.release()
        self._app = application(self.service, _refuse_load)

    async def __call__(self, request: Request) -> Response:
        """Run the ASGI application and hand its answer over whole."""
        from starlette.responses import Response

        body: bytes | None = await request.body()
        started: Message = {}
        parts: list[bytes] = []

        async def receive() -> Message:
            nonlocal body
            if body is not None:
                content, body = body, None
                return {"type": "http.request", "body": content, "more_body": False}
            await asyncio.Event().wait()  # a client that leaves cancels this call instead
            raise AssertionError

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(dict(request.scope), receive, send)
        response = Response(b"".join(parts), started["status"])
        response.raw_headers = [
            (key, value) for key, value in started["headers"] if key != b"connection"
        ]
        return response

    def check_health(self) -> None:
        """Serve replaces a replica for which this raises."""
        if not self.service.ready:
            raise RuntimeError("the engine is not ready")

    def __del__(self) -> None:
        """Serve has waited for the requests that run."""
        if hasattr(self, "service"):
            self.service.close()


def _options(settings: RaySettings) -> dict[str, Any]:
    """Of the deployment, alike in a config file and in code."""
    actor: dict[str, Any] = {"num_cpus": settings.service.threads or 1}
    if settings.gpus:
        actor["num_gpus"] = settings.gpus
    return {
        "autoscaling_config": {
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.ongoing,
        },
        "max_ongoing_requests": settings.most_ongoing,
        "max_queued_requests": settings.waiting,
        "graceful_shutdown_timeout_s": settings.service.drain_s,
        "health_check_period_s": 10.0,
        "ray_actor_options": actor,
    }


def _check_port(service: Settings) -> None:
    """Serve itself goes on without a word when its port is taken. Raises `OutputError`."""
    from rest_deploy.serve.server import listen

    if service.port == 0:
        raise OutputError("Ray Serve needs a port of its own", hint="--port 8000")
    listen(service.host, service.port).close()


async def _refuse_load(_accept: object) -> Any:
    """Never called: `loading` is off."""
    raise InputError("deploy the application again: replicas do not load engines in place")


def engine_path(engine: Path) -> str:
    """In full: replicas have working directories of their own."""
    return str(engine.resolve())
