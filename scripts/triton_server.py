"""NVIDIA's Triton server without a container, for trying a model repository out on a CPU.

    python scripts/triton_server.py install            # or: make triton-venv
    python scripts/triton_server.py run MODELS

`install` makes a virtual environment (.triton-venv, about 650 MB) with the nvidia-pytriton wheel
and this package. The server has the Python backend alone and listens on the loopback address.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import click

from rest_deploy.errors import RestDeployError
from rest_deploy.serve import triton_server
from rest_deploy.serve.triton_server import DEFAULT_VENV, Server

PATH = click.Path(path_type=Path)
CLONE = Path(__file__).resolve().parents[1]
PACKAGES = ("nvidia-pytriton==0.7.0", "tritonclient[http,grpc]>=2.40")
"""The wheel pins NumPy below 2, and with it whatever else is installed there."""


@click.group()
def main() -> None:
    """Install or run a Triton server of the nvidia-pytriton wheel."""


@main.command()
@click.argument("venv", type=PATH, default=Path(DEFAULT_VENV))
def install(venv: Path) -> None:
    """Make VENV, or complete one that is there."""
    if not (venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet",
           "--disable-pip-version-check"]  # fmt: skip
    subprocess.run([*pip, *PACKAGES, "-e", f"{CLONE}[onnxruntime,openvino]"], check=True)
    triton_server.complete(venv)
    found = triton_server.find(venv)
    click.echo(f"{venv}: Python {found.python}, NumPy {found.numpy}, {found.server}")


@main.command()
@click.argument("models", type=PATH)
@click.option("--venv", type=PATH, help="[default: $REST_DEPLOY_TRITON_VENV or .triton-venv]")
@click.option("--log", type=PATH, default=Path("triton.log"), show_default=True)
def run(models: Path, venv: Path | None, log: Path) -> None:
    """Serve the repository MODELS until Ctrl-C."""
    with Server(triton_server.find(venv), models, log=log) as server:
        for model in server.get("/v2/repository/index", "POST"):
            click.echo(f"{model['name']}: {model.get('state', 'not loaded')}")
        click.echo(f"http 127.0.0.1:{server.http}, grpc 127.0.0.1:{server.grpc}, "
                   f"metrics 127.0.0.1:{server.metrics}, log {log}; Ctrl-C ends it")  # fmt: skip
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            click.echo("stopping")


if __name__ == "__main__":
    try:
        main()
    except RestDeployError as error:
        sys.exit(f"error: {error}")
