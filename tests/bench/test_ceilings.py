"""What is measured, on a small GEMM; and how several figures become one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import openvino
import pytest

from rest_deploy.bench.ceilings import best, cache_bytes, copy, measure, rate
from rest_deploy.bench.record import Ceilings
from rest_deploy.contracts import HostBackend
from rest_deploy.engine.executed import Kernel
from rest_deploy.errors import InputError, installed
from rest_deploy.graph.probe import one_gemm


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_small_machine(runtime: HostBackend) -> None:
    if not installed(runtime):
        pytest.skip(f"{runtime} is not installed")
    found = measure(runtime, 1, seconds=0, size=256)
    assert {"fp32", "int8"} <= set(found.gemm_gflops)
    asked = {"fp32", "int8", "bf16"} if runtime == "openvino" else {"fp32", "int8"}
    assert {*found.gemm_gflops, *found.absent} == asked
    assert len(found.gemm_gflops) + len(found.absent) == len(asked)
    assert min(found.gemm_gflops.values()) > 0
    assert found.threads == 1
    assert found.copy_gb_per_s > 0
    assert [moved for moved, _ in found.copies] == [1 << 20, 1 << 22]


@pytest.mark.parametrize("bf16", [False, True])
def test_a_precision_that_the_cpu_has_not_is_left_out(
    openvino_bf16: Callable[[bool], None], bf16: bool
) -> None:
    """And one that the runtime claims, and computes in float32 all the same."""
    openvino_bf16(bf16)
    found = measure("openvino", 1, seconds=0, size=64)
    assert {"fp32", "int8"} <= set(found.gemm_gflops)
    really = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert found.absent == (() if bf16 and really else ("bf16",))


def test_more_threads_than_cores_are_no_missing_ceiling() -> None:
    with pytest.raises(InputError, match="threads were asked for"):
        measure("openvino", 10_000, seconds=0, size=64)


def test_the_longest_kernel_in_the_precision_asked_for() -> None:
    """2 x 1000^3 FLOPs in 4 ms; the quantization before it does not count."""
    kernels = [
        Kernel("q", "QuantizeLinear", "fp32", (), (), 1.0, 0.5),
        Kernel("gemm", "MatMul", "int8", (), (), 5.0, 4.0),
    ]
    assert rate(kernels, "int8", 1000) == pytest.approx(500)
    assert rate(kernels, "bf16", 1000) is None, "it did not compute in bf16"


def test_a_copy_reads_and_writes() -> None:
    """A clock that ticks 1 ms at each look: a try of one thread lasts one tick."""
    now = iter(range(0, 10**12, 10**6))
    moved = 64 << 20
    assert copy(moved, 1, 0.0, lambda: next(now)) == pytest.approx(moved / 1e6)


def test_the_best_of_two_runtimes() -> None:
    one = Ceilings(gemm_gflops={"fp32": 90.0, "int8": 400.0}, copy_gb_per_s=20.0, threads=2,
                   copies=((1, 50.0), (2, 40.0)))  # fmt: skip
    other = Ceilings(gemm_gflops={"fp32": 100.0, "bf16": 200.0}, copy_gb_per_s=10.0, threads=2,
                     copies=((1, 60.0),), absent=("int8", "fp8"))  # fmt: skip
    assert best([one, other]) == Ceilings(
        gemm_gflops={"fp32": 100.0, "int8": 400.0, "bf16": 200.0}, copy_gb_per_s=20.0, threads=2,
        copies=((1, 60.0), (2, 40.0)), absent=("fp8",),
    )  # fmt: skip
    alone = Ceilings(gemm_gflops={}, copy_gb_per_s=1.0, threads=1)
    for unlike in ((), (one, alone)):
        with pytest.raises(InputError, match="cannot be merged"):
            best(unlike)


def test_the_cache_is_one() -> None:
    assert 2**18 <= cache_bytes() <= 2**33


def test_the_probe_is_one_product_in_either_precision(tmp_path: Path) -> None:
    """INT8 of the same numbers, so that what is timed is what is meant."""
    values = np.random.default_rng(0).uniform(0, 2, (1, 1, 64, 64)).astype(np.float32)
    answers = []
    for precision in ("fp32", "int8"):
        path = tmp_path / f"{precision}.onnx"
        path.write_bytes(one_gemm(64, precision))
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        (answer,) = session.run(None, {"input": values})
        answers.append(answer)
    error = np.linalg.norm(answers[0] - answers[1]) / np.linalg.norm(answers[0])
    assert error < 0.05
