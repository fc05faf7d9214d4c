"""PyTorch itself as an engine: what the others are compared with."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from rest_deploy.model.backbone import Backbone
from rest_deploy.model.outputs import Outputs
from rest_deploy.signature import Output

Float32 = npt.NDArray[np.float32]


class Eager:
    """The reference module in float32, eager.

    threads: of an operator, 0: as PyTorch has them; they hold for the whole process. outputs: all
    that are computed, `run` returns the first; none: what the module does. device: "cpu" or
    "cuda"; there TF32 is off, for the whole process, so that float32 means float32.
    """

    def __init__(
        self,
        module: Backbone,
        threads: int = 0,
        outputs: Sequence[Output] = (),
        device: str = "cpu",
    ) -> None:
        copied = copy.deepcopy(module).eval().float()
        found: nn.Module = Outputs(copied, outputs) if outputs else copied
        self._module, self._device = found.to(device), device
        if threads:
            torch.set_num_threads(threads)
        if device != "cpu":
            torch.backends.cuda.matmul.allow_tf32 = False
            torch.backends.cudnn.allow_tf32 = False

    def run(self, images: Float32) -> Float32:
        """images: (N, 3, H, W), normalized -> the first output, logits (N, classes)."""
        with torch.inference_mode():
            found = self._module(torch.from_numpy(images).to(self._device))
        first: Float32 = (found[0] if isinstance(found, tuple) else found).cpu().numpy()
        return first
