"""Arguments as a caller gives them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

PathLike = str | os.PathLike[str]
Sizes = Sequence[tuple[int, int]]
"""(height, width) in pixels."""


def path_of(given: PathLike | None) -> Path | None:
    return None if given is None else Path(given)
