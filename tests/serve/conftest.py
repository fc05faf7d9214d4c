"""One server for the tests that leave it as it is."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serve.live import Live, serving


@pytest.fixture(scope="session")
def live(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """rest_nano with trained weights, small limits, on ONNX Runtime; alive at the end."""
    log = tmp_path_factory.mktemp("serve") / "log"
    options = ("--max-batch", 4, "--max-body-mb", 2, "--memory-mb", 64, "--max-side", 256,
               "--max-pixels", 1_000_000, "--body-s", 3, "--queue", 64)  # fmt: skip
    with serving(trained_nano, log, *options) as found:
        yield found
        assert found.ready()
        assert found.stop() == 0
        assert [line for line in found.lines() if "trace" in line] == []


@pytest.fixture
def engine(trained_nano: Path, tmp_path: Path) -> Path:
    """A copy that a test may replace."""
    folder = tmp_path / "engine"
    shutil.copytree(trained_nano.parent, folder)
    return folder / trained_nano.name
