"""ONNX Runtime's kernels with their times, of a real run and of made-up graphs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from rest_deploy.engine.executed import LEAST_RUNS
from rest_deploy.engine.onnxruntime_profile import kernels_of, parts_of, profile
from rest_deploy.errors import ArtifactError

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)


def test_a_real_run(exported_nano: Path) -> None:
    found = profile(exported_nano, IMAGES, threads=1, seconds=0)
    assert (found.backend, found.runs) == ("onnxruntime/cpu", LEAST_RUNS)
    assert found.kernel_ms > 0
    assert min(found.profiled_ms, found.plain_ms) > 0
    by_part = {part: kernel for kernel in found.kernels for part in kernel.parts}
    for name in (
        "stem.conv1.Conv", "stage1.0.attn.scores.MatMul", "stage3.1.mlp.fc1.MatMul", "head.Gemm",
        "stage2.0.mlp.act.Gelu", "norm.LayerNormalization",
    ):  # fmt: skip
        assert by_part[name].ms > 0, name
    assert {kernel.precision for kernel in found.kernels} == {"fp32"}
    names = {kernel.name for kernel in found.kernels}
    assert all(set(kernel.readers) <= names for kernel in found.kernels)


def test_a_shape_it_cannot_run(exported_nano: Path) -> None:
    with pytest.raises(ArtifactError, match="ONNX Runtime cannot run"):
        profile(exported_nano, IMAGES[:, :2], seconds=0)


ORIGINAL = helper.make_graph(
    [
        helper.make_node("Conv", ["image", "w"], ["c"], name="stem.conv1.Conv"),
        helper.make_node("Relu", ["c"], ["r"], name="stem.Relu"),
        helper.make_node("Add", ["r", "b"], ["a"], name="add"),
        helper.make_node("Gelu", ["a"], ["y"], name="gelu"),
    ],
    "original", [], [],
)  # fmt: skip
OPTIMIZED = helper.make_graph(
    [
        helper.make_node("Conv", ["image", "w"], ["blocked"], name="r_nchwc"),
        helper.make_node("ReorderOutput", ["blocked"], ["r"], name="ReorderOutput_token_1"),
        helper.make_node("BiasGelu", ["r", "b"], ["y"], name="BiasGelu"),
    ],
    "optimized", [], [],
)  # fmt: skip


def test_fused_nodes_go_by_name_else_by_result() -> None:
    """The blocked convolution is called after its activation's result, which the reorder makes."""
    assert parts_of(OPTIMIZED, ORIGINAL) == {
        "r_nchwc": ("stem.conv1.Conv",),
        "ReorderOutput_token_1": ("stem.Relu",),
        "BiasGelu": ("gelu",),
    }


def test_readers_follow_the_optimized_graph() -> None:
    times = [(node.name, 2.0, 1.0) for node in OPTIMIZED.node]
    found = kernels_of(OPTIMIZED, ORIGINAL, [*times, ("Erf_3", 3.0, 3.0)])
    assert [kernel.readers for kernel in found] == [
        ("ReorderOutput_token_1",), ("BiasGelu",), (), (),
    ]  # fmt: skip
    inlined = kernels_of(OPTIMIZED, ORIGINAL, [("Erf_3", 3.0, 3.0), *times])
    assert inlined[0].readers == ("r_nchwc",), "what is not in the graph is read by what runs next"
    assert [(kernel.ms, kernel.best_ms) for kernel in found][-2:] == [(2.0, 1.0), (3.0, 3.0)]


def test_integer_kernels_are_named() -> None:
    integer = helper.make_graph(
        [helper.make_node("MatMulIntegerToFloat", ["x", "w"], ["y"], name="m")], "g", [], []
    )
    assert kernels_of(integer, ORIGINAL, [("m", 1.0, 1.0)])[0].precision == "int8"


def test_kernels_between_inserted_casts() -> None:
    name = "InsertedPrecisionFreeCast_r_nchwc"
    cast = helper.make_graph([helper.make_node("Conv", ["x", "w"], ["y"], name=name)], "g", [], [])
    assert parts_of(cast, ORIGINAL) == {name: ("stem.conv1.Conv",)}
