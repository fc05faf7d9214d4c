"""Rows and words that all reports of a bench record share."""

from __future__ import annotations

import math

import msgspec
import pytest

from rest_deploy.errors import InputError
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report.bench_rows import Case, Point
from tests.report.hostile import replaced
from tests.report.sample import record


def test_p99_needs_samples() -> None:
    (first, *_) = derived.rows(record(), Case("1x3x224x224"))
    assert derived.p99(first.measured) == words.three(first.measured.host.p99)
    few = replaced(first.measured, "host.n", derived.P99_NEEDS - 1)
    assert derived.p99(few) == ""


def test_small_images_come_first() -> None:
    assert [str(case) for case in derived.cases(record())] == [
        "1x3x224x224", "8x3x224x224", "1x3x448x448", "8x3x448x448",
    ]  # fmt: skip
    with pytest.raises(InputError, match="not a shape"):
        derived.shape_of("big")


def test_rows_join_what_belongs_together() -> None:
    rows = derived.rows(record(), Case("8x3x224x224"))
    assert [row.engine.label for row in rows][::4] == ["pytorch fp32", "openvino int8"]
    assert [row.is_base for row in rows] == [True, False, False, False, False]
    assert rows[0].ratio is None
    for row in rows[1:]:
        assert row.ratio is not None
        assert (row.ratio.other, row.ratio.shape) == (row.engine.label, "8x3x224x224")
        assert row.in_flight == 8  # the most images a second of the sweep
        assert row.images_per_second > row.measured.images_per_second
    assert rows[0].images_per_second == rows[0].measured.images_per_second


def test_ratios_belong_to_their_load() -> None:
    """A ratio at 8 requests in flight is not one at 1."""
    sample = record()
    at_8 = msgspec.structs.replace(sample.ratios[0], mode="saturated", in_flight=8)
    both = replaced(sample, "ratios", (*sample.ratios, at_8))
    found = [r for r in derived.rows(both, Case("1x3x224x224"), "saturated") if r.ratio]
    assert [(row.engine.label, row.measured.in_flight) for row in found] == [
        ("onnxruntime fp32", 8),
    ]  # fmt: skip


def test_saturated_runs_do_not_lend_their_throughput_to_others() -> None:
    """Neither to what begins at the pixels, nor to each other."""
    for mode in ("end-to-end", "saturated"):
        for row in derived.rows(record(), Case("1x3x224x224"), mode):
            assert row.images_per_second == row.measured.images_per_second


def test_threads_are_not_mixed() -> None:
    """Of one shape with all cores and with one thread, neither has the other's ratio or rate."""
    sample = record()
    engine = sample.engines[1]
    slow = [
        msgspec.structs.replace(found, threads=1, images_per_second=10 * found.images_per_second)
        for found in engine.measurements
    ]
    ratio = msgspec.structs.replace(sample.ratios[0], threads=1, ratio=0.9)
    both = replaced(sample, "engines.1.measurements", (*engine.measurements, *slow))
    both = replaced(both, "ratios", (*sample.ratios, ratio))
    assert [str(case) for case in derived.cases(both)][:2] == [
        "1x3x224x224",
        "1x3x224x224, 1 thread",
    ]
    (all_cores,) = [
        r for r in derived.rows(both, Case("1x3x224x224")) if r.engine == both.engines[1]
    ]
    (alone,) = derived.rows(both, Case("1x3x224x224", 1))
    assert all_cores.ratio == sample.ratios[0]
    assert alone.ratio == ratio
    assert alone.images_per_second == 10 * all_cores.images_per_second


def test_fastest() -> None:
    found = derived.fastest(record(), Case("1x3x448x448"))
    assert found is not None
    assert found.engine.label == "openvino int8"
    assert derived.fastest(record(), Case("1x3x32x32")) is None


def test_front() -> None:
    points = [Point("a", 1, 1e-2), Point("b", 2, 1e-3), Point("worse than b", 3, 1e-3),
              Point("c", 3, 1e-5), Point("twin of a", 1, 2e-2)]  # fmt: skip
    assert [point.label for point in derived.front(points)] == ["a", "b", "c"]
    assert derived.front([]) == []


def test_points_leave_out_what_has_no_place_on_a_log_axis() -> None:
    sample = record()
    exact = replaced(sample, "engines.0.accuracy.relative_error", 0.0)
    unknown = replaced(exact, "engines.1.accuracy", None)
    assert len(derived.points(sample, Case("1x3x224x224"))) == 5
    assert len(derived.points(unknown, Case("1x3x224x224"))) == 3


def test_union_keeps_the_order_of_each() -> None:
    assert derived.union([["a", "c"], ["a", "b", "c", "d"], ["z"]]) == ["z", "a", "b", "c", "d"]


def test_a_sound_record_stays_as_it_is() -> None:
    assert derived.sound(record()) == record()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "path",
    ["accuracy.relative_error", "measurements.0.host.p99", "measurements.1.samples.7",
     "measurements.0.images_per_second", "blocks.3.floor_ms", "start.load_ms"],
)  # fmt: skip
def test_an_engine_with_a_number_that_is_none_has_failed(path: str, value: float) -> None:
    found = derived.sound(replaced(record(), f"engines.2.{path}", value))
    engine = found.engines[2]
    assert path.split(".")[-1].strip("7") in engine.failed
    assert str(value) in engine.failed
    assert (engine.measurements, engine.blocks, engine.accuracy, engine.start) == ((), (), None,
                                                                                  None)  # fmt: skip
    assert engine not in derived.working(found)
    assert {ratio.other for ratio in found.ratios} == {
        "onnxruntime fp32", "openvino fp32", "openvino int8",
    }  # fmt: skip
    assert [label for label, _ in derived.failures(found)] == [engine.label, "tensorrt fp16"]


def test_a_ratio_that_is_none_fails_its_engine() -> None:
    found = derived.sound(replaced(record(), "ratios.0.high", math.nan))
    assert "ratio.high is nan" in found.engines[1].failed


def test_a_base_that_failed_has_no_ratios() -> None:
    found = derived.sound(replaced(record(), "engines.0.measurements.0.host.cov", math.nan))
    assert found.ratios == ()


@pytest.mark.parametrize(
    "path",
    ["sensitivity.places.0.relative_error", "instance_norm.rows.3.relative_error",
     "ceilings.copy_gb_per_s", "ceilings.gemm_gflops.fp32", "environment.load"],
)  # fmt: skip
def test_no_number_elsewhere_is_refused(path: str) -> None:
    with pytest.raises(InputError, match=r"no number: .*(error|per_s|fp32|load) is nan"):
        derived.sound(replaced(record(), path, math.nan))


@pytest.mark.parametrize(
    ("path", "words"),
    [("engines.1.label", "several engines called 'openvino int8'"),
     ("ratios.2.other", "ratio of 'nobody'"), ("ratios.2.base", "ratio of 'nobody'")],
)  # fmt: skip
def test_labels_must_tell_engines_apart(path: str, words: str) -> None:
    name = "openvino int8" if path.startswith("engines") else "nobody"
    with pytest.raises(InputError, match=words):
        derived.sound(replaced(record(), path, name))


def test_a_warning_of_one_measurement_says_where() -> None:
    assert derived.warnings(record()) == [
        "openvino int8, 8x3x448x448 isolated: the clock fell by 9 % during the run"
    ]


def test_equal_warnings_are_counted() -> None:
    sample = record()
    for index in range(2):
        sample = replaced(sample, f"engines.1.measurements.{index}.warnings", ("hot",))
    assert derived.warnings(sample)[0] == "2 of 94 measurements: hot"


def test_warnings_that_differ_in_numbers_are_one_line() -> None:
    """With the largest of them; other words are another line."""
    sample = record()
    warned = tuple(
        msgspec.structs.replace(
            found,
            warnings=(f"noise {index}.5 % is above 1 %", f"{'p95, ' * (index % 2)}p99 is short"),
        )
        for index, found in enumerate(sample.engines[1].measurements[:6])
    )
    bare = [msgspec.structs.replace(one, measurements=()) for one in sample.engines]
    changed = msgspec.structs.replace(sample, engines=tuple(bare))
    found = derived.warnings(replaced(changed, "engines.1.measurements", warned))
    assert len(found) == 2
    assert found[0].startswith("6 of 6 measurements, such as onnxruntime fp32, ")
    assert found[0].endswith(": noise 5.5 % is above 1 %")
    assert found[1].startswith("6 of 6 measurements")
