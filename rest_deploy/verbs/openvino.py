"""An engine for OpenVINO on a CPU: what it is made by, what it was gated on, what it computes in.

OpenVINO takes no types from the file: 16 bits are a property of the session, so a BF16 engine is
the float graph with a sidecar that says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rest_deploy.contracts import ModelMetadata, Rest
from rest_deploy.engine.backends import BackendName, Choice
from rest_deploy.engine.openvino import Inference, OpenVinoRunner, check_bf16
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.make import Kinds, Made, Request, by_role
from rest_deploy.verify.gate import Infer

OPENVINO: BackendName = "openvino"
RECIPE = "int8-openvino"
"""The packaged recipe for this backend: the attention products that stand INT8 are faster here."""

ON = "openvino/cpu"
"""As the runner calls itself."""


def chosen(choice: Choice | None) -> bool:
    return choice is not None and choice.backend == OPENVINO


def with_recipe(request: Request, backend: str, *, fresh: bool) -> Request:
    """With the backend's own recipe where the user names neither one nor a table.

    fresh: the weights are untrained. Their attention is next to uniform, what the scores differ by
    is noise that the InstanceNorm blows up, and in INT8 nothing is left of it: the gate refuses it
    (relative error 0.3). So they get the recipe of every other backend.
    """
    own = backend == OPENVINO and request.precision == "int8" and not fresh
    if own and request.recipe is None and request.table is None:
        return replace(request, recipe=RECIPE)
    return request


def label(recipe: str, precision: str, backend: str) -> str:
    """In the file's name: MODEL.int8.openvino.onnx, not MODEL.int8-openvino.openvino.onnx."""
    return precision if recipe == f"{precision}-{backend}" else recipe


def precision_of(request: Request, rest: Rest) -> Inference:
    """What the float layers compute in. Raises `MissingDependencyError` for bf16 on a CPU that has
    none."""
    if "bf16" not in (request.precision, rest):
        return "f32"
    check_bf16()
    return "bf16"


def infer(staged: Path, precision: Inference, metadata: ModelMetadata) -> Infer:
    """Of a file that is not published yet: (N, 3, H, W) -> logits (N, classes)."""
    return Session(OpenVinoRunner(staged, precision=precision), metadata, staged, None).run


def obtained(path: Path, precision: Inference) -> Kinds:
    """What OpenVINO's kernels compute in, for the graph that it executes."""
    from rest_deploy.engine.openvino_kernels import kernels

    return by_role(kernels(path, precision))


def shortfall(made: Made, kinds: Kinds) -> list[str]:
    """Where OpenVINO computes in another type than was asked for, in words."""
    missing = [
        f"{role} {count - kinds.get(role, {}).get(kind, 0)} of {count} not in {kind}"
        for role, asked in made.asked.items()
        for kind, count in asked.items()
        if kinds.get(role, {}).get(kind, 0) < count
    ]
    if not missing:
        return []
    return [f"openvino computes some layers in another type: {', '.join(missing)}"]
