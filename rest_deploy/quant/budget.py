"""What may be lost, and what was: scores of quantized places and bounds on them."""

from __future__ import annotations

import re

from rest_deploy.contracts import Struct
from rest_deploy.errors import InputError

METRICS = {"agreement": ">=", "relative_error": "<=", "kl": "<="}


class Score(Struct, frozen=True):
    """Distances of the model's first output from the reference's; see verify/metrics. kl and
    agreement: of classes, None of another output."""

    relative_error: float
    kl: float | None
    agreement: float | None


class PlaceScore(Struct, frozen=True):
    """One (block, role) quantized alone. `share`: of the model's weight multiplications."""

    block: str
    role: str
    share: float
    score: Score


class Budget(Struct, frozen=True):
    """A bound on one metric, e.g. agreement >= 0.995."""

    metric: str
    bound: float

    def kept(self, score: Score) -> bool:
        """Raises `InputError` for a metric that the model's first output does not have."""
        value: float | None = getattr(score, self.metric)
        if value is None:
            raise InputError(
                f"the model's first output is no classes, so that it has no {self.metric}",
                hint="--budget 'relative_error<=0.01'",
            )
        return value >= self.bound if METRICS[self.metric] == ">=" else value <= self.bound

    def __str__(self) -> str:
        return f"{self.metric}{METRICS[self.metric]}{self.bound:g}"


def parse_budget(text: str) -> Budget:
    """ "agreement>=99.5%", "kl<=1e-3", "relative_error<=0.01". Raises `InputError`."""
    match = re.fullmatch(r"\s*(\w+)\s*(>=|<=)\s*([0-9.eE+-]+)(%?)\s*", text)
    if match is None or METRICS.get(match[1]) != match[2]:
        known = ", ".join(f"{name}{sign}VALUE" for name, sign in METRICS.items())
        raise InputError(f"{text!r} is not a budget; expected one of {known}")
    try:
        bound = float(match[3]) / (100 if match[4] else 1)
    except ValueError as error:
        raise InputError(f"{match[3]!r} in the budget is not a number") from error
    return Budget(metric=match[1], bound=bound)
