"""Exported model against the PyTorch reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rest_deploy.artifact import newest
from rest_deploy.contracts import Precision as EnginePrecision
from rest_deploy.errors import InputError, require
from rest_deploy.verify.parity import (
    BATCHES,
    SIZES,
    Case,
    CaseResult,
    Float32,
    Infer,
    ParityReport,
    bound,
    compare,
    images_for,
    in_float32,
    load_reference,
    photo_images,
    synthetic_images,
)

if TYPE_CHECKING:
    from rest_deploy.model.reference import Precision
    from rest_deploy.runtime.session import Session


def verify(
    model: Path | None,
    *,
    workspace: Path,
    reference: Precision = "float64",
    sizes: Sequence[tuple[int, int]] | None = None,
    batches: Sequence[int] | None = None,
    images: Path | None = None,
    checkpoint: Path | None = None,
    threads: int | None = None,
    backend: str | None = None,
    provider: str | None = None,
) -> ParityReport:
    """Compare a model or engine (None: the newest export of `workspace`) with PyTorch.

    sizes, batches: None for the usual ones, of which an engine is asked those its profiles hold.
    images: a folder of photos; None: scikit-image's photos if it is installed, else seeded
    synthetic images. backend and provider: see
    `Session.open`. reference: against "float32" the card's bound alone counts, since both sides
    round. Raises `ArtifactError`, `CheckpointError`,
    `ImageError`.
    """
    require("torch", "export")
    from rest_deploy.model.reference import Reference

    session = open_session(model, workspace, threads, provider, backend)
    metadata = session.metadata
    make, source = _parity_images(images, session)
    module = load_reference(metadata, checkpoint)
    cases = [
        Case(batch=b, height=h, width=w) for h, w in sizes or SIZES for b in batches or BATCHES
    ]
    if sizes is None and batches is None:
        cases = _held(session, cases)
    exact = Reference(module, reference, metadata.gives)
    own = in_float32(module, metadata.gives)

    def compared(infer: Infer) -> tuple[CaseResult, ...]:
        return compare(
            infer, exact.all, metadata.gives, cases, images_for(metadata, make), _bound(session),
            own if reference == "float64" and _precision(session) == "fp32" else (),
        )  # fmt: skip

    results = compared(session.run_normalized)
    return ParityReport(
        model=str(session.path),
        backend=session.runner.backend,
        reference=reference,
        inputs=source,
        results=results,
        cause=_cause(session, results, compared),
    )


def _cause(
    session: Session,
    results: Sequence[CaseResult],
    compared: Callable[[Infer], Sequence[CaseResult]],
) -> str:
    """That it is this CPU, where a control with its sums in float passes; "" where that is not
    known."""
    from rest_deploy.verbs import saturation

    build = session.sidecar.build if session.sidecar else None
    possible = saturation.possible(build, session.runner.backend)
    if not possible or all(result.passed for result in results):
        return ""
    control = compared(saturation.in_float(session.path, session.metadata))
    if not all(result.passed for result in control):
        return ""
    here, there = (max(one.relative_error for one in found) for found in (results, control))
    return saturation.cause(possible, here, there)


def _held(session: Session, cases: list[Case]) -> list[Case]:
    """Those that an engine's profiles hold; where it holds none, what it is tuned for."""
    from rest_deploy.runtime.tensorrt import TensorRtRunner

    if not isinstance(session.runner, TensorRtRunner):
        return cases
    profiles = session.runner.profiles
    held = [
        case
        for case in cases
        if any(profile.holds((case.batch, 3, case.height, case.width)) for profile in profiles)
    ]
    tuned = (profile.optimum for profile in profiles)
    return held or [Case(batch=b, height=h, width=w) for b, _, h, w in tuned]


def open_export(model: Path | None, workspace: Path) -> Session:
    """The named float model, or the newest export. Raises `InputError` for an engine."""
    session = open_session(model, workspace)
    if session.sidecar is not None and session.sidecar.build is not None:
        raise InputError(
            f"{session.path} is {session.sidecar.build.precision} already; "
            "expected an exported float model",
            hint="name the model that `rest-deploy export` wrote",
        )
    return session


def _bound(session: Session) -> float:
    """Of float32 the parity bound, of an engine what its precision may lose at the gate."""
    precision = _precision(session)
    if precision == "fp32":
        return bound(session.metadata)
    limits = session.metadata.card.gate.of(precision)
    fresh = session.metadata.weights.kind == "fresh"
    return limits.relative_error_fresh if fresh else limits.relative_error


def _precision(session: Session) -> EnginePrecision:
    """An export, and what has no sidecar, computes in float32."""
    build = session.sidecar.build if session.sidecar else None
    return "fp32" if build is None else build.precision


def open_session(
    model: Path | None,
    workspace: Path,
    threads: int | None = None,
    provider: str | None = None,
    backend: str | None = None,
) -> Session:
    """The named model, or the newest export of the workspace. What it answers is about to be
    measured: its self-test need not."""
    from rest_deploy.runtime.session import Session
    from rest_deploy.runtime.specialize import NEVER

    found = model or newest(workspace, ".onnx")
    return Session.open(
        found, backend=backend, provider=provider, threads=threads, specialize=NEVER,
        selftest=False,
    )  # fmt: skip


def _parity_images(images: Path | None, session: Session) -> tuple[Callable[[Case], Float32], str]:
    """Where parity inputs come from, and the words for it."""
    from rest_deploy import photos
    from rest_deploy.preprocess import list_images

    preprocessing = session.metadata.card.preprocessing
    if images is not None:
        found = list_images(images)
        return photo_images(found, preprocessing), f"{len(found)} images of {images}"
    if photos.available():
        crops = photos.crops("test", 32, seed=0)
        loaded = [photos.load(crop) for crop in crops]
        return photo_images(loaded, preprocessing), "32 crops of scikit-image's photos"
    return synthetic_images, "seeded synthetic images (scikit-image is not installed)"
