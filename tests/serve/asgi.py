"""Requests to an ASGI application in this process, without a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from tests.serve.live import Reply


class Client:
    """Each request is one event loop turn of its own. `gone`: the client leaves after its body."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes] = b"",
        headers: dict[str, str] | None = None,
        *,
        gone: bool = False,
    ) -> Reply | None:
        """None when nothing was answered."""
        return asyncio.run(self._ask(method, path, body, headers or {}, gone))

    async def _ask(
        self,
        method: str,
        path: str,
        body: bytes | Iterable[bytes],
        headers: dict[str, str],
        gone: bool,
    ) -> Reply | None:
        pieces = [body] if isinstance(body, bytes) else [*body]
        path, _, query = path.partition("?")
        given = {"content-length": str(len(body))} if isinstance(body, bytes) else {
            "transfer-encoding": "chunked"}  # fmt: skip
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(),
            "query_string": query.encode(), "http_version": "1.1", "scheme": "http",
            "headers": [(name.lower().encode(), value.encode())
                        for name, value in {**given, **headers}.items()],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 80), "root_path": "",
            "state": {}, "asgi": {"version": "3.0"},
        }  # fmt: skip
        sent: list[dict[str, Any]] = []
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if pieces:
                piece = pieces.pop(0)
                return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
            if not gone:
                await never.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        await self.app(scope, receive, send)
        if not sent:
            return None
        found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return Reply(sent[0]["status"], found, content)


def error(reply: Reply | None) -> str:
    assert reply is not None
    found: str = json.loads(reply.body)["error"]
    return found
