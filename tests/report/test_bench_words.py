"""Numbers and names as the reports write them."""

from __future__ import annotations

import pytest

from rest_deploy.report import bench_words as words


@pytest.mark.parametrize(
    ("value", "written"),
    [(0.0341, "0.034"), (0.5, "0.50"), (9.99, "9.99"), (9.996, "10.0"), (27.14, "27.1"),
     (99.96, "100"), (1234.4, "1234"), (0.0, "0.000")],
)  # fmt: skip
def test_three_digits(value: float, written: str) -> None:
    assert words.three(value) == written


def test_short_error() -> None:
    assert [words.short_error(value) for value in (0.0, 3.8e-3, 2.1e-7, 0.12)] == [
        "0", "3.8e-3", "2.1e-7", "1.2e-1",
    ]  # fmt: skip


def test_only_all_is_a_hundred_percent() -> None:
    """99.96 % of 5000 images is two that differ."""
    assert (words.share(1.0), words.share(0.9961)) == ("100%", "99.6%")


@pytest.mark.parametrize("most", [2, 5, 10, 11])
def test_shorten(most: int) -> None:
    short = words.shorten("0123456789a", most)
    assert len(short) == most
    assert ("…" in short) == (most < 11)
    assert short[0] == "0"


def test_plain_takes_control_characters_out() -> None:
    assert words.plain("a\x1b[31m\n\u202eb é") == "a�[31m��b é"


@pytest.mark.parametrize(
    ("value", "written"), [(0.5, "0.50"), (9.994, "9.99"), (9.996, "10.0"), (221.4, "221")]
)
def test_times(value: float, written: str) -> None:
    assert words.times(value) == written
