"""Lines of JSON, from a thread that may be stuck."""

from __future__ import annotations

import io
import json
import logging
import threading

import pytest

from rest_deploy.serve import logs
from rest_deploy.serve.logs import Dropping, JsonLines, event


class Stuck(logging.Handler):
    """Writes when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()
        self.written = 0

    def emit(self, record: logging.LogRecord) -> None:
        assert self.gate.wait(20)
        self.written += record.levelno == logging.INFO


def logger(handler: logging.Handler) -> logging.Logger:
    found = logging.Logger("rest_deploy.test")
    found.addHandler(handler)
    return found


def test_a_line_is_one_object_whatever_is_in_it() -> None:
    stream = io.StringIO()
    writer = logging.StreamHandler(stream)
    writer.setFormatter(JsonLines())
    handler = Dropping(writer)
    log = logger(handler)
    event(log, "request", path='a"b\nc\u2028', code=200, odd=ValueError("x"))
    try:
        [][0]
    except IndexError:
        log.exception("internal error")
    handler.finish()
    handler.finish()  # a second time is nothing
    lines = [json.loads(line) for line in stream.getvalue().split("\n")[:-1]]
    assert [line["event"] for line in lines] == ["request", "internal error"]
    assert (lines[0]["path"], lines[0]["odd"], lines[0]["level"]) == ('a"b\nc\u2028', "x", "info")
    assert "IndexError: list index" in lines[1]["trace"]
    assert lines[0]["time"].endswith("+00:00")


def test_a_reader_that_is_stuck_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "LINES", 10)
    stuck = Stuck()
    handler = Dropping(stuck)
    log = logger(handler)
    for number in range(100):
        event(log, "request", number=number)
    assert handler.dropped >= 100 - 10 - 1
    stuck.gate.set()
    handler.finish()
    assert stuck.written + handler.dropped == 100
