"""From checkpoint to engine: export, calibrate, quantize, build, deploy, refit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rest_deploy.console import counter, progress, show
from rest_deploy.options import (
    PATH,
    build_options,
    calibration_options,
    check_variant,
    dry_run_option,
    export_options,
    export_wishes,
    images,
    json_option,
    provider_options,
    request,
    tensorrt_options,
    through,
    variant_option,
    wishes,
    workspace_option,
)


@click.command()
@variant_option
@click.option("--checkpoint", type=PATH, help=".pth or .safetensors. [default: fresh weights]")
@export_options
@click.option(
    "--seed",
    type=click.IntRange(0, 2**63 - 1),
    default=0,
    show_default=True,
    help="Of fresh weights.",
)
@click.option("--output-dir", type=PATH, help="[default: the workspace]")
@workspace_option
@json_option
def export(
    variant: str | None,
    output_dir: Path | None,
    workspace: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a checkpoint to ONNX, proven against PyTorch before the file gets its name."""
    check_variant(variant, options["checkpoint"])
    from rest_deploy import artifact, verbs
    from rest_deploy.report import text

    report = verbs.export(
        variant,
        output_dir=output_dir or artifact.workspace(workspace),
        progress=progress(as_json),
        **options,
    )
    show(report, as_json, text.export)


@click.command()
@click.argument("model", type=PATH, required=False)
@click.option(
    "--recipe",
    default="int8",
    show_default=True,
    help="int8, int8-float-stem, int8-openvino, fp8 or a .toml.",
)
@calibration_options
@workspace_option
@json_option
def calibrate(model: Path | None, workspace: Path | None, as_json: bool, **options: Any) -> None:
    """Find the ranges of MODEL's activations (default: the newest export) on real images.

    The table is reused by quantize and build-engine. An interrupted calibration goes on where it
    was.
    """
    from rest_deploy import artifact, verbs
    from rest_deploy.report import quantization as text

    report, table = verbs.calibrate(
        model,
        workspace=artifact.workspace(workspace),
        images=images(options),
        counter=counter(as_json),
        **options,
    )
    show(report, as_json, lambda found: text.calibration(found, table))


@click.command()
@click.argument("model", type=PATH, required=False)
@click.option("--recipe", default="int8", show_default=True, help="Packaged one or a .toml.")
@click.option("--backend", default="auto", show_default=True,
              help="Whose kernels compute it: auto, openvino, onnxruntime.")  # fmt: skip
@calibration_options
@click.option("--gate-data", "gate_set", type=PATH, help="Measured on. [default: held-out photos]")
@click.option("--gate-images", type=click.IntRange(min=16), default=64, show_default=True)
@click.option("--checkpoint", type=PATH, help="Where the exported weights are now.")
@click.option("--budget", help='Like "agreement>=99.5%": write the recipe that keeps it.')
@click.option("--output", type=PATH, help="Of that recipe. [default: in the workspace]")
@workspace_option
@json_option
def sensitivity(model: Path | None, workspace: Path | None, as_json: bool, **options: Any) -> None:
    """What quantizing each layer group of MODEL costs, alone, worst first. Resumable."""
    from rest_deploy import artifact, verbs
    from rest_deploy.report import quantization as text

    report = verbs.sensitivity(
        model,
        workspace=artifact.workspace(workspace),
        images=images(options),
        progress=progress(as_json),
        counter=counter(as_json),
        **options,
    )
    show(report, as_json, text.sensitivity)


@click.command()
@click.argument("model", type=PATH, required=False)
@build_options
def quantize(model: Path | None, workspace: Path | None, as_json: bool, **options: Any) -> None:
    """Write MODEL (default: the newest export) as an ONNX file of another precision."""
    from rest_deploy import artifact, verbs
    from rest_deploy.report import quantization as text

    report = verbs.quantize(
        model,
        request(options),
        workspace=artifact.workspace(workspace),
        progress=progress(as_json),
        counter=counter(as_json),
    )
    show(report, as_json, text.build)


@click.command("build-engine")
@click.argument("model", type=PATH, required=False)
@click.option("--backend", default="auto", show_default=True,
              help="auto, tensorrt, tensorrt-rtx, openvino, onnxruntime.")  # fmt: skip
@provider_options
@build_options
@tensorrt_options
@dry_run_option
def build_engine(
    model: Path | None,
    backend: str,
    workspace: Path | None,
    as_json: bool,
    dry_run: bool,
    **options: Any,
) -> None:
    """Build an engine from MODEL (default: the newest export); refused if it loses accuracy."""
    from rest_deploy import artifact, verbs
    from rest_deploy.report import quantization as text
    from rest_deploy.report.engine import engine_plan

    wanted, used = wishes(options), through(options, backend)
    asked, folder = request(options), artifact.workspace(workspace)
    if dry_run:
        plan = verbs.plan_engine(model, asked, workspace=folder, backend=backend, wishes=wanted)
        show(plan, as_json, engine_plan)
        return
    report = verbs.build_engine(
        model,
        asked,
        workspace=folder,
        backend=backend,
        wishes=wanted,
        through=used,
        progress=progress(as_json),
        counter=counter(as_json),
    )
    show(report, as_json, text.build)


@click.command()
@variant_option
@export_options
@click.option("--backend", default="auto", show_default=True,
              help="auto, tensorrt, tensorrt-rtx, openvino, onnxruntime.")  # fmt: skip
@build_options
@tensorrt_options
@click.option("--no-bench", is_flag=True, help="Do not measure the engine.")
@click.option("--bench-seconds", type=click.FloatRange(0.1, 3600), default=5.0, show_default=True,
              help="At most, for each engine at each shape and mode.")  # fmt: skip
def deploy(
    variant: str | None,
    backend: str,
    workspace: Path | None,
    as_json: bool,
    no_bench: bool,
    bench_seconds: float,
    **options: Any,
) -> None:
    """Export, calibrate, build, gate and bench in one go; a killed run is gone on with by the next.

    What is up to date is not done again.
    """
    check_variant(variant, options["checkpoint"])
    from rest_deploy import artifact, verbs
    from rest_deploy.bench import store
    from rest_deploy.report import engine as text
    from rest_deploy.report import page

    measured = verbs.BenchWishes(seconds=bench_seconds, checkpoint=options["checkpoint"])
    wanted, exported = wishes(options), export_wishes(options)
    report = verbs.deploy(
        variant,
        exported,
        request(options),
        workspace=artifact.workspace(workspace),
        backend=backend,
        wishes=wanted,
        measured=None if no_bench else measured,
        progress=progress(as_json),
        counter=counter(as_json),
    )
    if report.record:
        record = Path(report.record)
        artifact.write_text(verbs.page_path(record, None), page.page(store.read(record)))
    show(report, as_json, text.deployed)


@click.command()
@click.argument("engine", type=PATH)
@click.option("--checkpoint", type=PATH, required=True, help=".pth or .safetensors, new weights.")
@click.option("--output", type=PATH, help="Where the engine goes. [default: in its place]")
@click.option("--no-gate", is_flag=True, help="Publish it however inaccurate it is.")
@click.option("--gate-data", "gate_set", type=PATH, help="Its images. [default: held-out photos]")
@click.option("--gate-images", type=click.IntRange(min=16), default=128, show_default=True)
@json_option
def refit(engine: Path, checkpoint: Path, as_json: bool, **options: Any) -> None:
    """Replace the weights of ENGINE, which was built with --refit; needs its GPU."""
    from rest_deploy import verbs
    from rest_deploy.report.engine import refitted

    report = verbs.refit(engine, checkpoint, progress=progress(as_json), **options)
    show(report, as_json, refitted)
