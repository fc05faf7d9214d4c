"""Checked ONNX graph -> TensorRT engine: shapes, build, proof, and reuse of what is there."""

from __future__ import annotations

import functools
import hashlib
import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from rest_deploy import __version__
from rest_deploy.artifact import Sidecar, sha256_file, write_text
from rest_deploy.contracts import (
    SMALLEST_SIDE,
    Dims,
    EngineFit,
    Precision,
    Preprocessing,
    Profile,
    Proven,
    Rest,
)
from rest_deploy.engine import planner, proof, tensorrt, timing_cache
from rest_deploy.engine.histogram import read_histogram
from rest_deploy.engine.memory import scratch_estimate, without_weights
from rest_deploy.engine.planner import Scratch, Serving, plan_profiles
from rest_deploy.engine.profiles import LARGEST_BATCH, profiles_from
from rest_deploy.engine.tensorrt import Flavour, Options
from rest_deploy.errors import (
    ArtifactError,
    BuildError,
    InputError,
    MissingDependencyError,
)
from rest_deploy.runtime import loading
from rest_deploy.verbs.make import Kinds, Made, Request
from rest_deploy.verbs.progress import Counter

if TYPE_CHECKING:
    import onnx_ir as ir

    from rest_deploy.graph.roles import Place


@dataclass(frozen=True)
class Wishes:
    """Of the user for a TensorRT engine, in trtexec's words; shapes as text."""

    min_shapes: tuple[str, ...] = ()
    opt_shapes: tuple[str, ...] = ()
    max_shapes: tuple[str, ...] = ()
    expect_sizes: tuple[tuple[int, int], ...] = ()
    expect_batches: str = ""
    expect_histogram: Path | None = None
    expect_coverage: float | None = None
    memory: float | None = None
    target_sm: tuple[str, ...] = ()
    workspace_limit: float | None = None
    builder_optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatibility: str = ""
    refit: bool = False
    strip_weights: bool = False
    timing_cache: Path | None = None
    save_engine: Path | None = None

    def words(self) -> list[str]:
        """As on the command line."""
        words: list[str] = []
        for name in self.__dataclass_fields__:
            option, value = f"--{name.replace('_', '-')}", getattr(self, name)
            if name == "target_sm" and value:
                words += [option, ",".join(value)]
            elif name == "expect_sizes" and value:
                words += [option, ",".join(f"{height}x{width}" for height, width in value)]
            elif isinstance(value, tuple):
                words += [word for shape in value for word in (option, shape)]
            elif value is True:
                words.append(option)
            elif value is not None and value is not False and value != "":
                words += [option, f"{value:.12g}" if isinstance(value, float) else str(value)]
        return words


NO_WISHES = Wishes()


@dataclass(frozen=True)
class Planned:
    """Everything that is known before the build. `serving`: of a histogram."""

    flavour: Flavour
    version: str
    options: Options
    driver: str
    serving: Serving | None = None


@dataclass(frozen=True)
class Proved:
    """An engine's bytes, where it runs, and the proof of its precision."""

    engine: bytes
    fit: EngineFit
    rows: tuple[Proven, ...]
    kinds: Kinds


def plan(
    backend: str,
    wishes: Wishes,
    precision: Precision,
    rest: Rest,
    card: Preprocessing,
    scratch: Scratch,
) -> Planned:
    """Check the wishes against the builder. Raises `InputError`, `MissingDependencyError`.

    scratch: bytes at a shape, for the planner; see `estimator`.
    """
    if backend not in tensorrt.MODULES:
        raise InputError(
            f"{wishes.words()[0]} goes with TensorRT, not with {backend}",
            hint="--backend tensorrt or --backend tensorrt-rtx",
        )
    flavour = backend
    known = tensorrt.known_sms(flavour)
    sms = wishes.target_sm or (_default_sms(known) if known else ())
    if sms and not known:
        raise InputError(f"--target-sm goes with tensorrt-rtx; {flavour} builds for the GPU here")
    if not wishes.target_sm:  # of the default ones, those that have the precision
        sms = tensorrt.able(sms, precision, rest)
    tensorrt.check_targets(sms, precision, rest, known)
    if flavour == "tensorrt-rtx":
        for name, why in tensorrt.NEEDS_GPU.items():
            if getattr(wishes, name):
                raise InputError(f"--{name.replace('_', '-')} is not for TensorRT-RTX here: {why}")
    if (wishes.refit or wishes.strip_weights) and precision in ("int8", "fp8"):
        raise InputError(f"--refit does not go with --{precision}: {tensorrt.NO_REFIT}")
    if flavour == "tensorrt":
        sms = (_compute_capability(),)
        if {precision, rest} & {"bf16", "fp8"}:  # float32 has no least GPU there
            tensorrt.check_targets(sms, precision, rest, sms)
    if wishes.timing_cache is not None:
        timing_cache.check_place(wishes.timing_cache)
    profiles, serving = _profiles(wishes, card, scratch)
    options = Options(
        profiles=profiles,
        sms=sms,
        workspace=wishes.workspace_limit,
        optimization_level=wishes.builder_optimization_level,
        version_compatible=wishes.version_compatible,
        hardware_compatibility=wishes.hardware_compatibility,
        refit=wishes.refit,
        strip_weights=wishes.strip_weights,
        no_tf32=precision == "fp32",
        timing_cache=wishes.timing_cache,
    )
    return Planned(flavour, tensorrt.version(flavour), options, _driver(flavour), serving)


def _profiles(
    wishes: Wishes, card: Preprocessing, scratch: Scratch
) -> tuple[tuple[Profile, ...], Serving | None]:
    """As given, or planned for what is expected; who serves the requests of a histogram."""
    shapes = (wishes.min_shapes, wishes.opt_shapes, wishes.max_shapes)
    histogram = wishes.expect_histogram
    if wishes.expect_coverage is not None and histogram is None:
        raise InputError("--expect-coverage without --expect-histogram: a share of what?")
    expected = wishes.expect_sizes or wishes.expect_batches or wishes.memory is not None
    if not (expected or histogram):
        return profiles_from(*shapes, card), None
    if any(shapes):
        word = "--expect-histogram" if histogram else "--expect-sizes"
        raise InputError(f"{word} plans the profiles, --max-shapes gives them: one of the two")
    memory = None if wishes.memory is None else int(wishes.memory * (1 << 30))
    if histogram is not None:
        return _from_histogram(histogram, wishes, scratch, memory)
    for height, width in wishes.expect_sizes:
        if min(height, width) < SMALLEST_SIDE:
            raise InputError(f"--expect-sizes {height}x{width}: at least {SMALLEST_SIDE} pixels")
    sizes = wishes.expect_sizes or ((card.crop, card.crop),)
    return plan_profiles(sizes, _batches(wishes.expect_batches), scratch, memory), None


def _from_histogram(
    path: Path, wishes: Wishes, scratch: Scratch, memory: int | None
) -> tuple[tuple[Profile, ...], Serving]:
    if wishes.expect_sizes:
        raise InputError("--expect-histogram has the sizes, --expect-sizes too: one of the two")
    coverage = 100.0 if wishes.expect_coverage is None else wishes.expect_coverage
    if not 0 < coverage <= 100:
        raise InputError(f"--expect-coverage {coverage:g}: expected percent, above 0 to 100")
    batches = _batches(wishes.expect_batches) if wishes.expect_batches else None
    expected = read_histogram(path, batches)
    # In fractions: 99.9 % of 1000 are 999, not 999.0000000000001.
    spare = int(sum(one.count for one in expected) * (1 - Fraction(str(coverage)) / 100))
    made = planner.plan(expected, scratch, memory, spare)
    return made.profiles, planner.serving(made, expected)


def _batches(text: str) -> tuple[int, int]:
    """ "1-32" or "8". Raises `InputError`."""
    match = re.fullmatch(r"([1-9]\d{0,4})(?:-([1-9]\d{0,4}))?", text or f"1-{LARGEST_BATCH}")
    if match is None or int(match[2] or match[1]) < int(match[1]):
        raise InputError(f"{text!r} is not a range of batch sizes like 1-32")
    return int(match[1]), int(match[2] or match[1])


def estimator(source: Path, precision: Precision, rest: Rest) -> Scratch:
    """Scratch memory at a shape, from the float model in the types the engine will have.

    8-bit tensors count as what they are made from: they are short-lived.
    """

    @functools.cache
    def graph() -> bytes:
        import onnx_ir as ir

        from rest_deploy.graph.precision import to_sixteen_bit
        from rest_deploy.quant.level import level

        model = ir.load(source)
        level(model)
        kind = rest if precision in ("int8", "fp8") else precision
        if kind == "fp16" or kind == "bf16":
            to_sixteen_bit(model, kind)
        return without_weights(ir.to_proto(model).SerializeToString())

    @functools.cache
    def scratch(shape: Dims) -> int:
        return scratch_estimate(graph(), shape)

    return scratch


def left_out(planned: Planned | None) -> list[str]:
    """A warning where the profiles do not hold everything that was expected."""
    if planned is None or planned.serving is None or not planned.serving.left_out:
        return []
    return [f"{planner.describe_left_out(planned.serving)}; the engine refuses them"]


def cache_key(planned: Planned, graph_sha256: str, made: Made, request: Request) -> str:
    """Hash of everything that decides the engine and its proof: the graph, the recipe's table, the
    gate that was asked for, builder and version, targets, driver, profiles, options."""
    decides = (
        __version__,
        graph_sha256,
        made.calibration.table_sha256 if made.calibration else "",
        request.precision,
        (request.gate, request.gate_images, str(request.gate_data), str(request.checkpoint)),
        planned.flavour,
        planned.version,
        planned.driver,
        planned.options.sms,
        [msgspec.to_builtins(profile) for profile in planned.options.profiles],
        planned.options.words(),
        planned.options.no_tf32,
    )
    return hashlib.sha256(msgspec.json.encode(decides, order="deterministic")).hexdigest()


def cached(target: Path, key: str) -> Sidecar | None:
    """The sidecar of an engine that was built from the same things and is whole, else None."""
    if not target.is_file():
        return None
    try:
        sidecar = loading.read_sealed(target)
    except ArtifactError:
        return None  # damaged or edited: built anew
    if sidecar is None or sidecar.build is None or sidecar.build.fit is None:
        return None
    fits = sidecar.build.fit.key == key and sidecar.sha256 == sha256_file(target)
    return sidecar if fits else None


def build(
    planned: Planned, graph: Path, made: Made, request: Request, target: Path, key: str,
    counter: Counter,
) -> Proved:  # fmt: skip
    """Build and prove; the builder's messages are kept beside the target, also of a failure.

    Raises `BuildError` (NVIDIA's builder), `VerificationError` (another precision than asked for).
    """
    log = target.with_name(f"{target.name}.log")

    def step(phase: str, done: int, total: int) -> None:
        counter(f"NVIDIA's builder: {phase[:40]}", done, total, "steps")

    try:
        built = tensorrt.build(planned.flavour, graph.read_bytes(), planned.options, step)
    except BuildError as error:
        write_text(log, error.log)
        raise BuildError(f"{error.message} (all of it in {log})", hint=error.hint) from error
    write_text(log, built.log)
    rows = proof.prove(built.layers, _asked(made, request.precision))
    proof.enforce(rows, target.name)
    if planned.options.timing_cache is not None:
        timing_cache.store(planned.options.timing_cache, built.timings)
    fit = EngineFit(
        flavour=planned.flavour,
        version=planned.version,
        sms=planned.options.sms,
        driver=planned.driver,
        profiles=planned.options.profiles,
        options=planned.options.words(),
        key=key,
        graph_sha256=sha256_file(graph),
        build_seconds=round(built.seconds, 3),
        layers=len(built.layers),
        scratch_bytes=built.scratch_bytes,
        log=log.name,
    )
    return Proved(built.engine, fit, rows, _kinds(rows))


def _asked(made: Made, precision: Precision) -> dict[Place, str]:
    from rest_deploy.graph.roles import place

    float_model = made.original or made.model
    found = (place(node.name or "") for node in float_model.graph if _multiplies(node))
    places = list(dict.fromkeys(here for here in found if here is not None))
    recipe = made.table.recipe if made.table else None
    chosen = [here for here in places if recipe is not None and recipe.wants(here)]
    return proof.requested(places, precision, chosen, made.rest)


def _multiplies(node: ir.Node) -> bool:
    return node.op_type in {"MatMul", "Gemm", "Conv"}


def _kinds(rows: tuple[Proven, ...]) -> Kinds:
    """Role -> datatype -> blocks."""
    kinds: Kinds = {}
    for row in rows:
        counts = kinds.setdefault(row.role, {})
        for kind in row.obtained:
            counts[kind] = counts.get(kind, 0) + 1
    return kinds


def _default_sms(known: tuple[str, ...]) -> tuple[str, ...]:
    """The portable ones, or the GPU here where they do not cover it: Turing among them, for one,
    would cost the others two to three times their scratch memory."""
    try:
        here = _compute_capability()
    except MissingDependencyError:
        return tensorrt.PORTABLE_SMS
    covered = here in tensorrt.PORTABLE_SMS or here not in known
    return tensorrt.PORTABLE_SMS if covered else (here,)


def _compute_capability() -> str:
    """Of the GPU that TensorRT builds for."""
    from rest_deploy.cuda_driver import Driver

    return "".join(map(str, Driver().gpu(0).compute_capability))


def _driver(flavour: Flavour) -> str:
    """Newest CUDA of the driver here, "" for engines that are built without a GPU."""
    if flavour == "tensorrt-rtx":
        return ""
    from rest_deploy.cuda_driver import Driver

    return ".".join(map(str, Driver().cuda_version()))
