from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.errors import InputError, InvariantError
from rest_deploy.quant.observe import SAMPLING_STRIDE, Histogram, observe
from rest_deploy.quant.scales import bin_values
from rest_deploy.verify.parity import Case, synthetic_images


def test_the_histogram_holds_magnitudes() -> None:
    values = np.random.default_rng(0).normal(size=(1, 5000, 1)).astype(np.float32)
    seen = Histogram()
    seen.add(values)
    sample = np.abs(values.ravel()[::SAMPLING_STRIDE])
    assert seen.counts.sum() == len(sample)
    assert seen.largest == np.abs(values).max()
    spread = np.repeat(bin_values(), seen.counts)
    np.testing.assert_allclose(np.sort(sample), spread, rtol=0.005)


def test_order_and_batching_do_not_matter() -> None:
    batches = [
        np.random.default_rng(i).normal(size=(2, 10, 4)).astype(np.float32) for i in range(4)
    ]
    forward, backward = Histogram(), Histogram()
    for batch in batches:
        forward.add(batch)
    for batch in reversed(batches):
        backward.add(batch)
    np.testing.assert_array_equal(forward.counts, backward.counts)
    assert forward.largest == backward.largest


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_an_error(bad: float) -> None:
    values = np.zeros((1, 4, 2), np.float32)
    values[0, 1, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        Histogram().add(values)


def test_observing_a_model(exported_nano: Path) -> None:
    done: list[int] = []
    sizes = [Case(batch=2, height=64, width=64), Case(batch=1, height=40, width=96)]
    batches = [synthetic_images(case) for case in sizes]
    names = ["stage2.0.attn.q.Add.out", "image"]
    seen = observe(ir.load(exported_nano), names, lambda _done: batches, progress=done.append)
    assert done == [2, 3]
    assert list(seen) == names
    assert seen["image"].largest == max(float(np.abs(batch).max()) for batch in batches)
    values = sum(batch.size for batch in batches)
    assert seen["image"].counts.sum() == pytest.approx(values / SAMPLING_STRIDE, abs=2)


def test_a_non_finite_tensor_is_named(exported_nano: Path) -> None:
    batch = np.full((1, 3, 64, 64), np.nan, np.float32)
    with pytest.raises(InputError, match="image: the tensor has NaN"):
        observe(ir.load(exported_nano), ["image"], lambda _done: [batch])


def test_an_unknown_tensor_is_named(exported_nano: Path) -> None:
    with pytest.raises(InvariantError, match="no tensor elsewhere"):
        observe(ir.load(exported_nano), ["elsewhere"], lambda _done: [])


def test_state_is_whole() -> None:
    seen, copy = Histogram(), Histogram()
    seen.add(np.random.default_rng(0).standard_normal((2, 5, 3)).astype(np.float32))
    copy.restore(seen.state())
    np.testing.assert_array_equal(copy.counts, seen.counts)
    assert copy.largest == seen.largest
