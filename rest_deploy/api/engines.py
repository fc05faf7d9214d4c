"""From an exported model to an engine, step by step and in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from rest_deploy import artifact, verbs
from rest_deploy.api.given import PathLike, Sizes, path_of
from rest_deploy.contracts import InstanceNormForm, Precision, Rest
from rest_deploy.signature import InputKind, OutputKind
from rest_deploy.verbs import (
    BenchWishes,
    BuildReport,
    CalibrationReport,
    DeployReport,
    ExportWishes,
    Images,
    Progress,
    ProviderWishes,
    Request,
    Wishes,
    silent,
)
from rest_deploy.verbs.gate import GATE_IMAGES


def calibrate(
    model: PathLike | None = None,
    *,
    recipe: str = "int8",
    calib_data: PathLike | None = None,
    calib_sizes: Sizes = (),
    limit: int | None = None,
    seed: int = 0,
    workspace: PathLike | None = None,
) -> CalibrationReport:
    """The ranges of an exported model's activations on real images, as a table in the workspace.

    A table that fits is used again; an interrupted calibration goes on where it was. recipe: a
    packaged one or a .toml. calib_data: a folder, a list of paths, .npy or .npz; left out:
    scikit-image's photos. calib_sizes: that images are brought to in turn; left out: the card's.

    limit: at most so many images, drawn with `seed`.
    Raises `InputError`, `ImageError` (nothing to calibrate on), `CardError` (the recipe),
    `OutputError`.

    >>> report = rest_deploy.calibrate("build/rest_nano.onnx", calib_data="photos", limit=64)
    >>> report.images, report.table
    (64, 'build/rest_nano.int8.calibration.json')
    """
    report, _ = verbs.calibrate(
        path_of(model),
        workspace=artifact.workspace(path_of(workspace)),
        images=Images(path_of(calib_data), limit, seed, tuple(calib_sizes)),
        recipe=recipe,
    )
    return report


def quantize(
    model: PathLike | None = None,
    *,
    precision: Precision = "int8",
    recipe: str | None = None,
    calib_data: PathLike | None = None,
    calib_sizes: Sizes = (),
    limit: int | None = None,
    seed: int = 0,
    table: PathLike | None = None,
    rest: Rest | None = None,
    io_type: Literal["float32", "float16"] = "float32",
    gate: bool = True,
    gate_data: PathLike | None = None,
    gate_images: int = GATE_IMAGES,
    checkpoint: PathLike | None = None,
    workspace: PathLike | None = None,
    progress: Progress = silent,
) -> BuildReport:
    """An exported model as an ONNX file of another precision, for any backend's builder.

    table: of an earlier calibration; left out: one that fits, or a new one (see `calibrate`). rest:
    with 8 bits, what is not quantized. gate: hold it to the card's accuracy bounds on `gate_images`
    images of `gate_data` (left out: held-out photos) before anything is written. checkpoint: where
    the exported weights are now.

    Raises `VerificationError` (the gate), `InputError`, and what `calibrate` raises.

    >>> report = rest_deploy.quantize(
    ...     "build/rest_nano.onnx", calib_data="photos", limit=64, gate_images=16)
    >>> report.path, report.build.gate.passed
    ('build/rest_nano.int8.onnx', True)
    """
    return verbs.quantize(
        path_of(model),
        Request(
            precision=precision,
            images=Images(path_of(calib_data), limit, seed, tuple(calib_sizes)),
            recipe=recipe,
            table=path_of(table),
            rest=rest,
            io_type=io_type,
            gate=gate,
            gate_data=path_of(gate_data),
            gate_images=gate_images,
            checkpoint=path_of(checkpoint),
        ),
        workspace=artifact.workspace(path_of(workspace)),
        progress=progress,
    )


def build_engine(
    model: PathLike | None = None,
    *,
    backend: str = "auto",
    precision: Precision = "int8",
    recipe: str | None = None,
    calib_data: PathLike | None = None,
    calib_sizes: Sizes = (),
    limit: int | None = None,
    seed: int = 0,
    table: PathLike | None = None,
    rest: Rest | None = None,
    io_type: Literal["float32", "float16"] = "float32",
    gate: bool = True,
    gate_data: PathLike | None = None,
    gate_images: int = GATE_IMAGES,
    checkpoint: PathLike | None = None,
    tensorrt: Wishes | None = None,
    provider: ProviderWishes | None = None,
    workspace: PathLike | None = None,
    progress: Progress = silent,
) -> BuildReport:
    """An engine for one backend; refused, and not written, if it loses accuracy.

    backend: "tensorrt", "tensorrt-rtx", "openvino", "onnxruntime", or "auto" for the first that can
    be built here. tensorrt: shapes and builder options of the two TensorRTs. provider: of ONNX
    Runtime, what computes. The rest: see `quantize`.

    Raises what `quantize` raises, `MissingDependencyError` (no such backend here), `BuildError`
    (NVIDIA's builder).

    >>> report = rest_deploy.build_engine("build/rest_nano.onnx", backend="onnxruntime",
    ...     calib_data="photos", limit=64, gate_images=16)
    >>> report.path
    'build/rest_nano.int8.onnxruntime.onnx'
    >>> [check.name for check in report.build.gate.checks if not check.passed]
    []
    """
    through = provider or ProviderWishes()
    verbs.check_backend(through, backend)
    return verbs.build_engine(
        path_of(model),
        Request(
            precision=precision,
            images=Images(path_of(calib_data), limit, seed, tuple(calib_sizes)),
            recipe=recipe,
            table=path_of(table),
            rest=rest,
            io_type=io_type,
            gate=gate,
            gate_data=path_of(gate_data),
            gate_images=gate_images,
            checkpoint=path_of(checkpoint),
        ),
        workspace=artifact.workspace(path_of(workspace)),
        backend=backend,
        wishes=tensorrt or Wishes(),
        through=through,
        progress=progress,
    )


def deploy(
    checkpoint: PathLike | None = None,
    *,
    variant: str | None = None,
    checkpoint_key: str | None = None,
    instance_norm: InstanceNormForm = "folded",
    opset: int | None = None,
    num_classes: int | None = None,
    labels: str | None = None,
    input_size: int | None = None,
    resize: int | None = None,
    outputs: Sequence[OutputKind] = (),
    unit_length: bool = False,
    input_kind: InputKind = "float",
    backend: str = "auto",
    precision: Precision = "int8",
    recipe: str | None = None,
    calib_data: PathLike | None = None,
    calib_sizes: Sizes = (),
    limit: int | None = None,
    rest: Rest | None = None,
    gate: bool = True,
    gate_data: PathLike | None = None,
    gate_images: int = GATE_IMAGES,
    tensorrt: Wishes | None = None,
    bench: bool = True,
    bench_seconds: float = 5.0,
    workspace: PathLike | None = None,
    progress: Progress = silent,
) -> DeployReport:
    """`export`, `calibrate`, `build_engine` and `benchmark` in one call; what is up to date is not
    done again, and a run that was killed is gone on with by the next.

    bench: whether the engine is measured, for at most `bench_seconds` at each shape and mode. The
    rest: see the four. Raises what they raise; steps before the failed one stay.

    >>> report = rest_deploy.deploy("finetuned.safetensors", backend="onnxruntime",
    ...     calib_data="photos", limit=64, gate_images=16, bench=False, workspace="deployed")
    >>> [step.name for step in report.steps]
    ['export', 'calibrate', 'build int8 for onnxruntime']
    >>> report.engine
    'deployed/rest_nano.int8.onnxruntime.onnx'
    """
    source = path_of(checkpoint)
    return verbs.deploy(
        variant,
        ExportWishes(
            checkpoint=source,
            checkpoint_key=checkpoint_key,
            instance_norm=instance_norm,
            opset=opset,
            num_classes=num_classes,
            labels=labels,
            input_size=input_size,
            resize=resize,
            outputs=tuple(outputs),
            unit_length=unit_length,
            input_kind=input_kind,
        ),
        Request(
            precision=precision,
            images=Images(path_of(calib_data), limit, sizes=tuple(calib_sizes)),
            recipe=recipe,
            rest=rest,
            gate=gate,
            gate_data=path_of(gate_data),
            gate_images=gate_images,
            checkpoint=source,
        ),
        workspace=artifact.workspace(path_of(workspace)),
        backend=backend,
        wishes=tensorrt or Wishes(),
        measured=BenchWishes(seconds=bench_seconds, checkpoint=source) if bench else None,
        progress=progress,
    )
