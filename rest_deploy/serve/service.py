"""What serves, without HTTP: the engine, its batcher, its figures, and the change of engines."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from rest_deploy.errors import InputError
from rest_deploy.serve.batcher import Batcher
from rest_deploy.serve.logs import event
from rest_deploy.serve.metrics import Metrics
from rest_deploy.serve.model import Served, check_contract, fingerprint
from rest_deploy.serve.settings import Settings

log = logging.getLogger(__name__)

Outcome = Literal["loaded", "unchanged"]


class Busy(InputError):
    """One engine is being loaded already."""


class Service:
    """Thread-safe. `start` opens the engine, `release` makes it ready, until `drain`."""

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self.settings, self.metrics = settings, metrics
        self.draining = False
        self._released = False
        # The event loop alone changes these three.
        self.body_bytes = 0  # held by requests
        self.reading = 0  # bodies that are on their way
        self.decoders = ThreadPoolExecutor(settings.decoders, "rest-deploy-decode")
        self.decoding = 0
        self._batcher: Batcher[Served] | None = None
        self._prepared: Served | None = None
        self._changing = threading.Lock()

    @property
    def ready(self) -> bool:
        return self._released and not self.draining

    @property
    def batcher(self) -> Batcher[Served] | None:
        """None until the engine is warm."""
        return self._batcher

    def start(self, contract: dict[str, str] | None = None) -> None:
        """Open and warm the engine. contract: it must keep, of the workers beside this one.

        Raises what `Session.open` and `Served.warm` do, and `ContractError`.
        """
        served = Served.open(self.settings)
        if contract is not None:
            check_contract(contract, served.contract(), ())
        served.warm()
        self._batcher = Batcher(served, self.settings.batching(served.crop), self._computed)

    def release(self) -> None:
        """The engine is warm, here and in the workers beside this one: requests may be sent."""
        assert self._batcher is not None
        served = self._batcher.engine
        self._released = True
        self.metrics.ready.set(1)
        event(log, "ready", engine=self.settings.engine, sha256=served.sha256[:12],
              model=served.accepts.name, backend=served.session.runner.backend)  # fmt: skip

    def prepare(self, accept: Sequence[str] = ()) -> Outcome:
        """Open, check and warm the file that is there now, beside the engine that serves.

        accept: fields of the contract that may change. "unchanged": it is the same file. After
        "loaded" either `commit` or `discard` must follow. Raises what `start` does, and `Busy`; the
        old engine then goes on serving.
        """
        if self._batcher is None:
            raise Busy("the first engine is not ready yet")
        if not self._changing.acquire(blocking=False):
            raise Busy("an engine is being loaded already")
        served: Served | None = None
        try:
            old = self._batcher.engine
            if fingerprint(Path(self.settings.engine)) == old.sha256:
                self._changing.release()
                return "unchanged"
            served = Served.open(self.settings)
            check_contract(old.contract(), served.contract(), accept)
            served.warm()
        except BaseException:
            self._changing.release()
            if served is not None:
                served.close()
            raise
        self._prepared = served
        return "loaded"

    def commit(self) -> None:
        """Serve with what was prepared; returns when the old engine is closed."""
        served, self._prepared = self._prepared, None
        assert served is not None
        assert self._batcher is not None
        try:
            old = self._batcher.swap(served)
            event(log, "engine changed", sha256=served.sha256[:12], before=old.sha256[:12])
            old.close()
        finally:
            self._changing.release()

    def discard(self) -> None:
        """Close what was prepared."""
        served, self._prepared = self._prepared, None
        assert served is not None
        served.close()
        self._changing.release()

    def drain(self) -> None:
        """Not ready from now on; what comes is answered all the same."""
        self.draining = True
        self.metrics.ready.set(0)

    def close(self, *, drain: bool = True) -> None:
        """Answer what waits (or refuse it), and give everything back."""
        self.drain()
        self.decoders.shutdown(wait=True, cancel_futures=not drain)
        if self._batcher is not None:
            self._batcher.close(drain=drain)
            self._batcher.engine.close()

    def _computed(self, images: int, seconds: float) -> None:
        metrics = self.metrics
        metrics.images.inc(images)
        metrics.batch.observe(images)
        metrics.computed.observe(seconds)
        if self._batcher is not None:
            metrics.queue.set(self._batcher.depth)
