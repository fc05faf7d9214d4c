from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.artifact import read_sidecar
from rest_deploy.contracts import ModelMetadata


@pytest.fixture
def nano_metadata(exported_nano: Path) -> ModelMetadata:
    sidecar = read_sidecar(exported_nano)
    assert sidecar is not None
    return sidecar.metadata
