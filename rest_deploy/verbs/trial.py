"""The backends of this CPU side by side on one model, before anything is calibrated in earnest.

How long an engine takes does not hang on its ranges. So a sketch of each, calibrated on two images,
is timed in turn with the others, float32 among them: that is what INT8 has to beat, and on a CPU
without integer units does not.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import msgspec

from rest_deploy import machine
from rest_deploy.bench import measure
from rest_deploy.bench.plan import Plan, Subject, noise_images, pixel_noise, sweep
from rest_deploy.bench.stopping import Limits
from rest_deploy.contracts import HostBackend, Precision, Struct
from rest_deploy.engine.backends import BackendName, Choice, can_build
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.engine.openvino import OpenVinoRunner
from rest_deploy.errors import VerificationError
from rest_deploy.layout import layout_of
from rest_deploy.quant.recipe import Corrections, load_recipe
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import openvino
from rest_deploy.verbs.make import Request, adapt, make, rest_for
from rest_deploy.verbs.progress import Counter, Progress, silent, uncounted

HOSTS: tuple[HostBackend, ...] = ("openvino", "onnxruntime")
"""Best first where they are level."""

IMAGES = 2
"""That a sketch is calibrated on."""

LEVEL = 1.03
"""Times that differ by less decide nothing."""

Built = TypeVar("Built")

SECONDS = 2.0
"""Of each engine, at most."""

INSTANCES = 4
"""Two sessions of one file differ by percents, by where their memory lies: so many of each."""


class Timed(Struct, frozen=True):
    """An engine of the trial. ms: for one image, median of the first one's runs times the ratio of
    this one's rounds to its; failed: why it has none."""

    backend: HostBackend
    precision: Precision
    ms: float
    failed: str = ""

    @property
    def name(self) -> str:
        return f"{self.precision} on {self.backend}"


class Trial(Struct, frozen=True):
    """What was measured, fastest first. shape: of the input; on: the instruction set here."""

    shape: str
    on: str
    rows: tuple[Timed, ...]

    @property
    def ran(self) -> tuple[Timed, ...]:
        return tuple(row for row in self.rows if not row.failed)

    def order(self, precision: Precision) -> tuple[HostBackend, ...]:
        """The backends that ran it, to be tried in this order."""
        rows = [row for row in self.ran if row.precision == precision]
        level = [row.backend for row in rows if row.ms <= LEVEL * rows[0].ms]
        first = sorted(level, key=HOSTS.index)[:1]
        return (*first, *(row.backend for row in rows if row.backend not in first))

    def advice(self, backend: str, precision: Precision) -> str:
        """Where float32 is no slower here than that engine, the words that say so; else ""."""
        own = [row for row in self.ran if (row.backend, row.precision) == (backend, precision)]
        floats = [row for row in self.ran if row.precision == "fp32"]
        if precision == "fp32" or not own or not floats or floats[0].ms > LEVEL * own[0].ms:
            return ""
        return (
            f"{own[0].name} has {floats[0].ms / own[0].ms:.2f} times the speed of "
            f"{floats[0].name} on this CPU ({self.on}), and is less accurate: deploy float32 here, "
            f"rest-deploy build-engine --fp32 --backend {floats[0].backend}"
        )

    def words(self) -> str:
        told = (f"{row.name} {f'{row.ms:.1f} ms' if not row.failed else 'failed'}"
                for row in self.rows)  # fmt: skip
        return f"{self.shape} on {self.on}: {', '.join(told)}"


@dataclass(frozen=True)
class Candidates:
    """Whom to build for, and whom next where the gate refuses that one. trial: None where nothing
    had to be measured: the backend was named, or there is but one."""

    choices: tuple[Choice, ...]
    trial: Trial | None = None


def rivals(request: Request, found: Choice) -> tuple[HostBackend, ...]:
    """Whom to time beside `found`, itself among them; none where there is nothing to choose, and
    nothing that float32 could be faster than."""
    plain = request.precision in ("fp32", "int8") and request.rest in (None, "fp32")
    if found.backend not in HOSTS or not plain:
        return ()
    skipped = dict(found.passed_over)
    able = [name for name in HOSTS if name not in skipped and can_build(name, request.precision)]
    return () if len(able) == 1 and request.precision == "fp32" else tuple(able)


def candidates(
    source: Session,
    request: Request,
    found: Choice,
    progress: Progress = silent,
    counter: Counter = uncounted,
    known: Trial | None = None,
) -> Candidates:
    """found: what "auto" takes without measuring. known: a trial that was made before.

    Raises what `calibrate` raises for images that it cannot read.
    """
    able = rivals(request, found)
    if not able:
        return Candidates((found,))
    started = time.monotonic()
    tried = known or trial(source, request, able, counter)
    if known is None:
        progress(f"timed sketches at {tried.words()}", time.monotonic() - started)
    order = tried.order(request.precision) or able
    times = {row.backend: row.ms for row in tried.ran if row.precision == request.precision}
    choices = []
    for name in order:
        slower = tuple(
            (other, f"{times[other]:.1f} ms an image here, {name} {times[name]:.1f}")
            for other in order
            if other != name and times.get(other, 0) >= times.get(name, 0)
        )
        choices.append(Choice(name, found.passed_over + slower))
    return Candidates(tuple(choices), tried)


def first_built(
    able: Candidates, build: Callable[[Choice], Built], progress: Progress
) -> tuple[Choice, Built]:
    """What the first candidate made that passed its gate. Raises what the last one raises."""
    refused: tuple[tuple[BackendName, str], ...] = ()
    for choice in able.choices[:-1]:
        started = time.monotonic()
        taken = replace(choice, passed_over=choice.passed_over + refused)
        try:
            return taken, build(taken)
        except VerificationError as error:
            refused += ((choice.backend, f"refused by the gate: {error.message}"),)
            progress(f"{error.message}; on to the next backend", time.monotonic() - started)
    last = able.choices[-1]
    last = replace(last, passed_over=last.passed_over + refused)
    return last, build(last)


def read_trial(file: Path) -> Trial | None:
    """One that was written down; None where it has to be made again."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=Trial)
    except (OSError, msgspec.DecodeError, UnicodeError):
        return None


def trial(
    source: Session,
    request: Request,
    backends: Sequence[HostBackend],
    counter: Counter = uncounted,
) -> Trial:
    """Time `request.precision` on `backends` and float32 on all, in turn, one image of the card's
    size.

    An engine that cannot be run is in the rows with its reason. Raises what `calibrate` raises for
    images it cannot read.
    """
    side = source.metadata.card.preprocessing.crop
    (point,) = sweep((1,), ((side, side),))
    pixels = source.metadata.input_kind == "uint8"
    plan = Plan(
        points=(point,),
        limits=Limits(max_seconds=SECONDS, min_seconds=SECONDS / 2),
        warmup_seconds=SECONDS / 4,
        instances=INSTANCES,
        images=pixel_noise(source.metadata.card.preprocessing) if pixels else noise_images,
    )
    wanted = [(request.precision, backend) for backend in backends]
    floats: list[tuple[Precision, HostBackend]] = [
        ("fp32", name) for name in HOSTS if can_build(name, "fp32")
    ]
    with tempfile.TemporaryDirectory(prefix="rest-deploy-") as folder:
        entries: dict[str, tuple[HostBackend, Precision]] = {}
        subjects = []
        for precision, backend in dict.fromkeys((*wanted, *floats)):
            label = f"{precision} on {backend}"
            path = _sketch(source, replace(request, precision=precision), backend, Path(folder))
            entries[label] = (backend, precision)
            subjects.append(Subject(label, _opener(source, path, backend, side)))
        found = measure.compare(subjects, plan, counter)
    times = {one.label: one.measurements[0].host.median for one in found.engines
             if one.measurements}  # fmt: skip
    # Medians drift with the machine, ratios within rounds do not.
    times |= {ratio.other: times[ratio.base] / ratio.ratio for ratio in found.ratios}
    rows = [
        Timed(
            *entries[one.label],
            ms=times.get(one.label, 0.0),
            failed=one.failed or "; ".join(one.skipped),
        )
        for one in found.engines
    ]
    on = machine.instruction_set(machine.features_for(backends[0]))
    rows.sort(key=lambda row: (bool(row.failed), row.ms))
    return Trial(shape=point.shape, on=on, rows=tuple(rows))


def _sketch(source: Session, request: Request, backend: HostBackend, folder: Path) -> Path:
    """An engine as `backend` would get it, whose ranges nobody may rely on."""
    if request.precision == "fp32":
        return source.path
    import onnx_ir as ir

    from rest_deploy.quant.sensitivity import to_toml

    folder = folder / backend
    folder.mkdir()
    wanted = openvino.with_recipe(request, backend)
    if request.table is None:
        recipe = msgspec.structs.replace(
            load_recipe(wanted.recipe or wanted.precision), corrections=Corrections()
        )
        few = replace(request.images, limit=min(IMAGES, request.images.limit or IMAGES), sizes=())
        toml = folder / "sketch.toml"
        toml.write_text(to_toml(recipe, "no corrections: they change no time"), encoding="utf-8")
        wanted = replace(wanted, recipe=str(toml), images=few)
    rest = rest_for(wanted, backend)
    made = make(source, wanted, rest, folder, silent, uncounted, typed=False)
    path = folder / source.path.name
    ir.save(adapt(made, source.path, backend, folder).model, path)
    return path


def _opener(
    source: Session, path: Path, backend: HostBackend, side: int
) -> Callable[[int], Session]:
    """As a session runs it once the shape has come often."""

    def opened(_threads: int) -> Session:
        if backend == "onnxruntime":
            return Session(OnnxRuntimeRunner(path), source.metadata, path, None)
        dynamic = OpenVinoRunner(path)
        shape = layout_of(source.metadata.input_kind).shape((1, 3, side, side))
        return Session(dynamic.specialized(shape), source.metadata, path, None)

    return opened
