"""The self-test that an engine is published with: see `runtime.arrival`, which runs it.

Two photos, reduced to few colours so that a sidecar stays small, and the reference's answers to
them, held to the gate's own bounds. Two images scatter more than the gate's many: where an engine
that passed the gate is past a bound on them all the same, the bound becomes `ROOM` times what was
measured, up to `MOST` times the gate's. Beyond that these photos are none of the model's business,
its own images passed: then the engine's answers are what is expected elsewhere. Nothing is widened
for an engine without a gate: its error is written down, and `Arrival` lets it pass where it was
built alone.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from rest_deploy import photos
from rest_deploy.contracts import EngineFit, ModelMetadata, Profile
from rest_deploy.engine.onnxruntime import OnnxRuntimeRunner
from rest_deploy.preprocess import load_image, normalize, to_pixels
from rest_deploy.runtime import arrival
from rest_deploy.runtime.session import Float32, Session
from rest_deploy.runtime.site import site
from rest_deploy.selftest import Expected, SelfTest, Site
from rest_deploy.signature import Output
from rest_deploy.verbs.gate import GATE_SEED, reference_answers
from rest_deploy.verbs.judge import bounds_for, on_this_gpu
from rest_deploy.verbs.make import Request
from rest_deploy.verify import gate

UInt8 = npt.NDArray[np.uint8]

CLASSES = ("astronaut", "coffee", "chelsea", "rocket")
"""Photos to choose the probes from: the first two on which the engine keeps the gate's bound."""

PROBES = 2
MOST_BYTES = 16_000
"""Of one probe's PNG."""
COLOURS = (64, 32, 16, 8, 4)
ROOM, MOST = arrival.ROOM, 2.0

ITSELF = "the engine itself, where it passed the gate"


@dataclass(frozen=True)
class Tested:
    """What a sidecar says of it. selftest: None where the engine answers NaN."""

    site: Site
    selftest: SelfTest | None


def of_file(
    source: Session,
    request: Request,
    staged: Path,
    infer: gate.Infer | None,
    backend: str,
    profiles: Sequence[Profile] = (),
    *,
    typed: bool = False,
) -> Tested:
    """Of an ONNX file that is not published yet. infer: of what it is built for; None: ONNX Runtime
    on the CPU. backend: as its runner calls itself, "" for that one. typed: in 16 bits, of which
    the CPU has no kernels: the gate looked at another graph, and this one is not run here."""
    if infer is None and not typed:
        runner = OnnxRuntimeRunner(staged)
        infer = Session(runner, source.metadata, staged, None).run_normalized
    here = site(backend or "onnxruntime/cpu")
    return Tested(here, _made(source, request, infer, profiles))


def of_engine(
    source: Session, request: Request, engine: bytes, fit: EngineFit, staged: Path
) -> Tested:
    """Of a TensorRT engine, run where a GPU is here; else its graph's gate is all there is."""
    session = on_this_gpu(engine, fit, staged, source.metadata)
    if isinstance(session, str):
        graph = site("onnxruntime/cpu")
        return Tested(graph, _made(source, request, None, fit.profiles))
    with session:
        here = site(session.runner.backend)
        return Tested(here, _made(source, request, session.run_normalized, fit.profiles))


def _made(
    source: Session, request: Request, infer: gate.Infer | None, profiles: Sequence[Profile]
) -> SelfTest | None:
    """infer: None where the engine cannot be run here."""
    metadata, outputs = source.metadata, source.metadata.gives
    size, batch = _shape(metadata.card.preprocessing.crop, profiles)
    pngs = [_png(image) for image in _images(metadata, size)]
    images = np.stack([normalize(_pixels(one), metadata.card.preprocessing) for one in pngs])
    if request.gate:
        exact, reference = reference_answers(source, images, request.checkpoint)
    else:
        exact = gate.answers(source.run_normalized, images, outputs)
        reference = "the float export"
    wanted = {one.name: arrival.digest(one, exact[one.name]) for one in outputs}
    limits = _limits(metadata, request, exact)
    rows = list(range(PROBES))
    measured: dict[str, float] = {}
    if infer is not None:
        found = _answers(infer, images, outputs, batch)
        rows = _kept(wanted, found, limits)
        measured = {name: arrival.error(wanted[name][rows], found[name][rows]) for name in limits}
        if not all(map(math.isfinite, measured.values())):
            return None
        if request.gate and any(measured[name] > MOST * limits[name] for name in limits):
            wanted, reference = found, ITSELF
            measured = dict.fromkeys(limits, 0.0)
        elif request.gate:
            limits = {name: _widened(measured[name], limits[name]) for name in limits}
    return SelfTest(
        probes=tuple(base64.b64encode(pngs[row]).decode() for row in rows),
        expected=tuple(
            Expected(
                name=one.name,
                channels=one.channels,
                values=arrival.text_of(wanted[one.name][rows]),
                bound=limits[one.name],
                built=measured.get(one.name),
            )
            for one in outputs
        ),
        reference=reference,
        batch=batch,
    )


def _limits(
    metadata: ModelMetadata, request: Request, exact: Mapping[str, gate.Array]
) -> dict[str, float]:
    """The gate's bound of each output."""
    bounds, fresh = bounds_for(metadata.card, request.precision), metadata.weights.kind == "fresh"
    checks = {
        one.name: gate.error_check(one, exact[one.name], exact[one.name], bounds, fresh=fresh)
        for one in metadata.gives
    }
    return {name: check.bound for name, check in checks.items()}


def _kept(
    wanted: Mapping[str, Float32], found: Mapping[str, Float32], limits: Mapping[str, float]
) -> list[int]:
    """The images to keep: the first ones within the bounds, then the least bad."""
    count = len(next(iter(wanted.values())))
    worst = [
        max(
            arrival.error(wanted[name][[row]], found[name][[row]]) / limits[name] for name in limits
        )
        for row in range(count)
    ]
    return sorted(range(count), key=lambda row: max(1.0, worst[row]))[:PROBES]


def _widened(measured: float, limit: float) -> float:
    return limit if measured <= limit else min(ROOM * measured, MOST * limit)


def _answers(
    infer: gate.Infer, images: Float32, outputs: Sequence[Output], batch: int
) -> dict[str, Float32]:
    """Each image in a call of its own, as `arrival` runs it."""
    found = [infer(np.repeat(image[None], batch, axis=0)) for image in images]
    return {
        one.name: np.concatenate([arrival.digest(one, each[one.name][:1]) for each in found])
        for one in outputs
    }


def _shape(crop: int, profiles: Sequence[Profile]) -> tuple[tuple[int, int], int]:
    """(height, width) and batch of a call: one image of the card's size, or the least that the
    profiles hold."""
    if not profiles:
        return (crop, crop), 1
    at_crop = [p.minimum[0] for p in profiles if p.holds((p.minimum[0], 3, crop, crop))]
    if at_crop:
        return (crop, crop), min(at_crop)
    batch, _, height, width = profiles[0].optimum
    return (height, width), batch


def _images(metadata: ModelMetadata, size: tuple[int, int]) -> list[UInt8]:
    """Held-out crops of the photos, or where they are not installed patches of colours."""
    card = metadata.card.preprocessing
    if photos.available():
        crops = {photos.LABELS[crop.photo]: crop
                 for crop in photos.crops("test", len(photos.LABELS), GATE_SEED)}  # fmt: skip
        return [to_pixels(photos.load(crops[name]), card, size) for name in CLASSES]
    noise = np.random.default_rng(GATE_SEED).integers(0, 256, (len(CLASSES), 24, 24, 3), np.uint8)
    return [to_pixels(Image.fromarray(one), card, size) for one in noise]


def _png(pixels: UInt8) -> bytes:
    """In as many colours as `MOST_BYTES` allow, at least the fewest of `COLOURS`."""
    image, found = Image.fromarray(pixels), b""
    for count in COLOURS:
        stream = io.BytesIO()
        image.quantize(count, dither=Image.Dither.NONE).save(stream, "PNG", optimize=True)
        found = stream.getvalue()
        if len(found) <= MOST_BYTES:
            break
    return found


def _pixels(png: bytes) -> UInt8:
    return np.asarray(load_image(png))
