"""calibration/receipts/*.json: what a shipped recipe cost and gained on the model it was tried on.

A receipt is written by benchmarks/receipts.py. It answers two questions: what to expect of a
variant, and whether a recipe still fits a checkpoint of one's own, whose error stands beside it.
"""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from rest_deploy.cards import data_directory
from rest_deploy.contracts import Struct
from rest_deploy.errors import CardError

FITS_UP_TO = 2.0
"""Times the receipt's error. Trained models of one variant differ less; one layer whose range is
widened tenfold by a few outliers costs more."""


class Speed(Struct, frozen=True):
    """At one input shape ("1x3x224x224"): median over interleaved rounds of the time of the float
    engine of the same backend over the quantized one's, 2 is twice as fast; 95 % interval."""

    shape: str
    ratio: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.high) and 0 < self.low <= self.ratio <= self.high):
            raise ValueError(f"not an interval: {self.low} to {self.high} around {self.ratio}")


class Measured(Struct, frozen=True):
    """A recipe on one backend: the accuracy gate's figures, and speed.

    `relative_error`: L2 of the logits against PyTorch in float64, over `images`; `agreement`:
    share of them with the same top-1; `top1_reference` and `top1_engine`: of labelled images.
    """

    recipe: str
    backend: str
    images: int
    relative_error: float
    agreement: float
    top1_reference: float
    top1_engine: float
    speed: tuple[Speed, ...]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.relative_error) and self.relative_error > 0):
            raise ValueError(f"relative_error must be positive, got {self.relative_error}")

    def fits(self, relative_error: float) -> bool:
        """Whether the error of another checkpoint is what the recipe costs; NaN never is."""
        return relative_error <= FITS_UP_TO * self.relative_error


class Receipt(Struct, frozen=True):
    """Of one variant. `training` and `command` make it again; `state_sha256`: of the weights;
    `machine`: processor, cores and versions, for the speeds."""

    schema: Literal[1]
    variant: str
    state_sha256: str
    classes: int
    training: str
    command: str
    machine: str
    measured: tuple[Measured, ...]

    def of(self, recipe: str, backend: str) -> Measured | None:
        """The row of that recipe and backend, None when it was not measured."""
        rows = (row for row in self.measured if (row.recipe, row.backend) == (recipe, backend))
        return next(rows, None)


def load_receipt(variant: str) -> Receipt | None:
    """The shipped receipt of a variant, None when there is none. Raises `CardError`."""
    path = data_directory("calibration") / "receipts" / f"{variant}.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Receipt)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise CardError(f"cannot read the receipt {path}: {error.strerror}") from error
    except msgspec.DecodeError as error:  # of its content too: ValidationError is one
        raise CardError(f"the receipt {path} is not valid: {error}") from error
