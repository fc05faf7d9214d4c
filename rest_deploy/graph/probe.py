"""A graph of one large GEMM, to find out what a runtime reaches on this machine."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 20, 9
"""Those of an export; helper's own defaults may be newer than the runtime."""


def one_gemm(size: int, precision: Literal["fp32", "int8"]) -> bytes:
    """input (1, 1, size, size) float32 times weights (size, size), serialized; 2 size^3 FLOPs.

    int8: as `quant` writes it for a CPU, unsigned activations with one scale, weights with one a
    column, Q/DQ around.
    """
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((size, size), dtype=np.float32)
    nodes = []
    tensors: dict[str, npt.ArrayLike] = {"weights": weights}
    left, right = "input", "weights"
    if precision == "int8":
        tensors = {
            "weights": np.clip(weights * 40, -127, 127).astype(np.int8),
            "scale": np.float32(0.03),
            "zero_point": np.uint8(0),
            "scales": np.full(size, 0.025, np.float32),
        }
        nodes = [
            helper.make_node("QuantizeLinear", ["input", "scale", "zero_point"], ["q"], name="q"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["dq"], name="dq"),
            helper.make_node("DequantizeLinear", ["weights", "scales"], ["w"], name="w", axis=1),
        ]
        left, right = "dq", "w"
    nodes.append(helper.make_node("MatMul", [left, right], ["output"], name="gemm"))
    graph = helper.make_graph(
        nodes,
        "one_gemm",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 1, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, size, size])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    opset = helper.make_opsetid("", OPSET)
    model: onnx.ModelProto = helper.make_model(graph, opset_imports=[opset], ir_version=IR_VERSION)
    serialized: bytes = model.SerializeToString()
    return serialized
