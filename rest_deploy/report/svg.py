"""What the plots are drawn with: scales, axes, figures with a title and a description, markers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rest_deploy.report.bench_words import shorten
from rest_deploy.report.markup import Content, Markup, element, number

CHARACTER = 6.4
"""Width of a letter in user units, on a phone's larger lettering: for labels that must not meet."""


@dataclass(frozen=True)
class Scale:
    """Values from `low` to `high` -> user units from `start` to `end`; outside is brought to the
    edge."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        value = min(max(value, self.low), self.high)
        if self.log:
            part = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            part = (value - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self, most: int = 6) -> list[float]:
        """Round values within: 1, 2, 5 times a power of ten."""
        return _log_ticks(self.low, self.high, most) if self.log else _ticks(self.high, most)


def linear(values: Iterable[float], start: float, end: float) -> Scale:
    """From 0 to a little above the largest value."""
    return Scale(0.0, max(values, default=0.0) * 1.06 or 1.0, start, end)


def logarithmic(values: Iterable[float], start: float, end: float, room: float = 1.25) -> Scale:
    """From below the least to above the largest by the factor `room`; values are positive."""
    found = list(values)
    return Scale(min(found) / room, max(found) * room, start, end, log=True)


def _ticks(high: float, most: int) -> list[float]:
    rough = high / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in (1, 2, 5, 10) if step * power >= rough * (1 - 1e-9))
    return [step * index for index in range(int(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """As many of each decade as there is room for: 1, 2 and 5, or 1 alone, or every so many."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for steps in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        found = [step * 10.0**power for power in decades for step in steps]
        found = [value for value in found if low <= value <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


@dataclass(frozen=True)
class Look:
    """How one engine looks in every plot: `hue` says the backend, `mark` the precision."""

    hue: str
    mark: str
    index: int

    @property
    def classes(self) -> str:
        return f"{self.hue} e{self.index}"


MARKS = {"fp32": "circle", "fp16": "square", "bf16": "up", "int8": "diamond", "fp8": "down"}
HUES = 6
"""Colours of page.css; the first is grey."""

REFERENCE = "pytorch"


def looks(engines: Iterable[tuple[str, str, str]]) -> dict[str, Look]:
    """(label, backend, precision) -> look by label. The reference is grey, backends take colours
    in turn."""
    backends = {REFERENCE: 0}
    found = {}
    for index, (label, backend, precision) in enumerate(engines):
        hue = backends.setdefault(backend.lower(), len(backends))
        hue = 1 + (hue - 1) % (HUES - 1) if hue else 0
        found[label] = Look(f"h{hue}", MARKS.get(precision, "cross"), index)
    return found


_PATHS = {
    "circle": "m-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z",
    "square": "m-4 -4h8v8h-8z",
    "diamond": "m0 -5.6l5.6 5.6l-5.6 5.6l-5.6 -5.6z",
    "up": "m0 -5.6l5.2 9h-10.4z",
    "down": "m0 5.6l5.2 -9h-10.4z",
    "cross": "m-4.5 -1.5h3v-3h3v3h3v3h-3v3h-3v-3h-3z",
}


def marker(look: Look, x: float, y: float, title: str = "") -> Markup:
    """A filled mark, with a title that browsers show on hover."""
    inside: Content = element("title", title) if title else ()
    path = f"M{number(x)} {number(y)}{_PATHS[look.mark]}"
    return element("path", inside, class_=f"mark {look.classes}", d=path)


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> Markup:
    anchored = None if anchor == "start" else anchor
    return element("text", words, x=x, y=y, text_anchor=anchored, class_=kind or None)


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    return element("path", d=f"M{number(x1)} {number(y1)}L{number(x2)} {number(y2)}", class_=kind)


def polyline(points: Sequence[tuple[float, float]], kind: str) -> Markup:
    d = "L".join(f"{number(x)} {number(y)}" for x, y in points)
    return element("path", d=f"M{d}", class_=kind)


def rectangle(x: float, y: float, width: float, height: float, kind: str, title: str) -> Markup:
    return element(
        "rect", element("title", title), x=x, y=y, width=max(width, 0.0), height=height, class_=kind
    )


def bottom_axis(
    scale: Scale, top: float, bottom: float, name: str, shown: Callable[[float], str], most: int = 6
) -> list[Markup]:
    """Grid lines from `top` to `bottom`, their values and the axis' name below."""
    found = []
    for tick in scale.ticks(most):
        x = scale(tick)
        found += [line(x, top, x, bottom, "grid"), text(x, bottom + 15, shown(tick), "middle")]
    return [*found, text(scale.end, bottom + 31, name, "end", "axis")]


def left_axis(
    scale: Scale, left: float, right: float, name: str, shown: Callable[[float], str], most: int = 6
) -> list[Markup]:
    """Grid lines from `left` to `right`, their values at the left, the axis' name above them."""
    found = []
    for tick in scale.ticks(most):
        y = scale(tick)
        found += [line(left, y, right, y, "grid"), text(left - 6, y + 3.5, shown(tick), "end")]
    return [*found, text(2, min(scale.start, scale.end) - 9, name, "start", "axis")]


def figure(
    name: str, title: str, description: str, width: float, height: float, *content: Content
) -> Markup:
    """An SVG that a screen reader announces. name: unique on the page."""
    return element(
        "svg",
        element("title", title, id=f"{name}-title"),
        element("desc", description, id=f"{name}-desc"),
        *content,
        viewBox=f"0 0 {number(width)} {number(height)}",
        role="img",
        aria_labelledby=f"{name}-title {name}-desc",
    )


Box = tuple[float, float, float, float]
"""x, y, width, height."""


def labels(
    places: Sequence[tuple[float, float, str]],
    bounds: Box,
    longest: int = 22,
    also: Sequence[Box] = (),
) -> list[Markup]:
    """A name beside each mark, where it meets no mark and no other name if there is such a place:
    best above at the right, where a front that falls to the right does not pass.

    A name without a place is left to the mark's title. also: what else names may not cover.
    """
    taken: list[Box] = [*((x - 6, y - 6, 12, 12) for x, y, _ in places), *also]
    found = []
    for x, y, words in places:
        shown = shorten(words, longest)
        wide = CHARACTER * len(shown)
        for left, middle, anchor in (
            (x + 7, y - 11, "start"), (x - 9 - wide, y, "end"), (x + 9, y, "start"),
            (x - wide / 2, y - 13, "middle"), (x - wide / 2, y + 13, "middle"),
            (x + 7, y + 11, "start"), (x - 7 - wide, y + 11, "end"), (x - 7 - wide, y - 11, "end"),
            (x - wide / 2, y - 26, "middle"), (x - wide / 2, y + 26, "middle"),
        ):  # fmt: skip
            box = (left, middle - 6.5, wide, 13)
            if _inside(box, bounds) and not any(_meet(box, other) for other in taken):
                taken.append(box)
                at = {"start": left, "end": left + wide, "middle": left + wide / 2}[anchor]
                found.append(text(at, middle + 4, shown, anchor, "label"))
                break
    return found


def _inside(box: Box, bounds: Box) -> bool:
    return (
        box[0] >= bounds[0]
        and box[1] >= bounds[1]
        and box[0] + box[2] <= bounds[0] + bounds[2]
        and box[1] + box[3] <= bounds[1] + bounds[3]
    )


def _meet(one: Box, other: Box) -> bool:
    return (
        one[0] < other[0] + other[2]
        and other[0] < one[0] + one[2]
        and one[1] < other[1] + other[3]
        and other[1] < one[1] + one[3]
    )
