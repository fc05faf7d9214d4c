"""What the supervisor and its workers say to each other: JSON lines over a socket pair."""

from __future__ import annotations

import asyncio
from typing import Literal

import msgspec

from rest_deploy.contracts import Struct

MOST_LINE = 10_000_000
"""Bytes; labels of thousands of classes travel in a contract."""


class Start(Struct, frozen=True, tag="start"):
    """To a worker: its settings as JSON, and the contract of those beside it."""

    settings: str
    contract: dict[str, str] | None


class Ready(Struct, frozen=True, tag="ready"):
    """From a worker whose engine is warm."""

    contract: dict[str, str]


class Released(Struct, frozen=True, tag="released"):
    """To a worker: all of them are ready, and may say so."""


class Failed(Struct, frozen=True, tag="failed"):
    """From a worker that could not begin, before it ends."""

    message: str
    hint: str
    code: int


class Prepare(Struct, frozen=True, tag="prepare"):
    """To a worker: open the engine file beside the engine that serves."""

    accept: tuple[str, ...]


class Prepared(Struct, frozen=True, tag="prepared"):
    """Its answer; outcome "refused" with the reason."""

    outcome: Literal["loaded", "unchanged", "refused"]
    reason: str = ""


class Decide(Struct, frozen=True, tag="decide"):
    """To a worker that has prepared: serve with it, or let it go."""

    commit: bool


class Decided(Struct, frozen=True, tag="decided"):
    """Its answer, with the contract it has now."""

    contract: dict[str, str]


class Load(Struct, frozen=True, tag="load"):
    """From a worker whose client asks for the change of engines."""

    number: int
    accept: tuple[str, ...]


class Loaded(Struct, frozen=True, tag="loaded"):
    """The answer to it: how it went with all workers."""

    number: int
    outcome: Literal["loaded", "unchanged", "refused"]
    reason: str = ""


Message = Start | Ready | Released | Failed | Prepare | Prepared | Decide | Decided | Load | Loaded

_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Message)


def send(writer: asyncio.StreamWriter, message: Message) -> None:
    writer.write(_encoder.encode(message) + b"\n")


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the other side has ended."""
    try:
        line = await reader.readline()
    except (ConnectionError, ValueError):
        return None
    if not line.endswith(b"\n"):
        return None
    found: Message = _decoder.decode(line)
    return found
