"""The detector example against the real torchvision, in a process of its own."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rest_deploy import photos, verbs

ROOT = Path(__file__).parents[1]
SITE = os.environ.get("REST_DEPLOY_TORCHVISION", "")
"""A folder with torchvision, where it is not installed beside this Python's torch."""

SHIM = """
import runpy, sys
import torch
if sys.argv[1]:
    sys.path.append(sys.argv[1])
try:
    torch.ops.load_library(next(iter(__import__("importlib").util.find_spec(
        "torchvision").submodule_search_locations)) + "/_C.so")
    own = True
except (ImportError, OSError):  # PyPI's is built for CUDA: its operators do not load beside a CPU's
    own = False
if not own:
    library = torch.library.Library("torchvision", "DEF")
    library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

    def nms(boxes, scores, threshold):
        order, kept = scores.argsort(descending=True).tolist(), []
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        for index in order:
            if kept:
                rivals = boxes[kept]
                low = torch.maximum(rivals[:, :2], boxes[index, :2])
                high = torch.minimum(rivals[:, 2:], boxes[index, 2:])
                shared = (high - low).clamp(min=0).prod(dim=1)
                if bool((shared / (areas[kept] + areas[index] - shared) > threshold).any()):
                    continue
            kept.append(index)
        return torch.tensor(kept, dtype=torch.int64)

    library.impl("nms", nms, "CPU")
    import torchvision.extension
    torchvision.extension._has_ops = lambda: True
    torchvision.ops.boxes._assert_has_ops = lambda: None
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs the example as it is; where torchvision's compiled operators do not load, its one operator
that is used, nms, is written out."""


@pytest.mark.slow
def test_a_detector_on_the_maps(tmp_path: Path) -> None:
    if not SITE and importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed; REST_DEPLOY_TORCHVISION names a folder with it")
    report = verbs.export("nano", output_dir=tmp_path, num_classes=0, outputs=("features",))
    photo = tmp_path / "photo.png"
    photos.load(photos.crops("test", 1, seed=0)[0]).save(photo)
    done = subprocess.run(
        [sys.executable, "-c", SHIM, SITE, str(ROOT / "examples" / "detector_features.py"),
         report.path, str(photo), "--classes", "5"],
        capture_output=True, text=True, timeout=600, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    dims = report.metadata.card.architecture.dims
    for name, channels, height, width, stride in (
        ("c2", dims[0], 200, 334, 4), ("c3", dims[1], 100, 167, 8), ("c4", dims[2], 50, 84, 16),
        ("c5", dims[3], 25, 42, 32),
    ):  # fmt: skip
        assert f"{name}: 1 x {channels} x {height} x {width}, stride {stride}" in done.stdout
    assert "p7: 1 x 256 x 7 x 11" in done.stdout
    assert "boxes of an untrained head, all within the photo: True" in done.stdout
