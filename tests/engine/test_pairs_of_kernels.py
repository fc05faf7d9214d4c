"""Kernels add what `quant.pairs` says, on this CPU: layers at their worst input, against integers.

Every activation has its largest byte. Weights kept to `pairs` are exact then; the same ones with 8
bits are not, where the CPU adds two products in 16 bits.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, numpy_helper
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

from rest_deploy import machine
from rest_deploy.engine import onnxruntime, openvino_kernels
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.errors import installed
from rest_deploy.quant.pairs import LIMIT, fit, largest_pair

LAYERS: dict[str, tuple[int, ...]] = {
    "stem": (32, 3, 3, 3),
    "stem, behind": (64, 32, 3, 3),
    "patch": (128, 64, 3, 3),
    "qkv": (64, 64),
    "of 22": (22, 40),
    "mlp": (512, 128),
}
"""(K, N) of a MatMul, (O, I, 3, 3) of a convolution of stride 2."""

SCALE = np.float32(2**-10)

Integers = npt.NDArray[np.int8]


def weight(shape: tuple[int, ...], *, exact: bool) -> Integers:
    """Seven tenths of them of one sign, so that sums are large: their worst output does not pass
    2^24, where float32 holds integers no longer."""
    drawn = np.random.default_rng(0).normal(0.5, 1, shape)
    axis = 0 if len(shape) == 4 else 1
    rows = np.abs(drawn).max(axis=tuple(i for i in range(len(shape)) if i != axis)) / 127

    def rounded(scales: npt.NDArray[np.floating]) -> Integers:
        spread = scales.reshape([-1 if i == axis else 1 for i in range(len(shape))])
        return np.clip(np.round(drawn / spread), -127, 127).astype(np.int8)

    return fit(drawn, axis, rows, rounded)[0] if exact else rounded(rows)


def layer(stored: Integers, path: Path, *, zero: int, step: float | None) -> None:
    """A Q/DQ layer of these integers. zero: the zero point, 0 of signed or 128 of unsigned ones;
    step: of its quantized output, None for a float one."""
    convolution = stored.ndim == 4
    kind = np.uint8 if zero else np.int8
    constants = {
        "scale": SCALE,
        "zero": np.array(zero, kind),
        "stored": stored,
        "scales": np.full(stored.shape[0 if convolution else 1], SCALE, np.float32),
    }
    shape = [1, stored.shape[1], 8, 8] if convolution else [1, 32, stored.shape[0]]
    name = "stem.conv1.Conv" if convolution else "stage1.0.attn.q.MatMul"
    more: dict[str, Any] = {"strides": [2, 2], "pads": [1] * 4} if convolution else {}
    behind = []
    if step is not None:
        constants["step"] = np.float32(step)
        behind = [
            make_node("QuantizeLinear", ["y", "step", "zero"], ["r"]),
            make_node("DequantizeLinear", ["r", "step", "zero"], ["z"]),
        ]
    graph = make_graph(
        [
            make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            make_node(
                "DequantizeLinear", ["stored", "scales"], ["w"], axis=0 if convolution else 1
            ),
            make_node(name.rpartition(".")[2], ["d", "w"], ["y"], name, **more),
            *behind,
        ],
        "layer",
        [make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [make_tensor_value_info("z" if behind else "y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 20)], ir_version=10), path)


def exact(stored: Integers, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The layer in float64, whose sums of integers are exact."""
    values = np.round(x.astype(np.float64) / SCALE)
    if stored.ndim == 2:
        return values @ stored * float(SCALE) ** 2
    padded = np.pad(values, ((0, 0), (0, 0), (1, 1), (1, 1)))
    views = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))[:, :, ::2, ::2]
    sums: npt.NDArray[np.float64] = np.einsum("ncyxij,ocij->noyx", views, stored.astype(np.float64))
    return sums * float(SCALE) ** 2


def farthest(backend: str, stored: Integers, folder: Path, *, zero: int) -> float:
    """Of the runtime's output from the exact one, in its own steps: those of the integer sums, or
    of the quantized output without which ONNX Runtime has no integer convolution."""
    path = folder / "layer.onnx"
    shape = (1, stored.shape[1], 8, 8) if stored.ndim == 4 else (1, 32, stored.shape[0])
    inputs = [np.full(shape, byte * SCALE, np.float32) for byte in (127, -128)]
    expected = [exact(stored, x) for x in inputs]
    step = None
    if backend == "onnxruntime" and stored.ndim == 4:
        step = float(max(np.abs(one).max() for one in expected)) / 127
    layer(stored, path, zero=zero, step=step)
    of = openvino_kernels if backend == "openvino" else onnxruntime
    assert [kind for _, kind in of.kernels(path)] == ["int8"], "this is no integer kernel"
    runner = OpenVinoRunner(path) if backend == "openvino" else OnnxRuntimeRunner(path)
    name = runner.outputs[0].name
    found = [runner.infer({"x": x})[name].astype(np.float64) for x in inputs]
    error = max(float(np.abs(a - b).max()) for a, b in zip(found, expected, strict=True))
    return error / (float(SCALE) ** 2 if step is None else step)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", LAYERS)
def test_exact_on_every_cpu(backend: str, name: str, tmp_path: Path) -> None:
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    stored = weight(LAYERS[name], exact=True)
    assert largest_pair(stored, 0 if stored.ndim == 4 else 1).max() <= LIMIT
    if stored.ndim == 2:
        shifted = np.roll(stored, 1, axis=0)
        assert largest_pair(shifted, 1).max() > LIMIT, "a kernel that packs otherwise is not seen"
    for zero in (0, 128):
        assert farthest(backend, stored, tmp_path, zero=zero) < 1


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_eight_bits_saturate_where_the_cpu_does(backend: str, tmp_path: Path) -> None:
    """The negative control: without it the test above might ask nothing."""
    if not installed(backend):
        pytest.skip(f"{backend} is not installed")
    if machine.features_for(backend) != machine.cpu().features:
        pytest.skip("held below this CPU: OpenVINO's own kernels know no cap")
    saturates = not machine.adds_bytes_exactly(machine.features_for(backend))
    wrong = [
        name for name, shape in LAYERS.items()
        if farthest(backend, weight(shape, exact=False), tmp_path, zero=128) >= 1
    ]  # fmt: skip
    assert bool(wrong) == saturates, wrong
