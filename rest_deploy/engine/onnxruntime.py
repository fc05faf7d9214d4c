"""ONNX Runtime as a backend."""

from __future__ import annotations

import contextlib
import functools
import importlib
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import METADATA_KEY
from rest_deploy.contracts import TensorSpec
from rest_deploy.cuda_driver import MEND
from rest_deploy.engine.placement import Placement, placed, read_profile
from rest_deploy.engine.providers import (
    DEFAULTS,
    Provider,
    ProviderOptions,
    known,
    session_entries,
    settings,
)
from rest_deploy.errors import ArtifactError, InputError, MissingDependencyError, require

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
    ) -> None:
        """provider: a name of `engine.providers`; it must really run, ONNX Runtime's silent
        fallback to the CPU is an error. threads: for one operator; None lets ONNX Runtime take all
        cores.

        Raises `ArtifactError` for a file it cannot load, `MissingDependencyError` when the package
        or the provider is not here, `InputError` for options the provider does not have.
        """
        self._session = _session(path, provider, options, threads=threads)
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
                f"{self.backend} cannot run {shapes}: {_reason(error)}",
                hint="rest-deploy inspect shows the profiles that a compiled provider is held to",
            ) from error


def placement(
    path: Path, provider: str, options: ProviderOptions = DEFAULTS, *, batch: int = 1
) -> Placement:
    """Run the model once on noise, profiled: which provider computed each node.

    The images are 64x64, or of the least shape of the first profile. Raises what
    `OnnxRuntimeRunner` does, and `VerificationError` for a profile that tells nothing.
    """
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        session = _session(path, provider, options, profile=Path(folder) / "profile")
        (image,) = session.get_inputs()
        shape = options.profiles[0].minimum if options.profiles else (batch, 3, 64, 64)
        noise = np.random.default_rng(0).standard_normal(shape)
        try:
            session.run(None, {image.name: noise.astype(_DTYPES[image.type])})
        except Exception as error:
            raise ArtifactError(f"ONNX Runtime cannot run {path}: {_reason(error)}") from error
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

    original = _original_name(name, makers)
    return str(place(original) or original)


def _session(
    path: Path,
    name: str,
    options: ProviderOptions,
    *,
    threads: int | None = None,
    profile: Path | None = None,
) -> onnxruntime.InferenceSession:
    """A session that runs on that provider, or an error; see `OnnxRuntimeRunner`.

    profile: beginning of the path of the profile it writes at `end_profiling`.
    """
    require("onnxruntime", "onnxruntime")
    import onnxruntime as ort

    provider, wanted = known(name), settings(name, options)
    session_options = ort.SessionOptions()
    session_options.log_severity_level = 3  # errors; its warnings concern its own optimizer
    if threads is not None:
        session_options.intra_op_num_threads = threads
    if profile is not None:
        session_options.enable_profiling = True
        session_options.profile_file_prefix = str(profile)
    for key, value in session_entries(name, options).items():
        session_options.add_session_config_entry(key, value)
    chosen: dict[str, object] = {}
    if provider.plugin:
        session_options.add_provider_for_devices([_device(provider, options.device)], wanted)
    else:
        _check_available(provider)
        chosen["providers"] = [(provider.ort_name, wanted)]
    if options.cache is not None:
        options.cache.mkdir(parents=True, exist_ok=True)
    try:
        # Its fallback goes to the CPU, at the start or in the middle of a run, with a mere print.
        session = ort.InferenceSession(str(path), session_options, enable_fallback=0, **chosen)
    except Exception as error:  # its exception classes share no public base
        on = "" if name == "cpu" else f" on {provider.ort_name}"
        typed = "docs/tensorrt.md says which types this provider takes with TensorRT 10 and 11"
        raise ArtifactError(
            f"ONNX Runtime cannot load {path}{on}: {_reason(error)}",
            hint=typed if name == "tensorrt" else None,
        ) from error
    running = session.get_providers()
    if running[0] != provider.ort_name:
        raise MissingDependencyError(
            f"{provider.ort_name} was asked for, ONNX Runtime runs {running[0]}: its libraries, "
            "driver or GPU are not here",
            hint="rest-deploy doctor shows what is missing",
        )
    return session


def version() -> str:
    """Of the package. Raises `MissingDependencyError`."""
    require("onnxruntime", "onnxruntime")
    import onnxruntime as ort

    return str(ort.__version__)


def check_provider(name: str, device: int = 0) -> None:
    """Raise `MissingDependencyError` when that provider is not here; a session tells the rest."""
    require("onnxruntime", "onnxruntime")
    provider = known(name)
    if provider.plugin:
        _device(provider, device)
    else:
        _check_available(provider)


def _reason(error: Exception) -> str:
    return re.sub(r"\s+", " ", str(error))[:300]


def _check_available(provider: Provider) -> None:
    import onnxruntime as ort

    names = ort.get_available_providers()
    if provider.ort_name not in names:
        raise MissingDependencyError(
            f"this onnxruntime has no {provider.ort_name}; it has {', '.join(names)}",
            hint=provider.install,
        )
    if provider.name != "cpu" and hasattr(ort, "preload_dlls"):
        # NVIDIA's wheels are not on the loader's path. It prints what it does not find.
        with contextlib.redirect_stdout(sys.stderr):
            ort.preload_dlls()


_registering = threading.Lock()


def _device(provider: Provider, index: int) -> object:
    """The GPU that a plugin offers under that number."""
    require(provider.plugin, "onnxruntime-rtx")
    import onnxruntime as ort

    if not hasattr(ort, "register_execution_provider_library"):
        raise MissingDependencyError(
            f"onnxruntime {ort.__version__} takes no plugins; {provider.ort_name} needs 1.24",
            hint=provider.install,
        )
    with _registering:  # a second registration of one name is an error
        _register(provider.plugin)
    devices = [found for found in ort.get_ep_devices() if found.ep_name == provider.ort_name]
    if not devices:
        raise MissingDependencyError(
            f"{provider.ort_name} is here and finds no GPU it runs on (compute capability 8.6, "
            "8.9, 12.0 and later)",
            hint=MEND,
        )
    if not 0 <= index < len(devices):
        raise InputError(f"device {index} was asked for; {provider.ort_name} has {len(devices)}")
    return devices[index]


@functools.cache
def _register(module: str) -> None:
    """Once a process; a failure is not kept, so that the next call tries again."""
    import onnxruntime as ort

    plugin = importlib.import_module(module)
    name: Callable[[], str] = plugin.get_ep_name
    try:
        ort.register_execution_provider_library(name(), plugin.get_library_path())
    except Exception as error:  # as of a session
        raise MissingDependencyError(
            f"ONNX Runtime cannot load the plugin {name()}: "
            f"{_reason(error).rpartition('with error: ')[2]}",
            hint=MEND,
        ) from error


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
