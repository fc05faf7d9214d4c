"""OpenVINO's kernels with their times; a real run where it is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rest_deploy.engine.executed import LEAST_RUNS, Kernel
from rest_deploy.engine.openvino_profile import kernels_of, profile
from rest_deploy.errors import ArtifactError, installed

IMAGES = np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32)
needs_openvino = pytest.mark.skipif(not installed("openvino"), reason="OpenVINO is not installed")


def operation(name: str, *parts: str, operator: str = "FullyConnected") -> Kernel:
    return Kernel(name, operator, "int8", parts, ())


def test_a_node_belongs_to_the_operation_of_its_name() -> None:
    executed = [
        operation("w", "q.weight", operator="Const"),
        operation("k.MatMul", "k.MatMul"),
        operation("k.MatMul/Multiply", "k.MatMul/Multiply", "k.Q", operator="Eltwise"),
        operation("q.MatMul/Multiply", "q.MatMul/Multiply", "q.Add"),
    ]
    found = {kernel.name: kernel for kernel in kernels_of(executed, [("k.MatMul", 2.0, 1.0)])}
    assert "w" not in found
    assert found["k.MatMul"].parts == ("k.MatMul",)
    assert found["k.MatMul/Multiply"].parts == ("k.Q",)
    assert found["q.MatMul/Multiply"].parts == ("q.MatMul", "q.Add")
    assert (found["k.MatMul"].ms, found["k.MatMul"].best_ms) == (2.0, 1.0)
    assert found["q.MatMul/Multiply"].ms == 0


def test_what_the_graph_does_not_name_keeps_its_time() -> None:
    (found,) = kernels_of([], [("MVN_3", 2.0, 1.0)])
    assert (found.name, found.parts, found.ms) == ("MVN_3", (), 2.0)


@needs_openvino
def test_a_real_run(exported_nano: Path) -> None:
    found = profile(exported_nano, IMAGES, threads=1, seconds=0)
    assert (found.backend, found.runs) == ("openvino/cpu", LEAST_RUNS)
    assert min(found.kernel_ms, found.profiled_ms, found.plain_ms) > 0
    timed = {part for kernel in found.kernels if kernel.ms > 0 for part in kernel.parts}
    assert {"stem.conv1.Conv", "stage2.0.attn.Softmax"} <= timed
    assert any(part.startswith("stage3.1.mlp.fc1.") for part in timed), "fused under either name"
    assert "int8" not in {kernel.precision for kernel in found.kernels if kernel.ms > 0}


@needs_openvino
def test_a_file_it_cannot_read(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"nothing")
    with pytest.raises(ArtifactError, match="OpenVINO cannot run"):
        profile(path, IMAGES, seconds=0)
