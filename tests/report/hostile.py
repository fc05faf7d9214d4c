"""The sample with labels that a report must survive, and with numbers that are none."""

from __future__ import annotations

from typing import Any

import msgspec

from rest_deploy.bench.record import EngineResult, Record
from tests.report.sample import record

LABEL = "</title><script>alert('1')</script>\"&amp; | `x` **b** \x1b[31m\nnew " + "long-name-" * 12
"""Markup, quotes, Markdown, a terminal's escape sequence, a line break, and far too long."""

OLD = "openvino int8"


def hostile() -> Record:
    """Every text of a user's or another tool's is `LABEL`."""
    sample = record()
    failed = msgspec.structs.replace(sample.engines[-1], label=LABEL + "2", failed=LABEL)
    engines = tuple(_relabelled(engine) for engine in sample.engines[:-1])
    ratios = tuple(
        msgspec.structs.replace(ratio, other=LABEL) if ratio.other == OLD else ratio
        for ratio in sample.ratios
    )
    machine = msgspec.structs.replace(sample.environment, cpu=LABEL, gpus=(LABEL,))
    return msgspec.structs.replace(
        sample,
        engines=(*engines, failed),
        ratios=ratios,
        environment=machine,
        advice=LABEL,
        notes=(LABEL,),
        command=LABEL,
        model=LABEL,
    )


def _relabelled(engine: EngineResult) -> EngineResult:
    if engine.label != OLD:
        return engine
    measurements = tuple(
        msgspec.structs.replace(found, stopped_by=LABEL, warnings=(LABEL,))
        for found in engine.measurements
    )
    blocks = tuple(
        msgspec.structs.replace(block, block=LABEL + block.block, kind=LABEL)
        for block in engine.blocks
    )
    return msgspec.structs.replace(
        engine, label=LABEL, precision=LABEL, measurements=measurements, blocks=blocks
    )


def replaced(value: Any, path: str, new: Any) -> Any:
    """A struct with the field at "engines.1.accuracy.kl" exchanged."""
    first, _, rest = path.partition(".")
    if isinstance(value, tuple):
        index = int(first)
        inner = replaced(value[index], rest, new) if rest else new
        return (*value[:index], inner, *value[index + 1 :])
    if isinstance(value, dict):
        return value | {first: replaced(value[first], rest, new) if rest else new}
    inner = replaced(getattr(value, first), rest, new) if rest else new
    return msgspec.structs.replace(value, **{first: inner})


def only(*labels: str) -> Record:
    """The sample with these engines and their ratios."""
    sample = record()
    return msgspec.structs.replace(
        sample,
        engines=tuple(engine for engine in sample.engines if engine.label in labels),
        ratios=tuple(r for r in sample.ratios if r.base in labels and r.other in labels),
    )
