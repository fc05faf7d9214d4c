"""The C++ programs, built once for all tests that run them, and a running `serve`."""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

CLONE = Path(__file__).parents[1]
HEADERS = [Path("/usr/include") / name for name in ("png.h", "jpeglib.h", "httplib.h")]
MISSING = [
    *(tool for tool in ("cmake", "ninja", "g++", "pkg-config") if shutil.which(tool) is None),
    *(str(header) for header in HEADERS if not header.is_file()),
]

HERE = pytest.mark.skipif(
    bool(MISSING), reason=f"not here: {', '.join(MISSING)}; scripts/cpp_packages.sh"
)


@functools.cache
def built() -> Path:
    """The folder with classify and serve, built as `make test-cpp` does."""
    openvino = importlib.util.find_spec("openvino")
    if openvino is None or not openvino.submodule_search_locations:
        pytest.skip("OpenVINO is not installed")
    where = f"-DOpenVINO_DIR={openvino.submodule_search_locations[0]}/cmake"
    for command in (
        ["cmake", "--preset", "release", where, "-DREST_DEPLOY_APPS=ON"],
        ["cmake", "--build", "--preset", "release", "--target", "classify", "serve"],
    ):
        done = subprocess.run(
            command, cwd=CLONE / "cpp", capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert "warning:" not in done.stdout + done.stderr
    return CLONE / "build" / "cpp" / "release" / "apps"


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, check=False, timeout=120
    )


@dataclass(frozen=True)
class Served:
    process: subprocess.Popen[str]
    url: str

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, Any]]:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data=body, headers=names)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, {**json.loads(error.read()), "headers": dict(error.headers)}

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return str(answer.read().decode())


def start(programs: Path, model: Path, *options: object) -> Served:
    command = [programs / "serve", model, "--port", 0, *options]
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "http://127.0.0.1:" in line, line
    return Served(process, line.split()[-1])


def stop(served: Served) -> None:
    served.process.terminate()
    _, errors = served.process.communicate(timeout=60)
    assert served.process.returncode == 0, errors
