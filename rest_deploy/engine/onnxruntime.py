"""ONNX Runtime as a backend."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import METADATA_KEY
from rest_deploy.contracts import TensorSpec
from rest_deploy.engine.onnxruntime_session import open_session, reason
from rest_deploy.engine.placement import Placement, placed, read_profile
from rest_deploy.engine.providers import DEFAULTS, ProviderOptions, known
from rest_deploy.errors import ArtifactError
from rest_deploy.layout import layout_of_type

if TYPE_CHECKING:
    import onnx
    import onnxruntime

_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8"}


class OnnxRuntimeRunner:
    """One model loaded by ONNX Runtime. `infer` is thread-safe: sessions are immutable."""

    def __init__(
        self,
        path: Path,
        *,
        provider: str = "cpu",
        options: ProviderOptions = DEFAULTS,
        threads: int | None = None,
        in_float: bool = False,
    ) -> None:
        """provider: a name of `engine.providers`; it must really run, ONNX Runtime's silent
        fallback to the CPU is an error. threads: for one operator; None lets ONNX Runtime take all
        cores. in_float: no integer kernels, see `open_session`.

        Raises `ArtifactError` for a file it cannot load, `MissingDependencyError` when the package
        or the provider is not here, `InputError` for options the provider does not have.
        """
        self._session = open_session(path, provider, options, threads=threads, in_float=in_float)
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
        try:
            return dict(zip(names, self._session.run(names, dict(feeds)), strict=True))
        except Exception as error:
            if self.backend == "onnxruntime/cpu":
                raise
            shapes = ", ".join(f"{name} {value.shape}" for name, value in feeds.items())
            raise ArtifactError(
                f"{self.backend} cannot run {shapes}: {reason(error)}",
                hint="rest-deploy inspect shows the profiles that a compiled provider is held to",
            ) from error

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
        (original_name(node.name, makers), "int8" if node.op_type in INTEGER_KERNELS else "float")
        for node in graph.node
        if node.op_type in INTEGER_KERNELS | FLOAT_KERNELS
    ]


def original_name(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
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


def placement(
    path: Path, provider: str, options: ProviderOptions = DEFAULTS, *, batch: int = 1
) -> Placement:
    """Run the model once on noise, profiled: which provider computed each node.

    The images are 64x64, or of the least shape of the first profile. Raises what
    `OnnxRuntimeRunner` does, and `VerificationError` for a profile that tells nothing.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        session = open_session(path, provider, options, profile=Path(folder) / "profile")
        (image,) = session.get_inputs()
        shape = options.profiles[0].minimum if options.profiles else (batch, 3, 64, 64)
        dtype = _DTYPES[image.type]
        noise = layout_of_type(dtype).noise(shape, dtype)
        try:
            session.run(None, {image.name: noise})
        except Exception as error:
            raise ArtifactError(f"ONNX Runtime cannot run {path}: {reason(error)}") from error
        text = Path(session.end_profiling()).read_text(encoding="utf-8")
    nodes = onnx.load(path, load_external_data=False).graph.node
    makers = {output: node for node in nodes for output in node.output}
    return placed(
        read_profile(text),
        known(provider).ort_name,
        INTEGER_KERNELS | FLOAT_KERNELS,
        lambda name: _layer(name, makers),
    )


def _layer(name: str, makers: Mapping[str, onnx.NodeProto]) -> str:
    """ "stage1.0:mlp" of a node after fusions; its own name where it has no role."""
    from rest_deploy.graph.roles import place

    original = original_name(name, makers)
    return str(place(original) or original)
