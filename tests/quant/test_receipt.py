from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rest_deploy import cards
from rest_deploy.cards import available, data_directory
from rest_deploy.errors import CardError
from rest_deploy.quant import receipt
from rest_deploy.quant.receipt import FITS_UP_TO, Measured, Receipt, Speed, load_receipt
from rest_deploy.quant.recipe import load_recipe

SHIPPED = sorted((data_directory("calibration") / "receipts").glob("*.json"))


def row(**changes: Any) -> Measured:
    values: dict[str, Any] = {
        "recipe": "int8", "backend": "onnxruntime", "images": 128, "relative_error": 0.01,
        "agreement": 1.0, "top1_reference": 0.9, "top1_engine": 0.9, "speed": (),
    }  # fmt: skip
    return Measured(**{**values, **changes})


@pytest.mark.parametrize(
    ("times", "fits"),
    [(0.5, True), (FITS_UP_TO, True), (FITS_UP_TO * 1.01, False), (math.nan, False)],
)
def test_what_a_recipe_costs_another_checkpoint(times: float, fits: bool) -> None:  # a table
    assert row().fits(0.01 * times) is fits


@pytest.mark.parametrize("error", [0.0, -1.0, math.nan, math.inf])
def test_an_error_that_is_none_is_refused(error: float) -> None:
    with pytest.raises(ValueError, match="relative_error"):
        row(relative_error=error)


def test_a_ratio_outside_its_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="interval"):
        Speed(shape="1x3x224x224", ratio=2.0, low=2.1, high=2.2)


def test_a_variant_without_one() -> None:
    assert load_receipt("no-such-variant") is None


def test_a_damaged_one_names_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "receipts").mkdir()
    path = tmp_path / "receipts" / "lite.json"
    monkeypatch.setattr(receipt, "data_directory", lambda _name: tmp_path)
    for content in ("{", json.dumps({"schema": 2}), "[]"):
        path.write_text(content)
        with pytest.raises(CardError, match=r"lite\.json"):
            load_receipt("lite")


def test_the_row_of_a_backend() -> None:
    rows = (row(), row(recipe="int8-openvino", backend="openvino"))
    found = Receipt(
        schema=1, variant="lite", state_sha256="", classes=22, training="", command="", machine="",
        measured=rows,
    )  # fmt: skip
    assert found.of("int8-openvino", "openvino") == rows[1]
    assert found.of("int8", "openvino") is None


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_ones_are_of_a_shipped_variant_and_recipe(path: Path) -> None:
    found = load_receipt(path.stem)
    assert found is not None
    assert found.variant == path.stem
    assert found.variant in available()
    gate = available()[found.variant].gate.of("int8")
    for measured in found.measured:
        load_recipe(measured.recipe)
        assert measured.relative_error <= gate.relative_error  # it passed its own gate
        assert measured.agreement >= gate.agreement
        assert [speed.shape for speed in measured.speed] == ["1x3x224x224", "8x3x224x224"]


def test_receipts_are_packaged() -> None:
    assert SHIPPED
    assert cards.data_directory("calibration").joinpath("receipts").is_dir()
    assert msgspec.json.decode(SHIPPED[0].read_bytes())["schema"] == 1
