"""Around every request: its id, its line in the log, its figures, and what nobody else caught."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import TYPE_CHECKING, Any

from rest_deploy.serve.logs import event
from rest_deploy.serve.service import Service

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

REQUEST_ID = re.compile(rb"[A-Za-z0-9_.:/+=-]{1,128}")
"""What is taken over from a client's X-Request-ID; anything else could forge lines of logs."""

QUIET = frozenset({"live", "ready", "metrics"})
"""Routes that are asked every few seconds: logged only when they fail."""


class Edge:
    """ASGI middleware, and the application for the server."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        given = next((value for name, value in headers if name == b"x-request-id"), b"")
        known = REQUEST_ID.fullmatch(given) is not None
        request_id = given if known else uuid.uuid4().hex.encode()
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id))
                if self.service.draining:
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        in_flight = self.service.metrics.in_flight
        in_flight.inc()
        trace: Exception | None = None
        try:
            await self.app(scope, receive, tell)
        except Exception as error:  # noqa: BLE001  # it ends this request, not the service
            trace = error
        finally:
            in_flight.dec()
            self._told(scope, request_id.decode(), status, time.monotonic() - begun, trace)

    def _told(
        self, scope: Scope, request_id: str, status: int, seconds: float, trace: Exception | None
    ) -> None:
        route = getattr(scope.get("endpoint"), "__name__", "none")
        metrics = self.service.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.total.labels(route).observe(seconds)
        if route in QUIET and status == 200:
            return
        fields: dict[str, Any] = {
            "request_id": request_id, "method": scope["method"], "path": scope["path"][:200],
            "code": status, "ms": round(seconds * 1e3, 2),
            "client": (scope.get("client") or ("",))[0],
        }  # fmt: skip
        timing = scope.get("state", {}).get("timing")
        if timing is not None:
            fields["queue_ms"] = round(timing.queued_s * 1e3, 2)
            fields["compute_ms"] = round(timing.computed_s * 1e3, 2)
            fields["batch"] = timing.batch
        event(log, "request", **fields)
        if trace is not None:
            log.error(
                "internal error", exc_info=trace, extra={"fields": {"request_id": request_id}}
            )
