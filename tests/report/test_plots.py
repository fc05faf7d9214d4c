"""What the plots draw, and that they draw nothing where nothing was measured."""

from __future__ import annotations

import re

from rest_deploy.report import bench_rows as derived
from rest_deploy.report import plots, spread, svg
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.bench_words import three
from rest_deploy.report.markup import Markup
from rest_deploy.report.plots import Looks
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
    for plot in (plots.pareto, plots.ratios, spread.distributions, plots.throughput):
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


def test_throughput_rises() -> None:
    made = plots.throughput(record(), CASE, looks(), "t")
    assert made is not None
    assert made.count('class="series') == 4  # PyTorch was not saturated
    (description,) = re.findall("<desc[^>]*>([^<]*)", made)
    assert "openvino int8: 1 -&gt; 105, 2 -&gt; 123, 4 -&gt; 139, 8 -&gt; 145" in description


def test_one_request_in_flight_is_an_isolated_one() -> None:
    """Where the sweep under load begins at two; where it has one, that one counts."""
    engine = record().engines[4]
    from_two = tuple(
        found
        for found in engine.measurements
        if found.mode == "isolated" or found.in_flight in (2, 4)
    )
    made = plots.throughput(replaced(record(), "engines.4.measurements", from_two), CASE, looks(),
                            "t")  # fmt: skip
    assert made is not None
    (isolated,) = [m for m in from_two if m.shape == CASE.shape and m.mode == "isolated"]
    assert f"openvino int8: 1 -&gt; {three(isolated.images_per_second)}, 2 -&gt; 123, 4" in made
    swept = plots.throughput(record(), CASE, looks(), "t")
    assert swept is not None
    assert swept.count("requests in flight 1:") == 4


def test_batches() -> None:
    made = plots.batches(record(), (224, 224), looks(), "b")
    assert made is not None
    assert made.count('class="series') == 5
    one = replaced(record(), "engines", tuple(
        replaced(e, "measurements", tuple(m for m in e.measurements if m.batch == 1))
        for e in record().engines
    ))  # fmt: skip
    assert plots.batches(one, (224, 224), looks(), "b") is None
