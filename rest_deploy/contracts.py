"""Values that cross stages: frozen, typed, validated when they are read from a file.

They are msgspec structs because every one of them is also stored as TOML or JSON;
unknown fields and wrong types are refused with the path of the offending field.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from rest_deploy.architecture import Architecture as Architecture
from rest_deploy.architecture import PositionEncoding as PositionEncoding
from rest_deploy.proofs import Proven as Proven
from rest_deploy.proofs import Sums as Sums
from rest_deploy.selftest import SelfTest, Site
from rest_deploy.signature import InputKind, Output
from rest_deploy.stored import Struct as Struct

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

InstanceNormForm = Literal["folded", "native", "decomposed"]
WeightsKind = Literal["checkpoint", "fresh"]

SMALLEST_SIDE = 32
"""Smallest input height and width in pixels: stage 4 then has one token."""


class Head(Struct, frozen=True):
    """The classifier. `num_classes` 0: no head, the model returns the pooled embedding."""

    num_classes: int
    labels: str = ""

    def __post_init__(self) -> None:
        if self.num_classes < 0:
            raise ValueError(f"num_classes must be >= 0, got {self.num_classes}")


class Preprocessing(Struct, frozen=True):
    """From a photo to the tensor the model was trained on.

    The shorter side is resized to `resize` pixels (antialiased), the centre `crop` x `crop`
    is taken, values 0..1 are normalized by `mean` and `std` (RGB order).
    """

    resize: int
    crop: int
    interpolation: Literal["bicubic", "bilinear"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not SMALLEST_SIDE <= self.crop <= self.resize:
            raise ValueError(
                f"expected {SMALLEST_SIDE} <= crop <= resize, "
                f"got crop {self.crop}, resize {self.resize}"
            )
        if not all(map(math.isfinite, (*self.mean, *self.std))) or min(self.std) <= 0:
            raise ValueError(
                f"mean and std must be finite and std positive, got {list(self.mean)} and "
                f"{list(self.std)}"
            )


class ParityBounds(Struct, frozen=True):
    """Largest relative L2 error of float32 logits against the float64 reference."""

    relative_error: float
    relative_error_fresh: float

    def __post_init__(self) -> None:
        for value in (self.relative_error, self.relative_error_fresh):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"a bound must be finite and positive, got {value}")


Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
Rest = Literal["fp32", "fp16", "bf16"]
"""What an 8-bit graph computes in where it is not quantized."""


class GateBounds(Struct, frozen=True):
    """What a reduced-precision engine must keep, against the float64 reference.

    `agreement`: share of images with the same top-1, at least; `kl`: mean divergence in nats, at
    most; `relative_error`: L2 of a vector, at most; `map_error`: of a map, where no mean over the
    cells evens errors out; `top1_drop`: of labelled top-1, at most; `neighbours`: share of images
    whose nearest other one stays, see `metrics.neighbours_kept`. With fresh weights classes are a
    coin's toss: errors alone count, of vectors by `relative_error_fresh`.
    """

    agreement: float
    kl: float
    relative_error: float
    relative_error_fresh: float
    top1_drop: float = 0.01
    neighbours: float = 0.95
    map_error: float = 0.1

    def __post_init__(self) -> None:
        if not 0 < self.agreement <= 1 or not 0 < self.neighbours <= 1:
            raise ValueError(
                f"agreement and neighbours must be within 0 and 1, got {self.agreement} and "
                f"{self.neighbours}"
            )
        limits = (self.kl, self.relative_error, self.relative_error_fresh, self.top1_drop)
        for value in (*limits, self.map_error):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"a bound must be finite and positive, got {value}")


class Gate(Struct, frozen=True):
    """Bounds by precision. Measured on rest_nano and rest_lite (docs/quantization.md), with room
    for the 128 images of a gate: one disagreement is 0.8 %."""

    fp16: GateBounds = GateBounds(
        agreement=0.99, kl=1e-4, relative_error=4e-3, relative_error_fresh=2e-2,
        neighbours=0.99, map_error=8e-3,
    )  # fmt: skip
    bf16: GateBounds = GateBounds(
        agreement=0.98, kl=2e-3, relative_error=3e-2, relative_error_fresh=1e-1,
        neighbours=0.98, map_error=6e-2,
    )  # fmt: skip
    int8: GateBounds = GateBounds(
        agreement=0.98, kl=2e-3, relative_error=3e-2, relative_error_fresh=1e-1,
        neighbours=0.98, map_error=6e-2,
    )  # fmt: skip
    fp8: GateBounds = GateBounds(
        agreement=0.97, kl=1e-2, relative_error=8e-2, relative_error_fresh=2e-1,
        neighbours=0.97, map_error=16e-2,
    )  # fmt: skip

    def of(self, precision: Precision) -> GateBounds:
        """Bounds of a reduced precision."""
        found: GateBounds = getattr(self, precision)
        return found


class GateCheck(Struct, frozen=True):
    """One line of the gate: what was measured, what the bound is."""

    name: str
    value: float
    bound: float
    passed: bool
    detail: str = ""


class GateResult(Struct, frozen=True):
    """Outcome of the accuracy gate.

    `labelled`: images with a known class, on which `top1_reference` and `top1_engine` were
    counted; their 95 % Wilson intervals beside them.
    """

    reference: str
    images: int
    source: str
    checks: tuple[GateCheck, ...]
    labelled: int = 0
    top1_reference: float = 0.0
    top1_engine: float = 0.0
    top1_reference_interval: tuple[float, float] = (0.0, 0.0)
    top1_engine_interval: tuple[float, float] = (0.0, 0.0)

    @property
    def passed(self) -> bool:
        return len(self.checks) > 0 and all(check.passed for check in self.checks)


HostBackend = Literal["onnxruntime", "openvino"]
"""Backends that run a .onnx file; an .engine belongs to TensorRT."""

Dims = tuple[int, int, int, int]
"""A shape (batch, 3, height, width)."""


class Profile(Struct, frozen=True):
    """An optimization profile: input shapes from `minimum` to `maximum`, tuned for `optimum`."""

    minimum: Dims
    optimum: Dims
    maximum: Dims

    def __post_init__(self) -> None:
        for low, middle, high in zip(self.minimum, self.optimum, self.maximum, strict=True):
            if not 1 <= low <= middle <= high:
                raise ValueError(
                    f"a profile must have min <= opt <= max on every axis, got {self.minimum}, "
                    f"{self.optimum}, {self.maximum}"
                )
        if self.minimum[1] != 3 or self.maximum[1] != 3:
            raise ValueError(f"images have 3 channels, got {self.minimum} to {self.maximum}")
        if min(self.minimum[2:]) < SMALLEST_SIDE:
            raise ValueError(
                f"height and width must be at least {SMALLEST_SIDE}, got {self.minimum}"
            )

    def holds(self, shape: Dims) -> bool:
        """Whether an image batch of that shape fits."""
        return all(
            low <= value <= high
            for low, value, high in zip(self.minimum, shape, self.maximum, strict=True)
        )


class EngineFit(Struct, frozen=True):
    """What an engine file runs on, and how it was built.

    `flavour`: tensorrt or tensorrt-rtx; `version`: of it, exact; `sms`: compute capabilities
    ("86", "89"); `driver`: newest CUDA of the driver at the build, empty without a GPU; `options`:
    as given to the builder; `key`: hash of everything that decides what comes out; `scratch_bytes`:
    device memory of one execution context at the largest profile, as far as the builder says.
    """

    flavour: Literal["tensorrt", "tensorrt-rtx"]
    version: str
    sms: tuple[str, ...]
    driver: str
    profiles: tuple[Profile, ...]
    options: dict[str, str]
    key: str
    graph_sha256: str
    build_seconds: float
    layers: int
    scratch_bytes: int
    log: str = ""


class ProviderFit(Struct, frozen=True):
    """What an engine for one of ONNX Runtime's providers was built with: onnxruntime's version,
    shapes of one that compiles, cache folder ("": beside the file), nodes each provider ran."""

    version: str
    nodes: dict[str, int]
    profiles: tuple[Profile, ...] = ()
    cache: str = ""


class Build(Struct, frozen=True):
    """How an engine came about: precision asked for and obtained, and the proof.

    `rest`: of an 8-bit graph, what the unquantized part computes in. `obtained`: per role, what the
    backend's kernels compute in -> how many. `float_places`: what the recipe quantizes and this
    backend has no integer kernels for. `gate` is None when it was switched off (--no-gate);
    `gated`: what it looked at. Hashes: of the float model, of the calibration table. `fit` and
    `proof`: of TensorRT engines. `provider`: ONNX Runtime's, empty for its CPU; `through`: of one.
    `sums`: of an INT8 graph, one a quantized (block, role); files of older versions have none.
    `site`: where the gate ran, without one its self-test; `selftest`: see `runtime.arrival`.
    """

    precision: Precision
    backend: str
    io_type: str
    obtained: dict[str, dict[str, int]]
    source_sha256: str
    recipe: str = ""
    table_sha256: str = ""
    rest: str = ""
    float_places: tuple[str, ...] = ()
    gate: GateResult | None = None
    gated: str = ""
    fit: EngineFit | None = None
    proof: tuple[Proven, ...] = ()
    provider: str = ""
    through: ProviderFit | None = None
    sums: tuple[Sums, ...] = ()
    site: Site | None = None
    selftest: SelfTest | None = None

    @property
    def exact_everywhere(self) -> bool:
        """Whether no CPU can saturate on it: it has no 8-bit sums, or all of them are proven."""
        if self.precision != "int8":
            return True
        return len(self.sums) > 0 and all(found.exact for found in self.sums)


class Published(Struct, frozen=True):
    """What the authors published, with the place."""

    top1: float
    parameters_m: float
    gflops: float
    images_per_second_v100: float
    size: int
    source: str


class ModelCard(Struct, frozen=True):
    """One file of models/: everything that tells one variant from another."""

    schema: Literal[1]
    name: str
    variant: str
    architecture: Architecture
    head: Head
    preprocessing: Preprocessing
    parity: ParityBounds
    gate: Gate = Gate()
    published: Published | None = None

    def __post_init__(self) -> None:
        for value in (self.name, self.variant):  # they become file names
            if not re.fullmatch(r"[a-z0-9_-][a-z0-9_.-]*", value):
                raise ValueError(
                    f"name and variant must be lower-case letters, digits, '_', '-' or '.', "
                    f"got {value!r}"
                )


class Weights(Struct, frozen=True):
    """Where the weights of an artifact come from.

    `sha256` is the hash of the checkpoint file (empty for fresh weights); `state_sha256`
    the hash of names, shapes and float32 values, whatever file they travelled in.
    """

    kind: WeightsKind
    state_sha256: str
    sha256: str = ""
    path: str = ""
    key: str = ""
    seed: int = 0


class ModelMetadata(Struct, frozen=True):
    """What a model file says of itself; stored inside the ONNX and in its sidecar.

    `output_name`: the first of `outputs`, all that there is where `outputs` is empty, in files of
    the first exports.
    """

    schema: Literal[1]
    variant: str
    card: ModelCard
    num_classes: int
    labels: tuple[str, ...]
    input_name: str
    output_name: str
    instance_norm: InstanceNormForm
    opset: int
    weights: Weights
    tools: dict[str, str]
    outputs: tuple[Output, ...] = ()
    input_kind: InputKind = "float"

    @property
    def gives(self) -> tuple[Output, ...]:
        """The outputs, in the graph's order."""
        if self.outputs:
            return self.outputs
        if self.num_classes:
            return (Output(name=self.output_name, kind="logits", channels=self.num_classes),)
        width = self.card.architecture.dims[3]
        return (Output(name=self.output_name, kind="embedding", channels=width),)


class TensorSpec(Struct, frozen=True):
    """A graph input or output. A dynamic axis is its name, e.g. ("batch", 3, "height", "width")."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@runtime_checkable
class Runner(Protocol):
    """One loaded engine of one backend. `infer` may be called from several threads at once."""

    @property
    def backend(self) -> str:
        """Name of the backend and of the device part that really runs, e.g. "onnxruntime/CPU"."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Run once. Arrays in, arrays out, by name; shapes have been checked by the caller."""

    def close(self) -> None:
        """Give back memory and devices, after the calls that run; none may follow."""
