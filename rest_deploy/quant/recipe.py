"""calibration/*.toml -> validated recipes: which roles are quantized, and how."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import msgspec

from rest_deploy.cards import data_directory
from rest_deploy.contracts import Struct
from rest_deploy.errors import CardError
from rest_deploy.graph.roles import ROLES, Place, within
from rest_deploy.quant.scales import Algorithm, Format


def _check_roles(roles: Iterable[str]) -> None:
    for role in roles:
        if role not in ROLES:
            close = difflib.get_close_matches(role, ROLES, n=1, cutoff=0.3)
            mend = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"unknown role {role!r}; roles: {', '.join(ROLES)}{mend}")


class Scaling(Struct, frozen=True):
    """How thresholds are chosen: see `scales.ALGORITHMS`; `places` are exceptions to it."""

    algorithm: Algorithm = "minmax"
    places: dict[str, Algorithm] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_roles(entry.partition(":")[2] for entry in self.places)

    def of(self, place: Place | None) -> Algorithm:
        """For what is read at `place`; None: an attention product's operand."""
        found = (name for entry, name in self.places.items() if place and within(place, entry))
        return next(found, self.algorithm)


class Corrections(Struct, frozen=True):
    """What is done to the float graph so that less is lost.

    `leveling`: see `level`; `equalization`: see `equalize`, 0 to 1; `rounding`: roles whose
    weights are rounded to fit their inputs, see `rounding`; `bias`: see `insert_qdq`.
    """

    leveling: bool = False
    equalization: float = 0.0
    rounding: tuple[str, ...] = ()
    bias: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.equalization <= 1.0:
            raise ValueError(f"equalization must be within 0 and 1, got {self.equalization}")
        _check_roles(self.rounding)


class Recipe(Struct, frozen=True):
    """Which roles are quantized. `float_places` ("stage2.0:proj", "stage1:mlp") are exceptions.

    `exact_pairs`: scales of weights are wide enough that no x86 CPU saturates, see `pairs`.
    """

    schema: Literal[1]
    name: str
    format: Format
    quantize: tuple[str, ...]
    float_places: tuple[str, ...] = ()
    exact_pairs: bool = False
    activations: Scaling = Scaling()
    corrections: Corrections = Corrections()

    def __post_init__(self) -> None:
        _check_roles(self.quantize)
        _check_roles(place.partition(":")[2] for place in self.float_places)
        if self.exact_pairs and self.format != "int8":
            raise ValueError(f"exact_pairs is about 8-bit integers, not {self.format}")

    def wants(self, place: Place) -> bool:
        """Whether a node at `place` is to be quantized."""
        excepted = any(within(place, entry) for entry in self.float_places)
        return place.role in self.quantize and not excepted


def load_recipe(name: str) -> Recipe:
    """A packaged recipe ("int8", "fp8") or a path to a TOML file. Raises `CardError`."""
    path = Path(name) if name.endswith(".toml") else data_directory("calibration") / f"{name}.toml"
    try:
        return msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8-sig")), Recipe)
    except FileNotFoundError as error:
        known = sorted(p.stem for p in data_directory("calibration").glob("*.toml"))
        raise CardError(
            f"no such recipe: {name}; packaged ones: {', '.join(known)}",
            hint="a path to a recipe (.toml) works too",
        ) from error
    except OSError as error:
        raise CardError(f"cannot read the recipe {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeError, msgspec.ValidationError) as error:
        raise CardError(f"the recipe {path} is not valid: {error}") from error
