"""Is it still the same engine that answers? Every answer of a measurement is looked at, so that one
that is fast because it is broken gets no numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Answer = Float32 | Mapping[str, Float32]
"""The one output of an engine, or several by name: every one of them is looked at."""

SAME_WITHIN = 1e-3
"""Relative L2 distance of two answers to one input. The same kernels differ by the order of their
sums only: 1e-6 in float32, below 1e-3 in 16 bit."""

CONSTANT_WITHIN = 1e-6
"""Of the largest logit: answers to different images that are closer do not depend on the image."""


class WrongAnswer(Exception):
    """An engine that must not be called fast; the message is the reason."""


class Answers:
    """What an engine answered first to each input, and the comparison with it ever after."""

    def __init__(self, inputs: int, batch: int, classes: int = 0) -> None:
        """inputs: batches of different images, `batch` images each. classes: expected of the
        first output, logits or channels, 0: as many as the first answer has."""
        self._batch, self._classes = batch, classes
        self._first: list[tuple[Float32, ...] | None] = [None] * inputs
        self._bounds: list[tuple[float, ...]] = [()] * inputs

    def first(self, index: int, answer: Answer) -> None:
        """Remember the answer to input `index`. Raises `WrongAnswer`."""
        parts = [np.asarray(part) for part in _parts(answer)]
        found = parts[0]
        if found.ndim not in (2, 4) or any(part.shape[:1] != (self._batch,) for part in parts):
            shapes = " and ".join(str(part.shape) for part in parts)
            raise WrongAnswer(
                f"answers shape {shapes} to {self._batch} images; expected "
                f"({self._batch}, {self._classes or 'classes'})"
            )
        self._classes = self._classes or int(found.shape[1])
        if found.shape[1] != self._classes:
            raise WrongAnswer(f"answers {found.shape[1]} classes; expected {self._classes}")
        if not all(np.isfinite(part).all() for part in parts):
            raise WrongAnswer(f"answers NaN or infinity to input {index}")
        kept = tuple(part.astype(np.float32, copy=True) for part in parts)
        self._first[index] = kept
        self._bounds[index] = tuple(SAME_WITHIN**2 * float(np.vdot(part, part)) for part in kept)

    def depend_on_images(self) -> None:
        """After all inputs were answered once. Raises `WrongAnswer` where all answers of an output
        are alike."""
        answered = [answer for answer in self._first if answer is not None]
        for parts in zip(*answered, strict=True):
            rows = np.concatenate(parts)
            if len(rows) > 1 and bool(np.ptp(rows, axis=0).max() <= CONSTANT_WITHIN * _size(rows)):
                raise WrongAnswer(f"answers the same to {len(rows)} different images")

    def check(self, index: int, answer: Answer) -> None:
        """One subtraction and one dot product an output: cheap enough for every run. Raises
        `WrongAnswer`."""
        first = self._first[index]
        if first is None:
            raise ValueError(f"input {index} has no first answer to compare with")
        for part, known, bound in zip(_parts(answer), first, self._bounds[index], strict=True):
            if part.shape != known.shape:
                raise WrongAnswer(f"answers shape {part.shape}, at its start {known.shape}")
            difference = part - known
            # Written so that NaN fails too: it compares as False.
            if not float(np.vdot(difference, difference)) <= bound:
                raise WrongAnswer(self._told(index, part, known))

    def _told(self, index: int, answer: Float32, first: Float32) -> str:
        if not np.isfinite(answer).all():
            return f"answers NaN or infinity to input {index}, which it answered well at its start"
        distance = float(np.linalg.norm(answer - first) / max(float(np.linalg.norm(first)), 1e-30))
        return (
            f"answers input {index} otherwise than at its start: relative distance {distance:.1e}, "
            f"expected at most {SAME_WITHIN:.0e}"
        )


def _parts(answer: Answer) -> tuple[Float32, ...]:
    return tuple(answer.values()) if isinstance(answer, Mapping) else (answer,)


def batches(images: Float32, batch: int) -> Sequence[Float32]:
    """(K * batch, 3, H, W) -> K contiguous inputs."""
    return [np.ascontiguousarray(part) for part in np.split(images, len(images) // batch)]


def _size(rows: Float32) -> float:
    return float(np.abs(rows).max())
