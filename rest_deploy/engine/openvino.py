"""OpenVINO as a backend, on CPUs."""

from __future__ import annotations

import contextlib
import functools
import math
import os
import re
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import METADATA_KEY
from rest_deploy.contracts import Dims, TensorSpec
from rest_deploy.engine.compile_cache import CompileCache, log
from rest_deploy.errors import (
    ArtifactError,
    InputError,
    MissingDependencyError,
    ShapeError,
    require,
)
from rest_deploy.layout import layout_of_type

if TYPE_CHECKING:
    import openvino

Inference = Literal["f32", "bf16"]

DEVICE = "CPU"

MOST_REQUESTS = 8
"""Calls in flight; further ones wait. Each has input and output tensors of its own."""

FIRST: Dims = (1, 3, 64, 64)
"""Shape of the first run of a model of any shape. A fused attention is compiled at its first run,
and where that has one key (a 32x32 image), 16 keys and more give wrong logits from then on, by 5 %
and more (OpenVINO 2026.4.1, float32; NaN in bf16), unless something is added to the scores, as
q's bias is. 64x64 has four keys in stage 1."""

_DTYPES = {"f32": "float32", "f16": "float16", "u8": "uint8"}


class OpenVinoRunner:
    """One model compiled by OpenVINO for the CPU. `infer` is thread-safe: each call has a request
    of its own, at most `MOST_REQUESTS` at a time."""

    backend = "openvino/cpu"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        precision: Inference = "f32",
        cache: CompileCache | None = None,
        shape: Dims | None = None,
        streams: int = 1,
    ) -> None:
        """threads: of one inference, None for all cores. precision: what float layers compute in;
        always set, because on CPUs with bf16 units OpenVINO silently takes bf16. cache: where
        the compiled model is kept. shape: compiled for this one only. streams: equal parts of the
        batch of `shape` that run side by side, each on its share of the threads.

        Raises `ArtifactError` for a file it cannot load, `MissingDependencyError` when the package
        is not here or the CPU has no bf16, `InputError` for more threads than there are cores.
        """
        require("openvino", "openvino")
        check_threads(threads)
        if precision == "bf16":
            check_bf16()
        if streams > 1 and (shape is None or shape[0] % streams):
            raise InputError(f"{streams} streams do not share a batch of shape {shape} evenly")
        self.path, self.precision, self.shape, self.streams = path, precision, shape, streams
        self._threads, self._cache = threads, cache
        self._config = _config(threads, precision, streams)
        self._compiled, self.from_cache = self._load(cache)
        self.blob = "" if cache is None else cache.digests.get(self._name(), "")
        """Digest of the compiled form on disk, which this one is or was kept as."""
        self.inputs = tuple(_spec(port, streams) for port in self._compiled.inputs)
        self.outputs = tuple(_spec(port, streams) for port in self._compiled.outputs)
        self._slots = threading.BoundedSemaphore(MOST_REQUESTS)
        self._idle: deque[list[openvino.InferRequest]] = deque()
        self._closed = False
        if any(isinstance(size, str) for spec in self.inputs for size in spec.shape):
            self.infer({spec.name: np.zeros(layout_of_type(spec.dtype).shape(FIRST), spec.dtype)
                        for spec in self.inputs})  # fmt: skip

    def specialized(self, shape: Dims) -> OpenVinoRunner:
        """The same model compiled for one shape of its input."""
        return OpenVinoRunner(
            self.path,
            threads=self._threads,
            precision=self.precision,
            cache=self._cache,
            shape=shape,
            streams=streams_for(shape[0], self._threads or _cores()),
        )

    def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        """Arrays are read where they are, unless they are not contiguous; answers are copies.

        An image with NaN or infinity gets NaN for an answer: OpenVINO's ReLU and its quantization
        would make numbers of them. Raises `ShapeError` for other shapes than the model's.
        """
        arrays = self._checked(feeds)
        with self._requests() as requests:
            if len(requests) == 1:
                requests[0].infer(arrays, share_inputs=True)
            else:
                _side_by_side(requests, arrays)
            answers: dict[str, npt.NDArray[np.generic]] = {
                spec.name: np.concatenate(
                    [request.get_output_tensor(index).data for request in requests]
                )
                for index, spec in enumerate(self.outputs)
            }
        return _poisoned(arrays, answers)

    def executed(self) -> openvino.Model:
        """The graph that runs, after OpenVINO's optimizations."""
        return self._compiled.get_runtime_model()

    def close(self) -> None:
        """Give the compiled model back; `infer` is refused from now on."""
        self._closed = True
        self._idle.clear()
        self._compiled = None

    @contextlib.contextmanager
    def _requests(self) -> Iterator[list[openvino.InferRequest]]:
        """One for each stream, taken together: calls that held some of theirs and waited for the
        rest would wait for each other."""
        with self._slots:
            if self._closed:
                raise InputError(f"the session of {self.path} is closed")
            try:
                requests = self._idle.pop()
            except IndexError:
                requests = [self._compiled.create_infer_request() for _ in range(self.streams)]
            try:
                yield requests
            finally:
                if not self._closed:
                    self._idle.append(requests)

    def _checked(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        arrays = {}
        for spec in self.inputs:
            if spec.name not in feeds:
                raise InputError(f"no input {spec.name!r} among {', '.join(feeds) or 'none'}")
            array = np.ascontiguousarray(feeds[spec.name])
            fits = array.ndim == len(spec.shape) and all(
                isinstance(wanted, str) or wanted == got
                for wanted, got in zip(spec.shape, array.shape, strict=True)
            )
            # OpenVINO runs empty batches and converts other types by itself.
            if not fits or 0 in array.shape or array.dtype != spec.dtype:
                raise ShapeError(
                    f"{self.backend} got {array.dtype} of shape {array.shape} for {spec.name!r}; "
                    f"expected {spec.dtype} {spec.shape}"
                )
            arrays[spec.name] = array
        return arrays

    def _part(self) -> Dims | None:
        """Of the shape, what one stream gets."""
        if self.shape is None:
            return None
        return (self.shape[0] // self.streams, *self.shape[1:])

    def _name(self) -> str:
        """In the compile cache."""
        part = self._part()
        if part is None:
            return "dynamic"
        return "x".join(map(str, part)) + (f"-{self.streams}" if self.streams > 1 else "")

    def _load(self, cache: CompileCache | None) -> tuple[openvino.CompiledModel, bool]:
        """The compiled model, and whether it came from the cache."""
        part, name = self._part(), self._name()
        blob = None if cache is None else cache.load(name)
        if blob is not None:
            try:
                return _core().import_model(blob, DEVICE, self._config), True
            except RuntimeError as error:
                log.warning("OpenVINO refuses the compile cache of %s: %s", self.path, _why(error))
        model = read_model(self.path)
        try:
            if part is not None:
                model.reshape(list(part))
            compiled = _core().compile_model(model, DEVICE, self._config)
        except RuntimeError as error:
            raise ArtifactError(f"OpenVINO cannot compile {self.path}: {_why(error)}") from error
        if cache is not None:
            cache.save(name, compiled.export_model().getvalue())
        return compiled, False


def read_model(path: Path) -> openvino.Model:
    """By the ONNX frontend alone: `Core.read_model` tries every other format on a damaged file.

    Raises `ArtifactError`, `MissingDependencyError`.
    """
    require("openvino", "openvino")
    from openvino.frontend import FrontEndManager

    try:
        frontend = FrontEndManager().load_by_framework("onnx")
        model = frontend.convert(frontend.load(str(path)))
    except Exception as error:  # its exception classes share no public base
        raise ArtifactError(f"OpenVINO cannot load {path}: {_why(error)}") from error
    if not model.inputs:  # so it reads an empty file
        raise ArtifactError(f"OpenVINO cannot load {path}: there is no model in it")
    return model


def metadata_json(path: Path) -> str | None:
    """The model's own description; see `artifact.parse_metadata`. Raises what `read_model` does."""
    model, key = read_model(path), ["framework", METADATA_KEY]
    return str(model.get_rt_info(key).astype(str)) if model.has_rt_info(key) else None


def version() -> str:
    """Of the library, with its build: "2026.4.1-22982-…". Raises `MissingDependencyError`."""
    require("openvino", "openvino")
    import openvino

    return str(openvino.get_version())


def cache_key(sha256: str, threads: int | None, precision: Inference) -> str:
    """Everything that a compiled model depends on. sha256: of the model file."""
    core = _core()
    cpu = str(core.get_property(DEVICE, "FULL_DEVICE_NAME"))
    able = sorted(map(str, core.get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")))
    return "|".join([sha256, version(), cpu, *able, str(threads), precision])


def check_threads(threads: int | None) -> None:
    """OpenVINO takes fewer than asked for without a word. Raises `InputError`."""
    cores = _cores()
    if threads is not None and not 1 <= threads <= cores:
        raise InputError(
            f"{threads} threads were asked for; OpenVINO has {cores} cores here",
            hint=f"--threads {cores} at most",
        )


def streams_for(batch: int, threads: int) -> int:
    """How many parts of a batch to run side by side: the most that share batch and threads evenly.

    No core waits for the others after every layer. On two cores 3 to 6 % less time in INT8, 2 to
    4 % in float32 (rest_lite, batch 8 and 2); more streams were not measured.
    """
    return math.gcd(batch, threads)


def check_bf16() -> None:
    """Raise `MissingDependencyError` where this CPU does not compute in bf16."""
    if "BF16" not in _core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES"):
        raise MissingDependencyError(
            "this CPU has no bf16 units: OpenVINO would compute in float32 instead",
            hint="--backend openvino --fp32, or --int8 without --rest bf16",
        )


@functools.cache
def _core() -> openvino.Core:
    """One a process, as OpenVINO advises; thread-safe."""
    require("openvino", "openvino")
    import openvino

    return openvino.Core()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _config(threads: int | None, precision: Inference, streams: int) -> dict[str, object]:
    config: dict[str, object] = {
        "INFERENCE_PRECISION_HINT": precision,
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": streams,  # each has kernels of its own, and a first run of its own
    }
    if threads is not None or streams > 1:  # left alone, streams get fewer than all cores
        config["INFERENCE_NUM_THREADS"] = threads or _cores()
    return config


def _side_by_side(
    requests: list[openvino.InferRequest], arrays: Mapping[str, npt.NDArray[np.generic]]
) -> None:
    """Each request its part of the batch. No part is left running when another fails."""
    parts = [
        dict(zip(arrays, part, strict=True))
        for part in zip(*(np.split(array, len(requests)) for array in arrays.values()), strict=True)
    ]
    started = []
    try:
        for request, part in zip(requests, parts, strict=True):
            request.start_async(part, share_inputs=True)
            started.append(request)
    finally:
        failures = [error for request in started if (error := _wait(request)) is not None]
    if failures:
        raise failures[0]


def _wait(request: openvino.InferRequest) -> RuntimeError | None:
    try:
        request.wait()
    except RuntimeError as error:
        return error
    return None


def _spec(port: openvino.ConstOutput, streams: int) -> TensorSpec:
    """The first axis is the batch, of which a stream has its part."""
    shape = port.get_partial_shape()
    kind = port.get_element_type().get_type_name()
    dtype = _DTYPES.get(kind, kind)
    axes = {4: layout_of_type(dtype).names(), 2: ("batch", "classes")}
    names = axes.get(len(shape), tuple(f"axis{index}" for index in range(len(shape))))
    return TensorSpec(
        name=port.get_any_name(),
        dtype=dtype,
        shape=tuple(
            name if size.is_dynamic else int(size.get_length()) * (1 if axis else streams)
            for axis, (name, size) in enumerate(zip(names, shape, strict=True))
        ),
    )


def _poisoned(
    arrays: Mapping[str, npt.NDArray[np.generic]], answers: dict[str, npt.NDArray[np.generic]]
) -> dict[str, npt.NDArray[np.generic]]:
    """The answers, NaN for images that are not finite. A sum finds them in one fast pass."""
    for array in arrays.values():
        if array.dtype.kind != "f":
            continue
        with np.errstate(over="ignore", invalid="ignore"):  # only then it is looked at closely
            total = np.add.reduce(array, axis=None, dtype=np.float32)
        if math.isfinite(total):
            continue
        broken = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
        for answer in answers.values():
            answer[broken] = np.nan
    return answers


def _why(error: Exception) -> str:
    """Of OpenVINO's, without the places in its source, on one line and not endless."""
    lines = [line for line in str(error).splitlines() if not line.startswith("Exception from")]
    return re.sub(r"\s+", " ", " ".join(lines)).strip()[:300]
