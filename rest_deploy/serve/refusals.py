"""Errors as answers: which status code, what is said, when to come back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from rest_deploy.errors import ImageError, InputError, RestDeployError, ShapeError
from rest_deploy.serve.accepts import ProtocolError
from rest_deploy.serve.images import TooManyPixels
from rest_deploy.serve.model import ContractError
from rest_deploy.serve.pending import Closed, Expired, Full, NotFinite
from rest_deploy.serve.service import Busy

CLIENT_GONE = 499
"""In logs and figures; nobody gets it."""


@dataclass
class Refused(Exception):
    """An answer that is not 200. retry_after: seconds. close: the connection too, since the body
    was not read."""

    status: int
    message: str
    retry_after: float | None = None
    close: bool = False
    headers: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.status}: {self.message}"

    def all_headers(self) -> dict[str, str]:
        found = dict(self.headers)
        if self.retry_after is not None:
            found["retry-after"] = str(max(1, math.ceil(self.retry_after)))
        if self.close:
            found["connection"] = "close"
        return found


class ClientGone(Exception):
    """The connection ended before there was an answer."""


STATUS: tuple[tuple[type[RestDeployError], int], ...] = (
    (TooManyPixels, 413),
    (ProtocolError, 400),
    (ImageError, 400),
    (ShapeError, 400),
    (Full, 429),
    (Closed, 503),
    (Expired, 504),
    (NotFinite, 500),
    (ContractError, 409),
    (Busy, 409),
)
"""The first that fits; anything else is 500."""


def refusal(error: Exception, backlog: float = 0.0) -> Refused:
    """backlog: seconds until there is room again. What went wrong inside is not told to clients:
    it is in the log under the request's id."""
    for kind, status in STATUS:
        if isinstance(error, kind):
            retry = max(1.0, backlog) if status in (429, 503) else None
            return Refused(status, str(error), retry)
    if isinstance(error, InputError | RestDeployError) and not isinstance(error, NotFinite):
        return Refused(500, f"the engine failed: {type(error).__name__}")
    return Refused(500, "internal error")
