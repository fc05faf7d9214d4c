"""Weights that cannot overflow 16 bits: found, made, and proven from the file."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.quant.insert_qdq import insert_qdq, observed_tensors, quantized_weight
from rest_deploy.quant.pairs import LIMIT, fit, largest_pair, prove
from rest_deploy.quant.recipe import Recipe, load_recipe
from rest_deploy.quant.rounding import round_weight
from rest_deploy.quant.scales import weight_scales

INT8 = load_recipe("int8")
FULL = msgspec.structs.replace(INT8, exact_pairs=False)


def saturating_product(row: np.ndarray, inputs: np.ndarray) -> tuple[int, int]:
    """What vpmaddubsw makes of a row, (K,) int8, and (K,) uint8 inputs; and the true sum."""
    products = row.astype(np.int64) * inputs
    padded = np.append(products, 0) if len(products) % 2 else products
    in_pairs = padded.reshape(-1, 2).sum(axis=1)
    return int(np.clip(in_pairs, -(2**15), 2**15 - 1).sum()), int(products.sum())


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_the_largest_pair_is_of_one_sign_and_packed_together() -> None:
    rows = np.array([[60, 50, -90, 60], [100, 0, 100, 0], [-70, -60, 127, -127]], np.int8)
    assert largest_pair(rows, 0).tolist() == [110, 100, 130]
    assert largest_pair(rows.T, 1).tolist() == [110, 100, 130]
    second_and_third = np.array([[0, 90, 90, 0]], np.int8)
    assert largest_pair(second_and_third, 0).tolist() == [90]


def test_the_last_of_an_odd_row_is_alone() -> None:
    assert largest_pair(np.array([[-127]], np.int8), 0).tolist() == [127]
    assert largest_pair(np.array([[1, 2, 90]], np.int8), 0).tolist() == [90]


def test_a_convolution_is_packed_by_channels_or_flattened() -> None:
    kernel = np.zeros((1, 3, 3, 3), np.int8)
    kernel[0, 0, 1, 0] = kernel[0, 1, 1, 0] = 90  # channels of the fourth tap: at 9 and 10
    assert largest_pair(kernel, 0).tolist() == [180]
    kernel[:] = 0
    kernel[0, 1, 0, 1] = kernel[0, 1, 0, 2] = 80  # taps of the second channel: at 10 and 11
    assert largest_pair(kernel, 0).tolist() == [160]
    kernel[:] = 0
    kernel[0, 2, 0, 0] = kernel[0, 0, 0, 1] = 70  # the last channel, and the next tap's first
    assert largest_pair(kernel, 0).tolist() == [140]


@pytest.mark.parametrize(("shape", "axis"), [((64, 48), 1), ((22, 512), 0), ((16, 3, 3, 3), 0)])
def test_no_pair_is_beyond_the_limit(shape: tuple[int, ...], axis: int) -> None:
    values = weight(*shape)
    stored, scales = quantized_weight(values, axis, INT8)
    assert (largest_pair(stored, axis) <= LIMIT).all()
    before, narrow = quantized_weight(values, axis, FULL)
    assert (largest_pair(before, axis) > LIMIT).any(), "the control has nothing to mend"
    assert (scales >= narrow).all()
    by_channel = [-1 if index == axis else 1 for index in range(values.ndim)]
    error = stored.astype(np.float32) * scales.reshape(by_channel) - values
    assert (np.abs(error) <= scales.reshape(by_channel) / 2 * 1.001).all()


def test_pairs_cost_less_than_seven_bits() -> None:
    values = weight(256, 64)
    _stored, scales = quantized_weight(values, 1, INT8)
    seven = weight_scales(values, 1, LIMIT / 2 - 1)
    assert scales.mean() < 0.75 * seven.mean()


def test_a_channel_of_zeros_stays_zero() -> None:
    values = weight(8, 4)
    values[:, 2] = 0
    stored, scales = quantized_weight(values, 1, INT8)
    assert not stored[:, 2].any()
    assert (scales > 0).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_what_saturates_with_eight_bits_is_exact_with_pairs(sign: int) -> None:
    values = sign * np.abs(weight(1, 64))
    worst = np.full(64, 255, np.uint8)
    full, _ = quantized_weight(values, 0, FULL)
    found, true = saturating_product(full[0], worst)
    assert found != true, "the control does not saturate"
    exact, _ = quantized_weight(values, 0, INT8)
    found, true = saturating_product(exact[0], worst)
    assert found == true


def test_fitted_rounding_keeps_its_pairs_too() -> None:
    values = weight(8, 27).astype(np.float64)
    inputs = weight(500, 1, seed=1) + 0.1 * weight(500, 27, seed=2)  # neighbouring pixels are alike
    moment = (inputs.T @ inputs).astype(np.float64)

    def rounded(scales: np.ndarray) -> np.ndarray:
        return round_weight(values, moment, scales, 127).astype(np.int8)

    scales = weight_scales(values, 0, 127)
    assert (largest_pair(rounded(scales), 0) > LIMIT).any()
    stored, wider = fit(values, 0, scales, rounded)
    assert (largest_pair(stored, 0) <= LIMIT).all()
    np.testing.assert_array_equal(stored, rounded(wider))


def graph(source: Path, recipe: Recipe) -> ir.Model:
    model = ir.load(source)
    insert_qdq(model, recipe, dict.fromkeys(observed_tensors(model, recipe), 4.0))
    return model


def test_every_quantized_layer_is_proven(exported_nano: Path) -> None:
    sums = prove(graph(exported_nano, INT8))
    assert all(found.exact and 0 < found.pair <= LIMIT for found in sums)
    assert {found.role for found in sums} == set(INT8.quantize)
    assert len({(found.block, found.role) for found in sums}) == len(sums)


def test_eight_bits_are_not_proven(exported_nano: Path) -> None:
    sums = prove(graph(exported_nano, FULL))
    assert any(not found.exact and found.pair > LIMIT for found in sums)


def test_a_product_of_activations_cannot_be_proven(exported_nano: Path) -> None:
    sums = prove(graph(exported_nano, load_recipe("int8-openvino")))
    products = [found for found in sums if found.role in ("scores", "context")]
    assert len(products) == 6
    assert all(not found.exact and found.pair == 0 for found in products)
    assert all(found.exact for found in sums if found not in products)


def test_one_layer_beyond_the_limit_is_not_hidden_by_its_block(exported_nano: Path) -> None:
    model = graph(exported_nano, INT8)
    stored = model.graph.initializers["stage2.0.attn.k.weight.T.int8"]
    assert stored.const_value is not None
    damaged = stored.const_value.numpy().copy()
    damaged[:2, 0] = 65
    stored.const_value = ir.tensor(damaged, name=stored.name)
    (broken,) = [found for found in prove(model) if not found.exact]
    assert (broken.block, broken.role, broken.pair) == ("stage2.0", "qkv", 130)


def test_a_float_graph_has_no_sums(exported_nano: Path) -> None:
    assert prove(ir.load(exported_nano)) == ()
