"""What a long command tells while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float], None]
"""Called with a finished step and its seconds."""


def silent(_step: str, _seconds: float) -> None:
    """No progress."""


@contextmanager
def step(progress: Progress, name: str) -> Iterator[None]:
    """Report the enclosed block under `name` when it has ended without an error."""
    started = time.monotonic()
    yield
    progress(name, time.monotonic() - started)
