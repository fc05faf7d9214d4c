"""Quantized ONNX graph -> the form of it that ONNX Runtime's x86 kernels compute in integers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

MIDDLE = 128
"""Zero point that makes 0..255 the same grid as -128..127."""


def unsign_activations(model: ir.Model) -> int:
    """INT8 activations -> UINT8 with zero point 128, the same values; returns how many pairs.

    On x86 ONNX Runtime turns a MatMul into an integer kernel only for unsigned activations. It
    rewrites signed ones itself, but not where several layers share one quantized tensor (q, k, v).
    """
    count = 0
    for node in model.graph:
        if node.op_type not in {"QuantizeLinear", "DequantizeLinear"} or len(node.inputs) < 3:
            continue
        zero = node.inputs[2]
        if zero is None or zero.const_value is None or node.inputs[0] is None:
            continue
        if node.inputs[0].is_initializer() or zero.const_value.size != 1:
            continue  # a weight
        if zero.const_value.dtype == ir.DataType.INT8:
            zero.const_value = ir.tensor(np.array(MIDDLE, np.uint8), name=zero.name)
            zero.dtype = ir.DataType.UINT8
        if zero.const_value.dtype == ir.DataType.UINT8 and node.op_type == "QuantizeLinear":
            node.outputs[0].dtype = ir.DataType.UINT8
            count += 1
    return count
