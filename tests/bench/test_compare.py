from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from rest_deploy.bench.compare import compare_records, machine_differences, regression
from rest_deploy.bench.record import Record
from rest_deploy.errors import InputError
from tests.bench.records import MACHINE, engine, measurement, record


def one(median: float, seed: int = 0, **changes: Any) -> Record:
    return record(engine("int8", measurement(median, seed=seed)), **changes)


def test_twice_as_fast_now() -> None:
    (pair,) = compare_records(one(10, 1), one(5, 2)).pairs
    assert pair.low <= 2 <= pair.high
    assert (pair.verdict, pair.regressed) == ("faster", "no")
    assert pair.before_n == 200


@pytest.mark.parametrize(
    ("slowed", "allowed", "regressed"),
    [(1.2, 0.05, "yes"), (1.2, 0.5, "no"), (1.05, 0.05, "ambiguous"), (1.0, 0.05, "no"),
     (1.2, None, "no")],
)  # fmt: skip
def test_slower_than_allowed(slowed: float, allowed: float | None, regressed: str) -> None:
    found = compare_records(one(10, 1), one(10 * slowed, 2), allowed=allowed)
    assert found.pairs[0].regressed == regressed
    assert found.regressed == (regressed == "yes")


@pytest.mark.parametrize(
    ("low", "high", "answer"),
    [(0.9, 0.94, "yes"), (0.9, 0.96, "ambiguous"), (0.96, 0.97, "no"), (1.2, 1.3, "no")],
)
def test_regression(low: float, high: float, answer: str) -> None:
    assert regression(low, high, 0.05) == answer
    assert regression(low, high, None) == "no"


def test_too_few_runs_are_never_certain() -> None:
    few = record(engine("int8", measurement(20, count=5)))
    found = compare_records(one(10), few, allowed=0.05)
    assert (found.pairs[0].verdict, found.pairs[0].regressed) == ("ambiguous", "ambiguous")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"cpu": "Intel Xeon"}, "CPU AMD EPYC 9354 (25/17/1) and Intel Xeon"),
        ({"cores": 8}, "cores 2 and 8"),
        ({"memory_bytes": 16 << 30}, "memory 8.0 GiB and 16.0 GiB"),
        ({"gpus": ("NVIDIA L4",)}, "GPUs none and NVIDIA L4"),
        ({"features": ("avx2",)}, "CPU features in one only: avx512f"),
    ],
)
def test_unlike_machines_are_refused(changes: dict[str, Any], words: str) -> None:
    other = one(10, environment=replace(MACHINE, **changes))
    with pytest.raises(InputError, match="unlike machines") as caught:
        compare_records(one(10), other, ("A.json", "B.json"))
    assert words in caught.value.message
    assert caught.value.message.startswith("A.json and B.json are of")
    assert "--unlike-machines" in (caught.value.hint or "")
    found = compare_records(one(10), other, unlike=True)
    assert found.differences == (words,)


def test_what_may_differ_is_told() -> None:
    later = replace(MACHINE, packages={"onnxruntime": "1.33.0", "openvino": "1"}, load=3.0)
    found = compare_records(one(10), one(10, environment=later, model_sha256="cd" * 32))
    assert found.differences == ()
    assert found.changes == (
        "model rest_nano (abababababab) -> rest_nano (cdcdcdcdcdcd)",
        "onnxruntime 1.32.0 -> 1.33.0",
        "openvino not installed -> 1",
    )
    assert machine_differences(MACHINE, later) == ()


def test_a_disturbed_machine_is_told() -> None:
    busy = "other programs kept 1.5 of 2 cores busy: close them and measure again"
    noisy = replace(measurement(10), warnings=("60 runs: p99 is the maximum", busy))
    found = compare_records(one(10), record(engine("int8", noisy)), ("A", "B"))
    assert found.doubts == (f"B: {busy} (1 of 1 measurements)",)
    assert compare_records(one(10), one(10)).doubts == ()


def test_only_like_inputs_are_compared() -> None:
    before = record(
        engine("a", measurement(10), measurement(50, batch=8)),
        engine("b", measurement(10)),
        engine("gone", measurement(10)),
    )
    after = record(
        engine("a", measurement(10), measurement(10, mode="saturated", in_flight=4)),
        engine("b", failed="answers NaN"),
    )
    found = compare_records(before, after, ("A", "B"))
    assert [(pair.label, pair.shape, pair.mode) for pair in found.pairs] == [
        ("a", "1x3x224x224", "isolated")
    ]
    assert found.missing == (
        "a at 8x3x224x224 isolated: not in B",
        "a at 1x3x224x224 saturated, 4 in flight: not in A",
        "b: failed in B: answers NaN",
        "gone: not in B",
    )
    assert found.broken == ("b",)
    assert not found.regressed, "nobody asked"
    assert compare_records(before, after, allowed=0.05).regressed


def test_failing_in_both_is_not_broken_since() -> None:
    bad = engine("b", failed="x")
    found = compare_records(
        record(engine("a", measurement(10)), bad), record(engine("a", measurement(10)), bad),
        allowed=0.05,
    )  # fmt: skip
    assert found.broken == ()
    assert not found.regressed


def test_nothing_in_common() -> None:
    with pytest.raises(InputError, match="in common: a: not in after; b: not in before"):
        compare_records(record(engine("a", measurement(1))), record(engine("b", measurement(1))))


def test_allowance() -> None:
    with pytest.raises(InputError, match="allowance"):
        compare_records(one(10), one(10), allowed=-0.1)
