"""The estimate against what NVIDIA's builder says after the build."""

from __future__ import annotations

import random
from pathlib import Path

import onnx_ir as ir
import pytest

from rest_deploy.contracts import Dims, Profile
from rest_deploy.engine.memory import FIXED_BYTES, scratch_estimate, without_weights
from rest_deploy.engine.tensorrt import Options, build
from rest_deploy.graph.precision import to_sixteen_bit

SHAPES: tuple[Dims, ...] = ((32, 3, 224, 224), (8, 3, 512, 512), (4, 3, 640, 1000))


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_within_a_third(exported_nano: Path, precision: str, shape: Dims) -> None:
    pytest.importorskip("tensorrt_rtx_bindings")
    model = ir.load(exported_nano)
    if precision == "fp16":
        to_sixteen_bit(model, "fp16")
    graph = ir.to_proto(model).SerializeToString()
    profile = Profile(minimum=(1, 3, 64, 64), optimum=(1, 3, 224, 224), maximum=shape)
    options = Options(profiles=(profile,), sms=("89",))
    built = build("tensorrt-rtx", graph, options, lambda *_: None)
    assert 0.75 < scratch_estimate(graph, shape) / built.scratch_bytes < 1.34


def test_weights_do_not_matter(exported_nano: Path) -> None:
    graph = exported_nano.read_bytes()
    light = without_weights(graph)
    assert len(light) < len(graph) / 10
    for shape in SHAPES:
        assert scratch_estimate(light, shape) == scratch_estimate(graph, shape)


def test_a_larger_shape_never_needs_less(exported_nano: Path) -> None:
    """Which the planner relies on, also where sizes are odd."""
    graph = without_weights(exported_nano.read_bytes())
    rng = random.Random(0)
    for _ in range(40):
        batch, height, width = rng.randint(1, 8), rng.randint(32, 300), rng.randint(32, 300)
        grown = (
            batch + rng.randint(0, 1),
            3,
            height + rng.randint(0, 9),
            width + rng.randint(0, 9),
        )
        assert scratch_estimate(graph, grown) >= scratch_estimate(graph, (batch, 3, height, width))


def test_it_grows_with_the_batch_alone(exported_nano: Path) -> None:
    graph = exported_nano.read_bytes()
    one, four = (scratch_estimate(graph, (n, 3, 96, 160)) - FIXED_BYTES for n in (1, 4))
    assert four == pytest.approx(4 * one, rel=1e-3)
