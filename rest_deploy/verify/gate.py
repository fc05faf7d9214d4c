"""Is it still accurate? A reduced-precision engine against the reference, on real images.

Three kinds of checks. The outputs: relative error of each; of logits and probabilities agreement,
KL divergence and labelled top-1; of an embedding the nearest neighbours among the images. The
ranges: the largest value each Q/DQ pair meets against what its scale can hold. The weights: what is
stored, dequantized, against the float weights. A scale that is eight times too coarse in one
harmless layer hides in the outputs' error, but not in the other two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import GateBounds, GateCheck, GateResult
from rest_deploy.errors import VerificationError
from rest_deploy.signature import Output
from rest_deploy.verify import metrics
from rest_deploy.verify.distances import distances
from rest_deploy.verify.parity import allowed

if TYPE_CHECKING:
    import onnx_ir as ir

Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[np.floating]
Infer = Callable[[Float32], Mapping[str, Array]]
"""Normalized images (N, 3, H, W) -> every output by name."""
Float32Errors = Callable[[], Mapping[str, float]]
"""PyTorch's own errors in float32, by output; called where the card's bound is exceeded."""

BATCH = 16

LOGIT_ERROR = "relative logit error"
AGREEMENT = "top-1 agreement"
"""Names of checks that others look up."""
MAP_IMAGES = 32
"""Of the gate's images, whose maps are looked at: a map has hundreds of cells an image, and those
of 128 images would not fit into the memory of a small machine."""

LEAST_RANGE_USE = 0.25
"""Largest value met / largest value the scale holds. A quarter wastes two of eight bits; ranges
from 100 and more calibration images are met to 0.6 and more by 100 others."""

MOST_RANGE_USE = 4.0
"""Beyond, values saturate at a quarter of their size. Clipping algorithms stay within 3."""

OTHER_RECIPE = (
    'rest-deploy sensitivity --budget "agreement>=99%" finds the layers that cost it and writes a '
    "recipe without them, for build-engine --recipe; --no-gate builds it anyway"
)
"""A shipped recipe was chosen on other weights than the user's."""

RANGE_IMAGES = 64

WEIGHT_ERROR = 0.08
"""Largest relative L2 error of one weight. INT8 per channel has 0.5 to 1.5 %, E4M3 2.6 %; a scale
in the wrong place tens of percent."""


def judge(
    outputs: Sequence[Output],
    reference: Mapping[str, Array],
    actual: Mapping[str, Array],
    bounds: GateBounds,
    *,
    fresh: bool,
    ranges: Mapping[str, float] | None = None,
    weights: Mapping[str, float] | None = None,
    labels: Sequence[int] | None = None,
    reference_name: str,
    source: str,
    float32: Float32Errors | None = None,
) -> GateResult:
    """Hold every output (see `answers`), `ranges` (Q/DQ pair -> range use) and `weights` (name ->
    relative error) against the bounds.

    labels: class of each image, -1 where unknown. fresh: the weights are untrained, so that only
    errors count, not classes and neighbours. float32: of an engine in float32, see
    `parity.allowed`.
    """
    checks: list[GateCheck] = []
    for output in outputs:
        checks += _checks(
            output, reference[output.name], actual[output.name], bounds, fresh, float32
        )
    if ranges:
        checks += _range_checks(ranges)
    if weights:
        worst = max(weights, key=lambda name: (math.isnan(weights[name]), weights[name]))
        checks.append(msgspec.structs.replace(
            _at_most("weight error", weights[worst], WEIGHT_ERROR), detail=worst))  # fmt: skip
    result = GateResult(
        reference=reference_name,
        images=max(len(array) for array in reference.values()),
        source=source,
        checks=tuple(checks),
    )
    scores = next((o.name for o in outputs if o.kind in ("logits", "probabilities")), None)
    known = np.flatnonzero(np.asarray(labels if labels is not None else [], int) >= 0)
    if fresh or scores is None or reference[scores].shape[1] < 2 or not len(known):
        return result
    truth = np.asarray(labels)[known]
    right = [int((np.argmax(np.nan_to_num(found[scores][known]), axis=1) == truth).sum())
             for found in (reference, actual)]  # fmt: skip
    before, after = (count / len(known) for count in right)
    return msgspec.structs.replace(
        result,
        checks=(*checks, _at_most("top-1 lost", before - after, bounds.top1_drop)),
        labelled=len(known),
        top1_reference=before,
        top1_engine=after,
        top1_reference_interval=wilson(right[0], len(known)),
        top1_engine_interval=wilson(right[1], len(known)),
    )


def _checks(
    output: Output,
    reference: Array,
    actual: Array,
    bounds: GateBounds,
    fresh: bool,
    float32: Float32Errors | None,
) -> list[GateCheck]:
    """Of one output; a second one of a kind says its name."""
    found = distances(output, reference, actual)
    checks = [error_check(output, reference, actual, bounds, fresh=fresh, float32=float32)]
    if fresh:
        return checks
    of = " of probabilities" if output.kind == "probabilities" else ""
    if found.agreement is not None and found.kl is not None and reference.shape[1] > 1:
        checks += [
            _at_least(f"top-1 agreement{of}", found.agreement, bounds.agreement),
            _at_most(f"KL divergence{of}", found.kl, bounds.kl),
        ]
    if found.neighbours is not None and len(reference) > 1:
        checks.append(_at_least("nearest neighbours kept", found.neighbours, bounds.neighbours))
    return checks


def enforce(result: GateResult, what: str, cause: str = "", mend: str = "") -> None:
    """Raise `VerificationError` naming every check that failed. cause: where it is known, and what
    mends it."""
    red = [check for check in result.checks if not check.passed]
    quantized = any(check.name in ("weight error", "most range use") for check in result.checks)
    if red:
        lines = "; ".join(describe(check) for check in red)
        raise VerificationError(
            f"{what} does not pass the accuracy gate ({result.images} images, {result.source}): "
            f"{lines}; {f'{cause}; ' if cause else ''}nothing was written",
            hint=mend or (OTHER_RECIPE if quantized else "--no-gate builds it anyway"),
        )


def describe(check: GateCheck) -> str:
    """ "top-1 agreement 0.91, bound 0.98 (…)" """
    detail = f" ({check.detail})" if check.detail else ""
    return f"{check.name} {check.value:.3g}, bound {check.bound:.3g}{detail}"


def range_use(model: Path, images: Float32) -> dict[str, float]:
    """Per QuantizeLinear with a constant scale: largest value met / largest value it holds.

    images: (N, 3, H, W). Needs ONNX Runtime; the model's own quantization is upstream of what is
    measured, as in use.
    """
    import onnx_ir as ir

    from rest_deploy.quant.extents import measure

    graph = ir.load(model)
    holds: dict[str, tuple[str, float]] = {}
    for node in graph.graph:
        if node.op_type != "QuantizeLinear":
            continue
        source, step = node.inputs[:2]
        scale = step.const_value if step is not None else None
        if scale is None or source is None or scale.size != 1:
            continue
        zero = node.inputs[2] if len(node.inputs) > 2 else None
        eight_bit_float = zero is not None and zero.dtype == ir.DataType.FLOAT8E4M3FN
        levels = 448.0 if eight_bit_float else 127.0
        holds[source.name or ""] = (node.name or "", float(scale.numpy()) * levels)
    if not holds:
        return {}
    met = measure(graph, dict.fromkeys(holds), lambda done: in_batches(images[done:]))
    return {holds[name][0]: met[name].largest / holds[name][1] for name in holds}


def weight_errors(model: Path, original: ir.Model) -> dict[str, float]:
    """Per stored 8-bit weight: relative L2 error against the float graph it was made from.

    Infinite for one that the float graph does not have: nothing proves it.
    """
    import onnx_ir as ir

    errors = {}
    for node in ir.load(model).graph:
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if stored is None or stored.const_value is None:
            continue
        scale = node.inputs[1]
        name = (stored.name or "").rpartition(".")[0]
        source = original.graph.initializers.get(name)
        if scale is None or scale.const_value is None or source is None:
            errors[name] = float("inf")
            continue
        assert source.const_value is not None
        exact = source.const_value.numpy().astype(np.float64)
        shape = [1] * exact.ndim
        shape[node.attributes.get_int("axis", 1)] = -1
        scales = scale.const_value.numpy().astype(np.float64).reshape(shape)
        difference = stored.const_value.numpy().astype(np.float64) * scales - exact
        size = max(float(np.linalg.norm(exact)), 1e-30)  # a weight of zeros has no error at all
        errors[name] = float(np.linalg.norm(difference)) / size
    return errors


def error_check(
    output: Output,
    reference: Array,
    actual: Array,
    bounds: GateBounds,
    *,
    fresh: bool,
    float32: Float32Errors | None = None,
) -> GateCheck:
    """Of one output; NaN is outside every bound. float32: see `judge`."""
    limit = bounds.relative_error_fresh if fresh else bounds.relative_error
    if output.stride:
        limit = max(limit, bounds.map_error)
    name = LOGIT_ERROR if output.kind == "logits" else f"relative error of {output.name}"
    error = metrics.relative_error(reference, actual)
    if float32 is None or error <= limit:
        return _at_most(name, error, limit)
    own = float32()[output.name]
    return msgspec.structs.replace(
        _at_most(name, error, allowed(limit, own)),
        detail=f"PyTorch itself in float32 {own:.3g}, the card's bound {limit:.3g}",
    )


def answers(
    infer: Infer, images: Float32, outputs: Sequence[Output], step: int = 0
) -> dict[str, Array]:
    """`infer` over (N, 3, H, W) in batches: vectors of all images, maps of the first `MAP_IMAGES`,
    in float32. step: of a batch, 0 for `BATCH`."""
    vectors = any(not output.stride for output in outputs)
    parts: dict[str, list[Array]] = {output.name: [] for output in outputs}
    seen = 0
    for batch in in_batches(images if vectors else images[:MAP_IMAGES], step):
        found = infer(batch)
        for output in outputs:
            array = found[output.name]
            if output.stride:
                array = array[: max(0, MAP_IMAGES - seen)].astype(np.float32)
            parts[output.name].append(array)
        seen += len(batch)
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def logits(infer: Callable[[Float32], Array], images: Float32) -> Array:
    """An `infer` with one output over (N, 3, H, W) in batches."""
    return np.concatenate([infer(batch) for batch in in_batches(images)])


def in_batches(images: Float32, step: int = 0) -> Iterator[Float32]:
    """(N, 3, H, W) -> at most `step` of them at a time, 0: `BATCH`."""
    step = step or BATCH
    for start in range(0, len(images), step):
        yield images[start : start + step]


def wilson(successes: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a proportion (E. B. Wilson, JASA 22, 1927); 95 % by default."""
    p, square = successes / count, z * z / count
    middle = (p + square / 2) / (1 + square)
    half = z * math.sqrt(p * (1 - p) / count + square / (4 * count)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _at_most(name: str, value: float, bound: float) -> GateCheck:
    return GateCheck(name=name, value=value, bound=bound, passed=value <= bound)


def _at_least(name: str, value: float, bound: float) -> GateCheck:
    return GateCheck(name=name, value=value, bound=bound, passed=value >= bound)


def _range_checks(ranges: Mapping[str, float]) -> list[GateCheck]:
    """The least and the most used range; NaN is neither within one bound nor the other."""
    low, high = min(ranges, key=ranges.__getitem__), max(ranges, key=ranges.__getitem__)
    finite = all(math.isfinite(use) for use in ranges.values())
    return [
        GateCheck(name="least range use", value=ranges[low], bound=LEAST_RANGE_USE,
                  passed=finite and ranges[low] >= LEAST_RANGE_USE, detail=low),
        GateCheck(name="most range use", value=ranges[high], bound=MOST_RANGE_USE,
                  passed=finite and ranges[high] <= MOST_RANGE_USE, detail=high),
    ]  # fmt: skip
