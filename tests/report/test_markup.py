"""Elements as text: escaped, with numbers that are numbers."""

from __future__ import annotations

import pytest

from rest_deploy.report.markup import Markup, element, escape, join, number


@pytest.mark.parametrize(
    ("value", "words"),
    [(1.0, "1"), (-0.5, "-0.5"), (0.123, "0.12"), (-0.001, "0"), (0, "0"), (100, "100")],
)
def test_numbers_are_short(value: float, words: str) -> None:
    assert number(value) == words


def test_text_is_escaped_markup_is_not() -> None:
    made = element("p", "<b>", Markup("<i>x</i>"), ["&", ("'",)], title='"<\x00', class_="a")
    assert made == (
        '<p title="&quot;&lt;�" class="a">&lt;b&gt;<i>x</i>&amp;&#x27;</p>'
    )  # fmt: skip
    assert escape(escape("<")) == "&lt;"
    assert join(()) == ""


def test_attributes() -> None:
    assert element("br") == "<br>"
    made = element("td", a=None, b=False, hidden=True, text_anchor="end", data_v=2.5)
    assert made == '<td hidden text-anchor="end" data-v="2.5"></td>'
