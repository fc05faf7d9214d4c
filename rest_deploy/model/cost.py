"""Parameters and multiply-accumulates, counted on the module itself (meta device, no memory)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.flop_counter import FlopCounterMode

from rest_deploy.contracts import Architecture
from rest_deploy.model.backbone import Backbone
from rest_deploy.model.family import build


@dataclass(frozen=True)
class Cost:
    """`parameters` in numbers; `macs` for one image. Papers print macs as "FLOPs"."""

    parameters: int
    macs: int


def count(architecture: Architecture, num_classes: int, height: int, width: int) -> Cost:
    """Cost of one image of height x width."""
    with torch.device("meta"):
        module = build(architecture, num_classes).eval()
    return Cost(
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        macs=macs(module, height, width),
    )


def macs(module: Backbone, height: int, width: int) -> int:
    """Multiply-accumulates of products and convolutions for one image, as `module` does them."""
    image = next(module.parameters()).new_empty(1, 3, height, width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(image)
    return counter.get_total_flops() // 2
