"""Is it this CPU, and neither the checkpoint nor a layer, that makes an INT8 engine wrong?

CPUs without VNNI saturate on 8-bit sums that nothing bounds, see `quant.pairs`. The sidecar says
which those are. The proof that they are the cause is a control: the same file on the same images,
its Q/DQ pairs rounding as before and its sums in float.
"""

from __future__ import annotations

from pathlib import Path

from rest_deploy import machine
from rest_deploy.contracts import Build, ModelMetadata
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.proofs import may_saturate
from rest_deploy.runtime.session import Session
from rest_deploy.verify.gate import Infer

CLEARLY = 1.5
"""What an error must be of that with the sums in float for the kernels to be the reason."""

MEND = (
    "exact_pairs = true in the recipe bounds its weights; products of activations stay float by "
    "the recipe int8; a CPU with VNNI is right with the file as it is"
)


def lacks(backend: str) -> str:
    """What this CPU has not for INT8, to be said before minutes of calibrating; "" for nothing."""
    features = machine.features_for(backend)
    if machine.adds_bytes_exactly(features):
        return ""
    return (
        f"this CPU has {machine.instruction_set(features)}: 8-bit sums gain little speed here, and "
        "are right where the recipe bounds its weights"
    )


def possible(build: Build | None, backend: str) -> str:
    """`proofs.may_saturate` of a file by its sidecar."""
    if build is None or build.precision != "int8":
        return ""
    return may_saturate(build.sums, backend)


def cause(possible: str, error: float, in_float: float) -> str:
    """`possible` with its proof; "" where the control is not clearly better. Both are relative
    errors on the same images."""
    if not possible or not in_float * CLEARLY < error:  # NaN of the control proves nothing
        return ""
    return (
        f"neither the checkpoint nor a layer is the reason: with its sums in float the same file "
        f"has {in_float:.1e}, not {error:.1e}; {possible}"
    )


def in_float(path: Path, metadata: ModelMetadata) -> Infer:
    """The control: every output of normalized images (N, 3, H, W)."""
    runner = OnnxRuntimeRunner(path, in_float=True)
    return Session(runner, metadata, path, None).run_normalized
