"""Calibration set + float graph + recipe -> calibration table, and table -> quantized graph.

The table is JSON: per tensor the threshold, its scale and how many values were seen, with the
hashes of the model and of the set. A later build reuses it while these fit, and refuses it
otherwise.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import onnx_ir as ir

from rest_deploy.artifact import sha256_file
from rest_deploy.contracts import Struct
from rest_deploy.errors import ArtifactError
from rest_deploy.quant.dataset import CalibrationSet, Manifest
from rest_deploy.quant.equalize import equalize
from rest_deploy.quant.insert_qdq import Placement, insert_qdq, observed_tensors
from rest_deploy.quant.observe import Observation, observe
from rest_deploy.quant.recipe import Recipe
from rest_deploy.quant.scales import ALGORITHMS, LARGEST, Algorithm

BATCH = 8

EQUALIZATION_IMAGES = 128
"""The channels' ranges for `equalize` are stable after these; the thresholds see all images."""


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


class CalibrationTable(Struct, frozen=True):
    """What calibration found, for one model, one set and one recipe."""

    schema: Literal[1]
    model_sha256: str
    calibration_set: Manifest
    recipe: Recipe
    images: int
    ranges: dict[str, Range]


def calibrate(
    model: Path,
    images: CalibrationSet,
    recipe: Recipe,
    *,
    progress: Callable[[int], None] = lambda _done: None,
) -> CalibrationTable:
    """Stream `images` through the float ONNX `model`.

    progress: called with the number of images done in the final pass.
    """
    graph = ir.load(model)
    tensors = observed_tensors(graph, recipe)
    first: dict[str, Observation] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = model
        if recipe.corrections.equalization:
            few = (batch for i, batch in enumerate(images.batches(BATCH))
                   if i * BATCH < EQUALIZATION_IMAGES)  # fmt: skip
            first = observe(model, tensors, few)
            largest = {name: seen.channel_largest for name, seen in first.items()}
            equalize(graph, largest, recipe.corrections.equalization)
            source = Path(folder) / "equalized.onnx"
            ir.save(graph, source)
        seen = observe(source, tensors, images.batches(BATCH), progress=progress)
    return CalibrationTable(
        schema=1,
        model_sha256=sha256_file(model),
        calibration_set=images.manifest,
        recipe=recipe,
        images=len(images),
        ranges={name: _range(found, first.get(name), recipe) for name, found in seen.items()},
    )


def quantize(model: Path, table: CalibrationTable) -> tuple[ir.Model, Placement]:
    """The float ONNX with the table's recipe applied.

    Raises `ArtifactError` when the table belongs to another model.
    """
    actual = sha256_file(model)
    if actual != table.model_sha256:
        raise ArtifactError(
            f"the calibration table was made for the model {table.model_sha256[:12]}, "
            f"{model} is {actual[:12]}",
            hint="calibrate this model: leave --table out",
        )
    graph = ir.load(model)
    ranges = table.ranges
    largest = {name: np.asarray(r.channel_largest) for name, r in ranges.items()}
    means = {name: np.asarray(r.channel_mean) for name, r in ranges.items()}
    equalize(graph, largest, table.recipe.corrections.equalization)
    thresholds = {name: found.threshold for name, found in ranges.items()}
    return graph, insert_qdq(graph, table.recipe, thresholds, means)


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


def _range(found: Observation, before: Observation | None, recipe: Recipe) -> Range:
    levels = LARGEST[recipe.format]
    algorithm = recipe.activations.algorithm
    threshold = ALGORITHMS[algorithm](found.counts, found.largest, levels)
    return Range(
        algorithm=algorithm,
        threshold=threshold,
        scale=threshold / levels,
        largest=found.largest,
        values=found.values,
        channel_largest=tuple(map(float, (before or found).channel_largest)),
        channel_mean=tuple(map(float, found.channel_mean)),
    )
