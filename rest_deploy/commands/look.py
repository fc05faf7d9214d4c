"""What an artifact is and answers, and what this machine can do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from rest_deploy.console import Numbers, Sizes, show
from rest_deploy.options import (
    PATH,
    backend_option,
    json_option,
    provider_option,
    selftest_option,
    threads_option,
    workspace_option,
)


@click.command()
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
    show(report, as_json, text.parity)
    if not report.passed:
        sys.exit(1)


@click.command()
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
@selftest_option
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
    show(text.Predictions(model=str(model), fresh=fresh, images=tuple(found)), as_json,
           text.predictions)  # fmt: skip


@click.command()
@json_option
def variants(as_json: bool) -> None:
    """The model cards: counted parameters and GFLOPs, published accuracy."""
    from rest_deploy import verbs
    from rest_deploy.report import text

    show(verbs.variants(), as_json, text.variants)


@click.command()
@click.argument("file", type=PATH)
@json_option
def inspect(file: Path, as_json: bool) -> None:
    """What FILE is: an exported model, its sidecar, or a checkpoint."""
    from rest_deploy import verbs
    from rest_deploy.report import text

    show(verbs.inspect(file), as_json, text.inspection)


@click.command()
@click.argument("engine", type=PATH)
@backend_option
@provider_option
@threads_option
@json_option
def selftest(engine: Path, as_json: bool, **options: Any) -> None:
    """Does ENGINE answer here as it did where it was built? Exit 1 if not.

    An engine does this by itself when it is opened on a kind of machine for the first time.
    """
    from rest_deploy import verbs
    from rest_deploy.report import selftest as text

    report = verbs.selftest(engine, **options)
    show(report, as_json, text.tested)
    if not report.passed:
        sys.exit(1)


@click.command()
@click.argument("file", type=PATH)
@json_option
def lint(file: Path, as_json: bool) -> None:
    """What a quantized ONNX FILE, of this or another tool, has missed; exit 1 on errors."""
    from rest_deploy import verbs
    from rest_deploy.report import quantization as text

    report = verbs.lint(file)
    show(report, as_json, text.lint)
    if not report.clean:
        sys.exit(1)


@click.command()
@json_option
def doctor(as_json: bool) -> None:
    """What this machine can do, and for what it cannot: why and the command that mends it."""
    from rest_deploy import doctor as examination

    show(examination.examine(), as_json, examination.render)
