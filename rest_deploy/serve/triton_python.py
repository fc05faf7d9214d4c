"""What runs inside Triton's Python backend: the engine, image decoding, ranking.

Each class is a model of the server; a repository's model.py only imports it. One object is one
instance, in a process of its own, called by one thread. `triton_python_backend_utils` exists in
that process alone. Every request has its own answer: one that cannot be used fails alone, with
INVALID_ARG, which HTTP clients see as 400.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import sha256_file
from rest_deploy.contracts import Dims, Preprocessing
from rest_deploy.errors import ArtifactError, ImageError, RestDeployError, ShapeError
from rest_deploy.layout import layout_of
from rest_deploy.preprocess import load_image, to_input
from rest_deploy.runtime.classifier import best, most_probable
from rest_deploy.runtime.session import Session
from rest_deploy.serve.triton_config import DataType, ModelConfig, Warmup
from rest_deploy.signature import InputKind

Float32 = npt.NDArray[np.float32]
Images = npt.NDArray[Any]
Answer = Sequence[tuple[str, npt.NDArray[Any]]] | RestDeployError
"""Of one request: its output tensors, or why there are none."""


class EngineModel:
    """Images -> its outputs, by a `Session` of the engine beside model.py."""

    def initialize(self, args: dict[str, str]) -> None:
        """Called once, when the model is loaded. Raises what `Session.open` does."""
        config, folder = _opened(args)
        self._input = config.input[0].name
        engine = folder / args["model_version"] / config.parameter("engine")
        expected = config.parameter("engine_sha256")
        if expected and sha256_file(engine) != expected:
            raise ArtifactError(
                f"{engine} is not the engine that the repository was written with",
                hint="rest-deploy triton-repo writes it again",
            )
        threads = config.parameter("threads")
        self._session = Session.open(
            engine,
            threads=int(threads) if threads else None,
            gpu=_gpu(engine, args),
            selftest=config.parameter("selftest") != "off",
        )
        self._session.warm_up(warm_shapes(config.model_warmup))

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """requests: one or more, what the dynamic batcher put together."""
        arrays = [_array(request, self._input) for request in requests]
        wanted = [set(request.requested_output_names()) for request in requests]
        kind = self._session.metadata.input_kind
        return [
            _response(answer if isinstance(answer, RestDeployError) else [*answer.items()])
            for answer in run_together(self._session.run_all, arrays, wanted, kind)
        ]

    def finalize(self) -> None:
        self._session.close()


class PreprocessModel:
    """Encoded images -> tensors, by `rest_deploy.preprocess`."""

    def initialize(self, args: dict[str, str]) -> None:
        config, folder = _opened(args)
        described = (folder / config.parameter("preprocessing")).read_bytes()
        self._preprocessing = msgspec.json.decode(described, type=Preprocessing)
        self._input, self._output = config.input[0].name, config.output[0].name
        image = config.output[0]
        self._kind: InputKind = "uint8" if image.data_type is DataType.UINT8 else "float"
        _, _, height, width = layout_of(self._kind).dims((1, *image.dims))
        self._size = (height, width)
        self._type = np.float16 if image.data_type is DataType.FP16 else None

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [_response(self._prepared(_array(request, self._input))) for request in requests]

    def _prepared(self, encoded: npt.NDArray[Any]) -> Answer:
        """encoded: (batch, 1) of bytes -> (batch, 3, height, width), or (batch, height, width, 3)
        for an engine that takes pixels."""
        images = []
        for index, content in enumerate(encoded.reshape(-1).tolist()):
            try:
                image = load_image(content)
                images.append(to_input(image, self._kind, self._preprocessing, self._size))
            except ImageError as error:
                return ImageError(f"image {index} of {encoded.size}: {error}")
        batch = np.stack(images)
        return [(self._output, batch if self._type is None else batch.astype(self._type))]


class RankModel:
    """Logits or probabilities -> the most probable labels, their probabilities and indices, best
    first; and the scores again."""

    def initialize(self, args: dict[str, str]) -> None:
        config, folder = _opened(args)
        text = (folder / config.parameter("labels")).read_text(encoding="utf-8")
        self._labels = tuple(text.removesuffix("\n").split("\n"))
        self._input, self._top = config.input[0].name, config.output[0].dims[0]
        self._probable = config.parameter("scores") == "probabilities"

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [_response(self._ranked(_array(request, self._input))) for request in requests]

    def _ranked(self, scores: npt.NDArray[Any]) -> Answer:
        scores = scores.astype(np.float32, copy=False)
        try:
            rows = [
                most_probable(row.astype(np.float64), self._labels, self._top)
                if self._probable
                else best(row, self._labels, self._top)
                for row in scores
            ]
        except ArtifactError as error:
            return error
        labels = [[found.label.encode() for found in row] for row in rows]
        return [
            ("label", np.array(labels, dtype=np.object_)),
            ("probability", np.array([[p.probability for p in row] for row in rows], np.float32)),
            ("index", np.array([[p.index for p in row] for row in rows], np.int32)),
            (self._input, scores),
        ]


def run_together(
    run: Callable[[Images], Mapping[str, Float32]],
    requests: Sequence[Images],
    wanted: Sequence[Set[str]],
    kind: InputKind = "float",
) -> list[dict[str, Float32] | RestDeployError]:
    """The wanted outputs of each request, from as few runs as there are image sizes.

    requests: n images each, in the layout of that kind. An answer that is not finite is an error,
    like a request of another shape; both leave the other requests alone. An error of the engine
    goes to all it ran with.
    """
    answers: list[dict[str, Float32] | RestDeployError] = [
        ShapeError("this request was not answered") for _ in requests
    ]
    groups: dict[tuple[int, ...], list[int]] = {}
    for index, images in enumerate(requests):
        try:
            layout_of(kind).check(images)
        except ShapeError as error:
            answers[index] = error
        else:
            groups.setdefault(images.shape[1:], []).append(index)
    for members in groups.values():
        batch = [requests[index] for index in members]
        try:
            found = run(batch[0] if len(batch) == 1 else np.concatenate(batch))
        except RestDeployError as error:
            for index in members:
                answers[index] = error
            continue
        first = 0
        for index, images in zip(members, batch, strict=True):
            last = first + len(images)
            part = {
                name: values[first:last] for name, values in found.items() if name in wanted[index]
            }
            finite = all(np.isfinite(values).all() for values in part.values())
            answers[index] = part if finite else _not_finite(images)
            first = last
    return answers


def warm_shapes(samples: Sequence[Warmup]) -> list[Dims]:
    """Of the configuration's warm-up samples, (batch, 3, height, width)."""
    shapes: list[Dims] = []
    for sample in samples:
        for sent in sample.inputs.values():
            layout = layout_of("uint8" if sent.data_type is DataType.UINT8 else "float")
            batch, _, height, width = layout.dims((sample.batch_size, *sent.dims))
            shapes.append((batch, 3, height, width))  # other channels the server refuses itself
    return shapes


def _not_finite(images: Images) -> RestDeployError:
    if np.isfinite(images).all():
        return ArtifactError("the engine answered NaN or infinity")
    return ShapeError("the images have NaN or infinite values")


def _opened(args: dict[str, str]) -> tuple[ModelConfig, Path]:
    """What Triton says of the model, and its folder."""
    config = msgspec.convert(json.loads(args["model_config"]), ModelConfig, strict=False)
    return config, Path(args["model_repository"])


def _gpu(engine: Path, args: dict[str, str]) -> Any:
    """The GPU that Triton gave this instance, for an engine that takes one by number."""
    if engine.suffix != ".engine":
        return None
    from rest_deploy.runtime.tensorrt import GpuOptions

    return GpuOptions(ordinal=int(args["model_instance_device_id"]))


def _array(request: Any, name: str) -> npt.NDArray[Any]:
    import triton_python_backend_utils as pb

    array: npt.NDArray[Any] = pb.get_input_tensor_by_name(request, name).as_numpy()
    return array


def _response(answer: Answer) -> Any:
    import triton_python_backend_utils as pb

    if isinstance(answer, RestDeployError):
        code = (
            pb.TritonError.INVALID_ARG
            if isinstance(answer, ShapeError | ImageError)
            else pb.TritonError.INTERNAL
        )
        return pb.InferenceResponse(output_tensors=[], error=pb.TritonError(str(answer), code))
    return pb.InferenceResponse(
        output_tensors=[pb.Tensor(name, np.ascontiguousarray(array)) for name, array in answer]
    )
