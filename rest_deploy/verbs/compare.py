"""Two records of a benchmark, one after the other."""

from __future__ import annotations

from pathlib import Path

from rest_deploy.bench import store
from rest_deploy.bench.compare import RecordComparison, compare_records


def compare(
    before: Path, after: Path, *, allowed: float | None = None, unlike_machines: bool = False
) -> RecordComparison:
    """Compare what both records have in common. allowed: how much longer times may be, 0.05 for
    5 %; see `RecordComparison.regressed`.

    Raises `ArtifactError` for files that are no records, `InputError` for unlike machines.
    """
    return compare_records(
        store.read(before),
        store.read(after),
        (str(before), str(after)),
        allowed=allowed,
        unlike=unlike_machines,
    )
