"""The throughput of requests that overlap, from their beginnings and ends."""

from __future__ import annotations

import pytest

from rest_deploy.bench.turns import full_load

MS = 1_000_000


def requests(start: int, took: int, count: int) -> list[tuple[int, int]]:
    return [((start + i * took) * MS, (start + (i + 1) * took) * MS) for i in range(count)]


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_throughput_at_full_load(workers: int) -> None:
    """Each worker 10 ms a request, out of step: workers / 10 ms, whatever the edges."""
    count, seconds = full_load([requests(2 * worker, 10, 20) for worker in range(workers)])
    assert count / seconds == pytest.approx(workers * 100, rel=0.02)


def test_the_naive_throughput_is_lower() -> None:
    """The control: all requests by all of the time counts a tail with one in flight."""
    spans = [requests(0, 10, 50), requests(0, 50, 10), requests(400, 250, 1)]
    count, seconds = full_load(spans[:2])
    assert count / seconds == pytest.approx(120, rel=0.05)
    everything = sum(map(len, spans)) / 0.65
    assert everything < 110


@pytest.mark.parametrize(
    ("workers", "count", "seconds"),
    [([requests(0, 10, 1)], 1, 0.01), ([requests(0, 10, 3), requests(50, 10, 3)], 6, 0.08)],
)
def test_too_few_for_a_window(
    workers: list[list[tuple[int, int]]], count: int, seconds: float
) -> None:
    assert full_load(workers)[0] == count
    assert full_load(workers)[1] == pytest.approx(seconds)
