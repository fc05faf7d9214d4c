"""Two records of like machines: which engine became slower, with what certainty."""

from __future__ import annotations

from typing import Literal

from rest_deploy.bench.record import EngineResult, Environment, Measurement, Mode, Record, Verdict
from rest_deploy.bench.statistics import SMALLEST_DIFFERENCE, unpaired_ratio, verdict
from rest_deploy.bench.watch import BEGINNINGS, about_machine
from rest_deploy.contracts import Struct
from rest_deploy.errors import InputError

Regression = Literal["no", "yes", "ambiguous"]


class Pair(Struct, frozen=True):
    """One engine at one input in both records. ratio: before / after, 2 is twice as fast now, with
    its 95 % interval. regressed: slower than was allowed; "no" where nothing was asked."""

    label: str
    shape: str
    mode: Mode
    threads: int
    in_flight: int
    before_ms: float
    after_ms: float
    before_n: int
    after_n: int
    ratio: float
    low: float
    high: float
    verdict: Verdict
    regressed: Regression = "no"


class RecordComparison(Struct, frozen=True):
    """differences: of the machines, empty for like ones. changes: of system, packages, model and
    settings, which may be what is compared. missing: in one record only, or failed there; broken:
    labels that had numbers before and fail now. doubts: what disturbed the machine while a record
    was measured; a difference may come from there."""

    before: str
    after: str
    pairs: tuple[Pair, ...]
    differences: tuple[str, ...] = ()
    changes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    broken: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    allowed: float | None = None

    @property
    def regressed(self) -> bool:
        """Whether any pair is slower than allowed, with confidence, or an engine fails since."""
        slower = any(pair.regressed == "yes" for pair in self.pairs)
        return self.allowed is not None and (slower or len(self.broken) > 0)


def compare_records(
    before: Record,
    after: Record,
    names: tuple[str, str] = ("before", "after"),
    *,
    allowed: float | None = None,
    smallest: float = SMALLEST_DIFFERENCE,
    unlike: bool = False,
) -> RecordComparison:
    """Every engine and input that both records have. allowed: 0.05 for 5 % longer times.

    Raises `InputError` for records of unlike machines, unless `unlike`; for none in common.
    """
    differences = machine_differences(before.environment, after.environment)
    if differences and not unlike:
        raise InputError(
            f"{names[0]} and {names[1]} are of unlike machines, so their times do not compare: "
            f"{'; '.join(differences)}",
            hint="measure both on one machine, or --unlike-machines to compare nevertheless",
        )
    if allowed is not None and not 0 <= allowed < 10:
        raise InputError(f"expected an allowance from 0 % to 1000 %, got {allowed:.0%}")
    pairs, missing = [], []
    old, new = _by_label(before), _by_label(after)
    for label in [*old, *(label for label in new if label not in old)]:
        gone = _gone(label, old.get(label), new.get(label), names)
        if gone:
            missing.append(gone)
            continue
        first, second = (
            {_key(found): found for found in side[label].measurements} for side in (old, new)
        )
        for key in [*first, *(key for key in second if key not in first)]:
            if key in first and key in second:
                pairs.append(_pair(label, first[key], second[key], allowed, smallest))
            else:
                absent = names[1] if key in first else names[0]
                missing.append(
                    f"{label} at {_words(first.get(key) or second[key])}: not in {absent}"
                )
    broken = tuple(
        label
        for label, engine in new.items()
        if engine.failed and label in old and not old[label].failed
    )
    if not pairs and not broken:
        told = f": {'; '.join(missing)}" if missing else ""
        raise InputError(
            f"{names[0]} and {names[1]} have no engine at one input in common{told}",
            hint="measure the same engines, sizes and batches again",
        )
    return RecordComparison(
        before=names[0],
        after=names[1],
        pairs=tuple(pairs),
        differences=differences,
        changes=_changes(before, after),
        missing=tuple(missing),
        broken=broken,
        doubts=_doubts(before, names[0]) + _doubts(after, names[1]),
        allowed=allowed,
    )


def machine_differences(before: Environment, after: Environment) -> tuple[str, ...]:
    """In words, everything that `Environment.likeness` counts."""
    if before.likeness() == after.likeness():
        return ()
    sides = (
        ("CPU", before.cpu, after.cpu),
        ("cores", str(before.cores), str(after.cores)),
        ("memory", _gib(before.memory_bytes), _gib(after.memory_bytes)),
        ("GPUs", ", ".join(before.gpus) or "none", ", ".join(after.gpus) or "none"),
        ("environment", _settings(before), _settings(after)),
    )
    found = [f"{name} {old} and {new}" for name, old, new in sides if old != new]
    one_only = sorted(set(before.features) ^ set(after.features))
    if one_only:
        found.append(f"CPU features in one only: {', '.join(one_only)}")
    return tuple(found) or ("they differ in the order of what they list",)


def regression(low: float, high: float, allowed: float | None) -> Regression:
    """Of before / after with this interval: "yes" when even its faster end is slower than allowed,
    "no" when even its slower end is not, "ambiguous" between."""
    if allowed is None:
        return "no"
    bound = 1 / (1 + allowed)
    if high < bound:
        return "yes"
    return "no" if low >= bound else "ambiguous"


def _pair(
    label: str, before: Measurement, after: Measurement, allowed: float | None, smallest: float
) -> Pair:
    interval = unpaired_ratio(before.samples, after.samples)
    if interval is None:  # too few runs: nothing is certain
        middle = before.host.median / after.host.median
        low, high = before.host.min / after.host.max, before.host.max / after.host.min
        regressed: Regression = "no" if allowed is None else "ambiguous"
    else:
        middle, low, high = interval
        regressed = regression(low, high, allowed)
    return Pair(
        label=label,
        shape=before.shape,
        mode=before.mode,
        threads=before.threads,
        in_flight=before.in_flight,
        before_ms=before.host.median,
        after_ms=after.host.median,
        before_n=before.host.n,
        after_n=after.host.n,
        ratio=middle,
        low=low,
        high=high,
        verdict=verdict(interval, smallest),
        regressed=regressed,
    )


def _by_label(record: Record) -> dict[str, EngineResult]:
    return {engine.label: engine for engine in record.engines}


def _doubts(record: Record, name: str) -> tuple[str, ...]:
    """The warnings about the machine, with the number of measurements that have one of a kind."""
    measured = [found for engine in record.engines for found in engine.measurements]
    disturbed = [
        warning for found in measured for warning in found.warnings if about_machine(warning)
    ]
    told = []
    for beginning in BEGINNINGS:
        alike = [warning for warning in disturbed if warning.startswith(beginning)]
        if alike:
            told.append(f"{name}: {alike[0]} ({len(alike)} of {len(measured)} measurements)")
    return tuple(told)


def _gone(
    label: str, before: EngineResult | None, after: EngineResult | None, names: tuple[str, str]
) -> str:
    """Why an engine has no numbers on both sides; "" when it has."""
    for engine, name in ((before, names[0]), (after, names[1])):
        if engine is None:
            return f"{label}: not in {name}"
        if engine.failed:
            return f"{label}: failed in {name}: {engine.failed}"
    return ""


def _key(found: Measurement) -> tuple[str, str, int, int]:
    return (found.shape, found.mode, found.threads, found.in_flight)


def _words(found: Measurement) -> str:
    threads = f", {found.threads} threads" if found.threads else ""
    flying = f", {found.in_flight} in flight" if found.mode == "saturated" else ""
    return f"{found.shape} {found.mode}{threads}{flying}"


def _changes(before: Record, after: Record) -> tuple[str, ...]:
    """What differs and may: it is told."""
    found = []
    if before.model_sha256 != after.model_sha256:
        found.append(
            f"model {before.model} ({before.model_sha256[:12]}) -> {after.model} "
            f"({after.model_sha256[:12]})"
        )
    old, new = before.environment, after.environment
    sides = (
        ("system", old.system, new.system),
        ("Python", old.python, new.python),
        ("governor", old.governor or "unknown", new.governor or "unknown"),
        ("rest-deploy", before.version, after.version),
    )
    found += [f"{name} {was} -> {now}" for name, was, now in sides if was != now]
    for name in sorted(old.packages.keys() | new.packages.keys()):
        was, now = (side.packages.get(name, "not installed") for side in (old, new))
        if was != now:
            found.append(f"{name} {was} -> {now}")
    return tuple(found)


def _settings(found: Environment) -> str:
    words = (f"{name}={value}" for name, value in sorted(found.variables.items()))
    return " ".join(words) or "without thread settings"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
