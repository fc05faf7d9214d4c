"""An engine for OpenVINO on a CPU: what it is made by, what it was gated on, what it computes in.

OpenVINO takes no types from the file: 16 bits are a property of the session, so a BF16 engine is
the float graph with a sidecar that says so.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rest_deploy import machine
from rest_deploy.contracts import GateResult, ModelMetadata, Precision, Rest
from rest_deploy.engine.backends import BackendName, Choice
from rest_deploy.engine.openvino import Inference, OpenVinoRunner, check_bf16
from rest_deploy.layout import layout_of
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.judge import Judge
from rest_deploy.verbs.make import Kinds, Made, Request, by_role
from rest_deploy.verify.gate import BATCH, Infer

OPENVINO: BackendName = "openvino"
RECIPE = "int8-openvino"
"""The packaged recipe for this backend, on CPUs that add 8-bit products exactly: the attention
products that stand INT8 are faster there. Their operands nothing bounds, so elsewhere they stay
float: `int8`."""

ON = "openvino/cpu"
"""As the runner calls itself."""


def chosen(choice: Choice | None) -> bool:
    return choice is not None and choice.backend == OPENVINO


def with_recipe(request: Request, backend: str) -> Request:
    """With the backend's own recipe for this CPU where the user names neither one nor a table."""
    own = backend == OPENVINO and request.precision == "int8"
    exact = machine.adds_bytes_exactly(machine.features_for(OPENVINO))
    if own and exact and request.recipe is None and request.table is None:
        return replace(request, recipe=RECIPE)
    return request


def unfit(precision: Precision, *, fresh: bool) -> dict[BackendName, str]:
    """Why `auto` is not to take OpenVINO for a model. fresh: its weights are untrained.

    Attention of untrained weights is next to uniform, and what is left of it the InstanceNorm blows
    up. OpenVINO 2026.4's INT8 engines depart from the reference by 0.3 there, whatever the recipe,
    where ONNX Runtime's depart by 0.016 for the same file; with trained weights both by 0.014.
    """
    if precision != "int8" or not fresh:
        return {}
    return {OPENVINO: "its INT8 engines lose untrained weights (docs/openvino.md)"}


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
    """Of a file that is not published yet: every output of normalized images (N, 3, H, W)."""
    runner = OpenVinoRunner(staged, precision=precision)
    return Session(runner, metadata, staged, None).run_normalized


def also_fixed(judge: Judge, result: GateResult, staged: Path, precision: Inference) -> GateResult:
    """`result` with the error of what a session compiles for a shape that comes often."""
    count, channels, height, width = judge.data.images.shape
    batch = min(BATCH, count)
    dynamic = OpenVinoRunner(staged, precision=precision)
    metadata = judge.source.metadata
    shape = layout_of(metadata.input_kind).shape((batch, channels, height, width))
    session = Session(dynamic.specialized(shape), metadata, staged, None)
    return judge.one_shape(result, session.run_normalized, batch)


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
