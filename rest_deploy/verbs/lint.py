"""What a quantized ONNX file, of this or another tool, has missed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError, require

if TYPE_CHECKING:
    from rest_deploy.quant.lint import Lint


class LintReport(Struct, frozen=True):
    """`clean`: no finding is an error; warnings may be there."""

    file: str
    clean: bool
    found: Lint


def lint(file: Path) -> LintReport:
    """Examine the structure of an ONNX file; it is not run and need not be ours.

    Raises `ArtifactError` when it is missing or no ONNX.
    """
    require("onnx_ir", "export")
    import onnx_ir as ir

    from rest_deploy.quant.lint import lint as examine

    if not file.is_file():
        raise ArtifactError(f"no such file: {file}")
    try:
        model = ir.load(file)
    except Exception as error:  # protobuf's and onnx-ir's classes share no public base
        reason = " ".join(str(error).split())[:200]
        raise ArtifactError(f"{file} is not an ONNX model: {reason}") from error
    found = examine(model)
    clean = not any(finding.level == "error" for finding in found.findings)
    return LintReport(file=str(file), clean=clean, found=found)
