"""The sections of the page: what each shows, in which words, and what made its numbers."""

from __future__ import annotations

from collections.abc import Callable

from rest_deploy.bench.record import Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import breakdown, page_tables, plots, spread
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.bench_words import three
from rest_deploy.report.markup import Content, Markup, element, join
from rest_deploy.report.page_grid import heat, key
from rest_deploy.report.plots import Looks

Section = tuple[str, str, Markup]
"""id, name in the navigation, element."""

Plot = Callable[[Record, Case, Looks, str], Markup | None]


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


def sections(record: Record, looks: Looks) -> list[Section]:
    """In the order of the page; what a record does not have is left out."""
    return [section for section in _all(record, looks) if section is not None]


def _all(record: Record, looks: Looks) -> list[Section | None]:
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
            "left of it was measured. Colour is the backend, the mark is the precision."
            + _unplaced(record), run,
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
            f"the axis stand at its end; at most {spread.DRAWN} dots an engine.", run,
            _panels(record, looks, spread.distributions, "latency"),
        ),
        _section(
            "throughput", "Throughput", "Throughput under load",
            "Images a second against requests in flight, and the most of them against the batch.",
            run, _throughput(record, looks, legend),
        ),
        _section(
            "growth", "Growth", "How the time grows with the work",
            "Time below the growth of the operations: the small shape does not fill the machine. "
            "Above that of operations and bytes: the large one no longer fits a cache.", run,
            page_tables.growth(record, looks) or (),
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


def _unplaced(record: Record) -> str:
    """Engines that a logarithmic axis of errors has no place for."""
    labels = [
        engine.label
        for engine in derived.working(record)
        if engine.accuracy is None or engine.accuracy.relative_error <= 0
    ]
    return f" Not drawn, no error or an unknown one: {', '.join(labels)}." if labels else ""


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
        (max(sum(part.ms for part in parts), sum(part.floor_ms for part in parts))
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
        drawn,
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
        heat(
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
        heat(
            "Relative error of the float32 logits against PyTorch in float64, by form, weights and "
            "image size; darker is worse, on a logarithmic scale.", "form, weights", values,
            list(dict.fromkeys(down for down, _ in values)),
            list(dict.fromkeys(across for _, across in values)),
        ),
    )  # fmt: skip
