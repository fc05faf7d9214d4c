"""The commands: parse, call one function, print one report."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from rest_deploy import __version__
from rest_deploy.errors import RestDeployError

if TYPE_CHECKING:
    from rest_deploy.verbs import Progress


class Sizes(click.ParamType[tuple[tuple[int, int], ...]]):
    """A list of sizes: "224,200x225" -> ((224, 224), (200, 225)), height first."""

    name = "sizes"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002  # see param
    ) -> tuple[tuple[int, int], ...]:
        if isinstance(value, tuple):
            return value
        try:
            pairs = [tuple(int(side) for side in word.split("x")) for word in value.split(",")]
            return tuple((pair[0], pair[-1]) for pair in pairs if 1 <= len(pair) <= 2)
        except ValueError:
            self.fail(f"{value!r} is not a list of sizes like 224,200x225 (height x width)")


class Numbers(click.ParamType[tuple[int, ...]]):
    """A list of positive whole numbers: "1,5" -> (1, 5)."""

    name = "numbers"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002  # click's signature
        ctx: click.Context | None,  # noqa: ARG002  # see param
    ) -> tuple[int, ...]:
        if isinstance(value, tuple):
            return value
        words = value.split(",")
        if not all(word.isdigit() and int(word) > 0 for word in words):
            self.fail(f"{value!r} is not a list of positive whole numbers like 1,5")
        return tuple(int(word) for word in words)


class Commands(click.Group):
    """Turns the error tree into one line and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        # Pillow's own bound is ours, and an error: preprocess.MAX_PIXELS.
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
        try:
            return super().invoke(ctx)
        except RestDeployError as error:
            click.echo(f"error: {error.message}", err=True)
            if error.hint:
                click.echo(f"       {error.hint}", err=True)
            ctx.exit(error.exit_code)
        except KeyboardInterrupt:
            click.echo("interrupted; nothing half-written is left", err=True)
            ctx.exit(130)


PATH = click.Path(path_type=Path)

workspace_option = click.option(
    "--workspace",
    type=PATH,
    help="Folder of artifacts. [default: $REST_DEPLOY_WORKSPACE or ./build]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
threads_option = click.option(
    "--threads", type=click.IntRange(min=1), help="Threads per operator. [default: all cores]"
)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="rest-deploy")
def main() -> None:
    """Deploy ResT image-recognition models: export, verify, predict.

    A usual start: rest-deploy export --variant lite; rest-deploy verify; rest-deploy predict.
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
@click.option("--num-classes", type=click.IntRange(min=0), help="0: no head, embeddings.")
@click.option("--labels", help="File with one class name a line.")
@click.option("--seed", default=0, show_default=True, help="Of fresh weights.")
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
        progress=_progress(as_json),
        **options,
    )
    _print(report, as_json, text.export)


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
    from rest_deploy.verify import parity

    report = verbs.verify(
        model,
        workspace=artifact.workspace(workspace),
        sizes=sizes or parity.SIZES,
        batches=batches or parity.BATCHES,
        **options,
    )
    _print(report, as_json, text.parity)
    if not report.passed:
        sys.exit(1)


@main.command()
@click.argument("model", type=PATH)
@click.argument("images", type=PATH, nargs=-1, required=True)
@click.option("--top", type=click.IntRange(min=1), default=5, show_default=True)
@threads_option
@json_option
def predict(
    model: Path, images: tuple[Path, ...], top: int, threads: int | None, as_json: bool
) -> None:
    """Classify IMAGES with MODEL. Needs no PyTorch."""
    from rest_deploy.report import text
    from rest_deploy.runtime.classifier import Classifier

    classifier = Classifier.open(model, threads=threads)
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
@json_option
def doctor(as_json: bool) -> None:
    """What this machine can do, and for what it cannot: why and the command that mends it."""
    from rest_deploy import doctor as examination

    _print(examination.examine(), as_json, examination.render)


def _print(report: Any, as_json: bool, render: Any) -> None:
    from rest_deploy.artifact import to_json

    click.echo(to_json(report) if as_json else render(report), nl=not as_json)


def _progress(as_json: bool) -> Progress:
    """One plain line a finished step, on stderr, so that stdout stays the report."""
    from rest_deploy import verbs

    def show(step: str, seconds: float) -> None:
        click.echo(f"  {step} ({seconds:.1f} s)", err=True)

    return verbs.silent if as_json else show


if __name__ == "__main__":
    main()
