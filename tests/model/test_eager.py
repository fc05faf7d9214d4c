from __future__ import annotations

import numpy as np
import torch

from rest_deploy.cards import load_card
from rest_deploy.model.checkpoint import load_model
from rest_deploy.model.eager import Eager
from rest_deploy.model.reference import Reference


def test_it_is_the_reference_in_float32() -> None:
    module = load_model(load_card("nano"), None).module
    images = np.random.default_rng(0).standard_normal((2, 3, 64, 48)).astype(np.float32)
    answer = Eager(module).run(images)
    assert answer.dtype == np.float32
    np.testing.assert_array_equal(answer, Reference(module, "float32")(images))


def test_threads() -> None:
    before = torch.get_num_threads()
    try:
        Eager(load_model(load_card("nano"), None).module, threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
