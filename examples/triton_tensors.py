"""Logits of a batch by a Triton server; the images are prepared here.

    pip install rest-deploy 'tritonclient[http]'
    python examples/triton_tensors.py rest_lite.onnx photo.jpg other.png --model rest_lite

For clients that have pixels already, or want to spare the server the decoding. What an image
becomes is the model's own: its preprocessing is read from the exported file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

from rest_deploy import Session
from rest_deploy.preprocess import load_image, to_tensor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path, help="the model's .onnx, for its preprocessing")
    parser.add_argument("images", type=Path, nargs="+", help="at most the server's max_batch_size")
    parser.add_argument("--model", required=True)
    parser.add_argument("--url", default="127.0.0.1:8000")
    options = parser.parse_args()

    with Session.open(options.export) as session:
        metadata = session.metadata
    batch = np.stack(
        [to_tensor(load_image(path), metadata.card.preprocessing) for path in options.images]
    )
    images = InferInput(metadata.input_name, list(batch.shape), "FP32")
    images.set_data_from_numpy(batch)
    with InferenceServerClient(options.url) as client:
        logits = client.infer(options.model, [images]).as_numpy(metadata.output_name)
    for path, row in zip(options.images, logits, strict=True):
        best = int(row.argmax())
        label = metadata.labels[best] if metadata.labels else str(best)
        print(f"{path}: {label} ({row[best]:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
