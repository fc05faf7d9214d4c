"""HTML and SVG elements as text: what is not markup already is escaped, numbers are finite."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable

from rest_deploy.errors import InvariantError

VOID = frozenset({"meta", "br"})
"""Elements without an end tag."""


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Content = str | Iterable["Content"]


def escape(text: str) -> Markup:
    """Text as text, in an element and in an attribute. Control characters have no place in HTML."""
    if isinstance(text, Markup):
        return text
    allowed = "".join(
        character if character.isprintable() or character in "\n\t" else "�" for character in text
    )
    return Markup(html.escape(allowed, quote=True))


def join(content: Content) -> Markup:
    """One text after another, lists likewise."""
    if isinstance(content, str):
        return escape(content)
    return Markup("".join(map(join, content)))


def element(tag: str, *content: Content, **attributes: str | float | bool | None) -> Markup:
    """`class_` is class, `stroke_width` stroke-width; None and False leave an attribute out.

    Raises `InvariantError` for a number that is none: it must not reach a drawing.
    """
    words = [tag]
    for name, value in attributes.items():
        if value is None or value is False:
            continue
        key = name.rstrip("_").replace("_", "-")
        words.append(key if value is True else f'{key}="{attribute(value)}"')
    start = f"<{' '.join(words)}>"
    return Markup(start if tag in VOID else f"{start}{join(content)}</{tag}>")


def attribute(value: str | float) -> str:
    return escape(value) if isinstance(value, str) else number(value)


def number(value: float) -> str:
    """At most two decimals: a hundredth of a pixel. Raises `InvariantError` for NaN, infinity."""
    if not math.isfinite(value):
        raise InvariantError(f"{value} was about to be drawn")
    text = f"{value:.2f}".rstrip("0").rstrip(".")
    return "0" if text == "-0" else text
