"""config.pbtxt -> values, by the protobuf message that NVIDIA's client ships.

The server parses with the same message: a field it does not know, a word that is no value of an
enumeration, a number that is text are refused there and here, with line and column.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from rest_deploy.errors import ArtifactError, MissingDependencyError, installed
from rest_deploy.serve.triton_config import ModelConfig

MEND = "pip install 'rest-deploy[triton]'"


def why_not() -> str | None:
    """What keeps the schema from being checked here, None when nothing does."""
    for module in ("tritonclient", "google.protobuf"):
        if not installed(module):
            return f"the Python package {module!r} is not installed ({MEND})"
    return None


def version() -> str:
    """Of the client that brings the schema, e.g. "tritonclient 2.69.0"."""
    from importlib.metadata import version

    return f"tritonclient {version('tritonclient')}"


def parse(path: Path) -> ModelConfig:
    """Raises `ArtifactError` with the place in the file, `MissingDependencyError`."""
    schema = _schema()
    from google.protobuf import json_format, text_format

    message: Any = schema.ModelConfig()
    try:
        text_format.Parse(path.read_text(encoding="utf-8"), message)
    except OSError as error:
        raise ArtifactError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8: {error}") from error
    except text_format.ParseError as error:
        raise ArtifactError(f"{path}:{error}") from error
    found = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return msgspec.convert(found, ModelConfig, strict=False)


@functools.cache
def _schema() -> ModuleType:
    """tritonclient/grpc/model_config_pb2.py, by its path: importing tritonclient.grpc would need
    grpcio. Once a process: protobuf refuses a second definition of the same messages."""
    why = why_not()
    if why is not None:
        raise MissingDependencyError(f"config.pbtxt cannot be checked: {why}", hint=MEND)
    package = importlib.util.find_spec("tritonclient")
    places = package.submodule_search_locations if package else None
    path = Path(next(iter(places or ("",)))) / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise MissingDependencyError(f"{version()} has no {path.name}", hint=MEND)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
