"""A process of a service with several: `python -m rest_deploy.serve.worker LISTENER CONTROL`.

The supervisor starts it with both file descriptors. It ends, drained, when the supervisor does.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
import socket
import sys
from collections.abc import Sequence

import msgspec

from rest_deploy.errors import InvariantError, RestDeployError
from rest_deploy.serve import control, logs, server
from rest_deploy.serve.metrics import Metrics
from rest_deploy.serve.refusals import Refused
from rest_deploy.serve.service import Outcome, Service
from rest_deploy.serve.settings import Settings


class Worker:
    """The side of the control socket that a worker has."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[control.Loaded]] = {}
        self.stopping = asyncio.Event()

    async def run(self, listener: socket.socket) -> int:
        start = await control.receive(self._reader)
        if not isinstance(start, control.Start):
            return 0  # the supervisor has ended
        settings = msgspec.json.decode(start.settings, type=Settings)
        logs.start(settings.log_level)
        service = Service(settings, Metrics())

        def started() -> None:
            assert service.batcher is not None
            control.send(self._writer, control.Ready(service.batcher.engine.contract()))

        listening = asyncio.ensure_future(self._listen(service))
        try:
            return await server.serve(
                service, listener, self._load, {}, contract=start.contract, started=started,
                stopping=self.stopping,
            )  # fmt: skip
        except RestDeployError as error:
            message = control.Failed(error.message, error.hint or "", error.exit_code)
            control.send(self._writer, message)
            await self._writer.drain()
            return error.exit_code
        finally:
            listening.cancel()

    async def _listen(self, service: Service) -> None:
        """Do what the supervisor says."""
        while (message := await control.receive(self._reader)) is not None:
            if isinstance(message, control.Loaded):
                waiting = self._asked.pop(message.number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message)
            elif isinstance(message, control.Released):
                service.release()
            elif isinstance(message, control.Prepare):
                control.send(self._writer, await _prepare(service, message.accept))
            elif isinstance(message, control.Decide):
                await asyncio.to_thread(service.commit if message.commit else service.discard)
                assert service.batcher is not None
                control.send(self._writer, control.Decided(service.batcher.engine.contract()))
        self.stopping.set()

    async def _load(self, accept: Sequence[str]) -> Outcome:
        """Ask for the change in all workers. Raises `Refused` with the reason."""
        number = next(self._numbers)
        waiting = asyncio.get_running_loop().create_future()
        self._asked[number] = waiting
        control.send(self._writer, control.Load(number, tuple(accept)))
        answer: control.Loaded = await waiting
        if answer.outcome == "refused":
            raise Refused(409, answer.reason)
        return answer.outcome


async def _prepare(service: Service, accept: Sequence[str]) -> control.Prepared:
    try:
        return control.Prepared(await asyncio.to_thread(service.prepare, accept))
    except Exception as error:  # noqa: BLE001  # told to who asked; the old engine serves
        return control.Prepared("refused", str(error))


async def main(listener: int, channel: int) -> int:
    """Both are file descriptors."""
    reader, writer = await asyncio.open_connection(
        sock=socket.socket(fileno=channel), limit=control.MOST_LINE
    )
    return await Worker(reader, writer).run(socket.socket(fileno=listener))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise InvariantError("the supervisor starts workers: rest-deploy serve --workers N")
    # A terminal sends these to the whole group; the supervisor says what is to be done.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    code = asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
    logs.finish()
    os._exit(code)  # nothing is left to do; threads of an engine's library may linger
