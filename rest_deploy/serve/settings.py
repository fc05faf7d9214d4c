"""What a service was told on its command line; workers get it as JSON."""

from __future__ import annotations

import os
import re
from typing import Any

from rest_deploy.contracts import SMALLEST_SIDE, Struct
from rest_deploy.errors import InputError
from rest_deploy.serve.pending import BatchLimits

MEGA = 1_000_000
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


class Settings(Struct, frozen=True):
    """engine: path of the file. name: of the model in URLs, "" for the card's. threads: of one
    call, None for all cores shared among the workers.

    queue: images that wait, per worker; further requests get 429. max_body_mb: of one request,
    also when decompressed. memory_mb: of all bodies held at a time. max_pixels: of an encoded
    image. max_side: of a tensor. decoders: images decoded at a time. header_s, body_s, write_s: a
    client that takes longer for them is sent away. drain_s: a stop waits so long for requests that
    were taken. loading: whether POST /v2/repository/models/{name}/load is obeyed. selftest: see
    `Session.open`.
    """

    engine: str
    host: str = "127.0.0.1"
    port: int = 8000
    name: str = ""
    backend: str | None = None
    provider: str | None = None
    trust: str | None = None
    threads: int | None = None
    workers: int = 1
    instances: int = 1
    max_batch: int = 8
    max_delay_ms: float = 2.0
    queue: int = 256
    deadline_ms: float = 10_000.0
    max_body_mb: float = 32.0
    memory_mb: float = 512.0
    max_pixels: int = 25_000_000
    max_side: int = 1024
    decoders: int = 2
    connections: int = 1024
    header_s: float = 10.0
    body_s: float = 30.0
    write_s: float = 30.0
    keep_alive_s: float = 75.0
    drain_s: float = 30.0
    loading: bool = True
    log_level: str = "info"
    selftest: bool = True

    def __post_init__(self) -> None:
        if self.name and not NAME.fullmatch(self.name):
            raise InputError(
                f"the name {self.name!r} does not fit into a URL; expected letters, digits, '_', "
                "'.' and '-'"
            )
        if self.max_side < SMALLEST_SIDE:
            raise InputError(f"max_side is {self.max_side}; expected at least {SMALLEST_SIDE}")
        if self.max_body_mb > self.memory_mb:
            raise InputError(
                f"one body may have {self.max_body_mb:g} MB, all of them {self.memory_mb:g} MB; "
                "expected no less than one"
            )
        if self.max_batch > self.queue:
            raise InputError(
                f"a batch of {self.max_batch} does not fit a queue of {self.queue} images"
            )

    @property
    def max_body(self) -> int:
        """Bytes."""
        return int(self.max_body_mb * MEGA)

    @property
    def memory(self) -> int:
        """Bytes."""
        return int(self.memory_mb * MEGA)

    def batching(self, crop: int) -> BatchLimits:
        """crop: height and width the model is made for; a batch of larger images has fewer."""
        return BatchLimits(
            max_batch=self.max_batch,
            max_delay=self.max_delay_ms / 1e3,
            queue=self.queue,
            instances=self.instances,
            pixels=max(self.max_batch * crop**2, self.max_side**2),
        )

    def engine_threads(self) -> int | None:
        """Of one call of one worker; None: all cores."""
        if self.threads is not None or self.workers == 1:
            return self.threads
        return max(1, _cores() // self.workers)

    def options(self) -> dict[str, Any]:
        """What `Session.open` takes of it."""
        return {
            "backend": self.backend,
            "provider": self.provider,
            "threads": None if self.engine.endswith(".engine") else self.engine_threads(),
            "trust": self.trust,
            "selftest": self.selftest,
        }


def _cores() -> int:
    has_affinity = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
