"""A bench record as one HTML file: no network, no framework, the same bytes for the same record."""

from __future__ import annotations

import base64
import hashlib
import re
from pathlib import Path

from rest_deploy.bench.record import Record
from rest_deploy.report import bench_rows as derived
from rest_deploy.report import svg
from rest_deploy.report.bench_words import three, times
from rest_deploy.report.markup import Content, Markup, element
from rest_deploy.report.page_grid import key
from rest_deploy.report.page_sections import sections
from rest_deploy.report.plots import Looks

HEADLINE = 90
"""Characters of a first clause that is set as one."""


def page(record: Record) -> str:
    """The whole page. Raises what `bench_rows.sound` does."""
    record = derived.sound(record)
    looks = svg.looks((e.label, e.backend, e.precision) for e in derived.working(record))
    parts = sections(record, looks)
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
            [element("li", element("a", name, href=f"#{at}")) for at, name, _ in parts],
        ),
        aria_label="Sections",
    )
    body = (
        element("header", _top(record, looks), navigation, class_="top"),
        element("main", [section for _, _, section in parts]),
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
        *_headline(record.advice or f"Benchmark of {record.model}"),
        element("p", element("code", record.command), class_="command"),
        _tiles(record, looks),
        _notes(record),
    )


def _headline(advice: str) -> Content:
    """The first clause large, what follows it below."""
    found = re.match(rf"(.{{1,{HEADLINE}}}?)[:.] (.*)", advice, re.DOTALL)
    if found is None:
        return (element("h1", advice),)
    return (element("h1", found[1]), element("p", found[2], class_="lead"))


def _tiles(record: Record, looks: Looks) -> Content:
    """The fastest engine of each case."""
    tiles = []
    for case in derived.cases(record, "isolated"):
        row = derived.fastest(record, case)
        if row is None:
            continue
        ratio = row.ratio
        how = f"{times(ratio.ratio)} times as fast as {ratio.base}" if ratio else ""
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
    items += [element("li", note, class_="said") for note in record.notes]
    items += [element("li", warning) for warning in derived.warnings(record)]
    return (
        element("ul", items, class_="notes", aria_label="Failures, notes and warnings")
        if items
        else ()
    )
