"""Images -> calibration table in the workspace; a table that fits is used again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rest_deploy.artifact import sha256_file, to_json, write_text
from rest_deploy.contracts import Preprocessing, Struct
from rest_deploy.errors import ArtifactError, InputError, require
from rest_deploy.quant.dataset import CalibrationSet, Health, Size, open_set
from rest_deploy.quant.recipe import Recipe, load_recipe
from rest_deploy.quant.table import CalibrationTable, check_model, fits, read_table, table_sha256
from rest_deploy.verbs.progress import Counter, uncounted
from rest_deploy.verbs.verify import open_export

TABLE_SUFFIX = ".calibration.json"
STATE_SUFFIX = ".calibration.partial.npz"


@dataclass(frozen=True)
class Images:
    """Which images to calibrate on. data: None for scikit-image's photos; limit: at most so many,
    drawn with `seed`; sizes: (height, width) that they are brought to, none for the card's."""

    data: Path | None = None
    limit: int | None = None
    seed: int = 0
    sizes: tuple[Size, ...] = ()


CARD_PHOTOS = Images()
"""scikit-image's photos at the card's size."""


class CalibrationReport(Struct, frozen=True):
    """What `calibrate` did. `health` is None when a table was given instead of images.

    `reused`: the table was there already and fits. `replaced`: why an older one did not.
    """

    table: str
    table_sha256: str
    model: str
    recipe: Recipe
    source: str
    images: int
    sizes: tuple[Size, ...]
    tensors: int
    health: Health | None
    reused: bool
    replaced: str
    seconds: float


def calibrate(
    model: Path | None,
    *,
    workspace: Path,
    images: Images = CARD_PHOTOS,
    recipe: str = "int8",
    counter: Counter = uncounted,
) -> tuple[CalibrationReport, CalibrationTable]:
    """Calibrate `model` (None: the newest export).

    The table lies in the workspace as MODEL.RECIPE.calibration.json. Raises `InputError`,
    `ImageError` (nothing to calibrate on), `CardError` (the recipe), `OutputError`.
    """
    require("onnxruntime", "onnxruntime")
    require("onnx_ir", "export")
    from rest_deploy.quant.calibrate import calibrate as run

    chosen = load_recipe(recipe)
    session = open_export(model, workspace)
    opened = _open(images, session.metadata.card.preprocessing)
    target = workspace / f"{session.path.name.removesuffix('.onnx')}.{chosen.name}{TABLE_SUFFIX}"
    started = time.monotonic()
    found, why_not = _stored(target, session.path, opened, chosen)
    table = found
    if table is None:
        state = target.with_name(target.name.removesuffix(TABLE_SUFFIX) + STATE_SUFFIX)
        table = run(session.path, opened, chosen, progress=_counting(counter), resume=state)
        write_text(target, to_json(table))
    return (
        CalibrationReport(
            table=str(target),
            table_sha256=table_sha256(table),
            model=str(session.path),
            recipe=table.recipe,
            source=opened.manifest.source,
            images=len(opened),
            sizes=opened.manifest.sizes,
            tensors=len(table.ranges),
            health=opened.health,
            reused=found is not None,
            replaced=why_not,
            seconds=time.monotonic() - started,
        ),
        table,
    )


def given_table(path: Path, model: Path) -> tuple[CalibrationReport, CalibrationTable]:
    """A table the user names. Raises `ArtifactError` when it is of another model."""
    table = read_table(path)
    check_model(table, model)
    report = CalibrationReport(
        table=str(path),
        table_sha256=table_sha256(table),
        model=str(model),
        recipe=table.recipe,
        source=table.calibration_set.source,
        images=table.images,
        sizes=table.calibration_set.sizes,
        tensors=len(table.ranges),
        health=None,
        reused=True,
        replaced="",
        seconds=0.0,
    )
    return report, table


def _open(images: Images, preprocessing: Preprocessing) -> CalibrationSet:
    from rest_deploy import photos

    if images.data is None and not photos.available():
        raise InputError(
            "no calibration images: scikit-image, whose photos are the default, is not installed",
            hint="--calib-data D (a folder, a list, .npy or .npz), or pip install "
            "'rest-deploy[demo]'",
        )
    return open_set(
        images.data, preprocessing, limit=images.limit, seed=images.seed, sizes=images.sizes
    )


def _stored(
    target: Path, model: Path, images: CalibrationSet, recipe: Recipe
) -> tuple[CalibrationTable | None, str]:
    """The table of an earlier calibration if it fits, else why not ("" when there is none)."""
    if not target.is_file():
        return None, ""
    try:
        table = read_table(target)
    except ArtifactError as error:
        return None, error.message
    difference = fits(table, sha256_file(model), images.manifest, recipe)
    return (table, "") if difference is None else (None, difference)


def _counting(counter: Counter) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        counter("calibrating", done, total, "images")

    return progress
