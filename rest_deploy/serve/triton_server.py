"""A Triton server of the nvidia-pytriton wheel, started on this machine and ended again.

NVIDIA ships its server as a container image. That wheel has the same server for Linux on x86-64,
with the Python backend alone, in 55 MB: enough to serve any engine by `--backend python`, on a CPU
too. It needs NumPy 1, so it lives in a virtual environment of its own (`make triton-venv`).
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import rest_deploy
from rest_deploy.errors import ArtifactError, MissingDependencyError

VENV_VARIABLE = "REST_DEPLOY_TRITON_VENV"
DEFAULT_VENV = ".triton-venv"
MEND = "make triton-venv"
HOST = "127.0.0.1"
PORTS = (20_000, 32_000)
STUB = "triton_python_backend_stub"

ASK = """
import json, sys, sysconfig
import numpy, pytriton, rest_deploy
print(json.dumps([sysconfig.get_config_var("LIBDIR"), pytriton.__file__, rest_deploy.__file__,
                  "%d.%d" % sys.version_info[:2], numpy.__version__]))
"""


@dataclass(frozen=True)
class Installation:
    """Of the wheel. library: folder of that Python's own library, which its backend must load
    instead of the system's; python and numpy: versions."""

    venv: Path
    server: Path
    library: str
    python: str
    numpy: str

    @property
    def folder(self) -> Path:
        """The wheel's tritonserver folder."""
        return self.server.parents[1]

    def environment(self) -> dict[str, str]:
        """PYTHONPATH is not honoured by the backend, PATH decides whose packages it sees."""
        found = dict(os.environ)
        for name, first in (("PATH", str(self.venv / "bin")), ("LD_LIBRARY_PATH", self.library)):
            found[name] = os.pathsep.join(filter(None, (first, found.get(name))))
        return found


def find(venv: Path | None = None) -> Installation:
    """venv: None for $REST_DEPLOY_TRITON_VENV, else ./.triton-venv.

    Raises `MissingDependencyError` when it is not there, not whole, or sees another rest_deploy
    than this one.
    """
    folder = venv or Path(os.environ.get(VENV_VARIABLE) or DEFAULT_VENV)
    python = folder / "bin" / "python"
    if not python.exists():
        raise MissingDependencyError(f"no virtual environment with Triton in {folder}", hint=MEND)
    answer = subprocess.run(
        [str(python.absolute()), "-c", ASK], capture_output=True, text=True, check=False,
        cwd=folder, timeout=120,
    )  # fmt: skip
    if answer.returncode:
        last = (answer.stderr.strip().splitlines() or ["no reason"])[-1]
        raise MissingDependencyError(f"{folder} cannot serve: {last}", hint=MEND)
    library, pytriton, ours, version, numpy = json.loads(answer.stdout.splitlines()[-1])
    here = Path(rest_deploy.__file__).resolve()
    if Path(ours).resolve() != here:
        raise MissingDependencyError(
            f"{folder} sees the rest_deploy of {Path(ours).parents[1]}, not {here.parents[1]}",
            hint=MEND,
        )
    server = Path(pytriton).parent / "tritonserver" / "bin" / "tritonserver"
    found = Installation(folder.absolute(), server, library, version, numpy)
    stub = found.folder / "backends" / "python" / STUB
    for file in (server, stub):
        if not os.access(file, os.X_OK):
            raise MissingDependencyError(f"{file} is missing or no program", hint=MEND)
    return found


def complete(venv: Path) -> None:
    """After installing the wheel: put the backend's stub for that Python where the server looks.

    Raises `MissingDependencyError` when the wheel has none.
    """
    folders = sorted(venv.glob("lib/python3.*/site-packages/pytriton/tritonserver"))
    if not folders:
        raise MissingDependencyError(
            f"{venv} has no nvidia-pytriton", hint="pip install nvidia-pytriton"
        )
    folder = folders[-1]
    version = folder.parents[2].name.removeprefix("python")
    source = folder / "python_backend_stubs" / version / STUB
    if not source.is_file():
        raise MissingDependencyError(
            f"nvidia-pytriton has no Python backend for Python {version}",
            hint=f"there are {', '.join(sorted(p.name for p in source.parents[1].iterdir()))}",
        )
    target = folder / "backends" / "python" / STUB
    shutil.copyfile(source, target)
    for file in (target, folder / "bin" / "tritonserver"):
        file.chmod(0o755)


class Server:
    """A running tritonserver on the loopback address alone, with free ports of its own.

    >>> with Server(find(), Path("models"), log=Path("triton.log")) as server:
    ...     server.get("/v2/models/rest_nano/stats")
    """

    def __init__(
        self,
        installation: Installation,
        root: Path,
        *,
        log: Path,
        seconds: float = 90,
        options: tuple[str, ...] = (),
        partly: bool = False,
    ) -> None:
        """seconds: until it must be ready; a server may hang while it loads. options: more of
        tritonserver's. partly: run although some models do not load."""
        self.installation, self.root, self.log = installation, root, log
        self._seconds, self._options, self._partly = seconds, options, partly
        self.http, self.grpc, self.metrics = _free_ports(3)
        self._process: subprocess.Popen[bytes] | None = None
        self._stream: IO[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def __enter__(self) -> Self:
        """Raises `ArtifactError` with the log's errors when it ends or does not become ready."""
        self._stream = self.log.open("wb")
        self._process = subprocess.Popen(
            self.command(), stdout=self._stream, stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL, env=self.installation.environment(),
            cwd=self.root, start_new_session=True,
        )  # fmt: skip
        try:
            self._wait(self._process)
        except BaseException:  # Ctrl-C too: it is in a session of its own and would stay
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def command(self) -> list[str]:
        folder = self.installation.folder
        return [
            str(self.installation.server),
            f"--model-repository={self.root.absolute()}",
            f"--backend-directory={folder / 'backends'}",
            f"--cache-directory={folder / 'caches'}",
            *(f"--{protocol}-address={HOST}" for protocol in ("http", "grpc", "metrics")),
            f"--http-port={self.http}",
            f"--grpc-port={self.grpc}",
            f"--metrics-port={self.metrics}",
            "--allow-gpu-metrics=false",
            "--disable-auto-complete-config",
            *(("--exit-on-error=false", "--strict-readiness=false") if self._partly else ()),
            *self._options,
        ]

    def get(self, path: str, method: str = "GET") -> Any:
        """The JSON at that path of the HTTP port. Raises `ArtifactError` for another status."""
        status, body = self._ask(path, method)
        if status != 200:
            raise ArtifactError(f"{path}: HTTP {status} {body[:200].decode(errors='replace')}")
        return json.loads(body) if body else None

    def stop(self) -> None:
        """End it and its Python processes, by force when they take more than ten seconds."""
        if self._process is not None:
            self._signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(10)
            # Also after it ended: a stub outlives a server that was killed.
            self._signal(signal.SIGKILL)
            self._process.wait(10)
        if self._stream is not None:
            self._stream.close()

    def _wait(self, process: subprocess.Popen[bytes]) -> None:
        until = time.monotonic() + self._seconds
        while not self._ready():
            ended = process.poll() is not None
            if ended or time.monotonic() > until:
                why = "ended" if ended else f"was not ready within {self._seconds:.0f} s"
                raise ArtifactError(
                    f"Triton {why}: {'; '.join(errors(self.log)) or 'without a word'}",
                    hint=f"rest-deploy triton-check {self.root}; all it said is in {self.log}",
                )
            time.sleep(0.1)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        try:
            os.killpg(self._process.pid, number)
        except ProcessLookupError:
            return

    def _ready(self) -> bool:
        try:
            status, _ = self._ask("/v2/health/ready", "GET")
        except (OSError, http.client.HTTPException):
            return False
        return status == 200

    def _ask(self, path: str, method: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(HOST, self.http, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()


def errors(log: Path) -> list[str]:
    """What the server called an error: its lines begin with E and the day. Without those that it
    writes on every machine that has no GPU."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    found = [_ERROR.sub("", line) for line in lines if _ERROR.match(line)]
    return [line[:300] for line in found if not any(word in line for word in _NO_GPU)][:5]


_ERROR = re.compile(r"E\d{4} \S+ +\d+ \S+\] +")
_NO_GPU = ("CudaDriverHelper", "CUDA driver version is insufficient")


def _free_ports(count: int) -> list[int]:
    """Below those that the system gives to outgoing connections, which could take one before the
    server does: it binds them when its models are loaded."""
    found: list[int] = []
    while len(found) < count:
        port = random.randrange(*PORTS)
        with contextlib.suppress(OSError), socket.create_server((HOST, port)):
            found += [port] if port not in found else []
    return found
