"""The HTML page: valid, alone, escaped, the same for the same record, readable in both themes."""

from __future__ import annotations

import math
import re
from collections import Counter
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import msgspec
import pytest

import rest_deploy.report.page as module
from rest_deploy.bench.record import Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report.page import page
from tests.report.hostile import LABEL, hostile, only, replaced
from tests.report.sample import record

VOID = {"meta", "br", "col"}
MOST_BYTES = 1_500_000
BARE = {"sensitivity": None, "instance_norm": None, "ceilings": None, "ratios": (), "advice": ""}
CSS = Path(module.__file__).with_name("page.css").read_text(encoding="utf-8")

SHAPES = {
    "sample": record(),
    "hostile": hostile(),
    "one engine": only("openvino int8"),
    "all failed": only("tensorrt fp16"),
    "nothing": only(),
    "bare": msgspec.structs.replace(record(), **BARE),
}


class Reader(HTMLParser):
    """What is wrong with a page, and what it holds."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.elements: Counter[str] = Counter()
        self.ids: Counter[str] = Counter()
        self.referred: set[str] = set()
        self.seen: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        if tag not in VOID:
            self.open.append(tag)
        for name, value in attrs:
            words = value or ""
            if name == "id":
                self.ids[words] += 1
            elif name == "aria-labelledby":
                self.referred |= set(words.split())
            elif name == "href" and words.startswith("#"):
                self.referred.add(words[1:])
            elif name in ("href", "src", "srcset", "action", "xlink:href", "data", "poster"):
                self.problems.append(f"{tag} refers to {words}")
            if name.startswith("on"):
                self.problems.append(f"{tag} has {name}")
            if name in ("d", "x", "y", "width", "height", "viewBox", "style") and re.search(
                "nan|inf|none", words, re.IGNORECASE
            ):
                self.problems.append(f"{tag} {name}={words[:60]}")
        if len(dict(attrs)) < len(attrs):
            self.problems.append(f"{tag} has an attribute twice")

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.problems.append(f"</{tag}> closes nothing")

    def handle_data(self, data: str) -> None:
        inside = self.open[-1] if self.open else ""
        if inside in ("style", "script"):
            if re.search(r"https?://|url\(|@import|fetch\(|XMLHttpRequest|import\(", data):
                self.problems.append(f"{inside} refers to something else")
        else:
            self.seen.append(data)
            if "svg" in self.open and re.fullmatch(r"(?i)\W*(nan|inf|none)\W*", data):
                self.problems.append(f"{data} is drawn")


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    reader.close()
    reader.problems += [f"<{tag}> stays open" for tag in reader.open]
    reader.problems += [f"id {name} {n} times" for name, n in reader.ids.items() if n > 1]
    reader.problems += [f"no id {name}" for name in sorted(reader.referred - set(reader.ids))]
    return reader


@pytest.mark.parametrize("name", SHAPES)
def test_the_page_is_valid_and_alone(name: str) -> None:
    html = page(SHAPES[name])
    found = read(html)
    assert found.problems == []
    assert len(html.encode()) <= MOST_BYTES
    assert found.elements["script"] == found.elements["style"] == 1
    assert html.startswith('<!doctype html>\n<html lang="en"><head><meta charset="utf-8">')
    assert found.elements["h1"] == 1


@pytest.mark.parametrize(
    "inside",
    [
        *("<p>", "</p>", "<b><i></b></i>", '<p id="a"></p><i id="a"></i>'),
        *('<img src="https://a.b/c.png">', '<a href="//a.b"></a>', '<p onclick="x()"></p>'),
        *("<style>a{background:url(x)}</style>", "<script>fetch('/x')</script>"),
        *('<svg><path d="M1 nan"></path></svg>', "<svg><text>NaN</text></svg>"),
        *('<a href="#nowhere"></a>', '<p class="a" class="b"></p>'),
    ],
)
def test_the_check_finds(inside: str) -> None:
    assert read(f"<html><body>{inside}</body></html>").problems


def test_same_record_same_bytes() -> None:
    stored = msgspec.json.decode(msgspec.json.encode(record()), type=Record)
    assert page(record()) == page(stored)
    assert page(record()) != page(replaced(record(), "engines.1.precision", "fp8"))


SECTIONS = [
    *("engines", "pareto", "speedup", "latency", "throughput", "growth", "stages", "roofline"),
    *("sensitivity", "instance-norm", "start", "all", "machine"),
]


def sections(html: str) -> list[str]:
    return re.findall(r'<section id="([^"]*)"', html)


def test_the_sample_has_every_section() -> None:
    html = page(record())
    assert sections(html) == SECTIONS
    assert re.findall(r'<a href="#([^"]*)"', html) == SECTIONS
    made = re.findall(r'<p class="made">made by <code>([^<]*)</code></p></section>', html)
    assert len(made) == len(SECTIONS)
    assert all(made)


def test_sections_without_values_are_left_out() -> None:
    gone = {"sensitivity", "instance-norm", "speedup"}
    assert sections(page(SHAPES["bare"])) == [name for name in SECTIONS if name not in gone]
    assert sections(page(SHAPES["all failed"])) == ["sensitivity", "instance-norm", "machine"]


def test_what_the_gpu_says_is_shown_where_there_is_one() -> None:
    host = record().engines[4].measurements[0].host
    parts = {"h2d": replaced(host, "median", 0.25), "compute": replaced(host, "median", 8.5)}
    html = page(replaced(record(), "engines.4.measurements.0.device", parts))
    assert read(html).problems == []
    table = html.split('<section id="gpu"')[1].split("</section>")[0]
    assert table.count("<tr") == 2
    assert '<td data-v="0.25">0.25</td><td data-v="8.5">8.50</td>' in table


def test_headline_failures_and_warnings() -> None:
    html = page(record())
    assert '<h1>Deploy openvino int8</h1><p class="lead">9.4 ms an image at' in html
    unbroken = "Deploy whatever " + "you like " * 20
    assert f'<h1>{unbroken}</h1><p class="command">' in page(replaced(record(), "advice", unbroken))
    assert '<li class="failed"><b>tensorrt fp16 failed: </b>no GPU is here' in html
    for warning in derived.warnings(record()):
        assert f"<li>{warning}</li>" in html
    assert "<h1>Benchmark of rest_lite</h1>" in page(SHAPES["bare"])


def test_every_figure_and_table_is_described() -> None:
    html = page(record())
    found = read(html)
    figures = re.findall('<svg viewBox[^>]*role="img"', html)
    assert len(figures) == len(re.findall("<desc ", html)) == 4 * 5 + 2 + 4
    assert all(re.findall("<desc [^>]*>([^<]*)", html))
    assert found.elements["table"] == found.elements["caption"] == 7
    assert "<th>" not in html  # each says what it is the head of
    assert html.count('tabindex="0" role="region" aria-label="') == found.elements["table"]


def test_no_text_of_a_record_is_markup() -> None:
    html = page(hostile())
    found = read(html)
    assert "alert('1')" not in html
    assert html.count("<script") == 1
    text = "".join(found.seen)
    assert "</title><script>alert('1')</script>" in text
    assert "\x1b" not in html
    assert max(map(len, re.findall(r'<text[^>]*class="label"[^>]*>([^<]*)', html))) < 80
    assert LABEL not in html


def test_a_page_runs_no_script_but_its_own() -> None:
    """The policy names the hash of the script that is there: an injected one would not run."""
    import base64
    import hashlib

    html = page(record())
    (script,) = re.findall("<script>(.*)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"default-src &#x27;none&#x27;; style-src &#x27;unsafe-inline&#x27;; script-src " \
           f"&#x27;sha256-{digest}&#x27;" in html  # fmt: skip


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_engine_with_nan_is_shown_as_failed(value: float) -> None:
    html = page(replaced(record(), "engines.4.measurements.0.samples.3", value))
    assert read(html).problems == []
    assert f"<b>openvino int8 failed: </b>no number was measured: measurements[0].samples[3] is " \
           f"{value}</li>" in html  # fmt: skip
    assert '<span class="who">' in html
    assert not re.search("</svg> openvino int8</span>", html)


def test_a_failed_engine_is_never_fast() -> None:
    """Even if it carries the fastest numbers of all."""
    html = page(replaced(record(), "engines.4.failed", "the gate refused it"))
    tiles = re.findall(r'class="who">.*?</svg> ([^<]*)</span>', html)
    assert tiles == ["onnxruntime int8"] * 4


def test_no_p99_of_few_samples() -> None:
    table = page(record()).split('<section id="all"')[1]
    (row,) = re.findall(
        r"<tr[^>]*><th[^>]*><span>.*?openvino int8</span></th><td>8x3x448x448</td>"
        r'<td class="left">isolated</td>(.*?)</tr>',
        table,
    )
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", row)
    assert cells[2] == "46"  # N, behind requests in flight and threads
    assert cells[9] == ""


def test_engines_without_a_place_in_the_trade_off_are_named() -> None:
    unknown = replaced(record(), "engines.0.accuracy", None)
    assert "or an unknown one: pytorch fp32.</p>" in page(unknown)
    assert "Not drawn" not in page(record())


def test_best_of_a_column_is_marked() -> None:
    table = page(record()).split('<section id="engines"')[1].split("</section>")[0]
    best = re.findall('<td class="best" data-v="([^"]*)">', table)
    fastest = [derived.fastest(record(), case) for case in derived.cases(record())]
    assert best == [f"{row.measured.host.median:.9g}" for row in fastest if row]


# --- colours -------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.1)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def colours(css: str, start: str = ":root {") -> dict[str, tuple[str, str]]:
    """Variable -> (light, dark) of one rule."""
    rule = css.split(start)[1].split("}")[0]
    return {
        name: (light, dark)
        for name, light, dark in re.findall(
            r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\)", rule
        )
    }  # fmt: skip


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read(theme: int) -> None:
    found = {name: pair[theme] for name, pair in colours(CSS).items()}
    for ground in ("ground", "surface", "wash", "note"):
        for ink in ("ink",) if ground == "note" else ("ink", "muted", "accent", "good", "bad"):
            assert contrast(found[ink], found[ground]) >= 4.5, (ink, ground)
    for step in range(8):
        shade = colours(CSS, f".s{step} {{")
        assert contrast(shade["step"][theme], shade["on"][theme]) >= 4.5, step


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_marks_can_be_seen(theme: int) -> None:
    """3:1 against the ground for what carries meaning by itself (WCAG 1.4.11)."""
    found = {name: pair[theme] for name, pair in colours(CSS).items()}
    for hue in range(6):
        assert contrast(found[f"h{hue}"], found["surface"]) >= 3, hue


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_neighbours_in_a_bar_differ_without_colour(theme: int) -> None:
    """Pieces stand in one order: each next differs in lightness, so grey paper shows them."""
    found = colours(CSS)
    kinds = [found[f"k{index}"][theme] for index in range(5)]
    assert all(contrast(one, other) >= 1.25 for one, other in pairwise(kinds))


def test_contrast_itself() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") < 4.5
