"""Logs as JSON lines on stderr. A reader that does not read cannot stop the service: lines that do
not fit its queue are dropped and counted."""

from __future__ import annotations

import atexit
import contextlib
import logging
import logging.handlers
import queue
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import msgspec

LINES = 10_000
"""That may wait to be written."""

LAST_S = 2.0
"""Seconds that the end of the process waits for the reader of its log."""


def event(log: logging.Logger, name: str, level: int = logging.INFO, **fields: Any) -> None:
    """One line: what happened, and everything about it by name."""
    if log.isEnabledFor(level):
        log.log(level, name, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """{"time": …, "level": …, "event": …} and the fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
        }
        if record.name.split(".")[0] != "rest_deploy":
            line["logger"] = record.name
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=str).decode()


class Dropping(logging.handlers.QueueHandler):
    """Puts records into a queue of limited length, from which a thread writes them."""

    def __init__(self, writer: logging.Handler) -> None:
        self._lines: queue.Queue[logging.LogRecord | None] = queue.Queue(LINES)
        super().__init__(self._lines)
        self.dropped = 0
        self._lock = threading.Lock()
        self._writer = writer
        self._thread = threading.Thread(target=self._write, name="rest-deploy-log", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Write what waits, or give up where nobody reads; nothing is written afterwards."""
        if self._thread.is_alive():
            with contextlib.suppress(queue.Full):
                self._lines.put(None, timeout=LAST_S)
                self._thread.join(LAST_S)

    def _write(self) -> None:
        while (record := self._lines.get()) is not None:
            self._writer.handle(record)

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        return record  # it is formatted in this process, by the thread that writes

    def enqueue(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(record)
        except queue.Full:
            with self._lock:
                self.dropped += 1


def start(level: str) -> Dropping:
    """All loggers write JSON lines from now on."""
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(JsonLines())
    handler = Dropping(writer)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("asyncio", "uvicorn.error", "PIL"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    logging.captureWarnings(True)  # Pillow's, of damaged images, are lines like any other
    atexit.register(handler.finish)
    return handler


def finish() -> None:
    """Before a process ends by `os._exit`: write what waits."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Dropping):
            handler.finish()
