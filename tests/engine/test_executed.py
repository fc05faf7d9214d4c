"""What the profilers share: runs put together, and durations of calls."""

from __future__ import annotations

import pytest

from rest_deploy.engine.executed import LEAST_RUNS, MOST_RUNS, WARM_UP, durations, over_runs
from rest_deploy.errors import VerificationError


def test_median_and_least_of_each_place() -> None:
    runs = [[("a", 1.0), ("b", 5.0), ("a", 7.0)], [("a", 3.0), ("b", 4.0), ("a", 7.0)],
            [("a", 2.0), ("b", 90.0), ("a", 8.0)]]  # fmt: skip
    assert over_runs(runs) == [("a", 2.0, 1.0), ("b", 5.0, 4.0), ("a", 7.0, 7.0)]


@pytest.mark.parametrize("other", [[("b", 1.0)], [("a", 1.0), ("a", 1.0)], []])
def test_runs_of_other_operations_are_refused(other: list[tuple[str, float]]) -> None:
    with pytest.raises(VerificationError, match=f"run 1 of the profile executed {len(other)}"):
        over_runs([[("a", 1.0)], other])


def test_no_run_is_refused() -> None:
    with pytest.raises(VerificationError, match="no run"):
        over_runs([])


def test_calls_are_counted() -> None:
    calls: list[None] = []
    assert len(durations(lambda: calls.append(None), 0)) == LEAST_RUNS
    assert len(calls) == LEAST_RUNS + WARM_UP
    assert len(durations(lambda: None, 1e6)) == MOST_RUNS
