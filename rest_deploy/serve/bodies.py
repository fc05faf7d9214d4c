"""Request bodies, read within limits: size, memory of all of them, time, compression."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import numpy as np

from rest_deploy.serve.connection import EXTENSION, Connection
from rest_deploy.serve.protocol import Body
from rest_deploy.serve.refusals import ClientGone, Refused
from rest_deploy.serve.service import Service

if TYPE_CHECKING:
    from starlette.requests import Request

DISCARDED = 1_000_000
"""Bytes of a refused body that are read for nothing, to keep the connection."""

ALIGNMENT = 64
"""Bytes: a cache line, and the widest registers."""

ENCODINGS = ("gzip", "deflate")


def declared_length(request: Request) -> int | None:
    """Content-Length; None for a chunked body. The HTTP parser has refused what is no number."""
    text = request.headers.get("content-length")
    return int(text) if text is not None and text.isdecimal() else None


def unread(request: Request) -> bool:
    """Whether the connection is closed rather than the body read to its end for nothing."""
    length = declared_length(request)
    if length is None:
        return "transfer-encoding" in request.headers
    return length > DISCARDED


@asynccontextmanager
async def body_of(
    request: Request, service: Service, header_length: int = 0
) -> AsyncIterator[Body]:
    """The whole body, decompressed; its memory counts until the block ends. Its byte number
    `header_length` is at an address that engines like, where the body came as it is.

    Raises `Refused`: 413 before more than the limit is read, 415, 408 for slow clients, 503 when
    too much memory is held, 400 for damaged compression; `ClientGone`.
    """
    settings = service.settings
    most = settings.max_body
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in (*ENCODINGS, "identity"):
        raise Refused(
            415, f"got the Content-Encoding {encoding[:40]!r}; expected {', '.join(ENCODINGS)}",
            close=unread(request),
        )  # fmt: skip
    length = declared_length(request)
    if length is not None and length > most:
        raise _too_large(f"{length} bytes", most)
    # What may become large is counted as large from the beginning.
    reserved = length if length is not None and encoding == "identity" else most
    if service.body_bytes + reserved > settings.memory:
        raise Refused(
            503, f"{service.body_bytes / 1e6:.0f} MB of requests are being held; expected at most "
            f"{settings.memory_mb:g}", retry_after=1, close=unread(request),
        )  # fmt: skip
    service.body_bytes += reserved
    service.metrics.body_bytes.set(service.body_bytes)
    try:
        service.reading += 1
        try:
            async with asyncio.timeout(settings.body_s):
                if length is None:
                    body: Body = await _read(request, most)
                else:
                    body = await _read_known(request, aligned(length, header_length))
        except TimeoutError as error:
            raise Refused(
                408, f"the body did not come within {settings.body_s:g} s", close=True
            ) from error
        finally:
            service.reading -= 1
        if encoding != "identity":
            loop = asyncio.get_running_loop()
            body = await loop.run_in_executor(service.decoders, decompressed, body, most)
        yield body
    finally:
        service.body_bytes -= reserved
        service.metrics.body_bytes.set(service.body_bytes)


async def _read(request: Request, most: int) -> bytearray:
    """A body of a length that nobody told."""
    body, more = bytearray(), True
    while more:
        piece, more = await _piece(request)
        if len(body) + len(piece) > most:
            raise _too_large(f"more than {len(body)} bytes", most)
        body += piece
    return body


async def _read_known(request: Request, body: memoryview) -> memoryview:
    """As many bytes as `body` has; the HTTP parser sees to it."""
    extension = request.scope.get("extensions", {}).get(EXTENSION)
    piece, more = await _piece(request)
    body[: len(piece)] = piece
    filled = len(piece)
    if more and extension is not None:
        connection: Connection = extension["connection"]
        connection.read_into(body[filled:])
        while more:
            piece, more = await _piece(request)
        return body
    while more:
        piece, more = await _piece(request)
        body[filled : filled + len(piece)] = piece
        filled += len(piece)
    return body


async def _piece(request: Request) -> tuple[bytes, bool]:
    """The next one, and whether more follow. Raises `ClientGone`."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


def aligned(length: int, header_length: int) -> memoryview:
    """Memory for a body, not cleared, with byte `header_length` at a multiple of `ALIGNMENT`."""
    memory = np.empty(length + ALIGNMENT, np.uint8)
    address = memory.__array_interface__["data"][0]
    start = -(address + header_length) % ALIGNMENT
    return memory.data[start : start + length]


def decompressed(body: Body, most: int) -> bytearray:
    """gzip or zlib. Raises `Refused` for more than `most` bytes, and for what is damaged."""
    unpack = zlib.decompressobj(wbits=47)  # either header
    try:
        found = bytearray(unpack.decompress(body, most + 1))
    except zlib.error as error:
        raise Refused(400, f"the compressed body is damaged: {error}") from error
    if len(found) > most:
        raise _too_large(f"a body that becomes more than {most} bytes", most)
    if not unpack.eof or unpack.unused_data:
        what = "followed by other bytes" if unpack.eof else "cut short"
        raise Refused(400, f"the compressed body is {what}")
    return found


def _too_large(got: str, most: int) -> Refused:
    return Refused(413, f"got {got}; expected at most {most}", close=True)
