"""Logits and kernels of OpenVINO in a process of its own, which a variable may hold below its CPU:
the library reads it once, when it is loaded.

    ONEDNN_MAX_CPU_ISA=AVX2 python -m tests.engine.held images.npy answers.npz a.onnx b.onnx
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np

from rest_deploy.engine.openvino import OpenVinoRunner


def main(images: str, answers: str, *models: str) -> None:
    """Writes the logits of every model under its file's name, prints what its kernels are called
    ("brgemm_avx2_f32"), a line each."""
    found: dict[str, Any] = {}
    for path in map(Path, models):
        runner = OpenVinoRunner(path)
        (image,) = runner.inputs
        found[path.stem] = runner.infer({image.name: np.load(images)})["logits"]
        for node in runner.executed().get_ordered_ops():
            print(node.get_rt_info()["primitiveType"].astype(str))
    np.savez(answers, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
