"""Calibration set + float graph + recipe -> calibration table, and table -> quantized graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from rest_deploy.artifact import sha256_file
from rest_deploy.graph.roles import Place
from rest_deploy.quant import pairs
from rest_deploy.quant.dataset import CalibrationSet
from rest_deploy.quant.equalize import Array, equalize
from rest_deploy.quant.extents import Extent, check_finite, measure
from rest_deploy.quant.insert_qdq import Layer, Placement, insert_qdq, layers, observed_tensors
from rest_deploy.quant.level import level
from rest_deploy.quant.observe import Histogram, observe
from rest_deploy.quant.probe import Probe, from_matrix, output_axis, weight_matrix
from rest_deploy.quant.recipe import Recipe
from rest_deploy.quant.resume import State
from rest_deploy.quant.rounding import round_weight
from rest_deploy.quant.scales import ALGORITHMS, LARGEST, Algorithm, Format, weight_scales
from rest_deploy.quant.table import CalibrationTable, Range, RoundedWeight, check_model

BATCH = 8

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
    """Stream `images` through the float ONNX `model`: once for how far every tensor reaches, and
    once more through the part of it whose ranges need more than that.

    resume: a file that holds the state while this runs; an interrupted calibration of the same
    model, images and recipe goes on from there. Raises `InputError` for non-finite activations.
    """
    model_sha256 = sha256_file(model)
    state = State(resume, f"{model_sha256} {images.manifest.sha256} {recipe}")
    graph = ir.load(model)
    tensors = observed_tensors(graph, recipe)
    if recipe.corrections.leveling:
        level(graph)
    searched, probed = _searched(graph, recipe), _probed(graph, recipe)
    total = len(images) * (2 if searched or probed else 1)

    def batches(done: int) -> Iterator[npt.NDArray[np.float32]]:
        return images.batches(BATCH, done)

    extents = measure(
        graph, tensors, batches,
        progress=lambda done: progress(done, total), phase=state.phase("extents"),
    )  # fmt: skip
    check_finite(extents)
    largest = {name: extent.channel_largest for name, extent in extents.items()}
    graph, factors = _corrected(model, recipe, largest)
    readers = layers(graph, recipe)
    probes = {
        name: Probe([layer.node for layer in readers[name].values()]) for name in sorted(probed)
    }
    histograms = {}
    if searched or probed:
        histograms = observe(
            graph, sorted(searched), batches, probes,
            progress=lambda done: progress(len(images) + done, total),
            phase=state.phase("histograms"),
        )  # fmt: skip
    ranges = {
        name: _range(extent, factors.get(name), histograms.get(name),
                     recipe.activations.of(_place(readers[name])), recipe.format)
        for name, extent in extents.items()
    }  # fmt: skip
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
    largest = {name: np.asarray(found.channel_largest) for name, found in table.ranges.items()}
    return _corrected(model, table.recipe, largest)[0]


def _corrected(
    model: Path, recipe: Recipe, largest: Mapping[str, Array]
) -> tuple[ir.Model, dict[str, Array]]:
    """`prepared`, and what the channels of activations were divided by."""
    graph = ir.load(model)
    factors = equalize(graph, largest, recipe.corrections.equalization)
    if recipe.corrections.leveling:
        level(graph, factors)
    return graph, factors


def quantize(model: Path, table: CalibrationTable) -> tuple[ir.Model, Placement]:
    """The float ONNX with the table's recipe applied.

    Raises `ArtifactError` when the table belongs to another model.
    """
    graph = prepared(model, table)
    means = {name: np.asarray(found.channel_mean) for name, found in table.ranges.items()}
    thresholds = {name: found.threshold for name, found in table.ranges.items()}
    return graph, insert_qdq(graph, table.recipe, thresholds, means, table.weights)


def _searched(graph: ir.Model, recipe: Recipe) -> set[str]:
    """Tensors whose threshold cannot be told from how far they reach: another algorithm than
    minmax, or the operand of an attention product, which equalization changes as it likes."""
    equalizing = recipe.corrections.equalization > 0
    return {
        name
        for name, readers in layers(graph, recipe).items()
        if recipe.activations.of(_place(readers)) != "minmax" or (equalizing and not readers)
    }


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
    extent: Extent,
    factor: Array | None,
    histogram: Histogram | None,
    algorithm: Algorithm,
    target: Format,
) -> Range:
    """factor: what equalization divided the channels by, None: nothing."""
    levels, divisor = LARGEST[target], 1.0 if factor is None else factor
    if histogram is None:  # minmax: a channel's largest is divided as the channel is
        threshold = largest = float((extent.channel_largest / divisor).max())
    else:
        largest = histogram.largest
        threshold = ALGORITHMS[algorithm](histogram.counts, largest, levels)
    return Range(
        algorithm=algorithm,
        threshold=threshold,
        scale=threshold / levels,
        largest=largest,
        values=extent.values,
        channel_largest=tuple(map(float, extent.channel_largest)),
        channel_mean=tuple(map(float, extent.channel_mean / divisor)),
    )


def _rounded(
    probes: dict[str, Probe], readers: dict[str, dict[str, Layer]], recipe: Recipe
) -> dict[str, RoundedWeight]:
    """Weights of the recipe's `rounding` roles, by the initializer's name."""
    weights = {}
    for name, probe in probes.items():
        for layer in readers[name].values():
            if layer.role in recipe.corrections.rounding:
                weights[layer.weight] = _fitted(layer.node, probe.moment, recipe)
    return weights


def _fitted(node: ir.Node, moment: npt.NDArray[np.float64], recipe: Recipe) -> RoundedWeight:
    """`round_weight` on a layer, in the layout of its own weight."""
    levels = LARGEST[recipe.format]
    matrix = weight_matrix(node).astype(np.float64)  # (K, O)

    def rounded(scales: npt.NDArray[np.floating]) -> npt.NDArray[np.int8]:
        single = scales.astype(np.float32).astype(np.float64)  # as they are stored
        rows = round_weight(matrix.T, moment, single, levels)
        return from_matrix(node, rows.T.astype(np.int8))

    scales = weight_scales(matrix, 1, levels)
    stored = rounded(scales)
    if recipe.exact_pairs:
        weight = from_matrix(node, matrix)
        stored, scales = pairs.fit(weight, output_axis(node), scales, rounded)
    return RoundedWeight(
        shape=stored.shape,
        values=stored.tobytes(),
        scales=tuple(map(float, scales.astype(np.float32))),
    )
