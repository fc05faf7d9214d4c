"""The function every engine must compute: the reference module in float64 (or float32)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from rest_deploy.model.backbone import Backbone
from rest_deploy.model.outputs import Outputs
from rest_deploy.signature import Output

Precision = Literal["float64", "float32"]


class Reference:
    """A frozen copy of `module`; call it with arrays.

    outputs: what it gives, as the graph that is compared with it; none: what `module` itself does.
    channels_last: the memory layout of the images, which changes how PyTorch rounds.
    """

    def __init__(
        self,
        module: Backbone,
        precision: Precision = "float64",
        outputs: Sequence[Output] = (),
        *,
        channels_last: bool = False,
    ) -> None:
        self.precision = precision
        self._layout = torch.channels_last if channels_last else torch.contiguous_format
        self._dtype = {"float64": torch.float64, "float32": torch.float32}[precision]
        copied = copy.deepcopy(module).eval().to(self._dtype)
        if precision == "float64":
            sum_depthwise_taps(copied)
        self._module: nn.Module = Outputs(copied, outputs) if outputs else copied
        own = "logits" if isinstance(module.head, nn.Linear) else "embedding"
        self.names = tuple(output.name for output in outputs) or (own,)

    def __call__(self, images: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        """images: (N, 3, H, W) float32, normalized -> the first output, (N, classes) of logits."""
        return self.all(images)[self.names[0]]

    def all(self, images: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float64]]:
        """The same images -> every output by name."""
        with torch.inference_mode():
            batch = torch.from_numpy(images).to(self._dtype, memory_format=self._layout)
            found = self._module(batch)
        tensors = found if isinstance(found, tuple) else (found,)
        return {
            name: tensor.to(torch.float64).numpy()
            for name, tensor in zip(self.names, tensors, strict=True)
        }


class DepthwiseTaps(nn.Module):
    """A depthwise convolution, of one or more outputs a channel, as the sum over its k*k taps of
    shifted maps.

    PyTorch runs a float64 depthwise convolution as one convolution per channel, 1,868 of them
    in ResT-lite, each with its own thread barrier.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:  # (B, C, H, W) -> (B, C * m, H', W')
        conv = self.conv
        outputs = conv.out_channels // conv.in_channels  # m, of each channel
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        height, width = (
            (size + 2 * padding - kernel) // stride + 1 for size in (x.shape[2], x.shape[3])
        )
        padded = nn.functional.pad(x, (padding,) * 4)
        weight = conv.weight.reshape(x.shape[1], outputs, kernel, kernel)
        out = x.new_zeros(x.shape[0], x.shape[1], outputs, height, width)
        for i in range(kernel):
            for j in range(kernel):
                shifted = padded[
                    :, :, i : i + stride * height : stride, j : j + stride * width : stride
                ]
                out += shifted[:, :, None] * weight[:, :, i, j, None, None]
        out = out.flatten(1, 2)
        return out if conv.bias is None else out + conv.bias[:, None, None]


def sum_depthwise_taps(module: nn.Module) -> int:
    """Replace every depthwise convolution below `module`; returns how many."""
    replaced = 0
    for name, child in module.named_children():
        if isinstance(child, nn.Conv2d) and child.groups == child.in_channels > 1:
            setattr(module, name, DepthwiseTaps(child))
            replaced += 1
        else:
            replaced += sum_depthwise_taps(child)
    return replaced
