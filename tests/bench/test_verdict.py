"""Every sentence of the advice, on made-up results, and for each rule what turns it round."""

from __future__ import annotations

import math
from random import Random
from typing import Any

import msgspec
import pytest

from rest_deploy.bench.record import (
    Accuracy,
    BlockTime,
    EngineResult,
    Measurement,
    Mode,
    Ratio,
    Spread,
    Verdict,
)
from rest_deploy.bench.verdict import advise
from rest_deploy.report.bench_rows import Case, rows
from rest_deploy.report.bench_words import three
from tests.bench.records import record

GOOD = Accuracy(images=512, relative_error=2e-3, agreement=0.996, kl=1e-5)
EXACT = Accuracy(images=512, relative_error=2e-7, agreement=1.0, kl=1e-12)
VNNI = ("avx2", "avx512_vnni")


def measured(
    ms: float, batch: int = 1, mode: Mode = "isolated", noise: float = 0.01, threads: int = 0
) -> Measurement:
    spread = Spread(n=100, min=ms, max=ms, mean=ms, median=ms, p90=ms, p95=ms, p99=ms, cov=0.0)
    return Measurement(
        batch=batch, height=224, width=224, mode=mode, threads=threads, in_flight=1, host=spread,
        samples=(ms,), images_per_second=batch / ms * 1e3, noise=noise, stopped_by="test",
    )  # fmt: skip


def engine(label: str, precision: str, ms: float, **changes: Any) -> EngineResult:
    """On the backend that its label begins with."""
    values: dict[str, Any] = {
        "label": label,
        "backend": f"{label.split()[0]}/cpu",
        "precision": precision,
        "size_bytes": 1_400_000 if precision == "int8" else 2_800_000,
        "accuracy": EXACT if precision == "fp32" else GOOD,
        "measurements": (measured(ms),),
    }
    return EngineResult(**(values | changes))


def against(
    base: str, other: str, ratio: float, verdict: Verdict = "faster", mode: Mode = "isolated"
) -> Ratio:
    return Ratio(base=base, other=other, shape="1x3x224x224", mode=mode, ratio=ratio,
                 low=ratio * 0.98, high=ratio * 1.02, verdict=verdict)  # fmt: skip


FLOAT = engine("onnxruntime a", "fp32", 8.0)
INT8 = engine("openvino b", "int8", 4.0)
TWICE = against("onnxruntime a", "openvino b", 2.0)


def blocks(**ms: float) -> tuple[BlockTime, ...]:
    return tuple(BlockTime(block="stage1.0", kind=kind, ms=time) for kind, time in ms.items())


def test_the_faster_one() -> None:
    assert advise([FLOAT, INT8], [TWICE]) == (
        "Deploy INT8 on OpenVINO: 2.0x FP32 on ONNX Runtime at batch 1 (4.00 ms, 224x224), "
        "agreement 99.6% on 512 images."
    )
    slow = engine("openvino b", "int8", 16.0)
    said = advise([FLOAT, slow], [against("onnxruntime a", "openvino b", 0.5, "slower")])
    assert said.startswith("Deploy FP32 on ONNX Runtime: 2.0x INT8 on OpenVINO at batch 1 (8.00 ms")


def test_it_says_what_else_its_time_goes_to() -> None:
    profiled = engine("openvino b", "int8", 4.0, blocks=blocks(gemm=5, conv=1.2, attention=3.8))
    assert advise([FLOAT, profiled], [TWICE]).endswith(
        " 38% of its time is neither GEMM nor convolution."
    )
    assert "of its time" not in advise([FLOAT, INT8], [TWICE])


def test_pytorch_is_measured_against_and_never_advised() -> None:
    torch = engine("pytorch", "fp32", 1.0, accuracy=None)
    said = advise([torch, INT8], [against("pytorch", "openvino b", 0.25, "slower")])
    assert said.startswith("Deploy INT8 on OpenVINO: 0.25x PyTorch at batch 1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"failed": "answered NaN"}, None),
        ({"accuracy": None}, "is faster but has an unknown accuracy."),
        (
            {"accuracy": Accuracy(images=512, relative_error=2e-3, agreement=0.91, kl=1e-5)},
            "is faster but agrees in 91.0%, below its gate of 98.0%.",
        ),
        (
            {"accuracy": Accuracy(images=512, relative_error=0.5, agreement=0.99, kl=1e-5)},
            "is faster but has a relative error of 0.5, above its gate of 0.03.",
        ),
        (
            {"accuracy": Accuracy(images=512, relative_error=2e-3, agreement=0.99, kl=math.nan)},
            "is faster but has a KL divergence of nan, above its gate of 0.002.",
        ),
        (
            {"accuracy": Accuracy(images=512, relative_error=2e-3, agreement=math.nan, kl=0.0)},
            "is faster but agrees in nan%, below its gate of 98.0%.",
        ),
        ({"accuracy": Accuracy(images=0, relative_error=0, agreement=1, kl=0)},
         "is faster but has an unknown accuracy."),
    ],
)  # fmt: skip
def test_a_refused_engine_never_wins(change: dict[str, Any], words: str | None) -> None:
    said = advise([FLOAT, engine("openvino b", "int8", 4.0, **change)], [TWICE])
    assert said.startswith("Deploy FP32 on ONNX Runtime")
    assert words is None or said.endswith(f"Not advised: INT8 on OpenVINO {words}")
    assert words is not None or "OpenVINO" not in said.replace("x INT8 on OpenVINO", "")


def test_a_slower_refused_engine_is_not_worth_a_word() -> None:
    bad = engine("openvino b", "int8", 16.0, accuracy=None)
    said = advise([FLOAT, bad], [against("onnxruntime a", "openvino b", 0.5, "slower")])
    assert "OpenVINO" not in said


def test_a_time_that_is_no_number_is_refused() -> None:
    bad = engine("openvino b", "int8", math.nan)
    assert advise([FLOAT, bad], []).startswith("Deploy FP32 on ONNX Runtime, the only one to adv")


def test_a_precision_without_a_gate_is_refused() -> None:
    odd = engine("openvino b", "int4", 4.0)
    assert advise([FLOAT, odd], [TWICE]).endswith("has the precision int4, which has no gate.")


def test_none_at_all() -> None:
    failed = engine("openvino b", "int8", 4.0, failed="it answered NaN.")
    assert advise([failed], []) == (
        "No engine can be advised: INT8 on OpenVINO failed (it answered NaN)."
    )
    assert advise([], []) == "No engine can be advised: none was measured."
    idle = engine("openvino b", "int8", 4.0, measurements=())
    assert advise([idle], []).endswith("INT8 on OpenVINO was not measured.")
    photos = engine("openvino b", "int8", 4.0, measurements=(measured(1, mode="end-to-end"),))
    assert advise([photos], []).endswith("none was measured isolated or saturated.")


def test_fresh_weights_hold_the_error_alone() -> None:
    toss = Accuracy(images=64, relative_error=0.05, agreement=0.2, kl=0.5)
    fresh = engine("openvino b", "int8", 4.0, accuracy=toss)
    assert advise([FLOAT, fresh], [TWICE], fresh=True).startswith("Deploy INT8")
    assert advise([FLOAT, fresh], [TWICE]).startswith("Deploy FP32")
    worse = engine("openvino b", "int8", 4.0,
                   accuracy=Accuracy(images=64, relative_error=0.5, agreement=1, kl=0))  # fmt: skip
    assert advise([FLOAT, worse], [TWICE], fresh=True).startswith("Deploy FP32")


@pytest.mark.parametrize("verdict", ["ambiguous", "no difference"])
def test_a_smaller_file_does_not_make_up_for_accuracy(verdict: Verdict) -> None:
    said = advise([FLOAT, INT8], [against("onnxruntime a", "openvino b", 1.04, verdict)])
    assert said.startswith("Deploy FP32 on ONNX Runtime: level with INT8 on OpenVINO at batch 1")
    assert "ratio 0.96 (0.94 to 1.00), and it is more accurate; agreement 100%" in said
    clear = advise([FLOAT, INT8], [against("onnxruntime a", "openvino b", 1.04)])
    assert clear.startswith("Deploy INT8 on OpenVINO: 1.04x FP32"), "the same, with confidence"
    less = [msgspec.structs.replace(TWICE, ratio=1.02, low=1.01, high=1.03)]
    assert advise([FLOAT, INT8], less).startswith("Deploy FP32"), "certain, and too little"


def test_level_engines_as_accurate_and_the_smaller_file() -> None:
    small = engine("openvino b", "int8", 4.0, accuracy=EXACT)
    level = [against("onnxruntime a", "openvino b", 1.04, "ambiguous")]
    said = advise([FLOAT, small], level)
    assert said.startswith("Deploy INT8 on OpenVINO: level with FP32 on ONNX Runtime at batch 1")
    assert "ratio 1.04 (1.00 to 1.06), and its file is smaller;" in said
    worse = msgspec.structs.replace(EXACT, relative_error=EXACT.relative_error * 1.6)
    said = advise([FLOAT, engine("openvino b", "int8", 4.0, accuracy=worse)], level)
    assert said.startswith("Deploy FP32"), "an error that counts as more"


def test_level_engines_of_one_size_and_the_more_accurate() -> None:
    same = engine("openvino b", "int8", 4.0, size_bytes=2_800_000)
    level = [against("onnxruntime a", "openvino b", 1.0, "no difference")]
    said = advise([FLOAT, same], level)
    assert said.startswith("Deploy FP32 on ONNX Runtime: level with INT8 on OpenVINO")
    assert "and it is more accurate;" in said


@pytest.mark.parametrize("seed", range(200))
def test_no_engine_is_advised_beside_a_better_one(seed: int) -> None:
    """Of made-up engines, some level with others in no order that carries over: none that is not
    faster than a more accurate one."""
    random = Random(seed)
    made = [
        engine(
            f"onnxruntime {name}", "int8", 1, size_bytes=random.randrange(1, 9),
            measurements=(measured(random.uniform(8, 9), noise=random.choice([0, 0.02, 0.08])),),
            accuracy=Accuracy(images=512, relative_error=random.choice([1, 1.2, 9]) / 1e6,
                              agreement=1.0, kl=0.0),
        )
        for name in "abcd"
    ]  # fmt: skip
    said = advise(made, [])
    (chosen,) = (one for one in made if said.startswith(f"Deploy {one.label}:"))
    assert chosen.accuracy is not None
    mine = chosen.measurements[0]
    for other in made:
        theirs = other.measurements[0]
        assert other.accuracy is not None
        faster = theirs.host.median / mine.host.median
        sure = faster >= 1.03 and faster / (1 + mine.noise + theirs.noise) > 1
        assert sure or other.accuracy.relative_error * 1.5 > chosen.accuracy.relative_error


def test_level_engines_of_one_size_and_accuracy_and_the_simpler() -> None:
    same = engine("openvino b", "int8", 8.0, size_bytes=2_800_000, accuracy=EXACT)
    level = [against("onnxruntime a", "openvino b", 1.0, "no difference")]
    assert "Deploy FP32 on ONNX Runtime: level" in (said := advise([same, FLOAT], level))
    assert "and it is the simpler one;" in said
    twin = engine("openvino c", "fp32", 8.0)
    said = advise([FLOAT, twin], [against("onnxruntime a", "openvino c", 1.0, "ambiguous")])
    assert "and nothing else tells them apart;" in said


def test_three_level_engines() -> None:
    third = engine("openvino c", "fp32", 8.05)
    level = [
        against("onnxruntime a", label, 1.0, "no difference")
        for label in ("openvino b", "openvino c")
    ]
    said = advise([third, FLOAT, engine("openvino b", "int8", 8.01)], level)
    assert "Deploy FP32 on ONNX Runtime: level with INT8 on OpenVINO, FP32 on OpenVINO at" in said
    assert "ratio to the first 1.00" in said


def test_without_ratios_the_noise_decides() -> None:
    assert "1.08x" in advise([FLOAT, engine("openvino b", "int8", 7.4)], [])
    noisy = engine("openvino b", "int8", 7.4, measurements=(measured(7.4, noise=0.2),))
    assert "level with" in advise([FLOAT, noisy], [])


def test_ratios_to_a_third_engine() -> None:
    third = engine("pytorch", "fp32", 16.0, accuracy=None)
    near = engine("openvino b", "int8", 7.0)
    ratios = [
        Ratio(base="pytorch", other=label, shape="1x3x224x224", mode="isolated", ratio=ratio,
              low=low, high=high, verdict="faster")
        for label, ratio, low, high in (
            ("onnxruntime a", 2.0, 1.8, 2.2), ("openvino b", 2.2, 2.0, 2.4),
        )
    ]  # fmt: skip
    said = advise([third, FLOAT, near], ratios)
    assert said.startswith("Deploy FP32 on ONNX Runtime: level with INT8 on OpenVINO")
    sure = [msgspec.structs.replace(ratio, low=ratio.ratio, high=ratio.ratio) for ratio in ratios]
    assert "level" not in advise([third, FLOAT, near], sure)


def test_one_setting_at_a_time() -> None:
    """Ratios of another number of threads, or at another shape, say nothing of this one."""
    plain, quick = (
        engine(label, precision, 1, measurements=(*all_cores, measured(one, threads=1)))
        for label, precision, all_cores, one in (
            ("onnxruntime a", "fp32", (measured(8.0), measured(2.0, batch=8)), 9.0),
            ("openvino b", "int8", (measured(4.0), measured(9.0, batch=8)), 10.0),
        )
    )
    alone = msgspec.structs.replace(TWICE, threads=1, ratio=0.9, low=0.8, high=0.95)
    said = advise([plain, quick], [alone, TWICE])
    assert "Deploy INT8 on OpenVINO: 2.0x FP32 on ONNX Runtime at batch 1 (4.00 ms" in said
    more = engine("openvino c", "int8", 1, measurements=(measured(10.0, threads=1),))
    said = advise([plain, quick, more], [alone, TWICE])
    assert said.startswith("Deploy FP32 on ONNX Runtime"), "one thread is what all were measured at"


def both(label: str, precision: str, ms: float, saturated: float) -> EngineResult:
    """saturated: ms per image with several requests in flight."""
    two = (measured(ms), measured(saturated, mode="saturated"))
    return engine(label, precision, ms, measurements=two)


def test_throughput_has_a_winner_of_its_own() -> None:
    fast, wide = both("openvino b", "int8", 4.0, 4.0), both("onnxruntime a", "fp32", 8.0, 2.0)
    said = advise([fast, wide], [TWICE])
    assert said.startswith("Deploy INT8 on OpenVINO: 2.0x FP32 on ONNX Runtime")
    assert "For throughput take FP32 on ONNX Runtime instead: 500 images/s, not 250." in said


def test_throughput_of_the_same_winner() -> None:
    fast, slow = both("openvino b", "int8", 4.0, 2.0), both("onnxruntime a", "fp32", 8.0, 6.0)
    assert "It has the highest throughput too, 500 images/s." in advise([fast, slow], [TWICE])


def test_throughput_is_what_the_tables_show() -> None:
    """Of an engine that several requests only slow down: that of one after another."""
    float_ = engine("onnxruntime a", "fp32", 1, measurements=(
        measured(57.0), measured(71.4, mode="saturated")))  # fmt: skip
    int8 = engine("onnxruntime i", "int8", 1, size_bytes=99, measurements=(
        measured(58.1), measured(54.05, mode="saturated")))  # fmt: skip
    ratios = [against("onnxruntime a", "onnxruntime i", 0.98, "no difference"),
              against("onnxruntime a", "onnxruntime i", 1.32, mode="saturated")]  # fmt: skip
    said = advise([float_, int8], ratios)
    assert (
        "Deploy FP32 on ONNX Runtime: level with INT8 on ONNX Runtime at batch 1 (57.0 ms" in said
    )
    assert "For throughput take INT8 on ONNX Runtime instead: 18.5 images/s, not 17.5." in said
    case = Case("1x3x224x224", 0)
    shown = {
        row.engine.label: f"{three(row.images_per_second)} images/s"
        for row in rows(record(float_, int8), case)
    }
    assert shown == {"onnxruntime a": "17.5 images/s", "onnxruntime i": "18.5 images/s"}
    runs = (measured(57.0, threads=1), measured(71.4, mode="saturated"))
    other = msgspec.structs.replace(float_, measurements=runs)
    assert "18.5 images/s, not 14.0." in advise([other, int8], ratios), "of another setting"


def test_level_throughput() -> None:
    fast, near = both("openvino b", "int8", 4.0, 2.0), both("onnxruntime a", "fp32", 8.0, 1.99)
    said = advise([fast, near], [TWICE])
    assert "In throughput it is level with the best, 500 images/s." in said


def test_throughput_of_others_only() -> None:
    said = advise([INT8, both("onnxruntime a", "fp32", 8.0, 2.0)], [TWICE])
    assert "In throughput only others were measured: FP32 on ONNX Runtime 500 images/s." in said


def test_int8_that_gains_nothing_and_its_blocks() -> None:
    slow = engine(
        "onnxruntime i", "int8", 8.1, size_bytes=2_800_000,
        blocks=blocks(gemm=38, attention=32, norm=10, other=20),
    )  # fmt: skip
    level = [against("onnxruntime a", "onnxruntime i", 0.99, "no difference")]
    said = advise([FLOAT, slow], level, features=VNNI)
    assert said.endswith(
        "INT8 is not faster than FP32 on ONNX Runtime: 62% of its time is not GEMM "
        "(attention 32%, other 20%, norm 10%)."
    )
    assert advise([FLOAT, slow], level, features=("avx2",)).endswith(
        "INT8 is not faster than FP32 on ONNX Runtime: this CPU has no VNNI or other units for "
        "integer products."
    )
    blind = engine("onnxruntime i", "int8", 8.1, size_bytes=2_800_000)
    assert advise([FLOAT, blind], level).endswith("where its time goes was not profiled.")
    assert advise([FLOAT, slow], level, features=()).endswith("norm 10%)."), "none are known"
    faster = [against("onnxruntime a", "onnxruntime i", 1.5)]
    assert "is not faster" not in advise([FLOAT, slow], faster, features=("avx2",))


def test_a_gpu_needs_no_vnni() -> None:
    plain = engine("tensorrt a", "fp32", 8.0, backend="tensorrt")
    slow = engine("tensorrt i", "int8", 9.0, backend="tensorrt", size_bytes=2_800_000)
    said = advise([plain, slow], [], features=("avx2",))
    assert "INT8 is not faster than FP32 on TensorRT; where" in said


def test_engines_of_one_name_go_by_their_labels() -> None:
    twins = [engine("openvino default", "int8", 4.0), engine("openvino tuned", "int8", 2.0)]
    assert advise(twins, []).startswith("Deploy openvino tuned: 2.0x openvino default at batch 1")


@pytest.mark.parametrize("count", [1, 2, 4])
def test_three_sentences_at_most(count: int) -> None:
    engines = [
        both("openvino b", "int8", 4.0, 4.0), both("onnxruntime a", "fp32", 8.0, 2.0),
        engine("openvino c", "bf16", 1.0, accuracy=None), engine("openvino d", "fp32", 5.0),
    ][:count]  # fmt: skip
    said = advise(engines, [TWICE], features=VNNI)
    assert 1 <= said.count(". ") + 1 <= 3
    assert said.endswith(".")
