"""How fast and how accurate, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from rest_deploy import artifact, verbs
from rest_deploy.api.given import PathLike, Sizes, path_of
from rest_deploy.report import page
from rest_deploy.verbs import BenchReport, BenchWishes, Progress, silent


def benchmark(
    engines: Iterable[PathLike] = (),
    *,
    sizes: Sizes = (),
    batches: Sequence[int] = (1, 8),
    threads: Sequence[int] = (0,),
    in_flight: int = 2,
    seconds: float = 5.0,
    noise: float = 0.01,
    images: int = 64,
    pytorch: bool = True,
    profile: bool = True,
    cold_start: bool = True,
    checkpoint: PathLike | None = None,
    workspace: PathLike | None = None,
    progress: Progress = silent,
) -> BenchReport:
    """Engines (left out: all of the workspace) and PyTorch, side by side: accuracy, time, and why.

    Measured in interleaved rounds; a record (JSON) and a page (HTML) go into the workspace.

    sizes: left out, the card's. threads: of an operator, 0: all cores. in_flight: requests at once
    where throughput is measured. seconds: at most, for each engine at each shape and mode. noise:
    target, to stop early. images: for the accuracy. pytorch, profile, cold_start: whether these are
    part of it. An engine that fails is in the record with its reason.

    Raises `InputError` (nothing to compare), `ArtifactError`, `OutputError`.

    >>> report = rest_deploy.benchmark(["build/rest_nano.onnx"], batches=[1], seconds=0.1,
    ...     images=16, pytorch=False, profile=False, cold_start=False)
    >>> [engine.label for engine in report.record.engines]
    ['fp32 export']
    >>> report.record.engines[0].accuracy.relative_error < 1e-5
    True
    """
    files = [Path(engine) for engine in engines]
    wishes = BenchWishes(
        sizes=tuple(sizes),
        batches=tuple(batches),
        threads=tuple(threads),
        in_flight=in_flight,
        seconds=seconds,
        noise=noise,
        images=images,
        pytorch=pytorch,
        profile=profile,
        cold_start=cold_start,
        checkpoint=path_of(checkpoint),
    )
    report = verbs.bench(
        files,
        wishes,
        workspace=artifact.workspace(path_of(workspace)),
        command=f"rest_deploy.benchmark({_words(files, wishes)})",
        progress=progress,
    )
    target = verbs.page_path(Path(report.record_file), None)
    artifact.write_text(target, page.page(report.record))
    return report


def _words(files: Sequence[Path], wishes: BenchWishes) -> str:
    """The call that a record was made by, without what is the default anyway."""
    changed = [
        f"{field.name}={getattr(wishes, field.name)!r}"
        for field in dataclasses.fields(wishes)
        if getattr(wishes, field.name) != field.default
    ]
    return ", ".join([*([repr([str(file) for file in files])] if files else []), *changed])
