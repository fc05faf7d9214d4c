"""Is it this CPU, and neither the checkpoint nor a layer, that makes an INT8 engine wrong?

CPUs without VNNI saturate on 8-bit sums that nothing bounds, see `quant.pairs`. The sidecar says
which those are. The proof that they are the cause is a control: the same file on the same images,
its Q/DQ pairs rounding as before and its sums in float.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rest_deploy import machine
from rest_deploy.contracts import Build, ModelMetadata, Sums
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.runtime.session import Session
from rest_deploy.verify.gate import Infer

MEND = (
    "exact_pairs = true in the recipe bounds its weights; products of activations stay float by "
    "the recipe int8; a CPU with VNNI is right with the file as it is"
)


def possible(sums: tuple[Sums, ...], backend: str) -> str:
    """Why the 8-bit sums of an INT8 engine may be wrong on this machine, "" where they cannot.

    sums: of its sidecar; none: of a file from before they were listed. backend: with or without
    its provider, "openvino/cpu".
    """
    name, _, provider = backend.partition("/")
    if name not in ("openvino", "onnxruntime") or provider not in ("", "cpu"):
        return ""
    features = machine.features_for(name)
    loose = Counter(found.role for found in sums if not found.exact)
    if machine.adds_bytes_exactly(features) or (sums and not loose):
        return ""
    here = f"this CPU ({machine.instruction_set(features)}) saturates where 8-bit sums are large"
    if not sums:
        return f"{here}, and the file does not say which of its own are bounded"
    roles = ", ".join(f"{role} in {count} blocks" for role, count in loose.items())
    return f"{here}, and nothing bounds those of {roles}"


def possible_of(build: Build | None, backend: str) -> str:
    """`possible` of a file by its sidecar."""
    if build is None or build.precision != "int8":
        return ""
    return possible(build.sums, backend)


def in_float(path: Path, metadata: ModelMetadata) -> Infer:
    """The control: every output of normalized images (N, 3, H, W)."""
    runner = OnnxRuntimeRunner(path, in_float=True)
    return Session(runner, metadata, path, None).run_normalized
