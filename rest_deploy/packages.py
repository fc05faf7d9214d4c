"""Packages and programs that the toolkit works with; `import rest_deploy` needs none of them."""

from __future__ import annotations

from typing import NamedTuple

EXPORT = "'rest-deploy[export]'"
ORT = "'rest-deploy[onnxruntime]'"
OPENVINO = "'rest-deploy[openvino]'"
SERVE = "'rest-deploy[serve]'"
TRITON = "'rest-deploy[triton]'"


class Package(NamedTuple):
    """A package to look for: pip's names for it, ours first; what to `pip install`; our bound.
    `other_module`: where it is when another of its distributions is installed."""

    names: tuple[str, ...]
    module: str
    purpose: str
    install: str
    minimum: str = ""
    other_module: str = ""


TRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
RTX = ("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12", "tensorrt-rtx-cu13-bindings")
PACKAGES = (
    Package(("torch",), "torch", "the reference model, export", EXPORT, "2.9"),
    Package(("onnx",), "onnx", "ONNX files", EXPORT, "1.17"),
    Package(("onnxscript",), "onnxscript", "export", EXPORT, "0.5.6"),
    Package(("onnx-ir",), "onnx_ir", "graph passes", EXPORT, "0.1.12"),
    Package(("safetensors",), "safetensors", "checkpoints", EXPORT, "0.4"),
    Package(("onnxruntime", "onnxruntime-gpu"), "onnxruntime", "runs models", ORT, "1.20"),
    Package(("scikit-image",), "skimage", "the demo's photos", "'rest-deploy[demo]'", "0.24"),
    Package(("openvino",), "openvino", "engines for CPUs", OPENVINO, "2025.2"),
    Package(TRT, "tensorrt", "engines for the GPU at hand", "'rest-deploy[tensorrt]'", "10.12"),
    Package(
        RTX,
        "tensorrt_rtx",
        "portable engines for RTX GPUs",
        "'rest-deploy[tensorrt-rtx]'",
        "1.7",
        other_module="tensorrt_rtx_bindings",
    ),
    Package(("uvicorn",), "uvicorn", "serve", SERVE, "0.34"),
    Package(("httptools",), "httptools", "serve", SERVE, "0.6"),
    Package(("starlette",), "starlette", "serve", SERVE, "0.45"),
    Package(("prometheus-client",), "prometheus_client", "serve: metrics", SERVE, "0.21"),
    Package(("pyarrow",), "pyarrow", "embed: Parquet", "'rest-deploy[embed]'", "17"),
    Package(("ray",), "ray", "ray-serve, embed --ray", "'rest-deploy[ray]'", "2.51"),
    Package(("tritonclient",), "tritonclient", "checks config.pbtxt", TRITON, "2.40"),
    Package(("protobuf",), "google.protobuf", "checks config.pbtxt", TRITON, "5.26"),
    Package(
        ("pyyaml",),
        "yaml",
        "tests of manifests; writing them needs nothing",
        "'rest-deploy[dev]'",
        "6",
    ),
    Package(("cuda-python", "cuda-bindings"), "cuda.bindings", "GPU buffers", "cuda-python"),
    Package(("pycuda",), "pycuda", "GPU buffers, the older way", "pycuda"),
    Package(("nvidia-modelopt",), "modelopt", "quantization", "nvidia-modelopt"),
)
EXPORT_NEEDS = ("torch", "onnx", "onnxscript", "onnx-ir", "safetensors", "onnxruntime")
SERVE_NEEDS = ("uvicorn", "httptools", "starlette", "prometheus-client")
TRITON_NEEDS = ("tritonclient", "protobuf")

CPP_PROGRAMS = ("cmake", "ninja", "g++", "pkg-config")
CPP_HEADERS = ("jpeglib.h", "png.h", "nlohmann/json.hpp", "httplib.h")
"""What cpp/ is built with, beside the headers in OpenVINO's wheel; named by cpp_packages.sh."""
CPP_MEND = "scripts/cpp_packages.sh"
"""Of a clone, where cpp/ is."""
