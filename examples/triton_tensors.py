"""Labels of a batch by a Triton server; the images are prepared here.

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
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput

from rest_deploy import Session
from rest_deploy.preprocess import load_image, to_input


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("export", type=Path, help="the model's .onnx, for its preprocessing")
    parser.add_argument("images", type=Path, nargs="+", help="at most the server's max_batch_size")
    parser.add_argument("--model", required=True)
    parser.add_argument("--url", default="127.0.0.1:8000")
    options = parser.parse_args()

    with Session.open(options.export) as session:
        metadata = session.metadata
    named = {output.kind: output.name for output in reversed(metadata.gives)}
    scores = named.get("logits") or named.get("probabilities")
    if scores is None:
        print(f"{options.export} gives {', '.join(named)}: no classes", file=sys.stderr)
        return 1
    card, kind = metadata.card.preprocessing, metadata.input_kind
    batch = np.stack([to_input(load_image(path), kind, card) for path in options.images])
    datatype = "UINT8" if kind == "uint8" else "FP32"
    images = InferInput(metadata.input_name, list(batch.shape), datatype)
    images.set_data_from_numpy(batch)
    wanted = InferRequestedOutput(scores)  # of several outputs this one alone is sent
    with InferenceServerClient(options.url) as client:
        answers = client.infer(options.model, [images], outputs=[wanted]).as_numpy(scores)
    for path, row in zip(options.images, answers, strict=True):
        best = int(row.argmax())
        label = metadata.labels[best] if metadata.labels else str(best)
        print(f"{path}: {label} ({row[best]:.3f})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
