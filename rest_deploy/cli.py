"""The commands: parse, call one function, print one report."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy import __version__
from rest_deploy.console import Commands, Numbers, Sizes, counter, progress
from rest_deploy.options import (
    PATH,
    backend_option,
    build_options,
    calibration_options,
    images,
    json_option,
    provider_option,
    provider_options,
    request,
    tensorrt_options,
    threads_option,
    through,
    wishes,
    workspace_option,
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rest-deploy")
def main() -> None:
    """Deploy ResT image-recognition models: export, quantize, build, verify, predict.

    A usual start: rest-deploy export --variant lite; rest-deploy build-engine --int8.
    """


@main.command()
@click.option("--variant", required=True, help="lite, small, base, large, nano, or a card (.toml).")
@click.option("--checkpoint", type=PATH, help=".pth or .safetensors. [default: fresh weights]")
@click.option("--checkpoint-key", help="Entry of a .pth with the weights. [default: EMA, model]")
@click.option(
    "--instance-norm",
    type=click.Choice(["folded", "native", "decomposed"]),
    default="folded",
    show_default=True,
    help="Form of the InstanceNorm on the attention map; folded is exact and accurate.",
)
@click.option("--opset", type=int, help="ONNX opset, 18 to 23. [default: 20]")
@click.option("--num-classes", type=click.IntRange(0, 1_000_000), help="0: no head, embeddings.")
@click.option("--labels", help="File with one class name a line.")
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
    variant: str,
    output_dir: Path | None,
    workspace: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Export a checkpoint to ONNX, proven against PyTorch before the file gets its name."""
    from rest_deploy import artifact, verbs
    from rest_deploy.report import text

    report = verbs.export(
        variant,
        output_dir=output_dir or artifact.workspace(workspace),
        progress=progress(as_json),
        **options,
    )
    _print(report, as_json, text.export)


@main.command()
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
    _print(report, as_json, lambda found: text.calibration(found, table))


@main.command()
@click.argument("model", type=PATH, required=False)
@click.option("--recipe", default="int8", show_default=True, help="Packaged one or a .toml.")
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
    _print(report, as_json, text.sensitivity)


@main.command()
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
    _print(report, as_json, text.build)


@main.command("build-engine")
@click.argument("model", type=PATH, required=False)
@click.option("--backend", default="auto", show_default=True,
              help="auto, tensorrt, tensorrt-rtx, openvino, onnxruntime.")  # fmt: skip
@provider_options
@build_options
@tensorrt_options
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
        _print(plan, as_json, engine_plan)
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
    _print(report, as_json, text.build)


@main.command()
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
    _print(report, as_json, refitted)


@main.command()
@click.argument("model", type=PATH, required=False)
@click.option(
    "--reference",
    type=click.Choice(["float64", "float32"]),
    default="float64",
    show_default=True,
    help="Precision of the PyTorch reference.",
)
@click.option("--sizes", type=Sizes(), help="Like 224,200x225. [default: five sizes]")
@click.option("--batches", type=Numbers(), help="Like 1,5. [default: 1,5]")
@click.option("--images", type=PATH, help="Folder of photos. [default: scikit-image's]")
@click.option("--checkpoint", type=PATH, help="Where the exported weights are now.")
@backend_option
@provider_option
@threads_option
@workspace_option
@json_option
def verify(
    model: Path | None,
    sizes: tuple[tuple[int, int], ...] | None,
    batches: tuple[int, ...] | None,
    workspace: Path | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Compare MODEL (default: the newest export) with the PyTorch reference; exit 1 on failure."""
    from rest_deploy import artifact, verbs
    from rest_deploy.report import text

    report = verbs.verify(
        model,
        workspace=artifact.workspace(workspace),
        sizes=sizes,
        batches=batches,
        **options,
    )
    _print(report, as_json, text.parity)
    if not report.passed:
        sys.exit(1)


@main.command()
@click.argument("model", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True)
@click.option(
    "--trust",
    type=PATH,
    metavar="EXPORT",
    help="Run an engine without a sidecar; EXPORT is the model it was built from.",
)
@backend_option
@provider_option
@threads_option
@json_option
def predict(model: Path, images: tuple[Path, ...], top: int, as_json: bool, **options: Any) -> None:
    """Classify IMAGES with MODEL, an ONNX file or an engine. Needs no PyTorch."""
    from rest_deploy.report import text
    from rest_deploy.runtime.classifier import Classifier
    from rest_deploy.runtime.specialize import NEVER

    # Every image once: no shape comes often enough to compile for it.
    classifier = Classifier.open(model, specialize=NEVER, **options)
    found = [
        text.ImagePredictions(image=str(image), predictions=tuple(classifier.classify(image, top)))
        for image in images
    ]
    fresh = classifier.session.metadata.weights.kind == "fresh"
    _print(text.Predictions(model=str(model), fresh=fresh, images=tuple(found)), as_json,
           text.predictions)  # fmt: skip


@main.command()
@json_option
def variants(as_json: bool) -> None:
    """The model cards: counted parameters and GFLOPs, published accuracy."""
    from rest_deploy import verbs
    from rest_deploy.report import text

    _print(verbs.variants(), as_json, text.variants)


@main.command()
@click.argument("file", type=PATH)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """What FILE is: an exported model, its sidecar, or a checkpoint."""
    from rest_deploy import verbs
    from rest_deploy.report import text

    _print(verbs.inspect(file), as_json, text.inspection)


@main.command()
@click.argument("file", type=PATH)
@json_option
def lint(file: Path, as_json: bool) -> None:
    """What a quantized ONNX FILE, of this or another tool, has missed; exit 1 on errors."""
    from rest_deploy import verbs
    from rest_deploy.report import quantization as text

    report = verbs.lint(file)
    _print(report, as_json, text.lint)
    if not report.clean:
        sys.exit(1)


@main.command()
@json_option
def doctor(as_json: bool) -> None:
    """What this machine can do, and for what it cannot: why and the command that mends it."""
    from rest_deploy import doctor as examination

    _print(examination.examine(), as_json, examination.render)


def _print(report: Any, as_json: bool, render: Any) -> None:
    from rest_deploy.artifact import to_json

    click.echo(to_json(report) if as_json else render(report), nl=not as_json)


if __name__ == "__main__":
    main()
