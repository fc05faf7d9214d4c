"""What the plots draw, and that they draw nothing where nothing was measured."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pytest

from rest_deploy.report import bench_rows as derived
from rest_deploy.report import breakdown, plots, svg
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.markup import Markup
from rest_deploy.report.plots import WIDTH, Looks
from tests.report.hostile import only, replaced
from tests.report.sample import record

CASE = Case("1x3x224x224")


def looks() -> Looks:
    return svg.looks((e.label, e.backend, e.precision) for e in derived.working(record()))


def marks(made: Markup | None) -> dict[str, tuple[float, float]]:
    """Title of each mark up to its colon or comma -> (x, y)."""
    assert made is not None
    found = re.findall(r'class="mark[^"]*" d="M([\d.]+) ([\d.]+)[^>]*><title>([^<:,]*)', made)
    return {title: (float(x), float(y)) for x, y, title in found}


def test_pareto_places() -> None:
    found = marks(plots.pareto(record(), CASE, looks(), "p"))
    assert set(found) == set(looks())
    fast, slow = found["openvino int8"], found["pytorch fp32"]
    assert fast[0] < found["onnxruntime int8"][0] < slow[0]  # faster is further left
    assert found["onnxruntime fp32"][1] > slow[1] > fast[1]  # less error is further down


def test_pareto_front() -> None:
    made = plots.pareto(record(), CASE, looks(), "p")
    assert made is not None
    for label in looks():
        (title,) = re.findall(rf"<title>({label}: [^<]*)", made)
        assert title.endswith(", on the front") == (label != "pytorch fp32")
    assert made.count('class="front"') == 1


def test_nothing_to_draw() -> None:
    failed = only("tensorrt fp16")
    for plot in (plots.pareto, plots.ratios, plots.distributions, plots.throughput):
        assert plot(failed, CASE, {}, "p") is None
    assert plots.batches(failed, (224, 224), {}, "p") is None
    base = only("pytorch fp32")
    assert plots.ratios(base, CASE, looks(), "p") is None
    assert plots.throughput(base, CASE, looks(), "p") is None


def test_ratios_stand_right_of_the_line_when_faster() -> None:
    slower = record()
    for name, value in (("ratio", 0.5), ("low", 0.4), ("high", 0.6)):
        slower = replaced(slower, f"ratios.0.{name}", value)
    made = plots.ratios(slower, CASE, looks(), "r")
    found = marks(made)
    assert made is not None
    (unity,) = map(float, re.findall(r'd="M([\d.]+) [^"]*" class="unity"', made))
    assert found["onnxruntime fp32"][0] < unity < found["openvino fp32"][0]
    assert found["openvino fp32"][0] < found["openvino int8"][0]


def test_every_sample_is_a_dot() -> None:
    made = plots.distributions(record(), CASE, looks(), "d")
    assert made is not None
    for row, dots in zip(derived.rows(record(), CASE), re.findall('d="([^"]*h0)"', made),
                         strict=True):  # fmt: skip
        assert dots.count("h0") == row.measured.host.n


def test_no_p99_is_marked_where_there_are_few() -> None:
    for case, tails in ((CASE, 5), (Case("8x3x448x448"), 0)):
        made = plots.distributions(record(), case, looks(), "d")
        assert made is not None
        assert made.count('class="tail"') == tails
        assert made.count('class="median"') == 5
        assert ("p99" in made) == (tails > 0)


def test_thousands_of_samples_are_thinned() -> None:
    many = replaced(record(), "engines.1.measurements.0.samples", tuple(np.linspace(20, 30, 5000)))
    made = plots.distributions(many, CASE, looks(), "d")
    assert made is not None
    assert max(dots.count("h0") for dots in re.findall('d="([^"]*h0)"', made)) <= plots.DRAWN


def test_an_outlier_does_not_squeeze_the_rest() -> None:
    samples = record().engines[1].measurements[0].samples
    wild = replaced(record(), "engines.1.measurements.0.samples", (*samples[:-1], 1e5))
    made = plots.distributions(wild, CASE, looks(), "d")
    assert made is not None
    dots = re.findall('d="([^"]*h0)"', made)[1]
    across = [float(x) for x in re.findall(r"M([\d.]+) ", dots)]
    assert max(across) <= WIDTH
    assert np.percentile(across, 90) - min(across) > 20


def test_density_is_highest_where_the_samples_are() -> None:
    values, heights = plots.density([10.0, 10.1, 10.2, 10.1, 14.0])
    assert 10.0 < values[int(np.argmax(heights))] < 10.2
    assert max(heights) == 1
    assert min(values) > 0


@pytest.mark.parametrize("samples", [[5.0], [5.0] * 50, [5.0] * 49 + [5.1]])
def test_density_of_equal_samples(samples: list[float]) -> None:
    values, heights = plots.density(samples)
    assert np.isfinite([*values, *heights]).all()


def test_throughput_rises() -> None:
    made = plots.throughput(record(), CASE, looks(), "t")
    assert made is not None
    assert made.count('class="series') == 4  # PyTorch was not saturated
    (description,) = re.findall("<desc[^>]*>([^<]*)", made)
    assert "openvino int8: 1 -&gt; 105, 2 -&gt; 123, 4 -&gt; 139, 8 -&gt; 145" in description


def test_batches() -> None:
    made = plots.batches(record(), (224, 224), looks(), "b")
    assert made is not None
    assert made.count('class="series') == 5
    one = replaced(record(), "engines", tuple(
        replaced(e, "measurements", tuple(m for m in e.measurements if m.batch == 1))
        for e in record().engines
    ))  # fmt: skip
    assert plots.batches(one, (224, 224), looks(), "b") is None


# --- blocks and the roofline ---------------------------------------------------------------------


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
