"""PyTorch itself as an engine: what the others are compared with."""

from __future__ import annotations

import copy

import numpy as np
import numpy.typing as npt
import torch

from rest_deploy.model.backbone import Backbone

Float32 = npt.NDArray[np.float32]


class Eager:
    """The reference module in float32, eager, on the CPU.

    threads: of an operator, 0: as PyTorch has them; they hold for the whole process.
    """

    def __init__(self, module: Backbone, threads: int = 0) -> None:
        self._module = copy.deepcopy(module).eval().float()
        if threads:
            torch.set_num_threads(threads)

    def run(self, images: Float32) -> Float32:
        """images: (N, 3, H, W), normalized -> logits (N, classes)."""
        with torch.inference_mode():
            logits: Float32 = self._module(torch.from_numpy(images)).numpy()
        return logits
