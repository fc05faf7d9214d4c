"""Deploy ResT image-recognition models: export, quantize, build, verify, embed.

The functions are the commands of `rest-deploy` with the same defaults; they return frozen reports
and raise the errors of `rest_deploy.errors`. `Session` and `Classifier` run what they made, without
PyTorch.

>>> import rest_deploy
>>> report = rest_deploy.export("finetuned.safetensors", output_dir="build")
>>> classifier = rest_deploy.Classifier.open(report.path)
>>> classifier.classify("astronaut.png", top=1)[0].label
'astronaut'

Importing this package imports neither torch nor any runtime; the public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rest_deploy.api import (
        benchmark,
        build_engine,
        calibrate,
        deploy,
        export,
        load_model,
        quantize,
        verify_model,
    )
    from rest_deploy.cards import load_card
    from rest_deploy.errors import RestDeployError
    from rest_deploy.model.checkpoint import LoadedModel
    from rest_deploy.runtime.classifier import Classifier, Prediction
    from rest_deploy.runtime.embedder import Embedder
    from rest_deploy.runtime.session import Session
    from rest_deploy.runtime.specialize import ShapeLimits
    from rest_deploy.runtime.tensorrt import GpuOptions
    from rest_deploy.verbs import (
        BenchReport,
        BuildReport,
        CalibrationReport,
        DeployReport,
        ExportReport,
        ProviderWishes,
        Wishes,
    )
    from rest_deploy.verify.parity import ParityReport

__version__ = "0.1.0"
__all__ = [
    "BenchReport",
    "BuildReport",
    "CalibrationReport",
    "Classifier",
    "DeployReport",
    "Embedder",
    "ExportReport",
    "GpuOptions",
    "LoadedModel",
    "ParityReport",
    "Prediction",
    "ProviderWishes",
    "RestDeployError",
    "Session",
    "ShapeLimits",
    "Wishes",
    "__version__",
    "benchmark",
    "build_engine",
    "calibrate",
    "deploy",
    "export",
    "load_card",
    "load_model",
    "quantize",
    "verify_model",
]

_HOME = {
    **dict.fromkeys(
        (
            *("benchmark", "build_engine", "calibrate", "deploy", "export", "load_model"),
            *("quantize", "verify_model"),
        ),
        "rest_deploy.api",
    ),
    **dict.fromkeys(
        (
            *("BenchReport", "BuildReport", "CalibrationReport", "DeployReport", "ExportReport"),
            *("ProviderWishes", "Wishes"),
        ),
        "rest_deploy.verbs",
    ),
    "Classifier": "rest_deploy.runtime.classifier",
    "Embedder": "rest_deploy.runtime.embedder",
    "GpuOptions": "rest_deploy.runtime.tensorrt",
    "LoadedModel": "rest_deploy.model.checkpoint",
    "ParityReport": "rest_deploy.verify.parity",
    "Prediction": "rest_deploy.runtime.classifier",
    "RestDeployError": "rest_deploy.errors",
    "Session": "rest_deploy.runtime.session",
    "ShapeLimits": "rest_deploy.runtime.specialize",
    "load_card": "rest_deploy.cards",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
