"""One connection: uvicorn's, with bounds on what a client may hold without asking anything.

uvicorn bounds idle connections. It does not bound how long headers take, how long they are, how
many connections there are, and how long an answer waits for a client that does not read.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rest_deploy.serve.settings import Settings

MOST_HEADER_BYTES = 65_536

EXTENSION = "rest_deploy.connection"
"""Of the ASGI scope: the connection of a request, for `read_into`."""


def protocol_class(settings: Settings) -> type[HttpToolsProtocol]:
    """For `uvicorn.Config(http=...)`, which takes a class."""

    class Bound(Connection):
        limits = settings

    return Bound


class OneWrite:
    """A transport that holds the head of an answer until its body comes: one system call and one
    packet instead of two."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._head = b""
        self._begun = False

    def write(self, data: bytes) -> None:
        if not self._begun and not data.startswith(b"HTTP/1.1 100 "):
            self._head, self._begun = data, True
        else:
            head, self._head = self._head, b""
            self._transport.write(head + data if head else data)

    def flush(self) -> None:
        """An answer without a body."""
        if self._head:
            self.write(b"")

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def is_closing(self) -> bool:
        return self._transport.is_closing()


class Connection(HttpToolsProtocol):
    """See above; `limits` is set by `protocol_class`."""

    limits: Settings

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None
        self._header_bytes: int | None = None  # None: not within headers
        self._target: memoryview | None = None
        self.filled = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        found = transport.get_extra_info("socket")
        if found is not None and found.family in (socket.AF_INET, socket.AF_INET6):
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if len(self.connections) > self.limits.connections:
            self.refuse(503, "too many connections", b"retry-after: 1\r\n")
            return
        self._arm()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        if self._stalled is not None:
            self._stalled.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MOST_HEADER_BYTES:
                self.refuse(431, f"more than {MOST_HEADER_BYTES} bytes of headers")
                return
        # Bytes between requests, of no request or of a body that was refused, end the keep-alive
        # timer; they must not keep the connection for ever.
        answered = self.cycle is None or self.cycle.response_complete
        if answered and self._timer is None and self.timeout_keep_alive_task is None:
            self._arm()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {EXTENSION: {"connection": self}}
        self._header_bytes, self._target = 0, None
        if self._timer is None:
            self._arm()

    def read_into(self, target: memoryview) -> None:
        """Put the rest of this request's body there, as it comes; `receive` then tells its end
        alone. Spares two copies of an image and a turn of the event loop for each piece. `filled`
        counts the bytes; there are not more of them than Content-Length says."""
        self._target, self.filled = target, 0

    def on_body(self, body: bytes) -> None:
        if self._target is None or self.cycle.response_complete:
            super().on_body(body)
            return
        end = self.filled + len(body)
        self._target[self.filled : end] = body
        self.filled = end

    def on_headers_complete(self) -> None:
        self._header_bytes = None
        self._disarm()
        super().on_headers_complete()
        transport = OneWrite(self.transport)
        self.cycle.transport = transport  # type: ignore[assignment]

        def complete() -> None:
            transport.flush()
            self.on_response_complete()

        self.cycle.on_response = complete

    def on_response_complete(self) -> None:
        self._disarm()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stalled = self.loop.call_later(self.limits.write_s, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def timeout_keep_alive_handler(self) -> None:
        super().timeout_keep_alive_handler()
        self.loop.call_later(self.limits.write_s, self.transport.abort)  # if it never reads

    def send_400_response(self, msg: str) -> None:
        self.refuse(400, msg)

    def refuse(self, status: int, message: str, header: bytes = b"") -> None:
        """Answer without a request, and close."""
        self._disarm()
        body = b'{"error":"' + message.encode("ascii") + b'"}'
        self.transport.write(
            b"".join(
                (
                    *(STATUS_LINE[status], b"content-type: application/json\r\n", header),
                    b"content-length: " + str(len(body)).encode() + b"\r\n",
                    b"connection: close\r\n\r\n" + body,
                )
            )
        )
        self.transport.close()

    def _arm(self) -> None:
        self._timer = self.loop.call_later(self.limits.header_s, self._too_slow)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            return  # it is being answered
        if self._header_bytes is None:
            self.transport.close()  # nothing was asked
        else:
            self.refuse(408, f"the headers did not come within {self.limits.header_s:g} s")
