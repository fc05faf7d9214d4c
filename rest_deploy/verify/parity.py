"""The same function? An engine against the PyTorch reference in float64, size by size."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.contracts import ModelMetadata, Preprocessing, Struct
from rest_deploy.errors import CheckpointError, InputError
from rest_deploy.preprocess import load_image, normalize, to_pixel_grid
from rest_deploy.signature import Output
from rest_deploy.verify import metrics
from rest_deploy.verify.distances import distances

if TYPE_CHECKING:
    from PIL.Image import Image

    from rest_deploy.model.backbone import Backbone

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Answers = Mapping[str, npt.NDArray[np.floating]]
"""Every output of a batch, by name."""

Infer = Callable[[Float32], Answers]
"""Normalized images (N, 3, H, W) -> their answers."""

SIZES = ((224, 224), (192, 256), (200, 225), (97, 131), (448, 448))
"""Default (height, width): the training size, non-square, odd, prime, large."""

BATCHES = (1, 5)

MOST_FLOAT32_ERROR = 1e-3
"""Of PyTorch itself. Beyond, float32 does not compute the model at all, and allows no engine
anything: 25 times the largest measured (deterministic random weights, docs/instance-norm.md), and a
quarter of what the gate allows FP16."""


class Case(Struct, frozen=True):
    """One input shape."""

    batch: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.batch}x3x{self.height}x{self.width}"


class CaseResult(Struct, frozen=True):
    """Distances of one output for one input shape; see `metrics`. `bound` is what `relative_error`
    is held against, the same for every kind of output: `card_bound`, or `float32_error` where that
    is larger, see `allowed`. float32_error: PyTorch's own, see `own_errors`; None where
    nothing asked for it. kl and agreement: of logits and probabilities only."""

    case: Case
    relative_error: float
    max_abs_error: float
    cosine: float
    kl: float | None
    agreement: float | None
    bound: float
    card_bound: float
    output: str = ""
    float32_error: float | None = None

    @property
    def passed(self) -> bool:
        return self.relative_error <= self.bound


class ParityReport(Struct, frozen=True):
    """A comparison over several shapes, with what was compared. cause: where it failed and the
    reason is known."""

    model: str
    backend: str
    reference: Literal["float64", "float32"]
    inputs: str
    results: tuple[CaseResult, ...]
    cause: str = ""

    @property
    def passed(self) -> bool:
        return len(self.results) > 0 and all(result.passed for result in self.results)


def bound(metadata: ModelMetadata) -> float:
    """The card's largest relative error for these weights."""
    parity = metadata.card.parity
    fresh = metadata.weights.kind == "fresh"
    return parity.relative_error_fresh if fresh else parity.relative_error


def allowed(card_bound: float, float32_error: float | None) -> float:
    """What an engine in float32 is held against: the card's bound, or PyTorch's own error in
    float32 where that is larger.

    The card's bound is of trained weights. Others (an early or pruned checkpoint, random values)
    can be so ill-conditioned that no computation in float32 keeps it: then no engine has to be
    nearer to float64 than the model itself. An error that is not a number, or beyond
    `MOST_FLOAT32_ERROR`, allows nothing.
    """
    if float32_error is None or not float32_error <= MOST_FLOAT32_ERROR:  # NaN too
        return card_bound
    return max(card_bound, float32_error)


def in_float32(module: Backbone, outputs: Sequence[Output]) -> tuple[Infer, ...]:
    """PyTorch's own answers in float32, one a memory layout: which one runs is the user's choice,
    and where the weights are ill-conditioned their errors differ. The module is copied at the first
    call: most never come."""

    @functools.cache
    def reference(channels_last: bool) -> Infer:
        from rest_deploy.model.reference import Reference

        return Reference(module, "float32", outputs, channels_last=channels_last).all

    return lambda images: reference(False)(images), lambda images: reference(True)(images)


def own_errors(pairs: Iterable[tuple[Answers, Answers]]) -> dict[str, float]:
    """PyTorch's own error in float32, by output: the worst image's. NaN stays NaN.

    pairs: a batch in float64, and the same in float32; a batch may come once a layout.

    The worst, since rounding is one draw of many. With golden weights one image's error is twice
    the next one's, and one layout's half as much again as the other's on the same image: of two
    computations equally good, each exceeds a single draw of the other every second time.
    """
    worst: dict[str, float] = {}
    for exact, own in pairs:
        for name in exact:
            found = metrics.worst_image_error(exact[name], own[name])
            worst[name] = float(np.maximum(worst.get(name, 0.0), found))
    return worst


def compare(
    infer: Infer,
    reference: Infer,
    outputs: Sequence[Output],
    cases: Sequence[Case],
    images: Callable[[Case], Float32],
    limit: float,
    float32: Sequence[Infer] = (),
) -> tuple[CaseResult, ...]:
    """Run both on the same inputs, and hold each of `outputs` against the other's.

    `images` makes the batch of a case, (N, 3, H, W) float32, normalized. limit: the card's bound.
    float32: PyTorch's own answers, see `allowed`; run, on all cases, only where one exceeds
    `limit`, since else it could not change a verdict. None of them: `limit` alone counts.
    """
    results: list[CaseResult] = []
    exact: list[Answers] = []
    for case in cases:
        batch = images(case)
        expected, actual = reference(batch), infer(batch)
        results += [
            _compared(case, output, expected[output.name], actual[output.name], limit)
            for output in outputs
        ]
        exact.append({output.name: expected[output.name] for output in outputs})
    if not float32 or all(result.passed for result in results):
        return tuple(results)
    own = own_errors(
        (expected, way(images(case)))
        for case, expected in zip(cases, exact, strict=True)
        for way in float32
    )
    return tuple(
        msgspec.structs.replace(
            result,
            float32_error=own[result.output],
            bound=allowed(limit, own[result.output]),
        )
        for result in results
    )


def _compared(
    case: Case,
    output: Output,
    expected: npt.NDArray[np.floating],
    actual: npt.NDArray[np.floating],
    limit: float,
) -> CaseResult:
    if actual.shape != expected.shape:
        raise InputError(
            f"at {case} the engine returns shape {actual.shape} for {output.name}, the reference "
            f"{expected.shape}"
        )
    found = distances(output, expected, actual)
    return CaseResult(
        case=case,
        relative_error=found.relative_error,
        max_abs_error=metrics.max_abs_error(expected, actual),
        cosine=metrics.cosine(expected, actual),
        kl=found.kl,
        agreement=found.agreement,
        bound=limit,
        card_bound=limit,
        output=output.name,
    )


def images_for(
    metadata: ModelMetadata, images: Callable[[Case], Float32]
) -> Callable[[Case], Float32]:
    """`images`, where the model takes pixels brought to the nearest that pixels can make."""
    if metadata.input_kind == "float":
        return images
    return lambda case: to_pixel_grid(images(case), metadata.card.preprocessing)


def load_reference(metadata: ModelMetadata, checkpoint: Path | None = None) -> Backbone:
    """The module with exactly the weights that were exported, proven by their hash.

    checkpoint: where the weights are now, when they have moved since the export.
    Raises `CheckpointError` when they are gone or are others.
    """
    from rest_deploy.model.checkpoint import load_model, read_checkpoint

    weights = metadata.weights
    source = None
    if checkpoint is not None or weights.kind == "checkpoint":
        path = checkpoint or Path(weights.path)
        if not path.is_file():
            raise CheckpointError(
                f"the checkpoint this model was exported from is not there: {path}",
                hint="say where it is now: --checkpoint F",
            )
        source = read_checkpoint(path, weights.key or None if checkpoint is None else None)
    classes = metadata.num_classes if source is None else None
    loaded = load_model(metadata.card, source, num_classes=classes, seed=weights.seed)
    if loaded.weights.state_sha256 != weights.state_sha256:
        raise CheckpointError(
            f"the reference weights ({loaded.weights.state_sha256[:12]}) are not the exported ones "
            f"({weights.state_sha256[:12]})",
            hint="--checkpoint F names the checkpoint that was exported; or export again",
        )
    return loaded.module


def synthetic_images(case: Case, seed: int = 0) -> Float32:
    """Seeded images with the spectrum of photos (amplitude 1/f), unit variance per channel."""
    rng = np.random.default_rng((seed, case.batch, case.height, case.width))
    frequency = np.hypot(np.fft.fftfreq(case.height)[:, None], np.fft.rfftfreq(case.width)[None, :])
    frequency[0, 0] = 1.0 / max(case.height, case.width)
    noise = rng.standard_normal((case.batch, 3, case.height, case.width))
    images = np.fft.irfft2(np.fft.rfft2(noise) / frequency, s=(case.height, case.width))
    images -= images.mean(axis=(2, 3), keepdims=True)
    images /= images.std(axis=(2, 3), keepdims=True)
    return images.astype(np.float32)


def photo_images(
    photos: Sequence[Path | Image], preprocessing: Preprocessing
) -> Callable[[Case], Float32]:
    """Real photos, warped to each case's size and normalized; repeated when there are too few."""

    def images(case: Case) -> Float32:
        from PIL.Image import Resampling

        batch = []
        for index in range(case.batch):
            photo = load_image(photos[index % len(photos)])
            resized = photo.resize((case.width, case.height), Resampling.BICUBIC)
            batch.append(normalize(np.asarray(resized, dtype=np.uint8), preprocessing))
        return np.stack(batch)

    return images
