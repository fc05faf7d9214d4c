"""Every engine of a workspace and PyTorch itself, side by side: accuracy, time, and why."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from rest_deploy import __version__, photos
from rest_deploy.bench import ceilings as machine
from rest_deploy.bench import environment, measure, roofline, store, verdict
from rest_deploy.bench.explain import explain
from rest_deploy.bench.plan import (
    Measured,
    Plan,
    Subject,
    UInt8,
    noise_images,
    pixel_noise,
    sweep,
)
from rest_deploy.bench.record import (
    Accuracy,
    BlockTime,
    Ceilings,
    EngineResult,
    Growth,
    Record,
    Start,
)
from rest_deploy.bench.start import cold_start
from rest_deploy.bench.stopping import Limits
from rest_deploy.bench.timers import Engine
from rest_deploy.contracts import Dims, ModelMetadata, Struct
from rest_deploy.errors import (
    ArtifactError,
    CheckpointError,
    RestDeployError,
    installed,
)
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import saturation
from rest_deploy.verbs.engines import Found, find
from rest_deploy.verbs.gate import GateData, gate_data, reference_answers
from rest_deploy.verbs.judge import answers_of
from rest_deploy.verbs.norms import norm_errors
from rest_deploy.verbs.progress import Counter, Progress, silent, step, uncounted
from rest_deploy.verbs.sensitivity import last_sensitivity
from rest_deploy.verify import gate
from rest_deploy.verify.distances import distances
from rest_deploy.verify.parity import load_reference

Answers = dict[str, npt.NDArray[np.floating]]
"""Every output by name."""

PYTORCH = "PyTorch fp32"
PYTORCH_ON_GPU = "PyTorch fp32, cuda"
WARM_UP = 2.0
"""Seconds, at most, before each shape and mode; less where the measurement itself is shorter."""

PHOTOS = 8
"""Of end-to-end runs."""


@dataclass(frozen=True)
class BenchWishes:
    """What to measure. sizes: () for the card's; seconds: at most, for each engine at each shape
    and mode; noise: target. in_flight: requests at once in the saturated mode. images: for the
    accuracy. pytorch, profile, cold_start: whether these are part of it. checkpoint: where the
    exported weights are now."""

    sizes: tuple[tuple[int, int], ...] = ()
    batches: tuple[int, ...] = (1, 8)
    threads: tuple[int, ...] = (0,)
    in_flight: int = 2
    seconds: float = 5.0
    noise: float = 0.01
    images: int = 64
    pytorch: bool = True
    profile: bool = True
    cold_start: bool = True
    checkpoint: Path | None = None


class BenchReport(Struct, frozen=True):
    """What `rest-deploy bench` found, and where it was written."""

    record: Record
    record_file: str
    seconds: float


def bench(
    engines: Sequence[Path],
    wishes: BenchWishes,
    *,
    workspace: Path,
    command: str,
    progress: Progress = silent,
    counter: Counter = uncounted,
) -> BenchReport:
    """Measure, explain, advise; the record is written into `workspace`/bench.

    engines: none for all of the workspace. An engine that fails is in the record with its reason.
    Raises `InputError` (nothing to compare), `OutputError`.
    """
    started = time.monotonic()
    found, notes = find(engines, workspace)
    metadata = found[0].metadata
    data = gate_data(metadata, None, wishes.images)
    source = Session.open(found[0].path, selftest=False)  # for what it says of itself
    with step(progress, f"asked PyTorch for its answers to {len(data.images)} images"):
        expected, name = reference_answers(source, data.images, wishes.checkpoint)
    notes.append(f"accuracy: {data.source}, against {name}")
    here = environment.examine()
    subjects = [Subject(one.label, _opener(one.path)) for one in found]
    eager = _eager(metadata, wishes, notes) if wishes.pytorch else None
    norms = None
    normed = metadata.card.architecture.attention_norm
    if normed and eager is not None and found[0].sidecar.build is None:
        with step(progress, "compared float32 with float64 at several sizes"):
            norms = norm_errors(source, eager(wishes.threads[0]), wishes.checkpoint, command)
    if eager is not None:
        subjects.insert(0, Subject(PYTORCH, eager))
        if any(_on_gpu(one) for one in found) and _torch_has_gpu(notes):
            # Before the other: what engines on a GPU have to beat.
            subjects.insert(0, Subject(PYTORCH_ON_GPU, partial(eager, device="cuda")))
    plan = _plan(wishes, metadata, pixels=any(one.metadata.input_kind == "uint8" for one in found))
    compared = measure.compare(subjects, plan, counter)
    ceilings = _ceilings(found, wishes, notes, progress)
    by_label = {one.label: one for one in found}
    results = []
    for measured in compared.engines:
        one = by_label.get(measured.label)
        if one is None:
            results.append(
                EngineResult(
                    label=measured.label,
                    backend="PyTorch" if measured.label == PYTORCH else "PyTorch/cuda",
                    precision="fp32", failed=measured.failed,
                    measurements=measured.measurements,
                )
            )  # fmt: skip
        else:
            with step(progress, f"examined {one.label}"):
                results.append(_examined(one, measured, data, expected, ceilings, wishes, notes))
        notes += [f"{measured.label}, skipped: {words}" for words in measured.skipped]
    with step(progress, "compared the times with the counted work"):
        growth = _growth(found, results, notes)
    record = Record(
        schema=1,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=command,
        version=__version__,
        model=found[0].path.name,
        model_sha256=found[0].sidecar.sha256,
        environment=here,
        engines=tuple(results),
        ratios=compared.ratios,
        ceilings=ceilings,
        advice=verdict.advise(
            results,
            compared.ratios,
            gate=metadata.card.gate,
            fresh=metadata.weights.kind == "fresh",
            features=here.features,
        ),
        notes=tuple(notes),
        growth=growth,
        sensitivity=last_sensitivity(found[0].path.name, found[0].sidecar.sha256, workspace),
        instance_norm=norms,
    )
    file = store.write(record, workspace / "bench")
    return BenchReport(record=record, record_file=str(file), seconds=time.monotonic() - started)


def _opener(path: Path) -> Callable[[int], Session]:
    def open_engine(threads: int) -> Session:
        ours = threads if threads and path.suffix == ".onnx" else None
        return Session.open(path, threads=ours)

    return open_engine


class OpenEager(Protocol):
    """PyTorch as an engine, of so many threads, on "cpu" or "cuda"."""

    def __call__(self, threads: int, /, device: str = "cpu") -> Engine: ...


def _eager(metadata: ModelMetadata, wishes: BenchWishes, notes: list[str]) -> OpenEager | None:
    """PyTorch with the engines' weights; None, and a note, where one of the two is not here."""
    if not installed("torch"):
        notes.append("left out: PyTorch is not installed")
        return None
    try:
        module = load_reference(metadata, wishes.checkpoint)
    except CheckpointError as error:
        if wishes.checkpoint is not None:
            raise
        notes.append(f"left out: PyTorch, since {error.message}")
        return None

    def open_engine(threads: int, /, device: str = "cpu") -> Engine:
        from rest_deploy.model.eager import Eager

        return Eager(module, threads, metadata.gives, device)

    return open_engine


def _torch_has_gpu(notes: list[str]) -> bool:
    """Whether PyTorch can be measured on the GPU too; a note where it cannot."""
    import torch

    if torch.cuda.is_available():
        return True
    notes.append(f"left out: PyTorch on the GPU, which torch {torch.__version__} does not see")
    return False


def _plan(wishes: BenchWishes, metadata: ModelMetadata, *, pixels: bool) -> Plan:
    """Every batch and size alone; several in flight and end to end with one image. pixels: some
    engine takes them, so that all are given noise that pixels can make."""
    preprocessing = metadata.card.preprocessing
    sizes = wishes.sizes or ((preprocessing.crop, preprocessing.crop),)
    points = list(sweep(wishes.batches, sizes, ("isolated",), wishes.threads))
    pictures: tuple[UInt8, ...] = ()
    least = min(wishes.batches)
    if wishes.in_flight > 1:
        points += sweep((least,), sizes[:1], ("saturated",), wishes.threads, (wishes.in_flight,))
    if photos.available():
        crops = photos.crops("test", PHOTOS, seed=0)
        pictures = tuple(np.asarray(photos.load(crop).convert("RGB")) for crop in crops)
        # The card's preprocessing makes images of its own size.
        side = preprocessing.crop
        points += sweep((least,), ((side, side),), ("end-to-end",), wishes.threads)
    return Plan(
        points=tuple(points),
        limits=Limits(
            noise=wishes.noise,
            max_seconds=wishes.seconds,
            min_seconds=min(0.5, wishes.seconds),
        ),
        warmup_seconds=min(WARM_UP, wishes.seconds),
        classes=metadata.gives[0].channels,
        photos=pictures,
        preprocessing=preprocessing,
        images=pixel_noise(preprocessing) if pixels else noise_images,
    )


def _examined(
    one: Found,
    measured: Measured,
    data: GateData,
    expected: Answers,
    ceilings: Ceilings | None,
    wishes: BenchWishes,
    notes: list[str],
) -> EngineResult:
    """What is known of one engine: measured, judged, profiled, started anew. One that cannot be
    profiled, which a note says, keeps its times."""
    build = one.sidecar.build
    side = one.metadata.card.preprocessing.crop
    shape: Dims = (min(wishes.batches), 3, side, side)
    accuracy: Accuracy | None = None
    blocks: tuple[BlockTime, ...] = ()
    started: Start | None = None
    failed = measured.failed
    try:
        if not failed:
            accuracy = _accuracy(one, data, expected)
            notes += _of_this_cpu(one, accuracy, data, expected)
        if not failed and wishes.cold_start:
            started = cold_start(one.path, shape, threads=wishes.threads[0] or None)
    except RestDeployError as error:
        failed = error.message
    if not failed and wishes.profile and _on_cpu(one):
        try:
            blocks = explain(one.path, shape, wishes.threads[0] or None, ceilings=ceilings)
        except RestDeployError as error:
            notes.append(f"{one.label}, not profiled: {error.message}")
    return EngineResult(
        label=one.label,
        backend=_backend(one),
        precision=build.precision if build else "fp32",
        file=one.path.name,
        sha256=one.sidecar.sha256,
        size_bytes=one.sidecar.size_bytes,
        failed=failed,
        accuracy=accuracy,
        measurements=() if failed else measured.measurements,
        blocks=blocks,
        blocks_shape="x".join(map(str, shape)) if blocks else "",
        start=started,
        peak_bytes=started.peak_bytes if started else 0,
    )


def _growth(
    found: Sequence[Found], results: Sequence[EngineResult], notes: list[str]
) -> tuple[Growth, ...]:
    """Of every engine by its own graph; what has none (PyTorch, a GPU's engine) by the export's."""
    if not installed("onnx"):
        return ()
    import onnx

    files = {one.label: one.path for one in found if one.path.suffix == ".onnx"}
    rows: list[Growth] = []
    for result in results:
        path = files.get(result.label, found[0].path)
        if len({measured.shape for measured in result.measurements}) > 1:
            try:
                rows += roofline.growth(result.label, onnx.load(path), result.measurements)
            except RestDeployError as error:
                notes.append(f"{result.label}, its work is not counted: {error.message}")
    return tuple(rows)


def _on_cpu(one: Found) -> bool:
    """Where layers are timed."""
    return not _on_gpu(one)


def _on_gpu(one: Found) -> bool:
    build = one.sidecar.build
    return one.path.suffix == ".engine" or (build is not None and build.provider not in ("", "cpu"))


def _backend(one: Found) -> str:
    """ "openvino", or with a provider of ONNX Runtime's "onnxruntime/cuda"."""
    build = one.sidecar.build
    if build is None:
        return "onnxruntime"
    return build.backend + (f"/{build.provider}" if build.provider not in ("", "cpu") else "")


def _accuracy(one: Found, data: GateData, expected: Answers) -> Accuracy:
    """Against the reference. Raises `ArtifactError` for what no engine may answer."""
    with Session.open(one.path) as session:
        actual = answers_of(session, data.images)
    if not all(np.isfinite(answer).all() for answer in actual.values()):
        raise ArtifactError("answers NaN or infinity to real images")
    found = [distances(o, expected[o.name], actual[o.name]) for o in one.metadata.gives]
    return Accuracy(
        images=len(data.images),
        relative_error=max(distance.relative_error for distance in found),
        agreement=next((d.agreement for d in found if d.agreement is not None), None),
        kl=next((d.kl for d in found if d.kl is not None), None),
    )


def _of_this_cpu(one: Found, accuracy: Accuracy, data: GateData, expected: Answers) -> list[str]:
    """A note where an INT8 engine is less accurate because of the CPU, shown by a control."""
    build = one.sidecar.build
    possible = saturation.possible(build, _backend(one))
    if not possible:
        return []
    infer = saturation.in_float(one.path, one.metadata)
    control = gate.answers(infer, data.images, one.metadata.gives)
    first = one.metadata.gives[0]
    error = distances(first, expected[first.name], control[first.name]).relative_error
    words = saturation.cause(possible, accuracy.relative_error, error)
    return [f"{one.label}: {words}"] if words else []


def _ceilings(
    found: Sequence[Found], wishes: BenchWishes, notes: list[str], progress: Progress
) -> Ceilings | None:
    """Of the runtimes that the engines run on; the best of each. None, and notes, where none could
    be measured: the engines' times are."""
    if not wishes.profile:
        return None
    runtimes: list[machine.Runtime] = ["onnxruntime"]
    if any(one.sidecar.build and one.sidecar.build.backend == "openvino" for one in found):
        runtimes.append("openvino")
    with step(progress, "measured what this machine reaches"):
        reached = []
        for runtime in runtimes:
            try:
                reached.append(machine.measure(runtime, wishes.threads[0] or None))
            except RestDeployError as error:
                notes.append(f"left out: the ceilings of {runtime}, since {error.message}")
        return machine.best(reached) if reached else None
