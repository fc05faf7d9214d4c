"""`build-engine --dry-run`: everything that is known of a TensorRT engine before it is built."""

from __future__ import annotations

from pathlib import Path

from rest_deploy.contracts import Precision, Profile, Struct
from rest_deploy.engine.backends import choose
from rest_deploy.engine.planner import Serving
from rest_deploy.engine.tensorrt import MODULES as FLAVOURS
from rest_deploy.errors import InputError
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.verbs import engine
from rest_deploy.verbs.build import artifact_path
from rest_deploy.verbs.make import Request, rest_for
from rest_deploy.verbs.verify import open_export


class EnginePlan(Struct, frozen=True):
    """What `build-engine --dry-run` would build. `scratch_bytes`: an estimate for each profile;
    `exists`: something of that name is there already; `serving`: of a histogram."""

    path: str
    source: str
    precision: Precision
    rest: str
    backend: str
    version: str
    sms: tuple[str, ...]
    profiles: tuple[Profile, ...]
    scratch_bytes: tuple[int, ...]
    options: dict[str, str]
    exists: bool
    serving: Serving | None = None


def plan_engine(
    model: Path | None,
    request: Request,
    *,
    workspace: Path,
    backend: str,
    wishes: engine.Wishes = engine.NO_WISHES,
) -> EnginePlan:
    """Everything that is known before a TensorRT build; nothing is calibrated, built or written.

    Raises what `build_engine` raises for what cannot be built; `InputError` for other backends.
    """
    choice = choose(backend, request.precision)
    if choice.backend not in FLAVOURS:
        raise InputError(
            f"--dry-run goes with TensorRT, not with {choice.backend}",
            hint="--backend tensorrt-rtx --dry-run",
        )
    source = open_export(model, workspace)
    rest = rest_for(request, choice.backend)
    scratch = engine.estimator(source.path, request.precision, rest)
    planned = engine.plan(
        choice.backend, wishes, request.precision, rest, source.metadata.card.preprocessing, scratch
    )
    eight = request.precision in ("int8", "fp8")
    label = load_recipe(request.recipe or request.precision).name if eight else request.precision
    target = artifact_path(source, label, choice.backend, workspace, wishes)
    return EnginePlan(
        path=str(target),
        source=str(source.path),
        precision=request.precision,
        rest=rest if eight else "",
        backend=choice.backend,
        version=planned.version,
        sms=planned.options.sms,
        profiles=planned.options.profiles,
        scratch_bytes=tuple(scratch(found.maximum) for found in planned.options.profiles),
        options=planned.options.words(),
        exists=target.exists(),
        serving=planned.serving,
    )
