"""`triton_python_backend_utils` as far as models use it; the true one is in Triton's stub alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.serve.triton_config import ModelConfig


class Tensor:
    def __init__(self, name: str, array: npt.NDArray[Any]) -> None:
        assert array.flags["C_CONTIGUOUS"]
        self._name, self._array = name, array

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        return self._array


class TritonError:
    INVALID_ARG, INTERNAL = "INVALID_ARG", "INTERNAL"

    def __init__(self, message: str, code: str) -> None:
        self.message, self.code = message, code


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor]
    error: TritonError | None = None

    def array(self, name: str) -> npt.NDArray[Any]:
        """Of the output of that name; fails where the answer is an error."""
        assert self.error is None, self.error.message
        (found,) = (tensor for tensor in self.output_tensors if tensor.name() == name)
        return found.as_numpy()

    def refused(self) -> tuple[str, str]:
        assert self.error is not None
        assert self.output_tensors == []
        return self.error.code, self.error.message


OUTPUTS = ("logits", "probabilities", "embedding", "c2", "c3", "c4", "c5")


@dataclass
class Request:
    tensors: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    names: tuple[str, ...] = OUTPUTS

    def requested_output_names(self) -> list[str]:
        """The server names all of the configuration where a client names none."""
        return list(self.names)


def request(names: Sequence[str] = OUTPUTS, /, **tensors: npt.NDArray[Any]) -> Request:
    return Request(tensors, tuple(names))


def encoded(*images: bytes) -> npt.NDArray[np.object_]:
    """(batch, 1), as a TYPE_STRING tensor arrives."""
    return np.array([[image] for image in images], dtype=np.object_)


MODULE = SimpleNamespace(
    Tensor=Tensor,
    TritonError=TritonError,
    InferenceResponse=InferenceResponse,
    get_input_tensor_by_name=lambda request, name: Tensor(name, request.tensors[name]),
)


def arguments(root: Path, config: ModelConfig) -> dict[str, str]:
    """Of `initialize`. Numbers of 64 bits come as text in protobuf's JSON."""
    described = msgspec.to_builtins(config)
    for tensor in (*described["input"], *described["output"]):
        tensor["dims"] = [str(size) for size in tensor["dims"]]
    return {
        "model_config": json.dumps(described),
        "model_repository": str(root / config.name),
        "model_version": "1",
        "model_instance_kind": "CPU",
        "model_instance_device_id": "0",
    }
