"""Checkpoint -> engine in one command: export, calibrate, build, gate, bench; done is done."""

from __future__ import annotations

import importlib.metadata
import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rest_deploy import __version__
from rest_deploy.artifact import Sidecar, read_sidecar, sha256_file, to_json, write_text
from rest_deploy.bench import environment, store
from rest_deploy.cards import available, load_card
from rest_deploy.contracts import InstanceNormForm, Struct
from rest_deploy.engine.backends import Choice, choose
from rest_deploy.errors import InputError
from rest_deploy.signature import InputKind, OutputKind
from rest_deploy.verbs import engine, openvino
from rest_deploy.verbs.bench import BenchWishes, bench
from rest_deploy.verbs.build import build_engine
from rest_deploy.verbs.calibrate import calibrate
from rest_deploy.verbs.export import export
from rest_deploy.verbs.ledger import Ledger, key_of
from rest_deploy.verbs.make import Request
from rest_deploy.verbs.progress import Counter, Progress, silent, uncounted
from rest_deploy.verbs.trial import Candidates, candidates, first_built, read_trial, rivals
from rest_deploy.verbs.verify import open_export
from rest_deploy.verify import gate

LEDGER = "deploy.json"

TOOLS = ("torch", "onnx", "onnxscript", "onnx-ir", "onnxruntime", "openvino", "numpy")
"""Whose versions decide what is exported and built."""


@dataclass(frozen=True)
class ExportWishes:
    """Of the user for the export; as `export` takes them."""

    checkpoint: Path | None = None
    checkpoint_key: str | None = None
    instance_norm: InstanceNormForm = "folded"
    opset: int | None = None
    num_classes: int | None = None
    labels: str | None = None
    input_size: int | None = None
    resize: int | None = None
    seed: int = 0
    outputs: tuple[OutputKind, ...] = ()
    unit_length: bool = False
    input_kind: InputKind = "float"


class Step(Struct, frozen=True):
    """One step of a deployment. reused: it was done already, by an earlier run."""

    name: str
    file: str
    sha256: str
    seconds: float
    reused: bool
    summary: str = ""


class DeployReport(Struct, frozen=True):
    """What `rest-deploy deploy` did. record: of the bench, "" without one; advice: its word on
    which engine to deploy."""

    engine: str
    backend: str
    precision: str
    steps: tuple[Step, ...]
    seconds: float
    warnings: tuple[str, ...] = ()
    record: str = ""
    advice: str = ""
    notes: tuple[str, ...] = ()


@dataclass
class _Run:
    """The steps of one run, in order."""

    ledger: Ledger
    progress: Progress
    steps: list[Step] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def step(self, name: str, key: str, work: Callable[[], Path], summary: str = "") -> Path:
        """Do it, or take what an earlier run left."""
        started = time.monotonic()
        ready = self.ledger.done(name, key)
        if ready is None:
            file = work()
            self.ledger.record(name, key, file)
        else:
            file = ready
        seconds = time.monotonic() - started
        if ready is not None:
            self.progress(f"{name}: up to date", seconds)
        self.steps.append(
            Step(
                name=name, file=str(file), sha256=sha256_file(file), seconds=seconds,
                reused=ready is not None, summary=summary or _summary(file),
            )
        )  # fmt: skip
        return file


def deploy(
    variant: str | None,
    wanted: ExportWishes,
    request: Request,
    *,
    workspace: Path,
    backend: str = "auto",
    wishes: engine.Wishes = engine.NO_WISHES,
    measured: BenchWishes | None = None,
    progress: Progress = silent,
    counter: Counter = uncounted,
) -> DeployReport:
    """Export, calibrate, build, gate and bench. A run that was killed is gone on with by the next;
    what is up to date is not done again.

    variant: None to tell it from the checkpoint. measured: how the engine is compared with the
    export and PyTorch; None: not at all.
    Raises what `export`, `calibrate` and `build_engine` raise; steps before the failed one stay.
    """
    started = time.monotonic()
    unfit = openvino.unfit(request.precision, fresh=wanted.checkpoint is None)
    likely = choose(backend, request.precision, unfit)  # before anything is done in vain
    run = _Run(Ledger(workspace / LEDGER), progress)
    tools = _versions()
    weights = _file_hash(wanted.checkpoint, "checkpoint")
    labels = _file_hash(Path(wanted.labels), "labels") if wanted.labels else ""

    def exported() -> Path:
        report = export(
            variant,
            output_dir=workspace,
            checkpoint=wanted.checkpoint,
            checkpoint_key=wanted.checkpoint_key,
            instance_norm=wanted.instance_norm,
            opset=wanted.opset,
            num_classes=wanted.num_classes,
            labels=wanted.labels,
            input_size=wanted.input_size,
            resize=wanted.resize,
            seed=wanted.seed,
            outputs=wanted.outputs,
            unit_length=wanted.unit_length,
            input_kind=wanted.input_kind,
            progress=progress,
        )
        run.warnings.extend(report.warnings)
        run.notes.extend(report.notes)
        return Path(report.path)

    cards = available() if variant is None else load_card(variant)
    key = key_of(__version__, tools, cards, wanted, weights, labels)
    model = run.step("export", key, exported)
    able = Candidates((likely,))
    if backend == "auto" and rivals(request, likely):
        able = _timed(model, request, likely, workspace, run, counter)

    def built(choice: Choice) -> Path:
        return _built(model, request, choice, wishes, workspace, run, counter)

    choice, path = first_built(able, built, progress)
    advice = able.trial.advice(choice.backend, request.precision) if able.trial else ""
    run.warnings.extend([advice] if advice else [])
    record = None
    if measured is not None:
        record = _measured(model, path, measured, workspace, run, counter)
    return DeployReport(
        engine=str(path),
        backend=choice.backend,
        precision=request.precision,
        steps=tuple(run.steps),
        seconds=time.monotonic() - started,
        warnings=tuple(dict.fromkeys(run.warnings)),
        record="" if record is None else str(record),
        advice="" if record is None else store.read(record).advice,
        notes=tuple(run.notes),
    )


def _timed(
    model: Path, request: Request, likely: Choice, workspace: Path, run: _Run, counter: Counter
) -> Candidates:
    """The backends in the order in which they are tried; timed once for these files and this
    machine, so that a run that goes on does not come to another engine."""
    file = workspace / f"{model.stem}.{request.precision}.trial.json"
    source = open_export(model, workspace)

    def timed() -> Path:
        found = candidates(source, request, likely, run.progress, counter)
        write_text(file, to_json(found.trial))
        return file

    here = environment.examine()
    key = key_of(__version__, _versions(), here.likeness(), sha256_file(model), likely, request)
    known = read_trial(run.step("time the backends", key, timed, "one image, sketches"))
    return candidates(source, request, likely, run.progress, counter, known)


def _built(
    model: Path,
    request: Request,
    choice: Choice,
    wishes: engine.Wishes,
    workspace: Path,
    run: _Run,
    counter: Counter,
) -> Path:
    """Calibrated, built and gated for one backend."""
    table = None
    if request.precision in ("int8", "fp8") and request.table is None:
        own = openvino.with_recipe(request, choice.backend)
        table = _calibrated(model, own, workspace, run, counter)

    def built() -> Path:
        report = build_engine(
            model, request, workspace=workspace, backend=choice.backend, wishes=wishes,
            progress=run.progress, counter=counter,
        )  # fmt: skip
        run.warnings.extend(report.warnings)
        return Path(report.path)

    key = key_of(
        __version__, _versions(), sha256_file(model), table, choice.backend, request, wishes,
        _file_hash(request.table, "table"),
    )  # fmt: skip
    return run.step(f"build {request.precision} for {choice.backend}", key, built)


def _measured(
    model: Path, path: Path, wishes: BenchWishes, workspace: Path, run: _Run, counter: Counter
) -> Path:
    """The record, of this machine and these files."""
    engines = (model, path)

    def benched() -> Path:
        report = bench(
            engines, wishes, workspace=workspace,
            command=shlex.join(["rest-deploy", "bench", *map(str, engines)]),
            progress=run.progress, counter=counter,
        )  # fmt: skip
        return Path(report.record_file)

    here = environment.examine()
    hashes = [sha256_file(engine) for engine in engines]
    key = key_of(__version__, _versions(), here.likeness(), hashes, wishes)
    return run.step("bench", key, benched, "see its page")


def _calibrated(model: Path, request: Request, workspace: Path, run: _Run, counter: Counter) -> str:
    """The table's hash. Calibration knows by itself what is up to date: it looks at every image."""
    started = time.monotonic()
    report, _ = calibrate(
        model,
        workspace=workspace,
        images=request.images,
        recipe=request.recipe or request.precision,
        counter=counter,
    )
    if report.reused:
        run.progress("calibrate: up to date", time.monotonic() - started)
    run.steps.append(
        Step(
            name="calibrate", file=report.table, sha256=report.table_sha256,
            seconds=time.monotonic() - started, reused=report.reused,
            summary=f"{report.images} images of {report.source}",
        )
    )  # fmt: skip
    return report.table_sha256


def _summary(file: Path) -> str:
    """What was proven of an artifact, from its sidecar."""
    sidecar: Sidecar | None = read_sidecar(file, check_hash=False)
    if sidecar is None:
        return ""
    if sidecar.parity is not None:
        proof = sidecar.parity
        return f"relative error {proof.relative_error:.1e} against {proof.reference}"
    if sidecar.build is None or sidecar.build.gate is None:
        return "no accuracy gate"
    checks = {check.name: check.value for check in sidecar.build.gate.checks}
    errors = [value for name, value in checks.items() if name.startswith("relative ")]
    error, agreement = max(errors), checks.get(gate.AGREEMENT)
    agrees = "" if agreement is None else f", agreement {agreement:.1%}"
    return f"relative error {error:.1e}{agrees}, of {sidecar.build.gated}"


def _versions() -> dict[str, str]:
    found = {}
    for name in TOOLS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = ""
    return found


def _file_hash(path: Path | None, what: str) -> str:
    """Of a file that goes in. Raises `InputError` when it cannot be read."""
    if path is None:
        return ""
    try:
        return sha256_file(path)
    except OSError as error:
        raise InputError(f"cannot read the {what} {path}: {error.strerror}") from error
