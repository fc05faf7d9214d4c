"""A detector on an engine's maps: torchvision's FPN and RetinaNet, on one photo at 800x1333.

    pip install torchvision
    rest-deploy export --variant lite --checkpoint F --output features
    python examples/detector_features.py build/rest_lite.features.onnx photo.jpg

The engine computes C2 to C5; the pyramid, the heads, the anchors and the suppression of double
boxes are torchvision's, in PyTorch. They are untrained here, so the boxes mean nothing: the script
shows which map goes where, in which shape. To train such a detector, the backbone has to be the
PyTorch module (`rest_deploy.model`, `Backbone.features`); its engine takes the place afterwards.
"""

from __future__ import annotations

import argparse
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from rest_deploy import Session
from rest_deploy.preprocess import load_image

HEIGHT, WIDTH = 800, 1333


class Pyramid(nn.Module):
    """C3, C4 and C5 of a session -> P3 to P7, as RetinaNet wants them."""

    def __init__(self, session: Session, channels: int = 256) -> None:
        super().__init__()
        self.session = session
        self.maps = [output for output in session.metadata.gives if output.stride >= 8]
        if session.metadata.input_kind != "float" or len(self.maps) != 3:
            raise SystemExit(
                f"{session.path} does not give maps from normalized images: torchvision normalizes "
                "by itself (rest-deploy export --output features)"
            )
        widths = [output.channels for output in self.maps]
        self.fpn = FeaturePyramidNetwork(widths, channels, LastLevelP6P7(channels, channels))
        self.out_channels = channels
        self.seen: dict[str, tuple[int, ...]] = {}
        """Shapes of the last image's maps, for the curious."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # (N, 3, H, W), normalized
        found = self.session.run_all(images.numpy())
        maps = OrderedDict((o.name, torch.from_numpy(found[o.name])) for o in self.maps)
        levels: dict[str, Tensor] = self.fpn(maps)
        self.seen = {name: array.shape for name, array in found.items()}
        self.seen |= {name.replace("c", "p"): tuple(level.shape) for name, level in levels.items()}
        return levels


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="an export or engine with --output features")
    parser.add_argument("photo", type=Path)
    parser.add_argument("--classes", type=int, default=91)
    options = parser.parse_args()

    torch.manual_seed(0)
    session = Session.open(options.model)
    preprocessing = session.metadata.card.preprocessing
    pyramid = Pyramid(session)
    detector = RetinaNet(
        pyramid,
        num_classes=options.classes,
        fixed_size=(WIDTH, HEIGHT),
        size_divisible=1,
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
        score_thresh=0.0,
    ).eval()
    image = load_image(options.photo)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    tensor = pixels.reshape(image.height, image.width, 3).permute(2, 0, 1) / 255
    with torch.inference_mode():
        (found,) = detector([tensor])
    print(f"{options.photo}, {image.height}x{image.width}, at {HEIGHT}x{WIDTH}:")
    strides = {output.name: output.stride for output in session.metadata.gives}
    for name, shape in pyramid.seen.items():
        stride = f", stride {strides[name]}" if name in strides else ""
        print(f"  {name}: {' x '.join(map(str, shape))}{stride}")
    boxes, sides = found["boxes"], torch.tensor([image.width, image.height] * 2)
    inside = bool(((boxes >= 0) & (boxes <= sides)).all())
    print(f"{len(boxes)} boxes of an untrained head, all within the photo: {inside}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
