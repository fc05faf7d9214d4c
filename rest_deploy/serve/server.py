"""One serving process: listen, open the engine, serve, drain, end.

It listens before the engine is open, so that it is alive while it is not ready. SIGTERM and SIGINT
stop it: not ready at once; what comes during `GRACE` is still answered, its connection closed; then
no more connections are accepted, those that are there get `GRACE` to ask, and the end comes when
every request is answered. A second signal does not wait. SIGHUP opens the engine file again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import uvicorn

from rest_deploy.errors import OutputError
from rest_deploy.serve import logs
from rest_deploy.serve.app import Load, application
from rest_deploy.serve.connection import protocol_class
from rest_deploy.serve.logs import event
from rest_deploy.serve.metrics import Metrics
from rest_deploy.serve.service import Outcome, Service
from rest_deploy.serve.settings import Settings

log = logging.getLogger(__name__)

GRACE = 0.5
"""Seconds between "not ready" and the last connection that is accepted."""

BACKLOG = 1024
SWITCH_INTERVAL = 0.0005
"""Seconds a thread may keep Python's lock when others want it. The engine's thread needs it for a
moment between two batches; with the usual 5 ms the engine would idle that long."""

NOT_DRAINED = 1
"""Exit code of a stop that did not wait for its requests."""


class Server(uvicorn.Server):
    """uvicorn's, with our signals and a way to end that loses nothing."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `serve` has them: uvicorn would end by the signal that stopped it

    def stop(self) -> None:
        """Drain; called again: do not wait."""
        if self.should_exit:
            event(log, "stopping without waiting", logging.WARNING)
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.drain()
        event(log, "draining", requests=len(self.server_state.tasks))
        await self._pause(GRACE)
        await self._accept_rest(sockets or [])
        await self._pause(GRACE)  # what was just accepted has time to ask
        await super().shutdown(sockets)

    async def _accept_rest(self, sockets: list[socket.socket]) -> None:
        """Stop listening. Connections that the system has taken meanwhile are taken over: closing
        the socket would reset them."""
        loop = asyncio.get_running_loop()
        copies = [sock.dup() for sock in sockets]
        for server in self.servers:
            server.close()
        accepted = []
        for copy in copies:
            with copy, contextlib.suppress(BlockingIOError, OSError):
                copy.setblocking(False)
                while True:
                    accepted.append(copy.accept()[0])
        for connection in accepted:
            connection.setblocking(False)
            await loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        made: asyncio.Protocol = kind(
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made

    async def _pause(self, seconds: float) -> None:
        """Unless a second signal came."""
        until = asyncio.get_running_loop().time() + seconds
        while not self.force_exit and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(0.05)


def listen(host: str, port: int) -> socket.socket:
    """A bound and listening socket. Raises `OutputError` for an address that cannot be had."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
        found.listen(BACKLOG)
        found.setblocking(False)
    except OSError as error:
        found.close()
        raise OutputError(
            f"cannot listen on {host}, port {port}: {error.strerror}",
            hint="--port 0 takes a free one",
        ) from error
    return found


def in_process(service: Service) -> Load:
    """Changes the engine of this process alone."""

    async def load(accept: Sequence[str]) -> Outcome:
        outcome = await asyncio.to_thread(service.prepare, accept)
        if outcome == "loaded":
            await asyncio.to_thread(service.commit)
        return outcome

    return _told(load, service)


def run(settings: Settings) -> int:
    """Serve in this process until a signal; returns the exit code. Raises what `Service.start`
    and `listen` do."""
    lines = logs.start(settings.log_level)
    sock = listen(settings.host, settings.port)
    event(log, "listening", host=settings.host, port=sock.getsockname()[1], pid=os.getpid())
    service = Service(settings, Metrics())
    load = in_process(service)
    reload = {signal.SIGHUP: lambda: load(())}
    code = asyncio.run(
        serve(service, sock, load, reload, stop_on=(signal.SIGINT,), started=service.release)
    )
    if lines.dropped:
        print(f"{lines.dropped} lines of the log were dropped", file=sys.stderr)
    return code


async def serve(
    service: Service,
    sock: socket.socket,
    load: Load,
    on_signal: Mapping[signal.Signals, Callable[[], Awaitable[object]]],
    *,
    stop_on: Sequence[signal.Signals] = (),
    contract: dict[str, str] | None = None,
    started: Callable[[], None] = lambda: None,
    stopping: asyncio.Event | None = None,
) -> int:
    """Serve on `sock` until SIGTERM or one of `stop_on`, or until `stopping` is set; returns the
    exit code. started: called when the engine is warm. contract: see `Service.start`."""
    sys.setswitchinterval(SWITCH_INTERVAL)
    settings = service.settings
    config = uvicorn.Config(
        application(service, load),
        http=protocol_class(settings),
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=BACKLOG,
        timeout_keep_alive=int(settings.keep_alive_s),
        timeout_graceful_shutdown=max(1, int(settings.drain_s)),
    )
    server = Server(config, service)
    loop, background = asyncio.get_running_loop(), set[asyncio.Future[object]]()

    def begin(call: Callable[[], Awaitable[object]]) -> None:
        task = asyncio.ensure_future(call())
        background.add(task)
        task.add_done_callback(background.discard)

    for number in (signal.SIGTERM, *stop_on):
        loop.add_signal_handler(number, server.stop)
    for number, call in on_signal.items():
        loop.add_signal_handler(number, begin, call)
    starting = asyncio.ensure_future(asyncio.to_thread(service.start, contract))
    if contract is not None:  # others serve: a connection is not taken to be told to come again
        await starting
    serving = asyncio.ensure_future(server.serve([sock]))
    watching = asyncio.ensure_future(_stop_when(stopping, server))
    try:
        await asyncio.wait((starting, serving), return_when=asyncio.FIRST_COMPLETED)
        failed = starting.exception() if starting.done() else None
        if failed is not None:
            server.should_exit = server.force_exit = True
            await serving
            raise failed
        if starting.done():
            started()
        await serving
        await asyncio.wait((starting,))  # it cannot be interrupted
    finally:
        watching.cancel()
    return _close(service, drain=not server.force_exit)


async def _stop_when(stopping: asyncio.Event | None, server: Server) -> None:
    if stopping is not None:
        await stopping.wait()
        server.should_exit = True


def _close(service: Service, *, drain: bool) -> int:
    """Give the engine back; one that does not return is left behind. Returns the exit code."""
    closing = threading.Thread(target=lambda: service.close(drain=drain), daemon=True)
    closing.start()
    closing.join(service.settings.drain_s if drain else 1.0)
    if closing.is_alive():
        event(log, "the engine did not end in time", logging.ERROR)
        logs.finish()
        os._exit(NOT_DRAINED)
    event(log, "stopped", drained=drain)
    return 0 if drain else NOT_DRAINED


def _told(load: Load, service: Service) -> Load:
    """With a line in the log and a figure for how it went; SIGHUP has nobody else to tell."""

    async def told(accept: Sequence[str]) -> Outcome:
        try:
            outcome = await load(accept)
        except Exception as error:
            service.metrics.loads.labels("refused").inc()
            event(log, "the new engine was refused, the old one serves", logging.ERROR,
                  reason=str(error))  # fmt: skip
            raise
        service.metrics.loads.labels(outcome).inc()
        event(log, "engine file opened", outcome=outcome)
        return outcome

    return told
