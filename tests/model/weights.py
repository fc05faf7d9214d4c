"""Deterministic weights and inputs of the golden recipe (assets/golden), in float64."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from rest_deploy.model.backbone import Backbone

GOLDEN = Path(__file__).parents[1] / "assets" / "golden"

Module = TypeVar("Module", bound=Backbone)


def golden_value(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """One tensor of the recipe: seeded by the crc32 of its name."""
    z = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        z = np.zeros(shape)
    elif name.endswith("running_var"):
        z = 0.5 + np.abs(z)
    elif name.endswith("running_mean"):
        z = 0.1 * z
    elif len(shape) <= 1:
        z = 1.0 + 0.1 * z if name.endswith(".weight") else 0.1 * z
    else:
        z = z / np.sqrt(np.prod(shape[1:]))
    return torch.tensor(z, dtype=torch.float64)


def set_golden(module: Module) -> Module:
    """`module` in float64, eval mode, with the recipe's weights."""
    module = module.double().eval()
    state = {k: golden_value(k, tuple(v.shape)) for k, v in module.state_dict().items()}
    module.load_state_dict(state)
    return module


def official(name: str, height: int, width: int) -> torch.Tensor:
    """(2, 1000) float64: what the official code returns for `golden_image`."""
    with np.load(GOLDEN / "official.npz") as stored:
        return torch.tensor(stored[f"{name}/{height}x{width}"])


def golden_image(height: int, width: int) -> torch.Tensor:
    """(2, 3, H, W) float64."""
    rng = np.random.default_rng(height * 1000 + width)
    return torch.tensor(rng.standard_normal((2, 3, height, width)))


def relative(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())
