from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import pytest

from rest_deploy.errors import InputError, InvariantError
from rest_deploy.quant.extents import Extent, check_finite, largest_values, measure
from rest_deploy.quant.replay import open_session, with_outputs
from rest_deploy.verify.parity import Case, synthetic_images

BATCHES = [
    synthetic_images(case)
    for case in (Case(batch=2, height=64, width=64), Case(batch=1, height=40, width=96))
]
TENSORS = {
    "image": 1,  # (B, C, H, W)
    "stage2.0.attn.q.Add.out": -1,  # (B, N, C)
    "head.Gemm.in": -1,  # (B, C)
    "stage2.0.attn.context.MatMul.out": None,  # (B, h, N, d)
}
"""Of every rank, with the axis of the channels; the head's input gets its name in `tensors`."""


def channels(*values: float) -> npt.NDArray[np.float32]:
    return np.array(values, np.float32)


def tensors(model: ir.Model) -> dict[str, int | None]:
    head = next(node for node in model.graph if node.name == "head.Gemm")
    assert head.inputs[0] is not None
    found: dict[str, int | None] = dict(TENSORS)
    found[head.inputs[0].name or ""] = found.pop("head.Gemm.in")
    return found


def test_what_is_reduced_is_what_numpy_finds(exported_nano: Path) -> None:
    model = ir.load(exported_nano)
    wanted = tensors(model)
    done: list[int] = []
    extents = measure(model, wanted, lambda _done: BATCHES, progress=done.append)
    assert done == [2, 3]
    session = open_session(with_outputs(model, wanted))
    runs = [session.run(None, {"image": batch}) for batch in BATCHES]
    for index, (name, axis) in enumerate(wanted.items()):
        arrays = [run[index] for run in runs]
        rows = np.concatenate(
            [array.reshape(-1, 1) if axis is None
             else np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis]) for array in arrays]
        )  # fmt: skip
        np.testing.assert_array_equal(extents[name].channel_largest, np.abs(rows).max(axis=0))
        np.testing.assert_allclose(
            extents[name].channel_mean, rows.mean(axis=0, dtype=np.float64), atol=1e-5
        )
        assert extents[name].values == rows.size


def test_the_model_stays_as_it_was(exported_nano: Path) -> None:
    model = ir.load(exported_nano)
    before = ir.to_proto(model).SerializeToString()
    measure(model, tensors(model), lambda _done: BATCHES[:1])
    assert ir.to_proto(model).SerializeToString() == before


def test_statistics_by_hand() -> None:
    seen = Extent()
    seen.add(channels(2, 3), channels(1, -4), channels(3, -1), 4)
    seen.add(channels(-5, 0), channels(-5, 0), channels(-5, 0), 2)
    np.testing.assert_array_equal(seen.channel_largest, [5, 4])
    np.testing.assert_allclose(seen.channel_mean, [-2 / 3, -1 / 3])
    assert seen.largest == 5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_non_finite_value_is_found_and_named(exported_nano: Path, bad: float) -> None:
    """Also one that later finite batches follow."""
    broken = BATCHES[0].copy()
    broken[1, 2, 5, 5] = bad
    model = ir.load(exported_nano)
    extents = measure(model, {"image": 1}, lambda _done: [broken, *BATCHES])
    assert np.isnan(extents["image"].largest)
    assert np.isfinite(extents["image"].channel_largest).tolist() == [True, True, False]
    with pytest.raises(InputError, match="image: the tensor has NaN"):
        check_finite(extents)


def test_every_float_tensor(exported_nano: Path) -> None:
    model = ir.load(exported_nano)
    largest = largest_values(model, lambda _done: BATCHES)
    count = sum(value.dtype == ir.DataType.FLOAT for node in model.graph for value in node.outputs)
    assert len(largest) == count > 200
    assert largest["logits"] > 0


def test_an_unknown_tensor_is_named(exported_nano: Path) -> None:
    with pytest.raises(InvariantError, match="no tensor elsewhere"):
        measure(ir.load(exported_nano), {"elsewhere": None}, lambda _done: BATCHES)


def test_state_is_whole() -> None:
    seen, copy = Extent(), Extent()
    seen.add(channels(2, 3), channels(1, -4), channels(3, -1), 4)
    copy.restore(seen.state())
    np.testing.assert_array_equal(copy.channel_largest, seen.channel_largest)
    np.testing.assert_array_equal(copy.channel_mean, seen.channel_mean)
    assert copy.values == seen.values
