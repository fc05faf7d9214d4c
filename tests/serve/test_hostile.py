"""Hundreds of requests that nobody should send: the right status code each, and it lives."""

from __future__ import annotations

import http.client
import json
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import pytest

from tests.serve.live import INFER, SIDE, WAIT, Live, inference, random_images

TURNS = 300
"""Of the default run."""

HOST = b"Host: localhost\r\n"


@dataclass(frozen=True)
class Attack:
    """Raw bytes on a connection; `codes` that are right, None where a closed connection is."""

    name: str
    data: bytes
    codes: tuple[int | None, ...]


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", "Connection: close",
             f"Content-Length: {len(body) if length is None else length}", *headers]  # fmt: skip
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def binary(header: object, tail: bytes, path: str = INFER) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return post(path, text + tail, f"Inference-Header-Content-Length: {len(text)}")


def described(shape: object, size: object, datatype: object = "FP32") -> dict[str, object]:
    tensor = {"name": "image", "shape": shape, "datatype": datatype,
              "parameters": {"binary_data_size": size}}  # fmt: skip
    return {"inputs": [tensor]}


GOOD, LENGTH = inference(random_images())
TAIL = GOOD[LENGTH:]
SHAPE = [1, 3, SIDE, SIDE]


def wrong_shape(dice: random.Random) -> Attack:
    shape = dice.choice(
        [[], [1], [3, SIDE, SIDE], [1, 3, 31, SIDE], [1, 3, SIDE, 257], [0, 3, SIDE, SIDE],
         [-1, 3, SIDE, SIDE], [1, 4, SIDE, SIDE], [5, 3, 32, 32], [1, 3, 2**31, 2**31], [2**70] * 4,
         [1.5, 3, SIDE, SIDE], ["1", 3, SIDE, SIDE], None, "1x3x64x64", [[1, 3, 64, 64]]]
    )  # fmt: skip
    size = dice.choice([len(TAIL), 0, 4, 2**62])
    return Attack(f"shape {shape}", binary(described(shape, size), TAIL), (400,))


def wrong_count(dice: random.Random) -> Attack:
    tail = random_images(5, 32).tobytes()
    return Attack("five images", binary(described([5, 3, 32, 32], len(tail)), tail), (400,))


def wrong_type(dice: random.Random) -> Attack:
    datatype = dice.choice(["FP16", "INT8", "BYTES", "", "x" * 1000, None, 5, ["FP32"]])
    return Attack("type", binary(described(SHAPE, len(TAIL), datatype), TAIL), (400,))


def wrong_size(dice: random.Random) -> Attack:
    size = dice.choice([0, -1, 1, len(TAIL) - 4, len(TAIL) + 4, 2**63, True, "49152", 1.5, None])
    return Attack(f"size {size}", binary(described(SHAPE, size), TAIL), (400,))


def truncated_tensor(dice: random.Random) -> Attack:
    cut = dice.randrange(len(TAIL))
    return Attack("short tensor", binary(described(SHAPE, len(TAIL)), TAIL[:cut]), (400,))


def wrong_header_length(dice: random.Random) -> Attack:
    value = dice.choice(["-1", "abc", "1e3", "99999999999999999999", "", "²", "0", str(LENGTH - 1),
                         str(LENGTH + 1), str(len(GOOD) + 1), "0x10", "+5"])  # fmt: skip
    return Attack(
        f"header length {value}",
        post(INFER, GOOD, f"Inference-Header-Content-Length: {value}"),
        (400,),
    )


def not_finite(dice: random.Random) -> Attack:
    images = random_images()
    images.ravel()[dice.randrange(images.size)] = dice.choice([np.nan, np.inf, -np.inf])
    return Attack("NaN", binary(described(SHAPE, images.nbytes), images.tobytes()), (400,))


def not_json(dice: random.Random) -> Attack:
    body = dice.choice(
        [b"", b"{", b"null", b"[" * 50_000, b'{"inputs":' * 20_000, bytes(1000), b"\xff" * 100,
         b'{"inputs": "image"}', b'{"inputs": []}', b'{"inputs": [{}]}', b'"' + b"a" * 100_000,
         b'{"inputs": [{"name": "image", "shape": [1], "datatype": "FP32", "data": ["a"]}]}']
    )  # fmt: skip
    return Attack("not JSON", post(INFER, body), (400,))


def json_data(dice: random.Random) -> Attack:
    data = dice.choice(["NaN", "[NaN]", "[1e999]", "[null]", '["1"]', "[[[[1]]]]", "{}", "[true]",
                        "[" * 10_000, "[]", "[1, 2, 3]", "[1,]"])  # fmt: skip
    body = (
        f'{{"inputs": [{{"name": "image", "shape": {SHAPE}, "datatype": "FP32", "data": {data}}}]}}'
    )
    return Attack(f"data {data[:20]}", post(INFER, body.encode()), (400,))


def random_bytes(dice: random.Random) -> Attack:
    path = dice.choice([INFER, "/classify", "/v2/repository/models/rest_nano/load"])
    return Attack("random body", post(path, dice.randbytes(dice.randrange(1, 5000))), (400,))


def flipped_bits(dice: random.Random) -> Attack:
    """Of a good request's JSON: it may still be good."""
    text = bytearray(GOOD[:LENGTH])
    for _ in range(dice.randrange(1, 4)):
        text[dice.randrange(len(text))] ^= 1 << dice.randrange(8)
    return Attack(f"flipped {bytes(text)!r}", binary(bytes(text), TAIL), (400, 200))


def damaged_image(dice: random.Random) -> Attack:
    from tests.serve.test_app import encoded

    body = bytearray(encoded(dice.choice(["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])))
    if dice.random() < 0.5:
        del body[dice.randrange(len(body)) :]
    for _ in range(dice.randrange(20) if body else 0):
        body[dice.randrange(len(body))] = dice.randrange(256)
    return Attack("damaged image", post("/classify", bytes(body)), (400, 413, 200))


def bomb(dice: random.Random) -> Attack:
    from tests.serve import test_app

    width, height = dice.choice([(1001, 1000), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
    return Attack("bomb", post("/classify", test_app.bomb(width, height)), (413, 400))


def too_long(dice: random.Random) -> Attack:
    length = dice.choice([2_000_001, 10**9, 10**18])
    return Attack("too long", post(INFER, b"{}", length=length), (413,))


def wrong_length_word(dice: random.Random) -> Attack:
    word = dice.choice(["-1", "abc", "1 2", "0x10", "1,2", "9" * 40])
    data = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {word}\r\n\r\n".encode()
    return Attack(f"length {word}", data + b"{}", (400,))


def smuggled(dice: random.Random) -> Attack:
    both = dice.choice(["Content-Length: 5\r\nContent-Length: 6",
                        "Content-Length: 5\r\nTransfer-Encoding: chunked",
                        "Transfer-Encoding: chunked, gzip",
                        "Transfer-Encoding: xchunked"])  # fmt: skip
    data = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{both}\r\n\r\n0\r\n\r\n"
    return Attack(both, data.encode(), (400, 408, None))


def bad_chunks(dice: random.Random) -> Attack:
    chunk = dice.choice([b"zz\r\nabc", b"-5\r\nabc", b"5\r\nabcdefgh", b"f" * 40 + b"\r\n"])
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return Attack("bad chunks", head + chunk, (400, 413))


def not_http(dice: random.Random) -> Attack:
    data = dice.choice([dice.randbytes(200), b"\r\n" * 50 + b"x\r\n\r\n", b"GET\r\n\r\n",
                        b"\x16\x03\x01\x02\x00\x01\x00" * 9, b"GET / HTTP/9.9\r\n\r\n",
                        b"GET /\x00 HTTP/1.1\r\n" + HOST + b"\r\n",
                        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
                        b"CONNECT x:1 HTTP/1.1\r\n\r\n"])  # fmt: skip
    return Attack(f"not HTTP {data[:20]!r}", data, (400, 404, 405, 505, None))


def many_headers(dice: random.Random) -> Attack:
    line = b"X-A: " + b"a" * 1000 + b"\r\n"
    data = b"GET /v2 HTTP/1.1\r\n" + HOST + line * 400
    return Attack("endless headers", data, (431, None))


def paths(dice: random.Random) -> Attack:
    path = dice.choice(["/v2/models/../../etc/passwd/infer", "/v2/models/%2e%2e%2f/infer",
                        "/v2/models/rest_nano%00/infer", "/v2/models/" + "a" * 3000 + "/infer",
                        "/v2/models/rest_nano/versions/../infer", "//v2/models/rest_nano/infer",
                        "/v2/models/rest_nano/versions/2/infer", "/v2/models/%ff/infer",
                        "/v2/repository/models/..%2f..%2fx/load"])  # fmt: skip
    return Attack(f"path {path[:40]}", post(path, GOOD[:100]), (404,))


def other_outputs(dice: random.Random) -> Attack:
    parameters = dice.choice(
        [{"classification": -5}, {"binary_data": "yes"}, {"shared_memory_region": "r"}]
    )
    asked = [{"name": "logits", "parameters": parameters}]
    outputs = dice.choice([[{"name": "x"}], [{"name": "logits"}] * 2, "logits", [{}], asked])
    header = {**described(SHAPE, len(TAIL)), "outputs": outputs}
    return Attack("outputs", binary(header, TAIL), (400,))


ATTACKS: tuple[Callable[[random.Random], Attack], ...] = (
    wrong_shape, wrong_count, wrong_type, wrong_size, truncated_tensor, wrong_header_length,
    not_finite, not_json, json_data, random_bytes, flipped_bits, damaged_image, bomb, too_long,
    wrong_length_word, smuggled, bad_chunks, not_http, many_headers, paths, other_outputs,
)  # fmt: skip


def attacks(seed: int, turns: int) -> Iterator[Attack]:
    dice = random.Random(seed)
    for turn in range(turns):
        yield ATTACKS[turn % len(ATTACKS)](dice)


def send(live: Live, data: bytes) -> tuple[int | None, bytes]:
    """The status code and the body; None for a connection that was closed without an answer."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT) as connection:
        with suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(data)
        answer = http.client.HTTPResponse(connection)
        try:
            answer.begin()
            return answer.status, answer.read()
        except (ConnectionError, http.client.HTTPException):
            return None, b""


def survives(live: Live, seed: int, turns: int) -> None:
    wrong = []
    for number, attack in enumerate(attacks(seed, turns)):
        code, body = send(live, attack.data)
        said = code in (None, 200) or json.loads(body)["error"]
        if code not in attack.codes or not said:
            wrong.append((number, attack.name, code, body[-200:]))
    assert wrong == []
    reply = live.infer(random_images())
    assert reply.status == 200
    assert live.metric("rest_deploy_body_bytes") == 0
    assert live.metric("rest_deploy_queue_images") == 0
    assert [line for line in live.lines() if "trace" in line] == []


def test_hostile_requests(live: Live) -> None:
    survives(live, seed=1, turns=TURNS)


@pytest.mark.slow
def test_many_hostile_requests(live: Live) -> None:
    survives(live, seed=2, turns=2000)


def test_the_right_request_is_answered(live: Live) -> None:
    """Negative control: what the attacks are made of is fine without the attack."""
    code, _ = send(live, binary(described(SHAPE, len(TAIL)), TAIL))
    assert code == 200
    assert not any(200 in attack.codes for attack in attacks(1, 8))


# --- slow clients ------------------------------------------------------------------------------


def dribble(live: Live, first: bytes, rest: bytes, pause: float) -> tuple[bytes, float]:
    """Send byte by byte until the server has enough; what it said, and after how long."""
    begun = time.monotonic()
    with socket.create_connection(("127.0.0.1", live.port), timeout=0.01) as connection:
        connection.sendall(first)
        received = b""
        for start in range(len(rest)):
            try:
                connection.send(rest[start : start + 1])
            except OSError:
                break
            try:
                piece = connection.recv(65536)
            except TimeoutError:
                time.sleep(pause)
                continue
            except OSError:
                break
            received += piece
            if not piece:
                break
        return received, time.monotonic() - begun


def test_headers_that_take_too_long(live: Live) -> None:
    received, seconds = dribble(live, b"GET /v2 HTTP/1.1\r\nX: ", b"a" * 10_000, 0.05)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert seconds < WAIT


def test_a_body_that_takes_too_long(live: Live) -> None:
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 10000\r\n\r\n".encode()
    received, seconds = dribble(live, head, b"a" * 9_000, 0.05)
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"did not come within 3 s" in received
    assert seconds < WAIT


def test_a_connection_that_asks_nothing_is_closed(live: Live) -> None:
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT) as connection:
        assert connection.recv(10) == b""
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT) as connection:
        connection.sendall(b"\r\n")
        assert connection.recv(10) == b""


def test_others_are_served_meanwhile(live: Live) -> None:
    slow = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(50)]
    try:
        for connection in slow:
            connection.sendall(b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n")
        assert live.infer(random_images()).status == 200
    finally:
        for connection in slow:
            connection.close()


def test_an_answer_that_nobody_reads_is_dropped(live: Live) -> None:
    """The client resets the connection while the engine computes."""
    head = struct.pack("ii", 1, 0)
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", live.port)) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, head)
            connection.sendall(binary(described(SHAPE, len(TAIL)), TAIL))
    assert live.infer(random_images()).status == 200


def test_two_requests_in_one_packet(live: Live) -> None:
    one = f"GET /v2/health/live HTTP/1.1\r\n{HOST.decode()}\r\n".encode()
    last = one.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    received = b""
    with socket.create_connection(("127.0.0.1", live.port), timeout=WAIT) as connection:
        connection.sendall(one * 3 + last)
        while piece := connection.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200 ") == 4


def test_more_memory_than_there_is(live: Live) -> None:
    """Bodies that are announced count before they come: 64 MB, 2 MB each."""
    held = [socket.create_connection(("127.0.0.1", live.port)) for _ in range(40)]
    try:
        for connection in held:
            connection.sendall(
                b"POST /classify HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\n\r\n"
            )
        codes = {live.ask("POST", "/classify", bytes(1_900_000)).status for _ in range(3)}
        assert codes == {503}
    finally:
        for connection in held:
            connection.close()
    time.sleep(0.1)
    assert live.infer(random_images()).status == 200
