"""Asks a Triton server, inside the environment that has its clients; no test by itself.

    python triton_asker.py HTTP_PORT GRPC_PORT INPUTS.npz ANSWERS.npz MODEL…

INPUTS: `images` (n, 3, H, W) float32, and the encoded images `encoded_0`, `encoded_1`, … as uint8.
ANSWERS: for every MODEL `MODEL/http`, `MODEL/grpc`, `MODEL/together` (n, classes), the last from
requests sent at once; of the ensemble of the first, `label`, `probability`, `logits`.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

CONCURRENCY = 16


def one_by_one(module: Any, client: Any, model: str, images: Any) -> Any:
    return np.concatenate([
        client.infer(model, [tensor(module, "image", image[None])]).as_numpy("logits")
        for image in images
    ])  # fmt: skip


def together(client: Any, model: str, images: Any) -> Any:
    module = tritonclient.http
    sent = [client.async_infer(model, [tensor(module, "image", image[None])]) for image in images]
    return np.concatenate([request.get_result().as_numpy("logits") for request in sent])


def tensor(module: Any, name: str, array: Any) -> Any:
    kind = "BYTES" if array.dtype == np.object_ else "FP32"
    found = module.InferInput(name, list(array.shape), kind)
    found.set_data_from_numpy(array)
    return found


def main() -> None:
    http_port, grpc_port, inputs, answers, *models = sys.argv[1:]
    given = np.load(inputs)
    http = tritonclient.http.InferenceServerClient(
        f"127.0.0.1:{http_port}", concurrency=CONCURRENCY
    )
    grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{grpc_port}")
    found: dict[str, Any] = {}
    for model in models:
        found[f"{model}/http"] = one_by_one(tritonclient.http, http, model, given["images"])
        found[f"{model}/grpc"] = one_by_one(tritonclient.grpc, grpc, model, given["images"])
        found[f"{model}/together"] = together(http, model, given["images"])
    rows: dict[str, list[Any]] = {"label": [], "probability": [], "logits": []}
    for index in range(len([name for name in given.files if name.startswith("encoded_")])):
        encoded = np.array([[given[f"encoded_{index}"].tobytes()]], dtype=np.object_)
        answer = http.infer(
            f"{models[0]}_classify", [tensor(tritonclient.http, "image_bytes", encoded)]
        )
        for name, values in rows.items():
            values.append(answer.as_numpy(name)[0])
    for name, values in rows.items():
        found[name] = np.stack(values).astype(np.str_ if name == "label" else np.float32)
    http.close()
    grpc.close()
    np.savez(answers, **found)


if __name__ == "__main__":
    main()
