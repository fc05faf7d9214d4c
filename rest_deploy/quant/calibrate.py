"""Calibration set + float graph + recipe -> calibration table, and table -> quantized graph."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.artifact import sha256_file
from rest_deploy.graph.roles import Place
from rest_deploy.quant.dataset import CalibrationSet
from rest_deploy.quant.equalize import equalize
from rest_deploy.quant.insert_qdq import Layer, Placement, insert_qdq, layers, observed_tensors
from rest_deploy.quant.level import level
from rest_deploy.quant.observe import Observation, observe
from rest_deploy.quant.probe import Probe, from_matrix, weight_matrix
from rest_deploy.quant.recipe import Recipe
from rest_deploy.quant.resume import State
from rest_deploy.quant.rounding import round_weight
from rest_deploy.quant.scales import ALGORITHMS, LARGEST, weight_scales
from rest_deploy.quant.table import CalibrationTable, Range, RoundedWeight, check_model

BATCH = 8

FIRST_IMAGES = 128
"""The channels' ranges for `equalize` are stable after these; the thresholds see all images."""

Progress = Callable[[int, int], None]
"""Called with the number of images done and to do, over all passes."""


def calibrate(
    model: Path,
    images: CalibrationSet,
    recipe: Recipe,
    *,
    progress: Progress = lambda _done, _total: None,
    resume: Path | None = None,
) -> CalibrationTable:
    """Stream `images` through the float ONNX `model`: once, and, where the recipe equalizes, once
    more before for the first of them.

    resume: a file that holds the state while this runs; an interrupted calibration of the same
    model, images and recipe goes on from there. Raises `InputError` for non-finite activations.
    """
    model_sha256 = sha256_file(model)
    state = State(resume, f"{model_sha256} {images.manifest.sha256} {recipe}")
    graph = ir.load(model)
    tensors = observed_tensors(graph, recipe)
    if recipe.corrections.leveling:
        level(graph)
    equalizing = recipe.corrections.equalization > 0
    first_count = min(FIRST_IMAGES, len(images)) if equalizing else 0
    total = first_count + len(images)
    first: dict[str, Observation] = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "prepared.onnx"
        if equalizing:
            ir.save(graph, source)
            first = observe(
                source, tensors, lambda done: images.batches(BATCH, done, first_count),
                progress=lambda done: progress(done, total), phase=state.phase("first"),
            )  # fmt: skip
            largest = {name: seen.channel_largest for name, seen in first.items()}
            equalize(graph, largest, recipe.corrections.equalization)
        ir.save(graph, source)
        readers = layers(graph, recipe)
        probes = {
            name: Probe([layer.node for layer in readers[name].values()])
            for name in sorted(_probed(graph, recipe))
        }
        found = observe(
            source, tensors, lambda done: images.batches(BATCH, done), probes,
            progress=lambda done: progress(first_count + done, total), phase=state.phase("all"),
        )  # fmt: skip
    ranges = {
        name: _range(seen, first.get(name), _place(readers[name]), recipe)
        for name, seen in found.items()
    }
    table = CalibrationTable(
        schema=1,
        model_sha256=model_sha256,
        calibration_set=images.manifest,
        recipe=recipe,
        images=len(images),
        ranges=ranges,
        weights=_rounded(probes, readers, recipe),
    )  # fmt: skip
    state.discard()
    return table


def prepared(model: Path, table: CalibrationTable) -> ir.Model:
    """The float graph that is about to be quantized: the same function as `model`, with the
    recipe's exact corrections. Raises `ArtifactError` when the table belongs to another model."""
    check_model(table, model)
    graph, corrections = ir.load(model), table.recipe.corrections
    if corrections.leveling:
        level(graph)
    largest = {name: np.asarray(found.channel_largest) for name, found in table.ranges.items()}
    equalize(graph, largest, corrections.equalization)
    return graph


def quantize(model: Path, table: CalibrationTable) -> tuple[ir.Model, Placement]:
    """The float ONNX with the table's recipe applied.

    Raises `ArtifactError` when the table belongs to another model.
    """
    graph = prepared(model, table)
    means = {name: np.asarray(found.channel_mean) for name, found in table.ranges.items()}
    thresholds = {name: found.threshold for name, found in table.ranges.items()}
    rounded = {name: weight.array() for name, weight in table.weights.items()}
    return graph, insert_qdq(graph, table.recipe, thresholds, means, rounded)


def _probed(graph: ir.Model, recipe: Recipe) -> set[str]:
    """Tensors that weights with a fitted rounding read."""
    roles = set(recipe.corrections.rounding)
    return {
        name
        for name, readers in layers(graph, recipe).items()
        if any(reader.role in roles for reader in readers.values())
    }


def _place(readers: dict[str, Layer]) -> Place | None:
    """Of the first layer that reads a tensor; None for an attention product's operand."""
    return next((layer.place for layer in readers.values()), None)


def _range(
    found: Observation, before: Observation | None, place: Place | None, recipe: Recipe
) -> Range:
    levels, algorithm = LARGEST[recipe.format], recipe.activations.of(place)
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


def _rounded(
    probes: dict[str, Probe], readers: dict[str, dict[str, Layer]], recipe: Recipe
) -> dict[str, RoundedWeight]:
    """Weights of the recipe's `rounding` roles, by the initializer's name."""
    weights = {}
    for name, probe in probes.items():
        for layer in readers[name].values():
            if layer.role in recipe.corrections.rounding:
                rounded = _fitted(layer.node, probe.moment, recipe)
                weights[layer.weight] = RoundedWeight(rounded.shape, rounded.tobytes())
    return weights


def _fitted(node: ir.Node, moment: npt.NDArray[np.float64], recipe: Recipe) -> npt.NDArray[np.int8]:
    """`round_weight` on a layer, in the layout of its own weight."""
    matrix = weight_matrix(node).astype(np.float64)  # (K, O)
    scales = weight_scales(matrix, 1, LARGEST[recipe.format]).astype(np.float32)
    rows = round_weight(matrix.T, moment, scales.astype(np.float64), LARGEST[recipe.format])
    return from_matrix(node, rows.T.astype(np.int8))
