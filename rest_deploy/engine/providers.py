"""ONNX Runtime's execution providers as options: names, precisions, what to install, settings.

Nothing here imports ONNX Runtime. Option names are those of onnxruntime-gpu 1.31 (CUDA, TensorRT)
and of onnxruntime-ep-nv-tensorrt-rtx 0.5 (TensorRT-RTX, as a plugin), read from the packages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rest_deploy.contracts import Dims, Precision, Profile
from rest_deploy.errors import InputError
from rest_deploy.layout import layout_of
from rest_deploy.signature import InputKind

ProviderName = Literal["cpu", "cuda", "tensorrt", "nv-tensorrt-rtx"]

# Both packages are the module onnxruntime and overwrite each other: only one at a time.
GPU_PACKAGE = "pip uninstall -y onnxruntime && pip install 'rest-deploy[onnxruntime-gpu]'"

PLUGIN_MODULE = "onnxruntime_ep_nv_tensorrt_rtx"


@dataclass(frozen=True)
class Provider:
    """`ort_name`: ONNX Runtime's; `precisions` it computes in, or for the CPU's FP16 and FP8 runs;
    `why_not`: of the others; `install`: the command that brings it; `plugin`: the module of one
    that is registered at run time; `compiles`: it makes engines of whole graphs, for the shapes of
    profiles, and caches them."""

    name: ProviderName
    ort_name: str
    precisions: frozenset[Precision]
    install: str
    why_not: str = ""
    plugin: str = ""
    compiles: bool = False


ALL: frozenset[Precision] = frozenset({"fp32", "fp16", "bf16", "int8", "fp8"})

_TABLE = (
    Provider("cpu", "CPUExecutionProvider", ALL - {"bf16"},
             "pip install 'rest-deploy[onnxruntime]'", "it has no kernels for it"),
    # Of ONNX Runtime's docs/OperatorKernels.md: Conv-22, MatMul, Gemm and LayerNormalization in
    # float, float16 and bfloat16; no QLinearConv, no QLinearMatMul, MatMul on no 8-bit float.
    Provider("cuda", "CUDAExecutionProvider", frozenset({"fp32", "fp16", "bf16"}), GPU_PACKAGE,
             "it has no kernels that multiply 8-bit tensors of a Q/DQ graph, and computes them in "
             "float after dequantizing"),
    # The package is built for one major version of TensorRT and does not bring it.
    Provider("tensorrt", "TensorrtExecutionProvider", ALL, GPU_PACKAGE, compiles=True),
    Provider("nv-tensorrt-rtx", "NvTensorRTRTXExecutionProvider", ALL,
             "pip install 'rest-deploy[onnxruntime-rtx]'", plugin=PLUGIN_MODULE, compiles=True),
)  # fmt: skip

PROVIDERS: dict[str, Provider] = {provider.name: provider for provider in _TABLE}

NAMES: tuple[str, ...] = tuple(PROVIDERS)


def known(name: str) -> Provider:
    """The provider of that name. Raises `InputError`."""
    if name not in PROVIDERS:
        raise InputError(f"unknown provider {name!r}; there are {', '.join(NAMES)}")
    return PROVIDERS[name]


@dataclass(frozen=True)
class ProviderOptions:
    """Settings of one session; no precision among them, see `settings`.

    device: GPU, counted from 0. cache: folder for engines and compiled kernels of this file;
    timings: for the builder's measurements, of any file; None: none are kept. profiles: input
    shapes of a provider that compiles; none: those it meets. context_model: write the compiled
    engine to this .onnx file; embedded: inside it, not beside. cuda_graph: capture and replay, for
    inputs of one shape. input_name and input_kind: of the file.
    """

    device: int = 0
    cache: Path | None = None
    timings: Path | None = None
    profiles: tuple[Profile, ...] = ()
    context_model: Path | None = None
    embedded: bool = True
    cuda_graph: bool = False
    input_name: str = "image"
    input_kind: InputKind = "float"


DEFAULTS = ProviderOptions()


def settings(name: str, options: ProviderOptions = DEFAULTS) -> dict[str, str]:
    """The provider's own options, as ONNX Runtime takes them: text to text.

    Never trt_fp16_enable, trt_bf16_enable or trt_int8_enable: precision is what the ONNX file says.
    They let TensorRT 10 choose another type for any layer, also within the float32 islands;
    TensorRT 11 and TensorRT-RTX know no such flags.
    Raises `InputError` for what the provider cannot do.
    """
    provider = known(name)
    if not provider.compiles:
        for given, what in (
            (options.cache or options.timings, "caches"), (options.profiles, "profiles"),
            (options.context_model, "a context model"),
        ):  # fmt: skip
            if given:
                raise InputError(f"{what} are for providers that compile, not for {name}")
    if provider.name == "cpu":
        return {}
    if provider.name == "cuda":
        return {
            "device_id": str(options.device),
            "enable_cuda_graph": _flag(options.cuda_graph),
            # On by default, and then float32 products have FP16's mantissa without a word.
            "use_tf32": "0",
        }
    return _tensorrt(options) if provider.name == "tensorrt" else _rtx(options)


def session_entries(name: str, options: ProviderOptions = DEFAULTS) -> dict[str, str]:
    """Entries of the session's configuration: how a plugin is told to write a context model."""
    if not known(name).plugin or options.context_model is None:
        return {}
    return {
        "ep.context_enable": "1",
        "ep.context_file_path": str(options.context_model),
        "ep.context_embed_mode": _flag(options.embedded),
    }


def _tensorrt(options: ProviderOptions) -> dict[str, str]:
    found = {
        "device_id": str(options.device),
        "trt_cuda_graph_enable": _flag(options.cuda_graph),
        **_shapes("trt", options),
    }
    if options.cache is not None:
        found |= {
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": str(options.cache),
        }
    if options.timings is not None:
        found |= {
            "trt_timing_cache_enable": "1",
            "trt_timing_cache_path": str(options.timings),
        }
    if options.context_model is not None:
        # With it the path of the engines is taken relative to it, and refused when absolute.
        found.pop("trt_engine_cache_path", None)
        found |= {
            "trt_dump_ep_context_model": "1",
            "trt_ep_context_file_path": str(options.context_model),
            "trt_ep_context_embed_mode": _flag(options.embedded),
        }
    return found


def _rtx(options: ProviderOptions) -> dict[str, str]:
    """The device is chosen by handing it over; see `onnxruntime_session`."""
    if len(options.profiles) > 1:
        raise InputError(
            f"nv-tensorrt-rtx takes one profile here, got {len(options.profiles)}",
            hint="one --max-shapes, or --backend tensorrt-rtx, which takes any number",
        )
    found = {"enable_cuda_graph": _flag(options.cuda_graph), **_shapes("nv", options)}
    if options.cache is not None:
        found["nv_runtime_cache_path"] = str(options.cache)
    return found


def _shapes(prefix: str, options: ProviderOptions) -> dict[str, str]:
    """ "image:1x3x32x32", of several profiles with commas between them."""
    if not options.profiles:
        return {}

    def text(shapes: Sequence[Dims]) -> str:
        placed = map(layout_of(options.input_kind).shape, shapes)
        return ",".join(f"{options.input_name}:{'x'.join(map(str, shape))}" for shape in placed)

    return {
        f"{prefix}_profile_min_shapes": text([found.minimum for found in options.profiles]),
        f"{prefix}_profile_opt_shapes": text([found.optimum for found in options.profiles]),
        f"{prefix}_profile_max_shapes": text([found.maximum for found in options.profiles]),
    }


def _flag(on: bool) -> str:
    return "1" if on else "0"
