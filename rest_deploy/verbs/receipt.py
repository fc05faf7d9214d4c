"""Whether a shipped recipe still fits: a build's gate beside the receipt of its variant."""

from __future__ import annotations

from rest_deploy.contracts import Build, ModelMetadata
from rest_deploy.quant.receipt import Measured, load_receipt
from rest_deploy.verify import gate


def receipt_for(metadata: ModelMetadata, build: Build) -> Measured | None:
    """What the same recipe measured on the same backend with a trained model of the variant.

    None where there is nothing to compare: no recipe, fresh weights, no gate, no logits, or no
    receipt; a file for any backend is compared with ONNX Runtime's row, whose kernels its gate runs
    on.
    """
    if not build.recipe or _error(build) is None or metadata.weights.kind == "fresh":
        return None
    receipt = load_receipt(metadata.variant)
    if receipt is None:
        return None
    return receipt.of(build.recipe, "onnxruntime" if build.backend == "onnx" else build.backend)


def misfit(measured: Measured | None, build: Build, cause: str = "") -> list[str]:
    """A warning when the recipe costs this checkpoint more than what it was shipped on. cause:
    where it is known not to be the checkpoint."""
    error = _error(build)
    if measured is None or error is None or measured.fits(error):
        return []
    why = (
        cause or "rest-deploy sensitivity finds the layers, and writes a recipe that keeps a budget"
    )
    return [
        f"recipe {build.recipe} costs {'here' if cause else 'this checkpoint'} "
        f"{error / measured.relative_error:.1f} times the error of its receipt ({error:.1e}, "
        f"{measured.relative_error:.1e}): {why}"
    ]


def _error(build: Build) -> float | None:
    """Of the logits, which receipts are about."""
    checks = build.gate.checks if build.gate else ()
    return next((check.value for check in checks if check.name == gate.LOGIT_ERROR), None)
