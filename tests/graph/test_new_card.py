"""A new variant is one TOML card and no code."""

from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy import verbs
from rest_deploy.cards import data_directory
from rest_deploy.runtime.session import Session


def card(folder: Path, source: str, **fields: str) -> Path:
    """A shipped card with other lines."""
    lines = (data_directory("models") / f"{source}.toml").read_text(encoding="utf-8").splitlines()
    for name, value in fields.items():
        (index,) = [i for i, line in enumerate(lines) if line.startswith(f"{name} = ")]
        lines[index] = f"{name} = {value}"
    path = folder / "mine.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("source", ["rest_nano", "restv2_nano"])
def test_it_is_exported_and_proven(source: str, tmp_path: Path) -> None:
    """Dims, depths, heads and ratios that no shipped card has; a proof at sizes that divide by
    none of them."""
    path = card(
        tmp_path, source, name='"mine"', variant='"mine"', dims="[24, 48, 60, 80]",
        depths="[2, 1, 1, 2]", heads="[1, 3, 5, 4]", sr_ratios="[4, 2, 2, 1]", num_classes="7",
        labels='""',
    )  # fmt: skip
    report = verbs.export(str(path), output_dir=tmp_path, num_classes=7)
    assert Path(report.path) == tmp_path / "mine.onnx"
    sizes = {(result.case.height, result.case.width) for result in report.parity}
    assert (97, 131) in sizes
    assert (96, 160) not in sizes, "which is traced"
    assert all(result.relative_error <= result.bound for result in report.parity)
    metadata = Session.open(tmp_path / "mine.onnx").metadata
    assert metadata.card.architecture.dims == (24, 48, 60, 80)
    assert metadata.labels[6] == "class 6"
