"""The calibration table: what calibration found, as JSON.

Per tensor the threshold, its scale and how many values were seen; the hashes of the model and of
the set say when it may be used again.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.artifact import sha256_file
from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError
from rest_deploy.quant.dataset import Manifest
from rest_deploy.quant.recipe import Recipe
from rest_deploy.quant.scales import Algorithm


class Range(Struct, frozen=True):
    """One activation. `threshold`: largest magnitude kept; `scale` = threshold / largest level.

    `channel_largest`: of the graph before equalization; `channel_mean`: after it.
    """

    algorithm: Algorithm
    threshold: float
    scale: float
    largest: float
    values: int
    channel_largest: tuple[float, ...]
    channel_mean: tuple[float, ...]


class RoundedWeight(Struct, frozen=True):
    """Integers of a weight rounded by `rounding`, row-major, one byte each (base64 in JSON).

    `scales`: one per output channel; none in older tables, whose scales follow from the weight.
    """

    shape: tuple[int, ...]
    values: bytes
    scales: tuple[float, ...] = ()

    def array(self) -> npt.NDArray[np.int8]:
        return np.frombuffer(self.values, np.int8).reshape(self.shape)


class CalibrationTable(Struct, frozen=True):
    """What calibration found, for one model, one set and one recipe."""

    schema: Literal[1]
    model_sha256: str
    calibration_set: Manifest
    recipe: Recipe
    images: int
    ranges: dict[str, Range]
    weights: dict[str, RoundedWeight] = msgspec.field(default_factory=dict)


def read_table(path: Path) -> CalibrationTable:
    """Raises `ArtifactError` when the file is missing, damaged or no table."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=CalibrationTable)
    except OSError as error:
        raise ArtifactError(f"cannot read the table {path}: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise ArtifactError(
            f"{path} is not a calibration table: {error}", hint="calibrate again"
        ) from error


def check_model(table: CalibrationTable, model: Path) -> None:
    """Raises `ArtifactError` when the table belongs to another model."""
    actual = sha256_file(model)
    if actual != table.model_sha256:
        raise ArtifactError(
            f"the calibration table was made for the model {table.model_sha256[:12]}, "
            f"{model} is {actual[:12]}",
            hint=f"calibrate this model: rest-deploy calibrate {model}",
        )


def fits(
    table: CalibrationTable, model_sha256: str, images: Manifest, recipe: Recipe
) -> str | None:
    """None when a new calibration would give this table again, else the first difference."""
    if table.model_sha256 != model_sha256:
        return "it was made for another model"
    if table.calibration_set.sizes != images.sizes:
        return "it was made at other sizes"
    if table.calibration_set.sha256 != images.sha256:
        return "it was made on other images"
    if table.calibration_set.preprocessing != images.preprocessing:
        return "it was made with other preprocessing"
    if table.recipe != recipe:
        return "it was made by another recipe"
    return None


def table_sha256(table: CalibrationTable) -> str:
    """Of the table's content, wherever it is stored."""
    return hashlib.sha256(msgspec.json.encode(table, order="deterministic")).hexdigest()
