"""ONNX Runtime as a backend."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import METADATA_KEY
from rest_deploy.contracts import TensorSpec
from rest_deploy.errors import ArtifactError, MissingDependencyError, require

if TYPE_CHECKING:
    import onnx
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OnnxRuntimeRunner:
    """One model loaded by ONNX Runtime. `infer` is thread-safe: sessions are immutable."""

    def __init__(self, path: Path, *, provider: str = "cpu", threads: int | None = None) -> None:
        """provider: a key of `PROVIDERS`; it must really run, ONNX Runtime's silent fallback to
        the CPU is an error. threads: for one operator; None lets ONNX Runtime take all cores.

        Raises `ArtifactError` for a file it cannot load, `MissingDependencyError` when the package
        or the provider is not here.
        """
        require("onnxruntime", "onnxruntime")
        import onnxruntime as ort

        wanted = PROVIDERS[provider]
        if wanted not in ort.get_available_providers():
            raise MissingDependencyError(
                f"this onnxruntime has no {wanted}; "
                f"it has {', '.join(ort.get_available_providers())}",
                hint="pip install 'rest-deploy[onnxruntime-gpu]'",
            )
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings concern its own optimizer
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            self._session: onnxruntime.InferenceSession = ort.InferenceSession(
                str(path), options, providers=[wanted]
            )
        except Exception as error:  # its exception classes share no public base
            reason = re.sub(r"\s+", " ", str(error))[:300]
            raise ArtifactError(f"ONNX Runtime cannot load {path}: {reason}") from error
        running = self._session.get_providers()
        if running[0] != wanted:
            raise MissingDependencyError(
                f"{wanted} was asked for, ONNX Runtime runs {running[0]}",
                hint="rest-deploy doctor shows what is missing",
            )
        self.backend = f"onnxruntime/{provider}"
        self.inputs = tuple(_spec(argument) for argument in self._session.get_inputs())
        self.outputs = tuple(_spec(argument) for argument in self._session.get_outputs())

    @property
    def metadata_json(self) -> str | None:
        """The model's own description; see `artifact.parse_metadata`."""
        found = self._session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        return None if found is None else str(found)

    def infer(
        self, feeds: Mapping[str, npt.NDArray[np.generic]]
    ) -> dict[str, npt.NDArray[np.generic]]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))

    def close(self) -> None:
        """ONNX Runtime gives its memory back with the object."""


def _spec(argument: onnxruntime.NodeArg) -> TensorSpec:
    return TensorSpec(
        name=argument.name,
        dtype=_DTYPES.get(argument.type, argument.type),
        shape=tuple(argument.shape),
    )


INTEGER_KERNELS = frozenset({
    "MatMulIntegerToFloat", "MatMulInteger", "QLinearMatMul", "QLinearConv", "ConvInteger", "QGemm",
    "DynamicQuantizeMatMul", "QAttention",
})  # fmt: skip
"""What ONNX Runtime's optimizer makes of a Q/DQ group that it computes in integers."""

FLOAT_KERNELS = frozenset({
    "MatMul", "Gemm", "Conv", "FusedConv", "FusedMatMul", "FusedGemm", "NhwcFusedConv",
})  # fmt: skip


FUSED_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "HardSigmoid"})
"""ONNX Runtime folds them into the convolution before."""


def kernels(path: Path) -> list[tuple[str, str]]:
    """(node name, "int8" or "float") of every GEMM and convolution of the optimized graph.

    This is what the session runs, not what the file asks for: a DequantizeLinear before a float
    kernel is not INT8.
    """
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(options.optimized_model_filepath, load_external_data=False).graph
    original = onnx.load(path, load_external_data=False).graph
    makers = {output: node for node in original.node for output in node.output}
    return [
        (_original_name(node.name, makers), "int8" if node.op_type in INTEGER_KERNELS else "float")
        for node in graph.node
        if node.op_type in INTEGER_KERNELS | FLOAT_KERNELS
    ]


def _original_name(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """Of a node after fusions, which append "/MatmulTransposeFusion/" and the like, or call a
    blocked convolution after the tensor it makes, behind its activation.

    makers: of the tensors of the original graph.
    """
    name = name.split("/")[0]
    maker = makers.get(name.removesuffix("_nchwc"))
    if maker is None:
        return name.removesuffix("_nchwc").removesuffix(".out")
    while maker.op_type in FUSED_ACTIVATIONS and maker.input[0] in makers:
        maker = makers[maker.input[0]]
    return maker.name
