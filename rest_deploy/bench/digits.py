"""How the advice and every report write numbers: a figure in the advice reads as in the table."""

from __future__ import annotations


def three(value: float) -> str:
    """Three digits, without an exponent: 0.034, 3.42, 27.1, 412."""
    size = abs(value)
    decimals = 0 if size >= 99.95 else 1 if size >= 9.995 else 2 if size >= 0.0995 else 3
    return f"{value:.{decimals}f}"


def short_error(value: float) -> str:
    """3.8e-3; 0 is exact."""
    if value == 0:
        return "0"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def share(value: float | None) -> str:
    """ "-" for what an engine without classes does not have."""
    if value is None:
        return "-"
    return "100%" if value == 1 else f"{value:.1%}"


def times(value: float) -> str:
    """A ratio: two decimals as long as they mean something."""
    return f"{value:.2f}" if value < 9.995 else three(value)
