"""Groups of command line options, and what they mean as values."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from rest_deploy.console import Sizes
from rest_deploy.signature import OUTPUT_KINDS, InputKind

if TYPE_CHECKING:
    from rest_deploy.verbs import ExportWishes, Images, ProviderWishes, Request, Wishes

PATH = click.Path(path_type=Path)

workspace_option = click.option(
    "--workspace",
    type=PATH,
    help="Folder of artifacts. [default: $REST_DEPLOY_WORKSPACE or ./build]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
threads_option = click.option(
    "--threads", type=click.IntRange(1, 1024), help="Threads of one call. [default: all cores]"
)


selftest_option = click.option(
    "--selftest/--no-selftest", default=True, show_default=True,
    help="Of an engine that was not seen on this machine: see rest-deploy selftest.",
)  # fmt: skip

dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Print what would be built; build nothing."
)


def calibration_options(function: Any) -> Any:
    """Which images to calibrate on; `images` reads them."""
    options: list[Any] = [
        click.option("--calib-data", "data", type=PATH,
                     help="Folder, list of paths, .npy or .npz. [default: scikit-image's photos]"),
        click.option("--calib-sizes", "sizes", type=Sizes(), default=(),
                     help="Like 224,288x384: bring images to these in turn. [default: the card's]"),
        click.option("--limit", type=click.IntRange(min=1),
                     help="At most so many calibration images."),
        click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True,
                     help="Of the draw of calibration images."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def variant_option(function: Any) -> Any:
    """May be left out where there is a checkpoint to tell it from; `check_variant` says so else."""
    words = (
        "A name (see: rest-deploy variants) or a card (.toml). [default: told from the checkpoint]"
    )
    return click.option("--variant", help=words)(function)


def check_variant(variant: str | None, checkpoint: Path | None) -> None:
    """Raise click's own error when there is neither."""
    if variant is None and checkpoint is None:
        raise click.UsageError("Missing option '--variant', or '--checkpoint' to tell it from.")


def export_options(function: Any) -> Any:
    """Options that `export` and `deploy` share; `export_wishes` reads them."""
    options: list[Any] = [
        click.option("--checkpoint-key",
                     help="Entry or prefix of the weights. [default: EMA, model]"),
        click.option(
            "--instance-norm", type=click.Choice(["folded", "native", "decomposed"]),
            default="folded", show_default=True,
            help="Form of the InstanceNorm on the attention map; folded is exact and accurate.",
        ),
        click.option("--opset", type=int, help="ONNX opset, 18 to 23. [default: 20]"),
        click.option("--num-classes", type=click.IntRange(0, 1_000_000),
                     help="0: no head, embeddings."),
        click.option("--labels", help="File with one class name a line."),
        click.option("--input-size", type=click.IntRange(min=32), metavar="PIXELS",
                     help="Side of the square images. [default: the checkpoint's, else 224]"),
        click.option("--resize", type=click.IntRange(min=32), metavar="PIXELS",
                     help="Shorter side, before the crop. [default: input size * 256 / 224]"),
        click.option(
            "--output", "outputs", type=click.Choice(OUTPUT_KINDS), multiple=True,
            help="What the graph gives; repeatable, in this order. [default: logits]",
        ),
        click.option("--unit-length", is_flag=True, help="The embedding has L2 norm 1."),
        click.option(
            "--input", "input_kind", type=click.Choice(get_args(InputKind)), default="float",
            show_default=True,
            help="uint8: the graph takes RGB pixels (N, H, W, 3) and normalizes them.",
        ),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def build_options(function: Any) -> Any:
    """Options that `quantize` and `build-engine` share."""
    from rest_deploy.contracts import Precision

    options: list[Any] = [
        *(
            click.option(f"--{name}", "precision", flag_value=name, help=words)
            for name, words in zip(
                get_args(Precision),
                ("Float32.", "FP16, attention-map chain in float32.", "BF16, likewise.",
                 "INT8 by a recipe. [default]", "FP8 (E4M3) by a recipe."),
                strict=True,
            )
        ),
        calibration_options,
        click.option("--recipe", help="Packaged one or a .toml. [default: the precision's]"),
        click.option("--table", type=PATH, help="Use this calibration table."),
        click.option(
            "--rest", type=click.Choice(["fp32", "fp16", "bf16"]),
            help="With 8 bits: what is not quantized. [default: fp16 for TensorRT, else fp32]",
        ),
        click.option(
            "--io-type", type=click.Choice(["float32", "float16"]), default="float32",
            show_default=True, help="Of input and output, with --fp16.",
        ),
        click.option("--no-gate", is_flag=True, help="Publish it however inaccurate it is."),
        click.option("--gate-data", type=PATH, help="Its images. [default: held-out photos]"),
        click.option("--gate-images", type=click.IntRange(min=16), default=128, show_default=True),
        click.option("--checkpoint", type=PATH, help="Where the exported weights are now."),
        workspace_option,
        json_option,
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def tensorrt_options(function: Any) -> Any:
    """trtexec's words; `wishes` reads them."""
    options: list[Any] = [
        *(
            click.option(f"--{word}-shapes", multiple=True, metavar="8x3x224x224", help=text)
            for word, text in (
                ("min", "Least input shape of a profile; repeatable. [default: 1x3x32x32]"),
                ("opt", "Shape it is tuned for. [default: 8 of the card's size, or the largest]"),
                ("max", "Largest shape of a profile. [default: 32 of the card's size]"),
            )
        ),
        click.option("--expect-sizes", type=Sizes(), default=(), metavar="224,384x512",
                     help="Plan the fewest profiles for these instead. [default: the card's]"),
        click.option("--expect-batches", default="", metavar="1-32", help="With --expect-sizes."),
        click.option("--expect-histogram", type=PATH, metavar="CSV",
                     help="Plan for its height,width,batch,count instead of --expect-sizes."),
        click.option("--expect-coverage", type=click.FloatRange(0, 100, min_open=True),
                     metavar="PERCENT", help="Of its requests, at least. [default: 100]"),
        click.option("--memory", type=click.FloatRange(min=0.01), metavar="GiB",
                     help="Scratch memory that the planned profiles may need."),
        click.option("--target-sm", default="", metavar="86,89,120",
                     help="GPUs a tensorrt-rtx engine runs on. [default: 86,89,120]"),
        click.option("--workspace-limit", type=click.FloatRange(min=0.001), metavar="GiB",
                     help="Scratch memory the builder may plan with."),
        click.option("--builder-optimization-level", type=click.IntRange(0, 5),
                     help="More tries at build time. [default: the builder's]"),
        click.option("--version-compatible", is_flag=True, help="Runs on newer TensorRT too."),
        click.option("--hardware-compatibility", default="",
                     type=click.Choice(["", "ampere_plus", "same_compute_capability"]),
                     help="Runs on more GPUs than this one."),
        click.option("--refit", is_flag=True, help="Weights can be replaced later."),
        click.option("--strip-weights", is_flag=True, help="Without weights; they are refitted."),
        click.option("--timing-cache", type=PATH,
                     help="Kernel timings kept between builds, with tensorrt."),
        click.option("--save-engine", type=PATH, help="Its path. [default: in the workspace]"),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def backend_option(function: Any) -> Any:
    from rest_deploy.contracts import HostBackend

    text = "Of a .onnx file. [default: the one MODEL was built for, else onnxruntime]"
    names = click.Choice(get_args(HostBackend))
    return click.option("--backend", type=names, help=text)(function)


def provider_option(function: Any) -> Any:
    from rest_deploy.engine.providers import NAMES

    text = "Of ONNX Runtime. [default: the one MODEL was built for, else cpu]"
    return click.option("--provider", type=click.Choice(NAMES), help=text)(function)


def provider_options(function: Any) -> Any:
    """For `--backend onnxruntime`; `through` reads them."""
    from rest_deploy.engine.providers import NAMES

    options: list[Any] = [
        click.option("--provider", type=click.Choice(NAMES),
                     help="With --backend onnxruntime: what of it computes. [default: cpu]"),
        click.option("--provider-cache", type=PATH, metavar="DIR",
                     help="For what the provider compiles. [default: FILE.cache beside it]"),
        click.option("--embed-context", is_flag=True,
                     help="Also an ONNX file with the provider's engine inside, in the cache."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return function


def service_options(*, any_port: bool) -> Callable[[Any], Any]:
    """Of what answers HTTP by itself. any_port: whether 0 finds a free one."""
    words = "0: a free one; the log names it." if any_port else None
    options: list[Any] = [
        click.option("--host", default="127.0.0.1", show_default=True,
                     help="0.0.0.0: every interface."),
        click.option("--port", type=click.IntRange(0 if any_port else 1, 65535), default=8000,
                     show_default=True, help=words),
        click.option("--name", default="", help="Of the model in URLs. [default: the card's]"),
        batching_options,
        click.option("--deadline-ms", type=click.FloatRange(1, 3_600_000), default=10_000.0,
                     show_default=True, help="From the body's end to the answer; then 504."),
    ]  # fmt: skip
    return _all(options)


def batching_options(function: Any) -> Any:
    """How requests share calls of the engine."""
    return _all([
        click.option("--max-batch", type=click.IntRange(1, 1024), default=8, show_default=True,
                     help="Images of one engine call."),
        click.option("--max-delay-ms", type=click.FloatRange(0, 1000), default=2.0,
                     show_default=True, help="That a batch waits for callers seen lately."),
    ])(function)  # fmt: skip


def replica_options(*, least: int, most: int, threads: int, gpus: Any) -> Callable[[Any], Any]:
    """Of a deployment whose replicas come and go. least: that --min-replicas may be; most and
    threads: the defaults; gpus: the type of a number of them."""
    return _all([
        click.option("--min-replicas", type=click.IntRange(least, 10_000), default=1,
                     show_default=True, help="0: none while nobody asks." if least == 0 else None),
        click.option("--max-replicas", type=click.IntRange(1, 10_000), default=most,
                     show_default=True),
        click.option("--threads", type=click.IntRange(1, 1024), default=threads, show_default=True,
                     help="Cores of a replica."),
        click.option("--gpus", type=gpus, default=0, help="Of a replica."),
    ])  # fmt: skip


drain_option = click.option(
    "--drain-s", type=click.FloatRange(1, 3600), default=30.0, show_default=True,
    help="That a stop waits for requests it took.",
)  # fmt: skip


def _all(options: list[Any]) -> Callable[[Any], Any]:
    def decorate(function: Any) -> Any:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def request(options: dict[str, Any]) -> Request:
    from rest_deploy.errors import InputError
    from rest_deploy.verbs import Request

    options["precision"] = options["precision"] or "int8"
    if options["io_type"] != "float32" and options["precision"] != "fp16":
        raise InputError(
            f"--io-type {options['io_type']} goes with --fp16, not with --{options['precision']}"
        )
    chosen = images(options)
    return Request(images=chosen, gate=not options.pop("no_gate"), **options)


def wishes(options: dict[str, Any]) -> Wishes:
    """Takes `tensorrt_options` out of the options."""
    from rest_deploy.verbs import Wishes

    found = {name: options.pop(name) for name in Wishes.__dataclass_fields__}
    found["target_sm"] = tuple(sm.strip() for sm in found["target_sm"].split(",") if sm.strip())
    return Wishes(**found)


def through(options: dict[str, Any], backend: str) -> ProviderWishes:
    """Takes `provider_options` out of the options. Raises `InputError` for another backend."""
    from rest_deploy.verbs import ProviderWishes, check_backend

    found = ProviderWishes(
        provider=options.pop("provider") or "",
        cache=options.pop("provider_cache"),
        embed_context=options.pop("embed_context"),
    )
    check_backend(found, backend)
    return found


def export_wishes(options: dict[str, Any]) -> ExportWishes:
    """Takes `export_options` out of the options, and reads the checkpoint, which the gate uses."""
    from rest_deploy.verbs import ExportWishes

    names = ("checkpoint_key", "instance_norm", "opset", "num_classes", "labels", "input_size",
             "resize", "outputs", "unit_length", "input_kind")  # fmt: skip
    return ExportWishes(
        checkpoint=options["checkpoint"], **{name: options.pop(name) for name in names}
    )


def images(options: dict[str, Any]) -> Images:
    """Takes `calibration_options` out of the options."""
    from rest_deploy.verbs import Images

    return Images(**{name: options.pop(name) for name in ("data", "limit", "seed", "sizes")})
