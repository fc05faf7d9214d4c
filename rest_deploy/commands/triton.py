"""A model repository for NVIDIA Triton: written, and checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy.console import Sizes, show
from rest_deploy.options import PATH, json_option, selftest_option


@click.command("triton-repo")
@click.argument("engine", type=PATH)
@click.option("-o", "--output-dir", type=PATH, required=True, help="The model repository.")
@click.option("--name", default="", help="Of the model. [default: the card's]")
@click.option("--backend", type=click.Choice(["auto", "onnxruntime", "tensorrt", "openvino",
              "python"]), default="auto", show_default=True,
              help="Of Triton; python runs rest_deploy.Session, whatever the engine.")  # fmt: skip
@click.option("--max-batch", type=click.IntRange(1, 4096), default=8, show_default=True)
@click.option("--max-delay-ms", type=click.FloatRange(0, 10_000), default=2.0, show_default=True,
              help="That a request waits for others to share a batch.")  # fmt: skip
@click.option("--timeout-ms", type=click.FloatRange(0, 3_600_000), default=5000.0,
              show_default=True, help="In the queue; then rejected. 0: for ever.")  # fmt: skip
@click.option("--queue", type=click.IntRange(0), default=256, show_default=True,
              help="Requests waiting at most; more are rejected. 0: any number.")  # fmt: skip
@click.option("--instances", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Of the engine; on a CPU they share its cores: give --threads.")  # fmt: skip
@click.option("--preprocessors", type=click.IntRange(1, 256), default=1, show_default=True,
              help="Processes that decode images for the ensemble.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1, 1024),
              help="Of one instance on a CPU. [default: all cores]")  # fmt: skip
@click.option("--sizes", type=Sizes(), default=(), metavar="224,384x512",
              help="Warmed up; the ensemble prepares images at the first. [default: the card's]",
              )  # fmt: skip
@click.option("--ensemble/--no-ensemble", default=True, show_default=True,
              help="Also NAME_classify: encoded images in, labels out.")  # fmt: skip
@selftest_option
@click.option("--force", is_flag=True, help="Replace folders that are edited or not ours.")
@json_option
def triton_repo(
    engine: Path, output_dir: Path, backend: str, force: bool, as_json: bool, **options: Any
) -> None:
    """Write a model repository for NVIDIA Triton that serves ENGINE."""
    from rest_deploy.report import triton as text
    from rest_deploy.serve import triton
    from rest_deploy.serve.triton_models import Wishes

    report = triton.write(engine, output_dir, Wishes(**options), backend=backend, force=force)
    show(report, as_json, text.written)


@click.command("triton-check")
@click.argument("repository", type=PATH)
@json_option
def triton_check(repository: Path, as_json: bool) -> None:
    """Would Triton load all models of REPOSITORY? Also of an edited one; exit 1 if not."""
    from rest_deploy.report import triton as text
    from rest_deploy.serve import triton

    report = triton.check(repository)
    show(report, as_json, text.checked)
    if not report.passed:
        sys.exit(1)
