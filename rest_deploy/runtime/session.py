"""Engine -> arrays: NumPy in, NumPy out, thread-safe, no torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import Sidecar, parse_metadata, read_sidecar
from rest_deploy.contracts import Dims, ModelMetadata, Runner
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.openvino import metadata_json
from rest_deploy.errors import ArtifactError, InputError
from rest_deploy.layout import layout_of
from rest_deploy.preprocess import feed
from rest_deploy.proofs import may_saturate
from rest_deploy.runtime.arrival import Arrival
from rest_deploy.runtime.backend import backend_for, open_openvino
from rest_deploy.runtime.provider import provider_for
from rest_deploy.runtime.specialize import ShapeLimits, SpecializingRunner

if TYPE_CHECKING:
    from rest_deploy.runtime.exchange import DeviceArray
    from rest_deploy.runtime.tensorrt import GpuOptions

log = logging.getLogger(__name__)

Float32 = npt.NDArray[np.float32]
Images = npt.NDArray[np.generic]
"""As the model takes them: (N, 3, H, W) float32, normalized, or (N, H, W, 3) uint8, RGB; H and W
of at least 32. `ModelMetadata.input_kind` says which."""


class Session:
    """A loaded model. Open it once, call it from any number of threads.

    >>> session = rest_deploy.Session.open("build/rest_nano.onnx")
    >>> images = numpy.zeros((2, 3, 96, 64), numpy.float32)  # (N, 3, H, W), normalized
    >>> session.run(images).shape
    (2, 22)
    """

    def __init__(
        self, runner: Runner, metadata: ModelMetadata, path: Path, sidecar: Sidecar | None
    ) -> None:
        self.runner = runner
        self.metadata = metadata
        self.path = path
        self.sidecar = sidecar

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        backend: str | None = None,
        provider: str | None = None,
        threads: int | None = None,
        specialize: ShapeLimits | None = None,
        gpu: GpuOptions | None = None,
        trust: str | Path | None = None,
        metadata: ModelMetadata | None = None,
        selftest: bool = True,
    ) -> Session:
        """Load a model file written by rest-deploy; its sidecar, if there, must match its bytes.

        backend, provider and threads: for .onnx; "onnxruntime" or "openvino", None for the one the
        file was built for, else ONNX Runtime; of ONNX Runtime, a name of `engine.providers`, None
        for the one the file was built for, else the CPU; and of one call, None for all cores.
        specialize: of OpenVINO alone, its compilations for shapes that come often; None for the
        usual limits, see `runtime.specialize`.
        gpu and trust: for .engine; `trust` names the export that an engine without a sidecar was
        built from, and loads it although nothing says who built it: an engine is executable code.
        metadata: instead of the file's own. selftest: an engine that was not seen here before runs
        its own two images first, see `runtime.arrival`; False takes it as it is.
        Raises `ArtifactError` (missing, damaged, foreign), `SelfTestError` (answers otherwise
        here), `MissingDependencyError`, `DeviceError`.
        """
        session = cls._open(
            Path(path), backend, provider, threads, specialize, gpu, trust, metadata
        )
        if selftest:
            session._check_arrival(threads)
        return session

    @classmethod
    def _open(
        cls,
        path: Path,
        backend: str | None,
        provider: str | None,
        threads: int | None,
        specialize: ShapeLimits | None,
        gpu: GpuOptions | None,
        trust: str | Path | None,
        metadata: ModelMetadata | None,
    ) -> Session:
        if not path.is_file():
            raise ArtifactError(f"no such model: {path}", hint="rest-deploy export --variant lite")
        if path.suffix == ".engine":
            for option, value in (("--backend", backend), ("--provider", provider)):
                if value is not None:
                    raise InputError(
                        f"{path} is an engine of TensorRT; {option} {value} is for ONNX models"
                    )
            return cls._open_engine(path, gpu, None if trust is None else Path(trust))
        if path.suffix != ".onnx":
            raise ArtifactError(
                f"{path} has the suffix {path.suffix!r}; expected a .onnx model or a .engine"
            )
        if trust is not None:
            raise InputError(f"{path} is no engine: an ONNX model runs no code, nothing to trust")
        sidecar = read_sidecar(path)
        if backend_for(sidecar, backend, provider) == "openvino":
            return cls._open_openvino(path, sidecar, threads, specialize, metadata)
        name, options = provider_for(path, sidecar, provider)
        runner = OnnxRuntimeRunner(path, provider=name, options=options, threads=threads)
        described = metadata or parse_metadata(runner.metadata_json, path)
        return cls(runner, described, path, sidecar)

    @classmethod
    def _open_openvino(
        cls,
        path: Path,
        sidecar: Sidecar | None,
        threads: int | None,
        limits: ShapeLimits | None,
        metadata: ModelMetadata | None,
    ) -> Session:
        runner = open_openvino(path, sidecar, threads, limits)
        if metadata is None and sidecar is not None:
            metadata = sidecar.metadata  # a cached model is compiled already: the file is not read
        if metadata is None:
            metadata = parse_metadata(metadata_json(path), path)
        return cls(runner, metadata, path, sidecar)

    @classmethod
    def _open_engine(cls, path: Path, gpu: GpuOptions | None, trust: Path | None) -> Session:
        from rest_deploy.runtime import loading
        from rest_deploy.runtime.tensorrt import GpuOptions, open_engine

        options = gpu or GpuOptions()
        here = loading.examine(options.ordinal)
        if trust is not None and loading.read_sealed(path) is None:
            content, flavour = loading.check_unknown(path, here)
            metadata, sidecar = _metadata_of(trust), None
        else:
            content, sidecar = loading.check_engine(path, here)
            metadata, flavour = sidecar.metadata, loading.flavour_of(sidecar)
            loading.check_weights(path, sidecar)
        runner = open_engine(content, flavour, options, path, here.sm)
        return cls(runner, metadata, path, sidecar)

    def _check_arrival(self, threads: int | None) -> None:
        """An engine that answers otherwise here than where it was built is closed again; of one
        that cannot be asked, what is known against it is said."""
        build = self.sidecar.build if self.sidecar else None
        try:
            arrival = Arrival.of(self.path, self.sidecar, self.runner, threads)
            if arrival is not None:
                arrival.ensure()
            elif build is not None and build.precision == "int8":
                doubt = may_saturate(build.sums, self.runner.backend)
                if doubt:
                    log.warning("%s carries no self-test: %s; build it again", self.path, doubt)
        except BaseException:
            self.close()
            raise

    def run(self, images: Images) -> Float32:
        """images: as `Images` -> the first output, of a classifier logits (N, num_classes).

        Raises `ShapeError`, `DeviceError`.
        """
        return self._infer(images, (self.metadata.output_name,))[self.metadata.output_name]

    def run_all(self, images: Images) -> dict[str, Float32]:
        """images: as `Images` -> every output by name, in the order of `metadata.gives`.

        logits, probabilities (N, num_classes); embedding (N, C); c2 to c5 (N, C, H/stride,
        W/stride), rounded up. Raises `ShapeError`, `DeviceError`.
        """
        return self._infer(images, [output.name for output in self.metadata.gives])

    def run_normalized(self, images: Float32) -> dict[str, Float32]:
        """`run_all` of normalized images (N, 3, H, W), whatever the model takes: one that takes
        pixels is given those they were made of. Raises `ImageError` where there are none."""
        return self.run_all(self.feed(images))

    def feed(self, images: Float32) -> Images:
        """Normalized images (N, 3, H, W) as the model takes them; see `preprocess.feed`."""
        return feed(images, self.metadata.input_kind, self.metadata.card.preprocessing)

    def _infer(self, images: Images, names: Iterable[str]) -> dict[str, Float32]:
        layout_of(self.metadata.input_kind).check(images)
        spec = self.runner.inputs[0]
        outputs = self.runner.infer({spec.name: np.ascontiguousarray(images, dtype=spec.dtype)})
        return {name: outputs[name].astype(np.float32, copy=False) for name in names}

    def warm_up(self, shapes: Iterable[Dims]) -> None:
        """Make it ready for images of these shapes (batch, 3, height, width), whatever its layout,
        so that their first requests are as fast as later ones: OpenVINO compiles for each, others
        run once.

        Requests of other threads go on meanwhile. Raises `ShapeError`, and `InputError` for more
        shapes than OpenVINO keeps compiled.
        """
        layout = layout_of(self.metadata.input_kind)
        wanted = [layout.shape(shape) for shape in shapes]
        for shape in wanted:
            layout.check(np.broadcast_to(np.zeros((), layout.dtype), shape))
        if isinstance(self.runner, SpecializingRunner):
            self.runner.warm_up(wanted)
            return
        for shape in wanted:
            self.run(np.zeros(shape, layout.dtype))

    def run_on_device(
        self, images: object, *, out: object | None = None, stream: object | None = None
    ) -> DeviceArray:
        """The first output on the GPU from images on the GPU, without a copy; for engines of
        TensorRT.

        images: (N, 3, H, W), or (N, H, W, 3) uint8 where the model takes pixels, contiguous, of the
        engine's input type, anything with DLPack or the CUDA Array Interface (torch, CuPy, JAX,
        Numba). out: where it goes, of the output's shape and type; None: memory of its own. The
        answer is taken without a copy too, e.g. by `torch.from_dlpack`. stream: the caller's, as a
        number or an object: its earlier work is waited for, its later work finds the answer, and
        this call returns at once; None: it returns when it is there. Raises `ShapeError`,
        `InputError`, `DeviceError`.
        """
        name = self.metadata.output_name
        return self.run_all_on_device(images, out=None if out is None else {name: out},
                                      stream=stream)[name]  # fmt: skip

    def run_all_on_device(
        self,
        images: object,
        *,
        out: Mapping[str, object] | None = None,
        stream: object | None = None,
    ) -> dict[str, DeviceArray]:
        """`run_on_device` with every output by name. out: where some of them go."""
        from rest_deploy.runtime.tensorrt import TensorRtRunner

        if not isinstance(self.runner, TensorRtRunner):
            raise InputError(
                f"{self.path} runs on {self.runner.backend}, which takes arrays of the host",
                hint="Session.run; an engine of build-engine --backend tensorrt runs on the GPU",
            )
        return self.runner.infer_on_device(images, out or {}, stream)

    def close(self) -> None:
        """Give back what the engine holds, after the calls that run; no call may follow."""
        self.runner.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _metadata_of(export: Path) -> ModelMetadata:
    """Labels and preprocessing of the model that an engine was built from."""
    sidecar = read_sidecar(export)
    if sidecar is None:
        raise ArtifactError(
            f"{export} has no sidecar; expected the export that the engine was built from",
            hint="rest-deploy export",
        )
    return sidecar.metadata
