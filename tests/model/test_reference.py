from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from rest_deploy.cards import load_card
from rest_deploy.model.reference import DepthwiseTaps, Reference
from rest_deploy.model.rest import ResT
from tests.model.weights import relative


def test_taps_equal_the_convolution() -> None:
    for kernel, stride in [(3, 1), (9, 8), (5, 4), (3, 2)]:
        conv = nn.Conv2d(6, 6, kernel, stride=stride, padding=kernel // 2, groups=6).double()
        x = torch.randn(2, 6, 29, 17, dtype=torch.float64)
        with torch.inference_mode():
            assert relative(DepthwiseTaps(conv)(x), conv(x)) < 1e-14


@pytest.mark.parametrize("outputs", [2, 16])
def test_several_outputs_a_channel(outputs: int) -> None:
    conv = nn.Conv2d(6, 6 * outputs, 3, padding=1, groups=6).double()
    x = torch.randn(2, 6, 5, 7, dtype=torch.float64)
    with torch.inference_mode():
        assert relative(DepthwiseTaps(conv)(x), conv(x)) < 1e-14


def test_float64_reference_equals_the_module() -> None:
    torch.manual_seed(1)
    module = ResT(load_card("nano").architecture, 5).eval()
    images = np.random.default_rng(0).standard_normal((2, 3, 65, 80)).astype(np.float32)
    with torch.inference_mode():
        expected = module.double()(torch.from_numpy(images).double())
    actual = Reference(module.float())(images)
    assert actual.dtype == np.float64
    assert relative(torch.tensor(actual), expected) < 1e-12


def test_precisions_differ() -> None:
    module = ResT(load_card("nano").architecture, 5).eval()
    images = np.random.default_rng(0).standard_normal((1, 3, 64, 64)).astype(np.float32)
    double, single = Reference(module)(images), Reference(module, "float32")(images)
    assert 0 < np.abs(double - single).max() < 1e-2
