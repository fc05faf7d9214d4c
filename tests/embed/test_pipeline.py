from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from rest_deploy.cards import load_card
from rest_deploy.embed.entries import Entry
from rest_deploy.embed.pipeline import AHEAD, Decoder
from rest_deploy.embed.sources import entries
from rest_deploy.preprocess import load_image, normalize, to_pixels
from tests.embed.conftest import SIZE

Pictures = Callable[..., Path]
PREPROCESSING = load_card("nano").preprocessing


@pytest.fixture
def decoder() -> Iterator[Decoder]:
    made = Decoder(PREPROCESSING, SIZE, workers=3)
    yield made
    made.close()


def test_every_image_in_its_slot(decoder: Decoder, pictures: Pictures) -> None:
    listed = list(entries([str(pictures(11))]))
    batches = list(decoder.batches(listed, 4))
    assert [len(batch.ids) for batch in batches] == [4, 4, 3]
    assert [name for batch in batches for name in batch.ids] == [entry.id for entry in listed]
    for batch in batches:
        assert batch.images.shape == (4, 3, *SIZE)
        for slot, name in enumerate(batch.ids):
            expected = normalize(to_pixels(load_image(name), PREPROCESSING, SIZE), PREPROCESSING)
            assert np.array_equal(batch.images[slot], expected)
    assert not batches[-1].images[3].any()


def test_a_bad_image_moves_no_other(decoder: Decoder, pictures: Pictures) -> None:
    listed = list(entries([str(pictures(8))]))
    whole = list(decoder.batches(listed, 4))
    Path(listed[2].location).write_bytes(b"no image")
    Path(listed[5].location).unlink()
    found = list(decoder.batches(listed, 4))
    assert [sorted(batch.bad) for batch in found] == [[2], [1]]
    assert "not an image" in found[0].bad[2]
    assert "cannot be read: No such file" in found[1].bad[1]
    for before, after in zip(whole, found, strict=True):
        assert before.ids == after.ids
        for slot in range(4):
            same = np.array_equal(before.images[slot], after.images[slot])
            assert same == (slot not in after.bad)


def test_the_window_bounds_what_is_read(decoder: Decoder, pictures: Pictures) -> None:
    """However many entries there are: they are drawn as batches are taken."""
    place = next(iter(entries([str(pictures(1))]))).location
    drawn = 0

    def endless() -> Iterator[Entry]:
        nonlocal drawn
        while True:
            drawn += 1
            yield Entry(f"{drawn}", place)

    batches = decoder.batches(endless(), 4)
    for taken in range(1, 6):
        next(batches)
        assert drawn <= 4 * taken + AHEAD * 4 + 3
    batches.close()  # type: ignore[attr-defined]


def test_leaving_early_leaves_no_thread(pictures: Pictures) -> None:
    decoder = Decoder(PREPROCESSING, SIZE, workers=2)
    batches = decoder.batches(entries([str(pictures(40))]), 4)
    next(batches)
    decoder.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("rest-deploy-decode")]
