"""What does each layer group cost? One (block, role) quantized at a time, against float64.

And the other way round: the recipe that keeps a budget with the fewest multiplications in float.
Errors of different places are nearly independent, so squared errors add up; the places that cost
most error per multiplication go to float first, and how many must go is found by bisection with
real measurements, not by the sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir

from rest_deploy.errors import InputError
from rest_deploy.graph.roles import Place
from rest_deploy.quant.budget import Budget, PlaceScore, Score
from rest_deploy.quant.calibrate import prepared, quantize
from rest_deploy.quant.insert_qdq import layers
from rest_deploy.quant.probe import weight_matrix
from rest_deploy.quant.recipe import Recipe
from rest_deploy.quant.table import CalibrationTable


@dataclass(frozen=True)
class Found:
    """The recipe that keeps a budget. `float_share`: of the multiplications left in float."""

    recipe: Recipe
    score: Score
    float_share: float
    measured: int


Measure = Callable[[ir.Model], Score]


def shares(model: Path, table: CalibrationTable) -> dict[Place, float]:
    """(block, role) -> its part of the quantized layers' multiplications, on the table's images."""
    graph = prepared(model, table)
    counts: dict[Place, float] = {}
    for name, readers in layers(graph, table.recipe).items():
        found = table.ranges[name]
        rows = found.values / max(1, table.images) / len(found.channel_mean)
        for layer in readers.values():
            matrix = weight_matrix(layer.node)
            strides = layer.node.attributes.get_ints("strides", [1])
            positions = rows / float(np.prod(list(strides)))
            counts[layer.place] = counts.get(layer.place, 0.0) + positions * matrix.size
    total = sum(counts.values())
    return {place: count / total for place, count in counts.items()}


def only(recipe: Recipe, place: Place, places: Iterable[Place]) -> Recipe:
    """The recipe with one (block, role) quantized."""
    return without(recipe, [other for other in places if other != place])


def without(recipe: Recipe, floats: Iterable[Place]) -> Recipe:
    """The recipe with more places in float, in the block's own names."""
    added = tuple(str(place) for place in floats)
    return msgspec.structs.replace(
        recipe, float_places=tuple(dict.fromkeys((*recipe.float_places, *added)))
    )


def quantized(model: Path, table: CalibrationTable, recipe: Recipe) -> ir.Model:
    """The table's ranges with another choice of places; its exact corrections stay as they are."""
    return quantize(model, msgspec.structs.replace(table, recipe=recipe))[0]


def ranked(scores: Iterable[PlaceScore]) -> list[PlaceScore]:
    """Worst first."""
    return sorted(scores, key=lambda found: -found.score.relative_error)


def within_budget(
    model: Path,
    table: CalibrationTable,
    scores: Sequence[PlaceScore],
    budget: Budget,
    measure: Measure,
) -> Found:
    """Fewest multiplications in float such that `budget` is kept; measured, not extrapolated.

    Raises `InputError` when even the float graph with one place quantized does not keep it.
    """
    order = sorted(scores, key=lambda s: -(s.score.relative_error**2) / max(s.share, 1e-12))
    places = [Place(found.block, found.role) for found in order]  # type: ignore[arg-type]  # a role by construction
    measured: dict[int, Score] = {}

    def kept(count: int) -> bool:
        if count not in measured:
            recipe = without(table.recipe, places[:count])
            measured[count] = measure(quantized(model, table, recipe))
        return budget.kept(measured[count])

    low, high = 0, len(places) - 1
    if not kept(low):
        if not kept(high):
            raise InputError(
                f"no recipe of {table.recipe.name!r} keeps {budget}: with {places[-1]} alone "
                f"quantized the {budget.metric} is {getattr(measured[high], budget.metric):.4g}",
                hint="a looser --budget, or --fp16",
            )
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if kept(middle) else (middle, high)
        low = high
    recipe = msgspec.structs.replace(
        without(table.recipe, places[:low]), name=f"{table.recipe.name}-budget"
    )
    share = sum(found.share for found in order[:low])
    return Found(recipe, measured[low], share, len(measured))


def to_toml(recipe: Recipe, comment: str) -> str:
    """A recipe as a file for --recipe."""

    def words(values: Iterable[str]) -> str:
        return "[" + ", ".join(f'"{value}"' for value in values) + "]"

    corrections, places = recipe.corrections, recipe.activations.places
    named = ", ".join(f'"{place}" = "{name}"' for place, name in places.items())
    lines = [
        *(f"# {line}" for line in comment.splitlines()),
        "schema = 1",
        f'name = "{recipe.name}"',
        f'format = "{recipe.format}"',
        f"quantize = {words(recipe.quantize)}",
        "float_places = [",
        *(f'    "{place}",' for place in recipe.float_places),
        "]",
        f"exact_pairs = {str(recipe.exact_pairs).lower()}",
        "",
        "[activations]",
        f'algorithm = "{recipe.activations.algorithm}"',
        f"places = {{ {named} }}" if named else "places = {}",
        "",
        "[corrections]",
        f"leveling = {str(corrections.leveling).lower()}",
        f"equalization = {corrections.equalization}",
        f"rounding = {words(corrections.rounding)}",
        f"bias = {str(corrections.bias).lower()}",
    ]
    return "\n".join(lines) + "\n"
