"""Several serving processes on one listening socket, and who looks after them.

The socket is opened here and stays open whatever happens to a worker: connections wait in it while
one is started again. Engines change in two steps, so that either all workers change or none does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Literal

import msgspec

from rest_deploy.errors import MissingDependencyError, RestDeployError
from rest_deploy.serve import control, logs
from rest_deploy.serve.logs import event
from rest_deploy.serve.metrics import DIRECTORY
from rest_deploy.serve.server import GRACE, listen
from rest_deploy.serve.settings import Settings

log = logging.getLogger(__name__)

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 10.0
"""Seconds before a worker that ended is started again; doubled each time it does not get ready."""

LOAD_S = 600.0
"""Until a worker that prepares an engine is given up."""


class WorkerFailed(RestDeployError):
    """A worker could not begin; `code` is its exit code."""

    def __init__(self, message: str, hint: str, code: int) -> None:
        super().__init__(message, hint=hint or None)
        self.exit_code = code


class Child:
    """One worker process."""

    def __init__(
        self,
        index: int,
        process: asyncio.subprocess.Process,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self.index, self.process = index, process
        self.reader, self.writer = reader, writer
        self.ready = self.released = False
        self.failure: control.Failed | None = None
        self._answer: asyncio.Future[control.Prepared | control.Decided | None] | None = None

    async def ask(
        self, message: control.Prepare | control.Decide
    ) -> control.Prepared | control.Decided | None:
        """Its answer; None when it ended, or did not answer."""
        if self.process.returncode is not None or not self.ready:
            return None
        self._answer = asyncio.get_running_loop().create_future()
        control.send(self.writer, message)
        try:
            async with asyncio.timeout(LOAD_S):
                return await self._answer
        except TimeoutError:
            self.process.kill()  # it is started again, with the file that is there
            return None

    def answered(self, message: control.Prepared | control.Decided | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(message)


class Supervisor:
    def __init__(self, settings: Settings, sock: socket.socket) -> None:
        self.settings, self.sock = settings, sock
        self.children: dict[int, Child] = {}
        self.contract: dict[str, str] | None = None
        self._stopping = asyncio.Event()
        self._loading = asyncio.Lock()
        self._failed: WorkerFailed | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> int:
        """Until a signal. Raises `WorkerFailed` when the first workers cannot begin."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._begin(self._load_and_tell(None, ())))
        keeping = [asyncio.create_task(self._keep(n)) for n in range(self.settings.workers)]
        await self._stopping.wait()
        codes = await self._end()
        for task in keeping:
            task.cancel()
        await asyncio.gather(*keeping, return_exceptions=True)
        if self._failed is not None:
            raise self._failed
        event(log, "stopped", codes=codes)
        return 0 if all(code == 0 for code in codes) else 1

    def _stop(self) -> None:
        if self._stopping.is_set():
            for child in self.children.values():
                _signal(child, signal.SIGTERM)  # the second one: it does not wait
        self._stopping.set()

    async def _end(self) -> list[int]:
        """Have all workers drain; those that do not are killed. Their exit codes."""
        self.sock.close()  # so that the last worker that closes it has accepted what is in it
        children = list(self.children.values())
        for child in children:
            _signal(child, signal.SIGTERM)
        waits = [asyncio.ensure_future(child.process.wait()) for child in children]
        if waits:
            await asyncio.wait(waits, timeout=2 * self.settings.drain_s + GRACE + 5)
        for child in children:
            if child.process.returncode is None:
                event(log, "a worker did not end in time", logging.ERROR, worker=child.index)
                _signal(child, signal.SIGKILL)
        return list(await asyncio.gather(*waits))

    # --- keeping workers alive -----------------------------------------------------------------

    async def _keep(self, index: int) -> None:
        """Start worker `index`, and start it again whenever it ends."""
        pause = FIRST_PAUSE
        while not self._stopping.is_set():
            begun = time.monotonic()
            try:
                child = await self._start(index)
            except OSError as error:  # no memory or no process left; there may be later
                pause = min(2 * pause, LONGEST_PAUSE)
                event(log, "a worker cannot be started", logging.ERROR, worker=index,
                      reason=str(error), pause_s=pause)  # fmt: skip
                await self._pause(pause)
                continue
            await self._follow(child)
            code = await child.process.wait()
            child.answered(None)
            _forget(child.process.pid)
            if self._stopping.is_set():
                return
            reason = child.failure.message if child.failure else ""
            if self.contract is None and not child.ready:
                failure = child.failure or control.Failed(f"worker {index} ended", "", 1)
                self._failed = WorkerFailed(failure.message, failure.hint, failure.code)
                self._stopping.set()
                return
            pause = FIRST_PAUSE if child.ready else min(2 * pause, LONGEST_PAUSE)
            event(log, "worker ended, it is started again", logging.ERROR, worker=index,
                  pid=child.process.pid, code=code, reason=reason, pause_s=pause,
                  lived_s=round(time.monotonic() - begun, 1))  # fmt: skip
            await self._pause(pause)

    async def _pause(self, seconds: float) -> None:
        """Unless it is to stop."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    async def _start(self, index: int) -> Child:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "rest_deploy.serve.worker"),
                *(str(self.sock.fileno()), str(theirs.fileno())),
                pass_fds=(self.sock.fileno(), theirs.fileno()),
                stdin=asyncio.subprocess.DEVNULL,
            )
        reader, writer = await asyncio.open_connection(sock=ours, limit=control.MOST_LINE)
        child = Child(index, process, reader, writer)
        self.children[index] = child
        settings = msgspec.json.encode(self.settings).decode()
        control.send(writer, control.Start(settings, self.contract))
        event(log, "worker started", worker=index, pid=process.pid)
        return child

    async def _follow(self, child: Child) -> None:
        """Hear what it says until it ends."""
        while (message := await control.receive(child.reader)) is not None:
            if isinstance(message, control.Ready):
                child.ready = True
                self._release(message.contract)
            elif isinstance(message, control.Failed):
                child.failure = message
            elif isinstance(message, control.Prepared | control.Decided):
                child.answered(message)
            elif isinstance(message, control.Load):
                self._begin(self._load_and_tell((child, message.number), message.accept))
        child.writer.close()

    def _release(self, contract: dict[str, str]) -> None:
        """Whoever is told by one worker that the service is ready may come to any other: in the
        beginning none says so before all are."""
        self.contract = self.contract or contract
        waiting = [child for child in self.children.values() if not child.released]
        if all(child.ready for child in waiting):
            for child in waiting:
                child.released = True
                control.send(child.writer, control.Released())

    # --- changing engines ----------------------------------------------------------------------

    def _begin(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)  # type: ignore[call-overload]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _load_and_tell(self, asked: tuple[Child, int] | None, accept: Sequence[str]) -> None:
        outcome, reason = await self._load(accept)
        event(log, "engine file opened", outcome=outcome, reason=reason)
        if asked is not None:
            child, number = asked
            control.send(child.writer, control.Loaded(number, outcome, reason))

    async def _load(
        self, accept: Sequence[str]
    ) -> tuple[Literal["loaded", "unchanged", "refused"], str]:
        """In all workers, or in none."""
        if self._loading.locked():
            return "refused", "an engine is being loaded already"
        async with self._loading:
            children = list(self.children.values())
            if not all(child.ready for child in children):
                return "refused", "a worker is being started; try again"
            wanted = control.Prepare(tuple(accept))
            answers = await asyncio.gather(*(child.ask(wanted) for child in children))
            prepared, reasons = [], []
            for child, answer in zip(children, answers, strict=True):
                if not isinstance(answer, control.Prepared):
                    reasons.append(f"worker {child.index} ended meanwhile")
                elif answer.outcome == "refused":
                    reasons.append(answer.reason)
                elif answer.outcome == "loaded":
                    prepared.append(child)
            decision = control.Decide(commit=not reasons)
            decided = await asyncio.gather(*(child.ask(decision) for child in prepared))
            if reasons:
                return "refused", reasons[0]
            for answer in decided:  # one that ended is started again, with the same file
                if isinstance(answer, control.Decided):
                    self.contract = answer.contract
            return ("loaded" if prepared else "unchanged"), ""


def run(settings: Settings) -> int:
    """Serve with `settings.workers` processes until a signal; returns the exit code.

    Raises `WorkerFailed`, and what `listen` does.
    """
    if os.name != "posix":
        raise MissingDependencyError(
            "several workers share a listening socket, which needs Linux or another Unix",
            hint="--workers 1",
        )
    logs.start(settings.log_level)
    with (
        listen(settings.host, settings.port) as sock,
        tempfile.TemporaryDirectory(prefix="rest-deploy-metrics-") as figures,
    ):
        os.environ[DIRECTORY] = figures
        event(log, "listening", host=settings.host, port=sock.getsockname()[1], pid=os.getpid())
        return asyncio.run(_run(settings, sock))


async def _run(settings: Settings, sock: socket.socket) -> int:
    return await Supervisor(settings, sock).run()


def _signal(child: Child, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        child.process.send_signal(number)


def _forget(pid: int) -> None:
    """What a dead worker still counts as being there."""
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(pid)  # type: ignore[no-untyped-call]
