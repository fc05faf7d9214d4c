from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rest_deploy.errors import InputError
from rest_deploy.quant.observe import SAMPLING_STRIDE, Observation, observe
from rest_deploy.quant.scales import bin_values
from rest_deploy.verify.parity import Case, synthetic_images


def test_statistics_by_hand() -> None:
    tokens = Observation(axis=-1)
    tokens.add(np.array([[[1, -4], [2, 3]]], np.float32))
    tokens.add(np.array([[[-5, 0]]], np.float32))
    np.testing.assert_array_equal(tokens.channel_largest, [5, 4])
    np.testing.assert_allclose(tokens.channel_mean, [-2 / 3, -1 / 3])
    assert tokens.largest == 5


def test_maps_have_their_channels_on_axis_1() -> None:
    maps = Observation(axis=1)
    maps.add(np.stack([np.full((2, 3), 1.0), np.full((2, 3), -7.0)])[None].astype(np.float32))
    np.testing.assert_array_equal(maps.channel_largest, [1, 7])
    np.testing.assert_allclose(maps.channel_mean, [1, -7])


def test_the_histogram_holds_magnitudes() -> None:
    values = np.random.default_rng(0).normal(size=(1, 5000, 1)).astype(np.float32)
    seen = Observation(axis=-1)
    seen.add(values)
    sample = np.abs(values.ravel()[::SAMPLING_STRIDE])
    assert seen.counts.sum() == len(sample)
    spread = np.repeat(bin_values(), seen.counts)
    np.testing.assert_allclose(np.sort(sample), spread, rtol=0.005)


def test_order_and_batching_do_not_matter() -> None:
    batches = [
        np.random.default_rng(i).normal(size=(2, 10, 4)).astype(np.float32) for i in range(4)
    ]
    forward, backward = Observation(-1), Observation(-1)
    for batch in batches:
        forward.add(batch)
    for batch in reversed(batches):
        backward.add(batch)
    np.testing.assert_array_equal(forward.counts, backward.counts)
    np.testing.assert_array_equal(forward.channel_largest, backward.channel_largest)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_an_error(bad: float) -> None:
    values = np.zeros((1, 4, 2), np.float32)
    values[0, 1, 1] = bad
    with pytest.raises(InputError, match="NaN or infinite"):
        Observation(-1).add(values)


def test_observing_a_model(exported_nano: Path) -> None:
    name = "stage2.0.attn.q.Add.out"
    done: list[int] = []
    sizes = [Case(batch=2, height=64, width=64), Case(batch=1, height=40, width=96)]
    batches = [synthetic_images(case) for case in sizes]
    seen = observe(
        exported_nano, {name: -1, "image": 1}, lambda _done: batches, progress=done.append
    )
    assert done == [2, 3]
    assert len(seen[name].channel_largest) == 64
    largest = max(float(np.abs(batch).max()) for batch in batches)
    assert seen["image"].largest == pytest.approx(largest)


def test_a_non_finite_tensor_is_named(exported_nano: Path) -> None:
    batch = np.full((1, 3, 64, 64), np.nan, np.float32)
    with pytest.raises(InputError, match="image: a tensor has NaN"):
        observe(exported_nano, {"image": 1}, lambda _done: [batch])
