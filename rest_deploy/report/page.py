"""A bench record as one HTML file: no network, no framework, the same bytes for the same record."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable
from pathlib import Path

from rest_deploy.bench.record import Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import breakdown, page_tables, plots, svg
from rest_deploy.report.bench_rows import Case, three
from rest_deploy.report.markup import Content, Markup, element, join
from rest_deploy.report.page_tables import key
from rest_deploy.report.plots import Looks

Section = tuple[str, str, Markup]
"""id, name in the navigation, element."""

Plot = Callable[[Record, Case, Looks, str], Markup | None]


def page(record: Record) -> str:
    """The whole page. Raises what `bench_rows.sound` does."""
    record = derived.sound(record)
    looks = svg.looks((e.label, e.backend, e.precision) for e in derived.working(record))
    sections = [section for section in _sections(record, looks) if section is not None]
    script = _packaged("page.js")
    head = (
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", http_equiv="Content-Security-Policy", content=_policy(script)),
        element("title", f"{record.model}: rest-deploy bench"),
        element("style", Markup(_packaged("page.css"))),
    )
    navigation = element(
        "nav",
        element(
            "ul",
            [element("li", element("a", name, href=f"#{at}")) for at, name, _ in sections],
        ),
        aria_label="Sections",
    )
    body = (
        element("header", _top(record, looks), navigation, class_="top"),
        element("main", [section for _, _, section in sections]),
        element("footer", element("p", f"rest-deploy {record.version}, {record.created}. Made from "
                                  "the record of the run, which holds every sample: rest-deploy "
                                  "report RECORD.json"), class_="bottom"),
        element("script", Markup(script)),
    )  # fmt: skip
    html = element("html", element("head", *head), element("body", *body), lang="en")
    return f"<!doctype html>\n{html}\n"


def _packaged(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing is fetched, and no script but ours runs, whatever a record's text holds."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def _top(record: Record, looks: Looks) -> Content:
    machine = record.environment
    gpus = "".join(f", {gpu}" for gpu in machine.gpus)
    return (
        element(
            "p",
            element("b", record.model),
            element("span", f"{machine.cpu}, {machine.cores} cores{gpus}"),
            element("span", record.created),
            element("button", "Dark", type="button", class_="theme", hidden=True),
            class_="eyebrow",
        ),
        element("h1", record.advice or f"Benchmark of {record.model}"),
        element("p", element("code", record.command), class_="command"),
        _tiles(record, looks),
        _notes(record),
    )


def _tiles(record: Record, looks: Looks) -> Content:
    """The fastest engine of each case."""
    tiles = []
    for case in derived.cases(record, "isolated"):
        row = derived.fastest(record, case)
        if row is None:
            continue
        ratio = row.ratio
        how = f"{ratio.ratio:.2f} times as fast as {ratio.base}" if ratio else ""
        accuracy = row.engine.accuracy
        error = f"relative error {accuracy.relative_error:.1e}" if accuracy else ""
        tiles.append(
            element(
                "li",
                element("span", f"fastest at {case}", class_="at"),
                element("span", three(row.measured.host.median), " ", element("small", "ms"),
                        class_="big"),
                element("span", key(looks[row.engine.label]), " ", row.engine.label, class_="who"),
                [element("span", said, class_="how") for said in (how, error) if said],
            )
        )  # fmt: skip
    return element("ul", tiles, class_="tiles") if tiles else ()


def _notes(record: Record) -> Content:
    items = [
        element("li", element("b", f"{label} failed: "), reason, class_="failed")
        for label, reason in derived.failures(record)
    ]
    items += [element("li", warning) for warning in derived.warnings(record)]
    return element("ul", items, class_="notes", aria_label="Failures and warnings") if items else ()


def _section(
    at: str, name: str, title: str, say: str, command: str, *content: Content
) -> Section | None:
    """None where there is nothing to show. command: what makes the numbers."""
    if not join(content):
        return None
    made = element("p", "made by ", element("code", command), class_="made")
    heading = element("h2", title, id=f"{at}-heading")
    return (at, name, element(
        "section", heading, element("p", say, class_="say") if say else (), *content, made,
        id=at, aria_labelledby=f"{at}-heading",
    ))  # fmt: skip


def _sections(record: Record, looks: Looks) -> list[Section | None]:
    run = record.command
    legend = _legend(looks)
    return [
        _section(
            "engines", "Engines", "Accuracy and latency", "", run,
            page_tables.overview(record, looks) if looks else (),
        ),
        _section(
            "pareto", "Trade-off", "What accuracy costs, what speed costs",
            "Down and to the left is better. The dashed line is the front: nothing below it or "
            "left of it was measured. Colour is the backend, the mark is the precision.", run,
            _panels(record, looks, plots.pareto, "pareto", legend),
        ),
        _section(
            "speedup", "Speed-up", f"Speed against {derived.base_label(record)}",
            "Ratio of medians from rounds in turn, with its 95 % interval. Right of the line is "
            "faster.", run, _panels(record, looks, plots.ratios, "ratio"),
        ),
        _section(
            "latency", "Latency", "How steady the latency is",
            "Every request is a dot, measured against its engine's own median; the hill is their "
            f"density. Dashed: p99, with at least {derived.P99_NEEDS} requests. Requests beyond "
            f"the axis stand at its end; at most {plots.DRAWN} dots an engine.", run,
            _panels(record, looks, plots.distributions, "latency"),
        ),
        _section(
            "throughput", "Throughput", "Throughput under load",
            "Images a second against requests in flight, and the most of them against the batch.",
            run, _throughput(record, looks, legend),
        ),
        _stages(record, run),
        _roofline(record, looks, run),
        _sensitivity(record),
        _norm(record),
        _section("gpu", "GPU", "What the GPU does", "", run,
                 page_tables.devices(record, looks) or ()),
        _section("start", "Start", "From nothing to the first answer", "", run,
                 page_tables.starts(record, looks) or ()),
        _section("all", "All numbers", "All measurements", "", run,
                 page_tables.measurements(record, looks) if looks else ()),
        _section("machine", "Machine", "Machine and versions",
                 "Records of unlike machines are not compared.", "rest-deploy doctor",
                 element("div", page_tables.environment(record.environment, record),
                         class_="panel")),
    ]  # fmt: skip


def _legend(looks: Looks) -> Markup:
    return element("ul", [
        element("li", key(look), label, data_engine=str(look.index))
        for label, look in looks.items()
    ], class_="legend")  # fmt: skip


def _plot(title: str, drawing: Markup | None) -> Content:
    return element("div", element("h3", title), drawing, class_="plot") if drawing else ()


def _panels(record: Record, looks: Looks, plot: Plot, name: str, legend: Content = ()) -> Content:
    """One plot a case, where it has something to show."""
    found = [
        _plot(str(case), plot(record, case, looks, f"{name}-{index}"))
        for index, case in enumerate(derived.cases(record))
    ]
    return (legend, element("div", found, class_="plots")) if join(found) else ()


def _throughput(record: Record, looks: Looks, legend: Content) -> Content:
    sizes = dict.fromkeys(derived.shape_of(case.shape)[2:] for case in derived.cases(record))
    found: list[Content] = [
        _plot(f"{case}, by requests in flight",
              plots.throughput(record, case, looks, f"throughput-{index}"))
        for index, case in enumerate(derived.cases(record))
    ]  # fmt: skip
    found += [
        _plot(f"{height}x{width}, by batch",
              plots.batches(record, (height, width), looks, f"batch-{index}"))
        for index, (height, width) in enumerate(sizes)
    ]  # fmt: skip
    return (legend, element("div", found, class_="plots")) if join(found) else ()


def _stages(record: Record, run: str) -> Section | None:
    engines = [engine for engine in derived.working(record) if engine.blocks]
    longest = max(
        (sum(part.ms for part in parts)
         for engine in engines for parts in breakdown.by_block(engine).values()),
        default=0.0,
    )  # fmt: skip
    keys = element("ul", [
        *(element("li", element("span", class_=f"swatch {breakdown.hue(kind)}"), kind)
          for kind in breakdown.KINDS),
        element("li", element("span", class_="swatch tick"), "floor of the roofline"),
    ], class_="legend")  # fmt: skip
    found = [
        _plot(
            f"{engine.label}, {three(sum(block.ms for block in engine.blocks))} ms"
            + (f" at {engine.blocks_shape}" if engine.blocks_shape else ""),
            breakdown.stages(engine, longest, f"stages-{index}"),
        )
        for index, engine in enumerate(engines)
    ]
    return _section(
        "stages", "Stages", "Where the time goes",
        "One bar a block, one piece a kind of work; all engines on one axis. The tick is the least "
        "time this machine needs for the block.", run,
        (keys, element("div", found, class_="plots")) if found else (),
    )  # fmt: skip


def _roofline(record: Record, looks: Looks, run: str) -> Section | None:
    engines = [engine for engine in derived.working(record) if engine.blocks]
    found: list[Content] = []
    if record.ceilings is not None:
        found = [
            _plot(engine.label, breakdown.roofline(
                engine, record.ceilings, looks[engine.label], f"roofline-{index}"))
            for index, engine in enumerate(engines)
        ]  # fmt: skip
    table: Content = page_tables.fractions(engines, looks) or ()
    drawn: Content = element("div", found, class_="plots") if join(found) else ()
    return _section(
        "roofline", "Roofline", "How much of the machine is used",
        "What a large GEMM and a copy reach on this machine bounds every block: under the "
        "slope by memory, under the flat part by arithmetic.", run, table,
        element("br") if drawn and table else (), drawn,
    )  # fmt: skip


def _sensitivity(record: Record) -> Section | None:
    found = record.sensitivity
    if found is None or not found.places:
        return None
    values = {(place.block, place.role): place.relative_error for place in found.places}
    roles = list(dict.fromkeys(place.role for place in found.places))
    blocks = list(dict.fromkeys(place.block for place in found.places))
    worst = max(found.places, key=lambda place: place.relative_error)
    return _section(
        "sensitivity", "Sensitivity", "Which layers cost the accuracy",
        f"Each place quantized alone by the recipe {found.recipe}; all together "
        f"{found.whole:.1e}. The worst is {worst.block}, {worst.role}.", found.command,
        page_tables.heat(
            f"Relative error of the logits on {found.images} images; darker is worse, on a "
            "logarithmic scale.", "block", values, blocks, roles,
        ),
    )  # fmt: skip


def _norm(record: Record) -> Section | None:
    found = record.instance_norm
    if found is None or not found.rows:
        return None
    values = {(f"{row.form}, {row.weights}", row.size): row.relative_error for row in found.rows}
    return _section(
        "instance-norm", "InstanceNorm", "What the InstanceNorm costs in float32",
        "The norm on the attention map loses float32 digits with the size of the image, unless its "
        "mean is not computed (folded): docs/instance-norm.md.", found.command,
        page_tables.heat(
            "Relative error of the float32 logits against PyTorch in float64, by form, weights and "
            "image size; darker is worse, on a logarithmic scale.", "form, weights", values,
            list(dict.fromkeys(down for down, _ in values)),
            list(dict.fromkeys(across for _, across in values)),
        ),
    )  # fmt: skip
