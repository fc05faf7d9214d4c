"""An engine as a service."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy.options import (
    PATH,
    backend_option,
    drain_option,
    provider_option,
    selftest_option,
    service_options,
    threads_option,
)


@click.command()
@click.argument("engine", type=PATH)
@service_options(any_port=True)
@click.option("--queue", type=click.IntRange(1, 1_000_000), default=256, show_default=True,
              help="Images that wait, per worker; more get 429.")  # fmt: skip
@click.option("--workers", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Processes, each with an engine; restarted when they die.")  # fmt: skip
@click.option("--instances", type=click.IntRange(1, 64), default=1, show_default=True,
              help="Engine calls at a time, per worker.")  # fmt: skip
@click.option("--max-body-mb", type=click.FloatRange(0.01, 4000), default=32.0,
              show_default=True, help="Of one request, decompressed; more get 413.")  # fmt: skip
@click.option("--memory-mb", type=click.FloatRange(0.01, 1_000_000), default=512.0,
              show_default=True, help="Of all bodies held, per worker; more get 503.")  # fmt: skip
@click.option("--max-pixels", type=click.IntRange(1024, 89_000_000), default=25_000_000,
              show_default=True, help="Of an encoded image.")  # fmt: skip
@click.option("--max-side", type=click.IntRange(32, 16_384), default=1024, show_default=True,
              help="Height and width of a tensor.")  # fmt: skip
@click.option("--body-s", type=click.FloatRange(0.1, 3600), default=30.0, show_default=True,
              help="A body that takes longer gets 408; headers have a third.")  # fmt: skip
@drain_option
@click.option("--loading/--no-loading", default=True, show_default=True,
              help="Obey POST /v2/repository/models/NAME/load.")  # fmt: skip
@click.option("--log-level", type=click.Choice(["info", "warning", "error"]), default="info",
              show_default=True)  # fmt: skip
@click.option(
    "--trust",
    type=PATH,
    metavar="EXPORT",
    help="Run an engine without a sidecar; EXPORT is the model it was built from.",
)
@backend_option
@provider_option
@threads_option
@selftest_option
def serve(engine: Path, trust: Path | None, body_s: float, **options: Any) -> None:
    """Serve ENGINE over HTTP: Open Inference Protocol v2, images, metrics. SIGTERM drains."""
    from rest_deploy.errors import require
    from rest_deploy.serve.settings import Settings

    for module in ("uvicorn", "httptools", "starlette", "prometheus_client"):
        require(module, "serve")
    settings = Settings(
        engine=str(engine), trust=None if trust is None else str(trust), body_s=body_s,
        header_s=body_s / 3, **options,
    )  # fmt: skip
    if settings.workers > 1:
        from rest_deploy.serve import supervisor

        sys.exit(supervisor.run(settings))
    from rest_deploy.serve import server

    sys.exit(server.run(settings))
