"""What a long command tells while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Progress = Callable[[str, float], None]
"""Called with a finished step and its seconds."""

Counter = Callable[[str, int, int, str], None]
"""Called with a running step, the units done and to do, and their name."""


def silent(_step: str, _seconds: float) -> None:
    """No progress."""


def uncounted(_step: str, _done: int, _total: int, _unit: str) -> None:
    """No progress."""


@contextmanager
def step(progress: Progress, name: str) -> Iterator[None]:
    """Report the enclosed block under `name` when it has ended without an error."""
    started = time.monotonic()
    yield
    progress(name, time.monotonic() - started)
