"""Deploy ResT image-recognition models: export, quantize, build, verify, embed.

Importing this package imports neither torch nor any runtime; the public names load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rest_deploy.cards import load_card
    from rest_deploy.runtime.classifier import Classifier, Prediction
    from rest_deploy.runtime.embedder import Embedder
    from rest_deploy.runtime.session import Session
    from rest_deploy.runtime.specialize import ShapeLimits
    from rest_deploy.runtime.tensorrt import GpuOptions

__version__ = "0.1.0"
__all__ = [
    "Classifier",
    "Embedder",
    "GpuOptions",
    "Prediction",
    "Session",
    "ShapeLimits",
    "__version__",
    "load_card",
]

_HOME = {
    "Classifier": "rest_deploy.runtime.classifier",
    "Embedder": "rest_deploy.runtime.embedder",
    "GpuOptions": "rest_deploy.runtime.tensorrt",
    "Prediction": "rest_deploy.runtime.classifier",
    "Session": "rest_deploy.runtime.session",
    "ShapeLimits": "rest_deploy.runtime.specialize",
    "load_card": "rest_deploy.cards",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
