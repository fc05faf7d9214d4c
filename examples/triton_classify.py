"""Labels of images by a Triton server; the images go as they are.

    pip install 'tritonclient[http]'
    python examples/triton_classify.py photo.jpg other.png --model rest_lite_classify

The server decodes and ranks: MODEL is the ensemble that `rest-deploy triton-repo` writes. The body
is binary; JSON would be several times as large.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--model", required=True, help="the ensemble, NAME_classify")
    parser.add_argument("--url", default="127.0.0.1:8000")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds")
    options = parser.parse_args()

    outputs = [InferRequestedOutput(name) for name in ("label", "probability")]
    failed = 0
    with InferenceServerClient(
        options.url, connection_timeout=options.timeout, network_timeout=options.timeout
    ) as client:
        for path in options.images:
            image = InferInput("image_bytes", [1, 1], "BYTES")
            image.set_data_from_numpy(np.array([[path.read_bytes()]], dtype=np.object_))
            try:
                answer = client.infer(options.model, [image], outputs=outputs)
            except InferenceServerException as error:
                print(f"{path}: {error.message()}", file=sys.stderr)
                failed += 1
                continue
            print(path)
            labels, probabilities = answer.as_numpy("label")[0], answer.as_numpy("probability")[0]
            for label, probability in zip(labels, probabilities, strict=True):
                print(f"  {probability:7.2%}  {label.decode()}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
