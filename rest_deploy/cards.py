"""models/*.toml -> validated frozen cards."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path

import msgspec

from rest_deploy.contracts import ModelCard
from rest_deploy.errors import CardError


def data_directory(name: str) -> Path:
    """Folder of the packaged cards: inside the wheel, or at the top of a clone."""
    package = Path(__file__).resolve().parent
    packaged = package / "data" / name
    return packaged if packaged.is_dir() else package.parent / name


def available() -> dict[str, ModelCard]:
    """All shipped cards by variant, family after family, each smallest first."""
    cards = [read_card(path) for path in sorted(data_directory("models").glob("*.toml"))]

    def size(card: ModelCard) -> tuple[str, int, int]:
        inside = card.architecture
        return inside.family, sum(inside.dims), sum(inside.depths)

    return {card.variant: card for card in sorted(cards, key=size)}


def load_card(variant: str) -> ModelCard:
    """The card of `variant`: a shipped name ("lite", "rest_lite") or a path to a TOML card.

    Raises `CardError` with the closest name when there is none.
    """
    if variant.endswith(".toml"):
        return read_card(Path(variant))
    cards = available()
    names = {name: card for card in cards.values() for name in (card.variant, card.name)}
    if variant in names:
        return names[variant]
    close = difflib.get_close_matches(variant.lower(), names, n=1, cutoff=0.5)
    raise CardError(
        f"unknown variant {variant!r}; known: {', '.join(cards)}",
        hint=f"did you mean {close[0]!r}?" if close else "a path to a card (.toml) works too",
    )


def read_card(path: Path) -> ModelCard:
    """Parse and validate one card file. Raises `CardError` naming the offending field."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        return msgspec.convert(raw, ModelCard)
    except OSError as error:
        raise CardError(f"cannot read the card {path}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise CardError(f"the card {path} is not valid: {error}") from error


def read_labels(source: str, num_classes: int) -> tuple[str, ...]:
    """Class names, one a line. `source`: a path, the name of a packaged list, or "" for numbers.

    Raises `CardError` when the list has another length than `num_classes`.
    """
    if not source:
        return tuple(f"class {index}" for index in range(num_classes))
    path = Path(source)
    if not path.suffix:
        path = data_directory("models") / "labels" / f"{source}.txt"
    try:
        labels = tuple(path.read_text(encoding="utf-8-sig").split("\n"))
    except (OSError, UnicodeDecodeError) as error:
        raise CardError(f"cannot read the labels {path}: {error}") from error
    labels = tuple(line.strip() for line in labels if line.strip())
    if len(labels) != num_classes:
        raise CardError(
            f"{path} has {len(labels)} labels, the model has {num_classes} classes",
            hint="one label a line, in class order",
        )
    return labels
