"""The head of an answer leaves with its body; what has none leaves all the same."""

from __future__ import annotations

import http.client

from rest_deploy.serve.connection import OneWrite
from tests.serve.live import WAIT, Live


class Transport:
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def held() -> tuple[Transport, OneWrite]:
    transport = Transport()
    return transport, OneWrite(transport)  # type: ignore[arg-type]


def test_head_and_body_are_one_write() -> None:
    transport, one = held()
    one.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert transport.written == []
    one.write(b"body")
    one.write(b"HTTP/1.1 in a body is text")
    assert transport.written == [b"HTTP/1.1 200 OK\r\n\r\nbody", b"HTTP/1.1 in a body is text"]


def test_continue_is_not_held() -> None:
    transport, one = held()
    one.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert transport.written == [b"HTTP/1.1 100 Continue\r\n\r\n"]
    one.write(b"HTTP/1.1 200 OK\r\n\r\n")
    assert len(transport.written) == 1


def test_a_head_alone_is_written_at_the_end() -> None:
    for end in ("flush", "close"):
        transport, one = held()
        one.write(b"head")
        getattr(one, end)()
        one.flush()
        assert transport.written == [b"head"]
        assert one.is_closing() == (end == "close")


def test_expect_continue(live: Live) -> None:
    """A client that asks first is told to go on, or that its body is too large."""
    for length, lines in ((7, [b"HTTP/1.1 100 ", b"HTTP/1.1 400 "]), (10**9, [b"HTTP/1.1 413 "])):
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=WAIT)
        connection.connect()
        sock = connection.sock
        assert sock is not None
        sock.sendall(
            b"POST /classify HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nConnection: close\r\n"
            b"Content-Length: " + str(length).encode() + b"\r\n\r\n"
        )
        for line in lines:
            assert sock.recv(65536).startswith(line)
            if line == b"HTTP/1.1 100 ":
                sock.sendall(b"nothing")
        connection.close()


def test_head_requests_are_answered(live: Live) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=WAIT)
    for _ in range(3):  # on one connection
        connection.request("HEAD", "/v2")
        assert connection.getresponse().read() == b""
    connection.close()
