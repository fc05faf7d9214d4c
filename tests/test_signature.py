"""Which outputs a graph has: names, widths, strides, and what cannot be asked for."""

from __future__ import annotations

import pytest

from rest_deploy.cards import load_card
from rest_deploy.errors import InputError
from rest_deploy.signature import OutputKind, kinds_of, outputs_for

LITE = load_card("lite").architecture


def test_defaults() -> None:
    (logits,) = outputs_for((), LITE, 1000)
    assert (logits.name, logits.kind, logits.channels, logits.stride) == (
        "logits", "logits", 1000, 0
    )  # fmt: skip
    (embedding,) = outputs_for((), LITE, 0)
    assert (embedding.name, embedding.channels) == ("embedding", 512)


def test_features_are_four_maps() -> None:
    maps = outputs_for(("features",), LITE, 0)
    assert [(o.name, o.channels, o.stride) for o in maps] == [
        ("c2", 64, 4), ("c3", 128, 8), ("c4", 256, 16), ("c5", 512, 32)
    ]  # fmt: skip


def test_the_order_is_kept() -> None:
    asked: tuple[OutputKind, ...] = ("features", "embedding", "logits")
    found = outputs_for(asked, LITE, 7, unit_length=True)
    assert [o.name for o in found] == ["c2", "c3", "c4", "c5", "embedding", "logits"]
    assert kinds_of(found) == asked
    assert [o.name for o in found if o.unit_length] == ["embedding"]


@pytest.mark.parametrize(
    ("kinds", "classes", "unit", "words"),
    [
        (("logits",), 0, False, "needs a head"),
        (("probabilities",), 0, False, "needs a head"),
        (("logits", "logits"), 10, False, "given twice"),
        (("logits",), 10, True, "--unit-length is of an embedding"),
        ((), 10, True, "--unit-length is of an embedding"),
    ],
)
def test_refused(kinds: tuple[OutputKind, ...], classes: int, unit: bool, words: str) -> None:
    with pytest.raises(InputError, match=words):
        outputs_for(kinds, LITE, classes, unit_length=unit)
