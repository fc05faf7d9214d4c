"""Engine -> arrays: NumPy in, NumPy out, thread-safe, no torch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import Sidecar, parse_metadata, read_sidecar
from rest_deploy.contracts import SMALLEST_SIDE, ModelMetadata, Runner
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.errors import ArtifactError, MissingDependencyError, ShapeError
from rest_deploy.runtime.provider import provider_for

Float32 = npt.NDArray[np.float32]


class Session:
    """A loaded model. Open it once, call it from any number of threads.

    >>> session = Session.open("build/rest_lite.onnx")
    >>> session.run(images).shape  # images: (N, 3, H, W) float32, normalized
    (N, 1000)
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
        provider: str | None = None,
        threads: int | None = None,
        metadata: ModelMetadata | None = None,
    ) -> Session:
        """Load a model file written by rest-deploy; its sidecar, if there, must match its bytes.

        provider: of ONNX Runtime, a name of `engine.providers`; None for the one the file was built
        for, else the CPU. threads: per operator, None for all cores. metadata: instead of
        the file's own.
        Raises `ArtifactError` (missing, damaged, foreign), `MissingDependencyError`.
        """
        path = Path(path)
        if not path.is_file():
            raise ArtifactError(f"no such model: {path}", hint="rest-deploy export --variant lite")
        if path.suffix == ".engine":
            from rest_deploy.runtime.loading import check_engine, examine

            check_engine(path, examine())
            raise MissingDependencyError(
                f"{path} fits this machine, but running TensorRT engines is not in this version",
                hint="trtexec --loadEngine runs it; --backend onnxruntime builds one for here",
            )
        if path.suffix != ".onnx":
            raise ArtifactError(f"{path} has the suffix {path.suffix!r}; expected a .onnx model")
        sidecar = read_sidecar(path)
        name, options = provider_for(path, sidecar, provider)
        runner = OnnxRuntimeRunner(path, provider=name, options=options, threads=threads)
        described = metadata or parse_metadata(runner.metadata_json, path)
        return cls(runner, described, path, sidecar)

    def run(self, images: Float32) -> Float32:
        """images: (N, 3, H, W) float32, normalized, H and W >= 32 -> logits (N, num_classes).

        Raises `ShapeError`.
        """
        check_images(images)
        feed = np.ascontiguousarray(images, dtype=self.runner.inputs[0].dtype)
        outputs = self.runner.infer({self.metadata.input_name: feed})
        return outputs[self.metadata.output_name].astype(np.float32, copy=False)


def check_images(images: Float32) -> None:
    """Raise `ShapeError` unless `images` is (N, 3, H, W) float32 with N > 0, H and W >= 32."""
    shape, dtype = np.shape(images), getattr(images, "dtype", type(images).__name__)
    fits = len(shape) == 4 and shape[0] > 0 and shape[1] == 3 and min(shape[2:]) >= SMALLEST_SIDE
    if not fits or dtype != np.float32:
        raise ShapeError(
            f"got {dtype} of shape {shape}; expected float32 (batch, 3, height, width) with "
            f"height and width of at least {SMALLEST_SIDE}"
        )
