from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.errors import InvariantError
from rest_deploy.quant.probe import ROWS_PER_IMAGE, Probe, from_matrix, weight_matrix

RNG = np.random.default_rng(0)


def layer(op_type: str, weight: np.ndarray, **attributes: object) -> ir.Node:
    constant = ir.val("weight", const_value=ir.tensor(weight.astype(np.float32), name="weight"))
    return ir.node(op_type, [ir.val("x"), constant], attributes=attributes)  # type: ignore[arg-type]  # plain values


def conv(channels: int = 3, outputs: int = 4) -> ir.Node:
    weight = RNG.standard_normal((outputs, channels, 3, 3))
    return layer("Conv", weight, strides=[2, 2], pads=[1, 1, 1, 1])


@pytest.mark.parametrize(
    "node",
    [
        conv(),
        layer("MatMul", RNG.standard_normal((5, 7))),
        layer("Gemm", RNG.standard_normal((7, 5)), transB=1),
    ],
    ids=["Conv", "MatMul", "Gemm"],
)
def test_weight_matrix_and_back(node: ir.Node) -> None:
    matrix = weight_matrix(node)
    stored = node.inputs[1]
    assert stored is not None
    assert stored.const_value is not None
    integers = np.arange(matrix.size, dtype=np.int8).reshape(matrix.shape)
    back = from_matrix(node, integers)
    assert back.shape == stored.const_value.numpy().shape
    if node.op_type == "Gemm":
        np.testing.assert_array_equal(back, integers.T)


def test_the_moment_of_a_convolution_is_that_of_its_patches() -> None:
    """A constant image: every inner tap sees the constant."""
    probe = Probe([conv(channels=2)])
    probe.add(np.full((3, 2, 64, 64), 0.5, np.float32))
    assert probe.moment.shape == (18, 18)
    centre = [4, 13]  # the middle tap of both channels never meets the padding
    np.testing.assert_allclose(probe.moment[np.ix_(centre, centre)], 0.25, rtol=1e-6)


def test_the_moment_of_tokens() -> None:
    tokens = RNG.standard_normal((4, 50, 6)).astype(np.float32)
    probe = Probe([layer("MatMul", np.eye(6))])
    probe.add(tokens)
    np.testing.assert_allclose(np.diag(probe.moment), (tokens**2).mean((0, 1)), rtol=0.3)


def test_batches_do_not_matter_and_state_is_whole() -> None:
    tokens = RNG.standard_normal((6, 50, 6)).astype(np.float32)
    node = layer("MatMul", RNG.standard_normal((6, 4)))
    whole, parts, resumed = Probe([node]), Probe([node]), Probe([node])
    whole.add(tokens)
    parts.add(tokens[:4])
    resumed.restore(parts.state())
    resumed.add(tokens[4:])
    np.testing.assert_allclose(resumed.moment, whole.moment)
    assert ROWS_PER_IMAGE > 50, "rows are drawn with replacement"


def test_unknown_geometry_is_refused() -> None:
    with pytest.raises(InvariantError, match="one group"):
        Probe([layer("Conv", np.ones((4, 1, 3, 3)), group=4, pads=[1, 1, 1, 1])])
    with pytest.raises(InvariantError, match="2 layers read"):
        Probe([conv(), conv()])
