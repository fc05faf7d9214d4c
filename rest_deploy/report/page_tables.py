"""The tables of the page: a record -> HTML, numbers right-aligned and sortable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rest_deploy.bench.record import EngineResult, Environment, Measurement, Ratio, Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import bench_words as words
from rest_deploy.report import breakdown
from rest_deploy.report.bench_rows import Case
from rest_deploy.report.bench_words import three
from rest_deploy.report.markup import Content, Markup, element
from rest_deploy.report.page_grid import EMPTY, Cell, engine_name, grid
from rest_deploy.report.plots import Looks
from rest_deploy.report.svg import Look


def overview(record: Record, looks: Looks) -> Markup:
    """Accuracy and latency side by side: one row an engine, one column a case."""
    cases = derived.cases(record, "isolated")
    found = {(row.engine.label, case): row for case in cases for row in derived.rows(record, case)}
    rows = []
    for engine in derived.working(record):
        accuracy = engine.accuracy
        size = words.megabytes(engine.size_bytes)
        cells = [
            Cell(
                (engine.precision, element("small", size)) if size else engine.precision,
                kind="left",
            ),
            *(
                (
                    Cell(f"{accuracy.relative_error:.1e}", accuracy.relative_error),
                    Cell(words.share(accuracy.agreement), accuracy.agreement),
                    Cell("-" if accuracy.kl is None else f"{accuracy.kl:.1e}", accuracy.kl),
                )
                if accuracy
                else (Cell("unknown"), EMPTY, EMPTY)
            ),
        ]
        cells += [_latency(found, engine.label, case, looks) for case in cases]
        rows.append((engine_name(engine, looks), cells, looks[engine.label]))
    header = ["engine", "precision, file", "relative error", "same top-1", "KL, nats"]
    return grid(
        f"Error of the logits and agreement against PyTorch in float64{_images(record)}; median "
        f"latency in ms of isolated requests, and {words.VERDICT_LEGEND}.",
        [*header, *map(str, cases)],
        rows,
        sortable=True,
    )


def _images(record: Record) -> str:
    counts = sorted({engine.accuracy.images for engine in record.engines if engine.accuracy})
    return f" on {', '.join(map(str, counts))} images" if counts else ""


def _latency(
    found: Mapping[tuple[str, Case], derived.Row], label: str, case: Case, looks: Looks
) -> Cell:
    row = found.get((label, case))
    if row is None:
        return EMPTY
    medians = [other.measured.host.median for (_, at), other in found.items() if at == case]
    median = row.measured.host.median
    part = f"--part:{100 * median / max(medians):.1f}%" if max(medians) > 0 else "--part:0"
    verdict = row.ratio.verdict if row.ratio else ""
    said: Content = element("small", "base") if row.is_base else ""
    if row.ratio:
        said = (
            element("small", f"{words.times(row.ratio.ratio)} ",
                    element("span", words.VERDICTS[verdict], class_=verdict.split()[0])),
            element("small", f"{words.times(row.ratio.low)} to {words.times(row.ratio.high)}"),
        )  # fmt: skip
    meter = element(
        "span", element("i", style=part), class_=f"meter {looks[label].hue}", aria_hidden="true"
    )
    best = "best" if median == min(medians) else ""
    return Cell((three(median), meter, said), median, best)


def measurements(record: Record, looks: Looks) -> Markup:
    """Everything that was measured, as it was stored."""
    header = ("engine", "shape", "mode", "in flight", "threads", "N", "min", "median", "noise",
              "mean", "p90", "p95", "p99", "max", "CoV", "outliers", "images/s", "ratio",
              "stopped by", "warnings")  # fmt: skip
    rows = [
        (
            engine_name(engine, looks),
            _measured(found, derived.ratio_of(record, engine.label, found)),
            looks[engine.label],
        )
        for engine in derived.working(record)
        for found in engine.measurements
    ]
    return grid(
        "Wall clock of one request in ms; noise: half of the median's 95 % interval; no p99 where "
        f"N < {derived.P99_NEEDS}; outliers: beyond the upper fence, counted and kept.",
        header,
        rows,
        kind="tall",
        sortable=True,
    )


def _measured(found: Measurement, ratio: Ratio | None) -> list[Cell]:
    host = found.host
    tail = derived.p99(found)
    return [
        Cell(found.shape),
        Cell(found.mode, kind="left"),
        Cell(str(found.in_flight), found.in_flight),
        Cell(str(found.threads) if found.threads else "all", found.threads),
        Cell(str(host.n), host.n),
        *(Cell(three(value), value) for value in (host.min, host.median)),
        Cell(f"±{found.noise:.1%}", found.noise),
        *(Cell(three(value), value) for value in (host.mean, host.p90, host.p95)),
        Cell(tail, host.p99) if tail else EMPTY,
        Cell(three(host.max), host.max),
        Cell(f"{host.cov:.1%}", host.cov),
        Cell(str(found.outliers), found.outliers),
        Cell(three(found.images_per_second), found.images_per_second),
        Cell(words.interval(ratio), ratio.ratio) if ratio else EMPTY,
        Cell(found.stopped_by, kind="wide"),
        Cell("; ".join(found.warnings), kind="wide long"),
    ]


def devices(record: Record, looks: Looks) -> Markup | None:
    """What the GPU's own events say of each measurement. None where nothing ran on one."""
    found = [
        (engine, measured)
        for engine in derived.working(record)
        for measured in engine.measurements
        if measured.device
    ]
    parts = derived.union([list(measured.device) for _, measured in found])
    rows = []
    for engine, measured in found:
        cells = [
            Cell(str(derived.Case(measured.shape, measured.threads))),
            Cell(measured.mode, kind="left"),
            Cell(str(measured.in_flight), measured.in_flight),
            Cell(three(measured.host.median), measured.host.median),
        ]
        for part in parts:
            spread = measured.device.get(part)
            cells.append(EMPTY if spread is None else Cell(three(spread.median), spread.median))
        rows.append((engine_name(engine, looks), cells, looks[engine.label]))
    if not rows:
        return None
    return grid(
        "Medians in ms: wall clock on the host, and between the GPU's events; h2d and d2h copy the "
        "images in and the logits out, enqueue is the host's time to hand the work over.",
        ["engine", "shape", "mode", "in flight", "host", *parts],
        rows,
        sortable=True,
    )


def growth(record: Record, looks: Looks) -> Markup | None:
    """Larger shapes over each engine's smallest. None where every engine has one shape."""
    by_label = {engine.label: engine for engine in derived.working(record)}
    rows = []
    for row in derived.growth(record):
        ratios = (row.measured, row.flops, row.bytes)
        cells = [Cell(str(Case(row.small, row.threads)), kind="left"), Cell(row.large, kind="left")]
        cells += [Cell(words.times(value), value) for value in ratios]
        rows.append((engine_name(by_label[row.engine], looks), cells, looks[row.engine]))
    if not rows:
        return None
    return grid(
        "Ratio of the median times of isolated requests, of the floating-point operations and of "
        "the bytes counted from the graph.",
        ["engine", "from", "to", "time", "operations", "bytes"],
        rows,
        sortable=True,
    )


def starts(record: Record, looks: Looks) -> Markup | None:
    """A fresh process: where its time goes until the first answer. None where none was started."""
    rows = []
    for engine in derived.working(record):
        start = engine.start
        if start is None:
            continue
        times = (start.import_ms, start.load_ms, start.first_ms, start.total_ms)
        peaks = (start.peak_bytes, engine.peak_bytes)
        cells = [Cell(three(value), value) for value in times]
        cells += [Cell(words.megabytes(size), size) for size in peaks]
        rows.append((engine_name(engine, looks), cells, looks[engine.label]))
    if not rows:
        return None
    header = ("engine", "import, ms", "load, ms", "first answer, ms", "in all, ms",
              "peak at start", "peak of the run")  # fmt: skip
    return grid(
        "A fresh process: package imported, engine loaded, first image answered.",
        header,
        rows,
        sortable=True,
    )


def fractions(engines: Sequence[EngineResult], looks: Looks) -> Markup | None:
    """Floor over time, per block and engine: how much of what the machine can is used."""
    reached = {engine.label: breakdown.reached(engine) for engine in engines}
    blocks = derived.union([list(found) for found in reached.values()])
    if not blocks:
        return None
    rows: list[tuple[Content, list[Cell], Look | None]] = []
    for block in blocks:
        cells = []
        for engine in engines:
            part = reached[engine.label].get(block)
            step = 0 if part is None else min(breakdown.SHADES - 1, int(part * breakdown.SHADES))
            cells.append(EMPTY if part is None else Cell(f"{part:.0%}", part, f"s{step}"))
        rows.append((block, cells, None))
    header: list[Content] = ["block", *(engine_name(engine, looks) for engine in engines)]
    return grid(
        "The least time this machine needs for the block's operations and bytes, over the time it "
        "took; 100% is as fast as the machine can.",
        header,
        rows,
        kind="heat small",
    )


def environment(machine: Environment, record: Record) -> Markup:
    """The machine and its state, as a list of facts."""
    facts = [
        ("CPU", f"{machine.cpu}, {machine.cores} cores"),
        ("features", ", ".join(machine.features)),
        ("memory", f"{machine.memory_bytes / 1e9:.1f} GB"),
        ("GPU", "; ".join(machine.gpus) or "none"),
        ("system", machine.system),
        ("Python", machine.python),
        ("packages", ", ".join(f"{name} {version}" for name, version in machine.packages.items())),
        ("thread settings", " ".join(f"{k}={v}" for k, v in machine.variables.items()) or "none"),
        ("clock", machine.governor or "unknown"),
        ("load before the run", f"{machine.load:.2f}"),
        ("model", f"{record.model}, sha256 {record.model_sha256}"),
        *(
            (f"engine {engine.label}", f"{engine.file}, sha256 {engine.sha256}")
            for engine in record.engines
            if engine.file
        ),
        *ceilings(record),
    ]
    return element(
        "dl",
        [(element("dt", name), element("dd", value)) for name, value in facts if value],
        class_="facts",
    )


def ceilings(record: Record) -> list[tuple[str, str]]:
    found = record.ceilings
    if found is None:
        return []
    peaks = ", ".join(f"{kind} {three(peak)}" for kind, peak in found.gemm_gflops.items())
    return [
        ("reached by a large GEMM", f"{peaks} GFLOP/s, {found.threads or 'all'} threads"),
        ("no GEMM on this machine in", ", ".join(found.absent)),
        ("reached by a copy", f"{three(found.copy_gb_per_s)} GB/s"),
    ]
