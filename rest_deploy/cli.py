"""The commands: parse, call one function, print one report."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import traceback
import warnings
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from rest_deploy import __version__
from rest_deploy.errors import InputError, RestDeployError

if TYPE_CHECKING:
    from rest_deploy.verbs import Progress


INTERRUPT = "rest_deploy.interrupt"
"""Key of the command's `Interrupt` in click's context."""

TRACEBACK_VARIABLE = "REST_DEPLOY_TRACEBACK"
"""Set to anything: internal errors print where they come from."""


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
        words = value.split(",")
        if not all(re.fullmatch(r"[1-9][0-9]{0,4}(x[1-9][0-9]{0,4})?", word) for word in words):
            self.fail(f"{value!r} is not a list of sizes like 224,200x225 (height x width)")
        sides = [[int(side) for side in word.split("x")] for word in words]
        return tuple((pair[0], pair[-1]) for pair in sides)


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
        if not all(re.fullmatch(r"[1-9][0-9]{0,4}", word) for word in words):
            self.fail(f"{value!r} is not a list of positive whole numbers like 1,5")
        return tuple(int(word) for word in words)


class Interrupt:
    """Ctrl-C, remembered: libraries swallow KeyboardInterrupt while they import or trace."""

    def __init__(self) -> None:
        self.seen = False

    def __call__(self, _number: int, _frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt

    def check(self) -> None:
        """Raise what was swallowed; called between the steps of a long command."""
        if self.seen:
            raise KeyboardInterrupt


class Commands(click.Group):
    """Turns every failure into one line and a documented exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        # Pillow's own bound is ours, and an error: preprocess.MAX_PIXELS.
        warnings.filterwarnings("ignore", message="Image size .* exceeds limit")
        interrupt = Interrupt()
        ctx.meta[INTERRUPT] = interrupt
        # Not where SIGINT is ignored (a background job) or somebody else's.
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
        in_main = threading.current_thread() is threading.main_thread()
        before = signal.signal(signal.SIGINT, interrupt) if in_main and usual else None
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise
        except (KeyboardInterrupt, Exception) as error:  # noqa: BLE001  # reported, with its exit code
            ctx.exit(_report(error, interrupt))
        finally:
            if before is not None:
                signal.signal(signal.SIGINT, before)


def _report(error: BaseException, interrupt: Interrupt) -> int:
    """Print one line on stderr; returns the exit code of errors.py."""
    if interrupt.seen or isinstance(error, KeyboardInterrupt):
        click.echo("interrupted; nothing half-written is left", err=True)
        return 130
    if isinstance(error, OSError) and not isinstance(error, RestDeployError):
        place = f": {error.filename}" if error.filename else ""
        click.echo(f"error: {error.strerror or error}{place}"[:300], err=True)
        return InputError.exit_code
    if not isinstance(error, RestDeployError):
        if os.environ.get(TRACEBACK_VARIABLE):
            traceback.print_exception(error)
        reason = " ".join(str(error).split())[:200]
        click.echo(f"error: {type(error).__name__}: {reason}", err=True)
        click.echo(f"       please report this with the output of {TRACEBACK_VARIABLE}=1", err=True)
        return RestDeployError.exit_code
    click.echo(f"error: {error.message}", err=True)
    if error.hint:
        click.echo(f"       {error.hint}", err=True)
    return error.exit_code


PATH = click.Path(path_type=Path)

workspace_option = click.option(
    "--workspace",
    type=PATH,
    help="Folder of artifacts. [default: $REST_DEPLOY_WORKSPACE or ./build]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads per operator. [default: all cores]"
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
    interrupt = click.get_current_context().meta[INTERRUPT]

    def show(step: str, seconds: float) -> None:
        interrupt.check()
        if not as_json:
            click.echo(f"  {step} ({seconds:.1f} s)", err=True)

    return show


if __name__ == "__main__":
    main()
