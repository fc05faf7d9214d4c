"""Module -> ONNX file: trace, run the passes, describe, check. Writes only where it is told to."""

from __future__ import annotations

import contextlib
import logging
import platform
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

import onnx
import onnx_ir as ir
import torch
from torch import nn

from rest_deploy.artifact import METADATA_KEY
from rest_deploy.contracts import Dims
from rest_deploy.errors import InputError, InvariantError
from rest_deploy.graph.passes import run_passes
from rest_deploy.graph.translations import translations
from rest_deploy.layout import layout_of
from rest_deploy.signature import InputKind

DEFAULT_OPSET = 20
"""The first with Gelu as an operator; FP8 needs 19."""

OPSETS = range(18, 24)
"""18: LayerNormalization and torch's exporter begin here. 23: the newest tested."""

EXAMPLE: Dims = (2, 3, 96, 160)
"""What is traced: no size of it may survive in the graph (parity at other sizes proves that)."""

INLINE_LIMIT_BYTES = 2_000_000_000
"""protobuf's limit is 2 GiB; beyond it the weights go into a file of their own."""


def trace(
    module: nn.Module, opset: int, outputs: Sequence[str], input_kind: InputKind = "float"
) -> tuple[ir.Model, dict[str, int]]:
    """A rewritten module (model/deploy, model/outputs.py) -> ONNX IR with dynamic axes batch,
    height, width.

    outputs: names of what it returns, in order. Returns the graph and how often each pass fired.
    Raises `InputError` for an opset outside `OPSETS`.
    """
    if opset not in OPSETS:
        raise InputError(
            f"opset {opset} is not supported; expected {OPSETS[0]} to {OPSETS[-1]}",
            hint=f"leave --opset out for {DEFAULT_OPSET}",
        )
    layout = layout_of(input_kind)
    example = torch.zeros(layout.shape(EXAMPLE), dtype=getattr(torch, layout.dtype))
    with _quiet():
        program = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=list(outputs),
            optimize=False,  # our own passes, after the traced sizes are released
            verbose=False,
            custom_translation_table=translations(),
        )
    if program is None:
        raise InvariantError("torch.onnx.export returned nothing")
    fired = run_passes(program.model)
    return program.model, fired


def describe(model: ir.Model, metadata_json: str) -> None:
    """Write the metadata into the graph, so that the file alone is enough."""
    model.producer_name = "rest-deploy"
    model.producer_version = version("rest-deploy")
    model.graph.name = "rest"
    model.metadata_props[METADATA_KEY] = metadata_json


def save(model: ir.Model, path: Path) -> None:
    """Write and check the file (onnx.checker, full check with shape inference)."""
    size = sum(value.const_value.nbytes for value in model.graph.initializers.values()
               if value.const_value is not None)  # fmt: skip
    external = f"{path.name}.data" if size > INLINE_LIMIT_BYTES else None
    ir.save(model, path, external_data=external)
    onnx.checker.check_model(str(path), full_check=True)


def tool_versions() -> dict[str, str]:
    """What produced a file: reproducibility, and the first question of every bug report."""
    names = ("rest-deploy", "torch", "onnx", "onnxscript", "onnx-ir")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back the exporter's notes on packages it does not need here (torchvision, pytree)."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.simplefilter("ignore", DeprecationWarning)
            yield
    finally:
        logger.setLevel(level)
