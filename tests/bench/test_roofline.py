"""Kernels to blocks, work to kernels, floors: on small made-up graphs, and by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from rest_deploy.bench.record import BlockTime, Ceilings, Measurement, Mode, Spread
from rest_deploy.bench.roofline import (
    above,
    by_block,
    by_kind,
    by_stage,
    copy_rate,
    floor_ms,
    fraction,
    growth,
    layers,
    owners,
    unowned_flops,
)
from rest_deploy.engine.executed import Kernel
from rest_deploy.errors import InputError
from rest_deploy.graph.roles import kind
from rest_deploy.graph.work import Work

CEILINGS = Ceilings(
    gemm_gflops={"fp32": 100.0, "int8": 400.0}, copy_gb_per_s=10.0, threads=1,
    copies=((1 << 20, 40.0), (1 << 22, 20.0)),
)  # fmt: skip


def work(
    node: str, operator: str, reader: str = "", flops: int = 0, part: str = "stage1.0"
) -> Work:
    return Work(
        node=node, operator=operator, part=part, kind=kind(node, operator), flops=flops,
        reads={f"{node}.in": 1000}, writes={f"{node}.out": 500}, precision="fp32",
        readers=(reader,) if reader else (),
    )  # fmt: skip


def kernel(
    name: str,
    ms: float = 1.0,
    *,
    parts: str = "",
    readers: str = "",
    operator: str = "MatMul",
    precision: str = "fp32",
) -> Kernel:
    return Kernel(name, operator, precision, tuple(parts.split()), tuple(readers.split()), ms, ms)


MLP = (
    work("stage1.0.mlp.fc1.MatMul", "MatMul", "stage1.0.mlp.fc1.Add", 2_000_000),
    work("stage1.0.mlp.fc1.Add", "Add", "stage1.0.mlp.act.Gelu"),
    work("stage1.0.mlp.act.Gelu", "Gelu", "stage1.0.mlp.fc2.MatMul"),
    work("stage1.0.mlp.fc2.MatMul", "MatMul", "head.Gemm", 2_000_000),
    work("head.Gemm", "Gemm", "", 100_000, part="head"),
)


def test_nodes_without_a_kernel_go_to_their_reader() -> None:
    """ONNX Runtime's BiasGelu, named after nothing but made of Add and Gelu."""
    kernels = [
        kernel("fc1", parts="stage1.0.mlp.fc1.MatMul"),
        kernel("BiasGelu", parts="stage1.0.mlp.act.Gelu"),
        kernel("fc2", parts="stage1.0.mlp.fc2.MatMul"),
        kernel("logits", parts="head.Gemm"),
    ]
    found = {name: [each.node for each in own] for name, own in owners(kernels, MLP).items()}
    assert found["BiasGelu"] == ["stage1.0.mlp.fc1.Add", "stage1.0.mlp.act.Gelu"]
    assert unowned_flops(kernels, MLP) == 0
    assert unowned_flops(kernels[:-1], MLP) == pytest.approx(100_000 / 4_100_000)


def test_a_kernel_called_after_the_last_node_of_what_it_fuses() -> None:
    """OpenVINO's "fc1.Add" is the product with its bias: the product's kind, work and name."""
    (one,) = layers([kernel("k", parts="stage1.0.mlp.fc1.Add stage1.0.mlp.act.Gelu")], MLP)
    assert (one.kind, one.block, one.flops) == ("gemm", "stage1.0", 2_000_000)
    assert one.name == "stage1.0.mlp.fc1.MatMul"


def test_a_kernel_called_after_a_tensor() -> None:
    (one,) = layers([kernel("logits", parts="head.Gemm.out")], MLP[-1:])
    assert (one.kind, one.block, one.flops) == ("gemm", "head", 100_000)


def test_what_took_no_time_owns_nothing() -> None:
    """OpenVINO's transposed weights carry the name of the product."""
    kernels = [kernel("t", 0.0, parts="head.Gemm"), kernel("g", parts="head.Gemm")]
    assert list(owners(kernels, MLP[-1:])) == ["g"]
    assert [layer.name for layer in layers(kernels, MLP[-1:])] == ["head.Gemm"]


def test_a_change_of_layout_belongs_to_what_reads_it() -> None:
    kernels = [
        kernel("Reorder", readers="view", operator="ReorderInput"),
        kernel("view", 0.0, readers="fc2", operator="Reshape"),
        kernel("MVN_7", readers="fc2", operator="MVN"),
        kernel("fc2", parts="stage1.0.mlp.fc2.MatMul", readers="fc2"),
        kernel("lost", operator="Strange"),
    ]
    found = {layer.name: (layer.block, layer.kind) for layer in layers(kernels, MLP)}
    assert found == {
        "Reorder": ("stage1.0", "other"),
        "MVN_7": ("stage1.0", "norm"),
        "stage1.0.mlp.fc2.MatMul": ("stage1.0", "gemm"),
        "lost": ("other", "other"),
    }


def test_floors_by_hand() -> None:
    """1e8 FLOPs at 100 GFLOP/s are 1 ms, at 400 a quarter; 5 MB at 10 GB/s 0.5 ms."""
    assert floor_ms(1e8, 1000, "fp32", CEILINGS) == pytest.approx(1.0)
    assert floor_ms(1e8, 1000, "int8", CEILINGS) == pytest.approx(0.25)
    assert floor_ms(1e6, 5e6, "fp32", CEILINGS) == pytest.approx(0.5)
    assert floor_ms(1e8, 5e6, "fp8", CEILINGS) == pytest.approx(0.5), "no ceiling: bytes alone"
    assert floor_ms(1e8, 5e6, "fp32", None) == 0


def test_small_copies_are_faster() -> None:
    rates = [copy_rate(moved, CEILINGS) for moved in (0, 1 << 20, (1 << 20) + 1, 1 << 22, 1 << 23)]
    assert rates == [40, 40, 20, 20, 10]


def test_sums_keep_the_whole() -> None:
    kernels = [
        kernel("fc1", 2.0, parts="stage1.0.mlp.fc1.MatMul"),
        kernel("gelu", 0.5, parts="stage1.0.mlp.fc1.Add stage1.0.mlp.act.Gelu", operator="Gelu"),
        kernel("fc2", 3.0, parts="stage1.0.mlp.fc2.MatMul", precision="int8"),
        kernel("head", 0.1, parts="head.Gemm"),
    ]
    found = layers(kernels, MLP, CEILINGS)
    blocks = by_block(found)
    assert [(time.block, time.kind, time.ms) for time in blocks] == [
        ("stage1.0", "gemm", 5.0), ("stage1.0", "other", 0.5), ("head", "gemm", 0.1),
    ]  # fmt: skip
    assert blocks[0].floor_ms == pytest.approx(2e6 / 100e6 + 2e6 / 400e6), "each in its precision"
    for merged in (blocks, by_stage(blocks), by_kind(blocks)):
        assert sum(time.ms for time in merged) == pytest.approx(5.6)
        assert sum(time.flops for time in merged) == 4_100_000
    assert fraction(blocks) == pytest.approx(sum(layer.floor_ms for layer in found) / 5.6)


def test_blocks_stand_in_the_order_of_the_network() -> None:
    names = ["head", "stage3.10", "stage3.2", "patch3", "other", "stage1.0", "stem", "patch2"]
    works = [work(f"{name}.node", "Add", part=name) for name in names]
    kernels = [kernel(name, parts=f"{name}.node") for name in names]
    assert [time.block for time in by_block(layers(kernels, works))] == [
        *("stem", "stage1.0", "patch2", "patch3", "stage3.2", "stage3.10", "head", "other")
    ]


def test_faster_than_the_ceiling_is_told() -> None:
    times = [
        BlockTime(block="stem", kind="conv", ms=1.0, floor_ms=floor) for floor in (0.9, 1.04, 1.06)
    ]
    assert above(times) == (times[2],)


def test_a_fraction_needs_time() -> None:
    with pytest.raises(InputError, match="no measured time"):
        fraction([])


def measured(batch: int, side: int, ms: float, mode: Mode = "isolated") -> Measurement:
    host = Spread(n=1, min=ms, max=ms, mean=ms, median=ms, p90=ms, p95=ms, p99=ms, cov=0.0)
    return Measurement(
        batch=batch, height=side, width=side, mode=mode, threads=0, in_flight=1, host=host,
        samples=(ms,), images_per_second=1.0, noise=0.0, stopped_by="",
    )  # fmt: skip


def test_growth_with_batch_and_size(exported_nano: Path) -> None:
    model = onnx.load(exported_nano)
    times = (measured(8, 224, 7.0), measured(1, 448, 6.0), measured(1, 224, 1.0),
             measured(1, 224, 9.0, "saturated"))  # fmt: skip
    size, batch = growth("ours", model, times)
    assert {(row.engine, row.small) for row in (size, batch)} == {("ours", "1x3x224x224")}
    assert (size.large, batch.large) == ("1x3x448x448", "8x3x224x224")
    assert batch.flops == pytest.approx(8)
    assert batch.bytes < 8, "weights are read once"
    assert (size.measured, batch.measured) == (6, 7)
    assert 4 < size.flops < 16, "between what grows with the area and what with its square"


def test_no_growth_of_one_shape(exported_nano: Path) -> None:
    times = (measured(1, 224, 1.0), measured(1, 224, 2.0, "end-to-end"))
    assert growth("ours", onnx.load(exported_nano), times) == ()


@pytest.mark.parametrize("ms", [0.0, float("nan"), float("inf")])
def test_growth_of_no_time(exported_nano: Path, ms: float) -> None:
    with pytest.raises(InputError, match="positive and finite"):
        growth("ours", onnx.load(exported_nano), (measured(1, 64, ms), measured(1, 96, 1.0)))
