"""TensorRT and TensorRT-RTX as builders: one code path, the flavour is a name.

Both are strongly typed: the precision is in the graph, no flag changes it, and a float32 graph
gives a float32 engine without a word. So every build reads its own log and hands the plan to
`proof`. TensorRT-RTX builds without a GPU, for the compute capabilities it is told.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rest_deploy.contracts import Precision, Profile, Rest
from rest_deploy.engine import timing_cache
from rest_deploy.engine.tensorrt_plan import PlannedLayer, read_plan
from rest_deploy.errors import BuildError, InputError, MissingDependencyError, installed
from rest_deploy.layout import layout_of_type

Flavour = Literal["tensorrt", "tensorrt-rtx"]

MODULES: dict[Flavour, tuple[str, ...]] = {
    "tensorrt": ("tensorrt",),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
"""Import names, first one first: NVIDIA's metapackage, then the bindings' wheel."""

PORTABLE_SMS = ("86", "89", "120")
"""What TensorRT-RTX builds for by default: Ampere, Ada and Blackwell of the RTX kind."""

NEEDS_GPU = {
    "refit": "it runs the compiler's CUDA code while it builds",
    "strip_weights": "it runs the compiler's CUDA code while it builds",
    "version_compatible": "it needs TensorRT's lean runtime, which RTX does not have",
    "hardware_compatibility": "TensorRT-RTX has no such levels: name the GPUs with --target-sm",
    "timing_cache": "TensorRT-RTX times no kernels while it builds and ignores such a cache",
}
"""Options that TensorRT-RTX does not take, or not on a machine without a GPU."""

NO_REFIT = (
    "8-bit scales belong to the weights they were calibrated with, and TensorRT builds them into "
    "its kernels"
)
"""Why an INT8 or FP8 engine is not refitted."""

LEAST_SM: dict[Precision, tuple[int, str]] = {
    "fp32": (80, "TensorRT-RTX has no float32 GEMM for Turing; FP16 runs there"),
    "bf16": (80, "Turing has no BF16; FP16 runs there"),
    "fp8": (89, "Ampere has no FP8; INT8 runs there"),
}
"""Compute capability a type begins at, and why."""

Step = Callable[[str, int, int], None]
"""Called with a phase of the build and its steps done and to do; raising cancels the build."""


@dataclass(frozen=True)
class Options:
    """trtexec's words. workspace: GiB; `sms`: compute capabilities, TensorRT-RTX only. no_tf32:
    TensorRT computes float32 products in TF32 unless told otherwise; it follows from the precision
    and is no part of `words`.

    `timing_cache` is no part of `words`: timings choose between kernels of the precision that is
    proven anyway, and without the file they are taken anew and come out otherwise each time. An
    engine with other timings is as good an answer to the same wishes.
    """

    profiles: tuple[Profile, ...]
    sms: tuple[str, ...] = ()
    workspace: float | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = ""
    refit: bool = False
    strip_weights: bool = False
    no_tf32: bool = False
    timing_cache: Path | None = None

    def words(self) -> dict[str, str]:
        """What the user chose besides the builder's defaults, for the sidecar and the cache key."""
        chosen: dict[str, Any] = {
            "workspace": self.workspace,
            "builder-optimization-level": self.optimization_level,
            "version-compatible": self.version_compatible,
            "hardware-compatibility": self.hardware_compatibility,
            "refit": self.refit,
            "strip-weights": self.strip_weights,
        }
        return {
            name: str(value)
            for name, value in chosen.items()
            if value is not None and value is not False and value != ""
        }


@dataclass(frozen=True)
class Built:
    """A serialized engine and what its build log says. `timings`: for the timing cache."""

    engine: bytes
    layers: tuple[PlannedLayer, ...]
    scratch_bytes: int
    seconds: float
    log: str = field(repr=False)
    timings: bytes = field(repr=False, default=b"")


def why_not(flavour: Flavour) -> str | None:
    """Why that flavour cannot build here, None if it can, without importing it."""
    if any(installed(name) for name in MODULES[flavour]):
        return None
    if flavour == "tensorrt":
        return "the package is not installed: pip install 'rest-deploy[tensorrt]'"
    return "the package is not installed: pip install 'rest-deploy[tensorrt-rtx]'"


def load(flavour: Flavour) -> Any:
    """The Python module. Raises `MissingDependencyError`."""
    for name in MODULES[flavour]:
        if installed(name):
            try:
                return importlib.import_module(name)
            except ImportError as error:
                raise MissingDependencyError(
                    f"{name} is installed and cannot be imported: {error}",
                    hint="rest-deploy doctor shows what is missing",
                ) from error
    raise MissingDependencyError(f"{flavour}: {why_not(flavour)}")


def version(flavour: Flavour) -> str:
    """Exact version of the builder: engines fit no other."""
    return str(load(flavour).__version__)


def able(sms: Sequence[str], precision: Precision, rest: Rest) -> tuple[str, ...]:
    """Those GPUs that have the precision and what the rest of an 8-bit graph computes in."""
    return tuple(sm for sm in sms if int(sm) >= _least(precision, rest)[0])


def check_targets(
    sms: Sequence[str], precision: Precision, rest: Rest, known: Sequence[str]
) -> None:
    """Raise `InputError` for a GPU the builder does not know or that lacks the precision."""
    for sm in sms:
        if sm not in known:
            close = " It does not run on Hopper: use TensorRT there." if sm == "90" else ""
            raise InputError(
                f"TensorRT-RTX builds for compute capabilities {', '.join(known)}, not {sm}.{close}"
            )
    least, kind, why = _least(precision, rest)
    capable = able(sms, precision, rest)
    lacking = [sm for sm in sms if sm not in capable]
    if lacking:
        raise InputError(
            f"{kind} needs compute capability {least} or newer, asked for "
            f"{', '.join(lacking)}: {why}",
            hint=f"--target-sm {','.join(capable)}" if capable else "another precision",
        )


def _least(precision: Precision, rest: Rest) -> tuple[int, str, str]:
    """(compute capability, the type that asks for it, why)."""
    kinds = (precision, rest) if precision in ("int8", "fp8") else (precision,)
    found = [(*LEAST_SM[kind], kind) for kind in kinds if kind in LEAST_SM]
    least, why, kind = max(found, default=(0, "", precision))
    return least, kind, why


def known_sms(flavour: Flavour) -> tuple[str, ...]:
    """Compute capabilities the builder can be told, () when it builds for the GPU at hand."""
    names = getattr(load(flavour), "ComputeCapability", None)
    if names is None:
        return ()
    found = (name.removeprefix("SM") for name in dir(names) if name.startswith("SM"))
    return tuple(sorted(found, key=int))


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection meanwhile. NVIDIA's library (1.7.1) calls `log` with a lock held that
    freeing a builder waits for: one of an earlier build, collected just then, never returns."""
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_uncollected()
def build(flavour: Flavour, graph: bytes, options: Options, step: Step) -> Built:
    """Parse and build. graph: a serialized ONNX model with an input "image".

    Raises `BuildError` with NVIDIA's message and what it means, `MissingDependencyError` when the
    module is not here, `ArtifactError` for a timing cache that cannot be used, and whatever `step`
    raises, after the builder has stopped.
    """
    trt = load(flavour)
    log = Log(trt)
    started = time.monotonic()
    builder = trt.Builder(log.logger)
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    parser = trt.OnnxParser(network, log.logger)
    if not parser.parse(graph):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        raise _translated([f"{e.node_name() or 'the graph'}: {e.desc()}" for e in errors], log)
    config = builder.create_builder_config()
    monitor = _monitor(trt, step)
    config.progress_monitor = monitor
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # for the proof
    _configure(trt, config, options)
    cache = options.timing_cache
    kept = timing_cache.attach(config, cache, log.lines) if cache else None
    layout = layout_of_type(str(network.get_input(0).dtype.name).lower())
    for profile in options.profiles:
        made = builder.create_optimization_profile()
        shapes = map(layout.shape, (profile.minimum, profile.optimum, profile.maximum))
        made.set_shape("image", *shapes)
        config.add_optimization_profile(made)
    serialized = builder.build_serialized_network(network, config)
    if monitor.cancelled is not None:
        raise monitor.cancelled
    if serialized is None:
        raise _translated(log.errors, log)
    return Built(
        engine=bytes(serialized),
        layers=tuple(read_plan(log.lines)),
        scratch_bytes=_largest(r"Total Activation Memory: (\d+) bytes", log.lines),
        seconds=time.monotonic() - started,
        log="\n".join(log.lines),
        timings=b"" if kept is None else timing_cache.contents(config),
    )


def _configure(trt: Any, config: Any, options: Options) -> None:
    if options.workspace is not None:
        limit = int(options.workspace * (1 << 30))
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, limit)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.sms and hasattr(trt, "ComputeCapability"):
        config.num_compute_capabilities = len(options.sms)
        for index, sm in enumerate(options.sms):
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), index)
    if options.hardware_compatibility:
        level = options.hardware_compatibility.upper()
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if options.no_tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    for wanted, name in (
        (options.version_compatible, "VERSION_COMPATIBLE"),
        (options.refit, "REFIT"),
        (options.strip_weights, "STRIP_PLAN"),
    ):
        if wanted:
            config.set_flag(getattr(trt.BuilderFlag, name))


class Log:
    """Collects TensorRT's messages: all of them for the proof, the errors for the user.

    keep: at least so many, the latest; None: all. Called from any thread.
    """

    def __init__(self, trt: Any, keep: int | None = None) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        outer = self

        class Logger(trt.ILogger):  # type: ignore[misc]  # an untyped base
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                outer.lines.append(message)
                if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                    outer.errors.append(message)
                for kept in (outer.lines, outer.errors):
                    if keep is not None and len(kept) > 2 * keep:
                        del kept[:-keep]

        self.logger = Logger()

    def last(self) -> str:
        """The latest errors in one line."""
        text = " ".join(" ".join(self.errors[-3:]).split())
        return text[:400] or "it does not say why"


def _monitor(trt: Any, step: Step) -> Any:
    """IProgressMonitor that hands steps on. What `step` raises stops the build and is kept: an
    exception must not pass through NVIDIA's code."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]  # an untyped base
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.totals: dict[str, int] = {}
            self.cancelled: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002  # their signature
            self.totals[phase] = steps

        def step_complete(self, phase: str, index: int) -> bool:
            if self.cancelled is None:
                try:
                    step(phase, index + 1, self.totals.get(phase, index + 1))
                except BaseException as error:  # noqa: BLE001  # raised again after the build
                    self.cancelled = error
            return self.cancelled is None

        def phase_finish(self, phase: str) -> None:
            self.totals.pop(phase, None)

    return Monitor()


KNOWN_FAILURES: tuple[tuple[str, str, str], ...] = (
    (r"out of memory|insufficient memory|within workspace limit|memory pool",
     "the builder needs more memory than it may use",
     "a larger --workspace-limit, or smaller --max-shapes"),
    (r"HW-specific datatypes: \w*fp8",
     "a target GPU has no FP8 (Ada, Hopper and Blackwell have)",
     "--int8, or --target-sm 89,120"),
    (r"Turing.*FP32 GEMM is not supported",
     "TensorRT-RTX has no float32 GEMM for Turing (compute capability 75)",
     "--fp16, or --target-sm 80 and newer"),
    (r"HW-specific datatypes: b16",
     "a target GPU has no BF16 (Ampere and newer have)",
     "--fp16, or --target-sm 80 or newer"),
    (r"Could not find any implementation for node",
     "no kernel computes this node at these shapes and types on that GPU",
     "another precision, or rest-deploy doctor for the versions"),
    (r"No importer registered|Plugin not found|UNSUPPORTED_NODE|unsupported operator",
     "the parser does not know an operator of the graph",
     "export with this version: rest-deploy export"),
    (r"cudaError|CUDA (driver|initialization)|no CUDA-capable device",
     "this build needs a GPU",
     "--backend tensorrt-rtx builds without one"),
    (r"ModelProto|parse.*(onnx|protobuf)|failed to parse",
     "the file is not a whole ONNX model",
     "export the model again: rest-deploy export"),
)  # fmt: skip
"""(in NVIDIA's message, what it means, what to do), most telling first."""


def _translated(messages: Iterable[str], log: Log) -> BuildError:
    text = " ".join(" ".join([*messages, *log.errors[-3:]]).split())
    whole = "\n".join(log.lines)
    for pattern, meaning, mend in KNOWN_FAILURES:
        if re.search(pattern, text, re.IGNORECASE):
            return BuildError(
                f"{meaning}; NVIDIA's builder says: {text[:300]}", hint=mend, log=whole
            )
    return BuildError(f"NVIDIA's builder failed: {text[:400] or 'without a message'}", log=whole)


def _largest(pattern: str, lines: Iterable[str]) -> int:
    found = (re.search(pattern, line) for line in lines)
    return max((int(match[1]) for match in found if match), default=0)
