"""What the tables of the page are made of: cells, a grid in a box of its own, shades."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rest_deploy.bench.record import EngineResult
from rest_deploy.report import breakdown
from rest_deploy.report.markup import Content, Markup, element
from rest_deploy.report.plots import Looks
from rest_deploy.report.svg import Look, marker


@dataclass(frozen=True)
class Cell:
    """`value`: what a column is sorted by; `kind`: its class in page.css."""

    content: Content
    value: float | None = None
    kind: str = ""


EMPTY = Cell("")


def grid(
    caption: str,
    header: Sequence[Content],
    rows: Iterable[tuple[Content, Sequence[Cell], Look | None]],
    *,
    kind: str = "",
    sortable: bool = False,
) -> Markup:
    """A table with a caption, in a box of its own that scrolls. rows: (row header, cells, look of
    the engine that the row is about)."""
    head = element("tr", [element("th", cell, scope="col") for cell in header])
    body = [
        element(
            "tr",
            element("th", name, scope="row"),
            [
                element("td", cell.content, class_=cell.kind or None, data_v=_exact(cell.value))
                for cell in cells
            ],
            data_engine=None if look is None else str(look.index),
        )
        for name, cells, look in rows
    ]
    table = element(
        "table",
        element("caption", element("span", caption)),
        element("thead", head),
        element("tbody", body),
        class_=kind.replace("tall", "").strip() or None,
        data_sort=sortable or None,
    )
    box = "scroll tall" if "tall" in kind else "scroll"
    return element("div", table, class_=box, tabindex="0", role="region", aria_label=caption)


def _exact(value: float | None) -> str | None:
    """Not rounded: an error of 1e-7 is not one of 2e-7."""
    return None if value is None else f"{value:.9g}"


def key(look: Look) -> Markup:
    """The engine's mark, as in the plots."""
    return element("svg", marker(look, 0, 0), class_="key", viewBox="-7 -7 14 14",
                   aria_hidden="true")  # fmt: skip


def engine_name(engine: EngineResult, looks: Looks) -> Markup:
    return element("span", key(looks[engine.label]), " ", engine.label)


def heat(
    caption: str,
    corner: str,
    values: Mapping[tuple[str, str], float],
    down: Sequence[str],
    across: Sequence[str],
) -> Markup:
    """(row, column) -> positive value, shaded on a logarithmic scale."""
    low, high = breakdown.extremes(values)
    rows: list[tuple[Content, list[Cell], Look | None]] = []
    for name in down:
        cells = []
        for column in across:
            value = values.get((name, column))
            cells.append(
                EMPTY if value is None
                else Cell(f"{value:.1e}", value, f"s{breakdown.shade(value, low, high)}")
            )  # fmt: skip
        rows.append((name, cells, None))
    return grid(caption, [corner, *across], rows, kind="heat small")
