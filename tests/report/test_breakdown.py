"""Bars of blocks, their floors, and the roofline."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from rest_deploy.report import bench_rows as derived
from rest_deploy.report import breakdown
from tests.report.hostile import replaced
from tests.report.sample import record
from tests.report.test_plots import looks, marks


def test_pieces_of_a_bar_follow_each_other() -> None:
    engine = record().engines[1]
    made = breakdown.stages(engine, 17.0, "s")
    bars = [tuple(map(float, found)) for found in
            re.findall(r'<rect x="([\d.]+)" y="([\d.]+)" width="([\d.]+)"', made)]  # fmt: skip
    assert len(bars) == len(engine.blocks)
    for (x, y, width), (x2, y2, _) in pairwise(bars):
        assert y2 > y or x2 == pytest.approx(x + width, abs=0.02)
    assert (
        made.count('class="floor"')
        == made.count('class="floor edge"')
        == len(derived.blocks(engine))
    )


def test_a_floor_beyond_its_bar_does_not_cover_the_time() -> None:
    engine = replaced(record().engines[1], "blocks.0.floor_ms", 16.0)
    made = breakdown.stages(engine, 17.0, "s")
    floor = float(re.findall(r'd="M([\d.]+) [^"]*" class="floor"', made)[0])
    label = float(re.findall(r'<text x="([\d.]+)" [^>]*class="figure"', made)[0])
    assert label > floor + 3


def test_no_floor_where_none_is_known() -> None:
    engine = record().engines[1]
    bare = replaced(engine, "blocks", tuple(replaced(b, "floor_ms", 0.0) for b in engine.blocks))
    assert "floor" not in breakdown.stages(bare, 17.0, "s")
    assert breakdown.reached(bare) == {}


def test_reached() -> None:
    engine = record().engines[1]
    found = breakdown.reached(engine)
    stem = [block for block in engine.blocks if block.block == "stem"]
    assert found["stem"] == sum(b.floor_ms for b in stem) / sum(b.ms for b in stem)
    assert list(found) == derived.blocks(engine)


def test_roofline_points_are_under_the_roof() -> None:
    sample = record()
    assert sample.ceilings is not None
    engine = sample.engines[1]
    made = breakdown.roofline(engine, sample.ceilings, looks()[engine.label], "r")
    found = marks(made)
    assert set(found) == set(derived.blocks(engine))
    assert made is not None
    (roof,) = re.findall(r'd="([^"]*)" class="roof own"', made)
    peak = float(roof.split("L")[-1].split()[1])
    assert all(y > peak for _, y in found.values())


@pytest.mark.parametrize("path", ["gemm_gflops.fp32", "copy_gb_per_s"])
def test_no_roofline_without_ceilings(path: str) -> None:
    sample = record()
    engine = sample.engines[1]
    none = replaced(replaced(sample.ceilings, "gemm_gflops.int8", 0.0), path, 0.0)
    assert breakdown.roofline(engine, none, looks()[engine.label], "r") is None
    bare = replaced(engine, "blocks", tuple(replaced(b, "flops", 0.0) for b in engine.blocks))
    assert sample.ceilings is not None
    assert breakdown.roofline(bare, sample.ceilings, looks()[engine.label], "r") is None


def test_shades() -> None:
    assert breakdown.shade(1e-6, 1e-6, 1e-2) == 0
    assert breakdown.shade(1e-2, 1e-6, 1e-2) == breakdown.SHADES - 1
    assert breakdown.shade(1e-4, 1e-6, 1e-2) == breakdown.SHADES // 2
    assert [breakdown.shade(value, 1.0, 1.0) for value in (0.0, 1.0)] == [0, 0]
    assert breakdown.extremes({("a", "b"): 0.0}) == (1.0, 1.0)
    assert breakdown.extremes({("a", "b"): 2.0, ("a", "c"): 3.0}) == (2.0, 3.0)
