"""Which engine to deploy and why, in one to three sentences.

Rules, in their order. An engine that failed, was not measured, or whose accuracy is unknown or
outside its gate, is never advised, nor one that is not faster than a more accurate one, whatever
its file saves. The fastest of the others at the smallest batch is; where others are level with it,
the one with the smaller file, else the simpler. The winner in throughput may be another one. A
faster engine that was refused is named, then why INT8 is not faster where it is not, then what else
than products the winner's time goes to. Figures are those of the reports' tables.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rest_deploy.bench.digits import share, short_error, three, times
from rest_deploy.bench.field import Field, compete
from rest_deploy.bench.record import EngineResult, Ratio
from rest_deploy.contracts import Gate
from rest_deploy.machine import adds_bytes_exactly

SMALLER, MORE_ACCURATE = 0.9, 1 / 1.5
"""What a file's size and a relative error must be of another's to count as less."""

WHOLE = 1.1
"""A ratio from here on is told with one decimal."""

SIMPLEST = ("fp32", "fp16", "bf16", "int8", "fp8")

_BACKENDS = {
    "onnxruntime": "ONNX Runtime",
    "openvino": "OpenVINO",
    "tensorrt": "TensorRT",
    "tensorrt-rtx": "TensorRT-RTX",
    "pytorch": "PyTorch",
}

REFERENCE = "pytorch"
"""Backend of what the engines are compared with; it is not one to deploy."""

PRODUCTS = frozenset({"gemm", "conv"})


def advise(
    engines: Sequence[EngineResult],
    ratios: Sequence[Ratio],
    *,
    gate: Gate = Gate(),  # noqa: B008  # frozen
    fresh: bool = False,
    features: Sequence[str] | None = None,
) -> str:
    """One to three sentences.

    gate: bounds of the model's card; float32 is held to those of fp16. fresh: the weights are not
    trained, so only the error of the logits is held. features: of the CPU; none: not known.
    """
    deployable = [engine for engine in engines if _backend(engine) != REFERENCE]
    refused = {engine.label: why for engine in deployable if (why := refusal(engine, gate, fresh))}
    candidates = [engine for engine in deployable if engine.label not in refused]
    names = _names(engines)
    if not candidates:
        told = "; ".join(f"{names[label]} {why}" for label, why in refused.items())
        return f"No engine can be advised: {told or 'none was measured'}."
    latency = compete(candidates, engines, "isolated", ratios)
    throughput = compete(candidates, engines, "saturated", ratios)
    first = latency or throughput
    if first is None:
        return "No engine can be advised: none was measured isolated or saturated."
    runners = [engine for engine in candidates if engine.label in first.measured]
    winner, level, reason = _pick(runners, first)
    sentences = [_first(winner, level, reason, runners, first, names)]
    if latency is not None and throughput is not None:
        also = [engine for engine in candidates if engine.label in throughput.measured]
        sentences.append(_throughput(winner, also, throughput, names))
    sentences.append(
        _faster_but_refused(winner, refused, first, names)
        or _not_faster_in_integers(runners, first, features)
        or _elsewhere(winner)
    )
    return " ".join(sentence for sentence in sentences if sentence)


def refusal(engine: EngineResult, gate: Gate, fresh: bool) -> str:
    """Why an engine is not advised, in words that follow its name; "" when it may be."""
    if engine.failed:
        return f"failed ({engine.failed.rstrip('.')})"
    if not engine.measurements:
        return "was not measured"
    if any(not math.isfinite(found.host.median) for found in engine.measurements):
        return "has a time that is no number"
    if engine.precision not in SIMPLEST:
        return f"has the precision {engine.precision}, which has no gate"
    accuracy = engine.accuracy
    if accuracy is None or accuracy.images < 1:
        return "has an unknown accuracy"
    bounds = gate.of("fp16" if engine.precision == "fp32" else engine.precision)  # type: ignore[arg-type]
    if fresh:
        checks = [("relative error", accuracy.relative_error, bounds.relative_error_fresh)]
    else:
        agreement, kl = accuracy.agreement, accuracy.kl
        if agreement is not None and not agreement >= bounds.agreement:
            return f"agrees in {agreement:.1%}, below its gate of {bounds.agreement:.1%}"
        checks = [("relative error", accuracy.relative_error, bounds.relative_error)]
        if kl is not None:
            checks.insert(0, ("KL divergence", kl, bounds.kl))
    for what, value, bound in checks:
        if not value <= bound:  # NaN too
            return f"has a {what} of {value:.2g}, above its gate of {bound:.2g}"
    return ""


def _pick(
    candidates: Sequence[EngineResult], field: Field
) -> tuple[EngineResult, list[EngineResult], str]:
    """The one to deploy, those level with it, and what decided."""
    worthy = [engine for engine in candidates if not _outdone(engine, candidates, field)]
    fastest = max(worthy, key=lambda engine: field.speed(engine.label))
    group = [engine for engine in worthy if engine is fastest or _level(fastest, engine, field)]
    least = min(engine.size_bytes for engine in group)
    smaller = [engine for engine in group if engine.size_bytes * SMALLER <= least]
    left = smaller if least > 0 else group
    chosen = min(
        left, key=lambda one: (SIMPLEST.index(one.precision), -field.speed(one.label))
    )  # fmt: skip
    equals = [
        engine for engine in candidates
        if engine is not chosen and _level(chosen, engine, field)
    ]  # fmt: skip
    equals.sort(key=lambda engine: field.speed(engine.label), reverse=True)
    if any(_more_accurate(chosen, engine) for engine in equals):
        reason = "it is more accurate"
    elif len(left) < len(group):
        reason = "its file is smaller"
    elif any(engine.precision != chosen.precision for engine in equals):
        reason = "it is the simpler one"
    else:
        reason = "nothing else tells them apart"
    return chosen, equals, reason


def _outdone(engine: EngineResult, others: Iterable[EngineResult], field: Field) -> bool:
    """By a more accurate one that is not slower, as far as the measurement can tell."""
    return any(
        _more_accurate(other, engine) and not field.compare(engine.label, other.label).faster
        for other in others
    )


def _more_accurate(one: EngineResult, other: EngineResult) -> bool:
    mine, theirs = _error(one), _error(other)
    return mine < theirs and mine <= theirs * MORE_ACCURATE


def _level(one: EngineResult, other: EngineResult, field: Field) -> bool:
    return not (
        field.compare(one.label, other.label).faster or field.compare(other.label, one.label).faster
    )


def _first(
    winner: EngineResult,
    level: Sequence[EngineResult],
    reason: str,
    candidates: Sequence[EngineResult],
    field: Field,
    names: dict[str, str],
) -> str:
    found = field.measured[winner.label]
    at = f"batch {found.batch} ({three(found.host.median)} ms, {found.height}x{found.width})"
    assert winner.accuracy is not None
    kept = winner.accuracy.agreement
    accuracy = (
        f"relative error {short_error(winner.accuracy.relative_error)}"
        if kept is None
        else f"agreement {share(kept)}"
    )
    accuracy += f" on {winner.accuracy.images} images"
    if level:
        equals = ", ".join(names[engine.label] for engine in level)
        ratio = field.compare(winner.label, level[0].label)
        first = "" if len(level) == 1 else " to the first"
        return (
            f"Deploy {names[winner.label]}: level with {equals} at {at}, ratio{first} "
            f"{times(ratio.ratio)} ({times(ratio.low)} to {times(ratio.high)}), and {reason}; "
            f"{accuracy}."
        )
    bases = [ratio.base for ratio in field.ratios if ratio.base in field.measured]
    others = [engine.label for engine in candidates if engine is not winner]
    others.sort(key=field.speed, reverse=True)
    base = next((label for label in (*bases, *others) if label != winner.label), None)
    if base is None:
        return f"Deploy {names[winner.label]}, the only one to advise: {at}, {accuracy}."
    gain = field.compare(winner.label, base).ratio
    so_many = f"{gain:.2f}x" if gain < WHOLE else f"{gain:.1f}x"
    return f"Deploy {names[winner.label]}: {so_many} {names[base]} at {at}, {accuracy}."


def _throughput(
    winner: EngineResult, candidates: Sequence[EngineResult], field: Field, names: dict[str, str]
) -> str:
    if not candidates:
        return ""
    best, level, _ = _pick(candidates, field)
    speed = three(field.measured[best.label].images_per_second)
    if winner.label == best.label and not level:
        return f"It has the highest throughput too, {speed} images/s."
    if winner.label not in field.measured:
        return f"In throughput only others were measured: {names[best.label]} {speed} images/s."
    own = three(field.measured[winner.label].images_per_second)
    if winner.label != best.label and field.compare(best.label, winner.label).faster:
        return f"For throughput take {names[best.label]} instead: {speed} images/s, not {own}."
    return f"In throughput it is level with the best, {own} images/s."


def _faster_but_refused(
    winner: EngineResult, refused: dict[str, str], field: Field, names: dict[str, str]
) -> str:
    faster = [
        label for label in refused
        if label in field.measured and field.compare(label, winner.label).faster
    ]  # fmt: skip
    if not faster:
        return ""
    told = "; ".join(f"{names[label]} is faster but {refused[label]}" for label in faster)
    return f"Not advised: {told}."


def _not_faster_in_integers(
    candidates: Sequence[EngineResult], field: Field, features: Sequence[str] | None
) -> str:
    """Of the first backend whose INT8 engine does not beat its float32 one."""
    for engine in candidates:
        plain = [
            other for other in candidates
            if other.precision == "fp32" and other.backend == engine.backend
        ]  # fmt: skip
        if engine.precision != "int8" or not plain:
            continue
        if field.compare(engine.label, plain[0].label).faster:
            continue
        where = f"INT8 is not faster than FP32 on {_display(engine)}"
        gpu = _backend(engine).startswith("tensorrt")
        if features and not gpu and not adds_bytes_exactly(features):
            return f"{where}: this CPU has no VNNI or other units for integer products."
        shares = _shares(engine)
        if not shares:
            return f"{where}; where its time goes was not profiled."
        float_work = {kind: share for kind, share in shares.items() if kind != "gemm"}
        most = sorted(float_work, key=lambda kind: -float_work[kind])[:3]
        told = ", ".join(f"{kind} {float_work[kind]:.0%}" for kind in most)
        return f"{where}: {sum(float_work.values()):.0%} of its time is not GEMM ({told})."
    return ""


def _elsewhere(winner: EngineResult) -> str:
    shares = _shares(winner)
    if not shares:
        return ""
    rest = sum(share for kind, share in shares.items() if kind not in PRODUCTS)
    return f"{rest:.0%} of its time is neither GEMM nor convolution."


def _shares(engine: EngineResult) -> dict[str, float]:
    """Kind of work -> share of the profiled time."""
    total = sum(time.ms for time in engine.blocks)
    found: dict[str, float] = {}
    for time in engine.blocks:
        found[time.kind] = found.get(time.kind, 0.0) + time.ms / total if total > 0 else 0.0
    return found


def _error(engine: EngineResult) -> float:
    return engine.accuracy.relative_error if engine.accuracy else math.inf


def _backend(engine: EngineResult) -> str:
    return engine.backend.partition("/")[0].lower()


def _display(engine: EngineResult) -> str:
    name, _, provider = engine.backend.partition("/")
    shown = _BACKENDS.get(name.lower(), name)
    return shown if provider in ("", "cpu") else f"{shown} ({provider})"


def _names(engines: Iterable[EngineResult]) -> dict[str, str]:
    """Label -> "INT8 on OpenVINO", or the label where two would be called the same."""
    found = {
        engine.label: _display(engine)
        if _backend(engine) == REFERENCE
        else f"{engine.precision.upper()} on {_display(engine)}"
        for engine in engines
    }
    names = list(found.values())
    return {label: name if names.count(name) == 1 else label for label, name in found.items()}
