"""What one run of `rest-deploy bench` found: immutable values, stored as JSON.

Times are in milliseconds, sizes in bytes, throughput in images per second. Every value says what it
was measured on and with which command; nothing here measures or judges.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from rest_deploy.contracts import Struct

Mode = Literal["isolated", "saturated", "end-to-end"]
"""isolated: one request after another (latency); saturated: several in flight (throughput);
end-to-end: isolated, from the pixels of a photo, preprocessing included."""

Verdict = Literal["faster", "slower", "no difference", "ambiguous"]


class Environment(Struct, frozen=True):
    """The machine and its state. Records of unlike ones are not compared: `likeness` of them must
    be equal, the rest is told.

    gpus: "NVIDIA H100, driver 580.1". packages: of those that matter, their versions. governor:
    of the CPU's clock; load: of the last minute, before the run. variables: of the process's
    environment, those that tell the runtimes' threads what to do.
    """

    cpu: str
    cores: int
    features: tuple[str, ...]
    memory_bytes: int
    system: str
    python: str
    gpus: tuple[str, ...]
    packages: dict[str, str]
    governor: str = ""
    load: float = 0.0
    variables: dict[str, str] = msgspec.field(default_factory=dict)

    def likeness(self) -> tuple[str, ...]:
        """What must be equal for two records to be compared."""
        settings = (f"{name}={value}" for name, value in sorted(self.variables.items()))
        hardware = (self.cpu, str(self.cores), *self.features, str(self.memory_bytes), *self.gpus)
        return (*hardware, *settings)


class Spread(Struct, frozen=True):
    """Of `n` durations in ms. `cov`: standard deviation / mean. Percentiles mean little where n is
    small, so n is always printed beside them."""

    n: int
    min: float
    max: float
    mean: float
    median: float
    p90: float
    p95: float
    p99: float
    cov: float


class Measurement(Struct, frozen=True):
    """One engine at one input shape, in one mode.

    threads: per operator, 0 for all. in_flight: requests at once. host: wall clock of the steady
    clock, per request. device: "h2d", "compute", "d2h" on the GPU's events and
    "enqueue", the host's time to hand it over; empty on a CPU.
    samples: of `host`, in order of time. stopped_by: the rule that ended it, in words; noise: half
    width of the 95 % interval of the median, relative to it. outliers: samples beyond the upper
    fence, announced and kept. warnings: in plain words.
    """

    batch: int
    height: int
    width: int
    mode: Mode
    threads: int
    in_flight: int
    host: Spread
    samples: tuple[float, ...]
    images_per_second: float
    noise: float
    stopped_by: str
    outliers: int = 0
    device: dict[str, Spread] = msgspec.field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    @property
    def shape(self) -> str:
        return f"{self.batch}x3x{self.height}x{self.width}"


class Accuracy(Struct, frozen=True):
    """Against PyTorch in float64, on `images` real images; see `verify.metrics`.

    relative_error: of the output that departs most. agreement and kl: of its classes, None of an
    engine that gives none.
    """

    images: int
    relative_error: float
    agreement: float | None
    kl: float | None

    def __post_init__(self) -> None:
        if (self.agreement is None) is not (self.kl is None):  # a NaN is stored as null
            raise ValueError(
                f"agreement and kl come together, got {self.agreement} and kl {self.kl or 'null'}"
            )


class BlockTime(Struct, frozen=True):
    """Of one run: a ResT block ("stem", "patch2", "stage1.0", "head") and what kind of work.

    kind: "gemm", "conv", "attention" (products, softmax, InstanceNorm), "norm", "other".
    flops and bytes: counted from the graph at the measured shape, 0 where they are not known;
    floor_ms: the least time this machine needs for them.
    """

    block: str
    kind: str
    ms: float
    flops: float = 0.0
    bytes: float = 0.0
    floor_ms: float = 0.0


class Ceilings(Struct, frozen=True):
    """What this machine reaches, measured: GFLOP/s of a large GEMM by precision, GB/s of a copy
    (read and written) larger than the last-level cache; copies: (bytes moved, GB/s) of smaller
    ones, which stay in a cache. threads: 0 for all. absent: precisions that no runtime has here."""

    gemm_gflops: dict[str, float]
    copy_gb_per_s: float
    threads: int
    copies: tuple[tuple[int, float], ...] = ()
    absent: tuple[str, ...] = ()


class Start(Struct, frozen=True):
    """A fresh process: until the package is imported, the engine loaded, the first answer there."""

    import_ms: float
    load_ms: float
    first_ms: float
    total_ms: float
    peak_bytes: int


class EngineResult(Struct, frozen=True):
    """One engine, or PyTorch. failed: why it has no numbers, "" when it has; a failed engine is
    never fast. blocks: of one run at `blocks_shape`, "1x3x224x224"."""

    label: str
    backend: str
    precision: str
    file: str = ""
    sha256: str = ""
    size_bytes: int = 0
    failed: str = ""
    accuracy: Accuracy | None = None
    measurements: tuple[Measurement, ...] = ()
    blocks: tuple[BlockTime, ...] = ()
    blocks_shape: str = ""
    start: Start | None = None
    peak_bytes: int = 0


class Ratio(Struct, frozen=True):
    """Engine `other` against `base` at one shape and mode, from rounds in turn: median over the
    rounds of base / other, so that 2 is twice as fast; 95 % interval of it. Within a round, medians
    of the blocks; saturated, wall time per request. rounds: so many."""

    base: str
    other: str
    shape: str
    mode: Mode
    ratio: float
    low: float
    high: float
    verdict: Verdict
    threads: int = 0
    in_flight: int = 1
    rounds: int = 0


class Growth(Struct, frozen=True):
    """From the smallest shape an engine was measured at to a larger one, both "1x3x224x224" and
    isolated: ratio of the median times, of the FLOPs and of the bytes counted from its graph."""

    engine: str
    small: str
    large: str
    measured: float
    flops: float
    bytes: float
    threads: int = 0


class PlaceError(Struct, frozen=True):
    """One (block, role) quantized alone: relative error of the logits; share: of the model's weight
    multiplications."""

    block: str
    role: str
    relative_error: float
    share: float


class Sensitivity(Struct, frozen=True):
    """What `rest-deploy sensitivity` found for this model; whole: all of the recipe quantized."""

    command: str
    recipe: str
    images: int
    whole: float
    places: tuple[PlaceError, ...]


class NormError(Struct, frozen=True):
    """One form of the InstanceNorm at one size, "224x224": relative error of the float32 logits.

    form: "folded", "native", "decomposed" or "stock", or "PyTorch eager", which computes it by its
    definition. weights: "fresh" or "trained"."""

    weights: str
    form: str
    size: str
    relative_error: float


class NormErrors(Struct, frozen=True):
    """How well the float32 model holds float64's answers at several sizes, beside other forms."""

    command: str
    rows: tuple[NormError, ...]


class Record(Struct, frozen=True):
    """One run. created: UTC, ISO 8601. model: name of the exported model, with its sha256.
    advice: which engine to deploy and why, a sentence or two. sensitivity and instance_norm: of
    earlier runs of their own commands, where there were any."""

    schema: Literal[1]
    created: str
    command: str
    version: str
    model: str
    model_sha256: str
    environment: Environment
    engines: tuple[EngineResult, ...]
    ratios: tuple[Ratio, ...] = ()
    ceilings: Ceilings | None = None
    advice: str = ""
    notes: tuple[str, ...] = ()
    growth: tuple[Growth, ...] = ()
    sensitivity: Sensitivity | None = None
    instance_norm: NormErrors | None = None
