from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.artifact import to_json
from rest_deploy.cards import load_card
from rest_deploy.errors import ArtifactError
from rest_deploy.quant.calibrate import calibrate, prepared, quantize
from rest_deploy.quant.dataset import CalibrationSet, open_set
from rest_deploy.quant.extents import measure
from rest_deploy.quant.insert_qdq import observed_tensors
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.quant.table import CalibrationTable, read_table
from rest_deploy.runtime.session import Session
from rest_deploy.verify.metrics import relative_error
from rest_deploy.verify.parity import Case, synthetic_images
from tests.quant.test_dataset import photo_like


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> CalibrationSet:
    folder = tmp_path_factory.mktemp("images")
    photo_like(folder, 12)
    return open_set(folder, load_card("nano").preprocessing)


@pytest.fixture(scope="module")
def table(exported_nano: Path, images: CalibrationSet) -> CalibrationTable:
    return calibrate(exported_nano, images, load_recipe("int8"))


def test_the_table(table: CalibrationTable, images: CalibrationSet) -> None:
    assert table.images == 12
    assert table.calibration_set == images.manifest
    found = table.ranges["stage2.0.mlp.act.Gelu.out"]
    assert found.scale == pytest.approx(found.threshold / 127)
    assert 0 < found.threshold <= found.largest
    assert found.values == 12 * 784 * 256
    assert len(found.channel_largest) == 256


def test_progress_counts_images(exported_nano: Path, images: CalibrationSet) -> None:
    done: list[tuple[int, int]] = []
    calibrate(
        exported_nano, images, load_recipe("fp8"), progress=lambda *counts: done.append(counts)
    )
    assert done == [(8, 12), (12, 12)]


MIXED = """
schema = 1
name = "mixed"
format = "int8"
quantize = ["stem", "patch", "qkv", "proj", "mlp", "head", "scores", "context", "pa", "sr"]
[activations]
algorithm = "minmax"
places = { "stem.conv2:stem" = "mse" }
[corrections]
leveling = true
equalization = 0.5
rounding = ["stem"]
"""


def test_one_pass_finds_what_the_corrected_graph_reaches(
    exported_nano: Path, images: CalibrationSet, tmp_path: Path
) -> None:
    """Ranges are measured before equalization and divided; here the equalized graph is run."""
    (tmp_path / "mixed.toml").write_text(MIXED)
    table = calibrate(exported_nano, images, load_recipe(str(tmp_path / "mixed.toml")))
    reached = measure(
        prepared(exported_nano, table), dict.fromkeys(table.ranges),
        lambda done: images.batches(8, done),
    )  # fmt: skip
    for name, found in table.ranges.items():
        assert found.largest == pytest.approx(reached[name].largest, rel=2e-4), name
    clipped = [n for n, found in table.ranges.items() if found.threshold < found.largest]
    assert clipped == ["stem.Relu.out"]


def test_sizes_may_be_mixed(exported_nano: Path, tmp_path: Path) -> None:
    """Operands of the attention products too, whose axes are tokens and keys."""
    sizes = [Case(batch=2, height=64, width=96), Case(batch=1, height=160, width=64)]
    batches = [synthetic_images(case) for case in sizes]
    model = ir.load(exported_nano)
    (tmp_path / "mixed.toml").write_text(MIXED)
    tensors = observed_tensors(model, load_recipe(str(tmp_path / "mixed.toml")))
    together = measure(model, tensors, lambda _done: batches)
    alone = [measure(model, tensors, lambda _done: batches[:1]),
             measure(model, tensors, lambda _done: batches[1:])]  # fmt: skip
    for name, found in together.items():
        assert found.largest == max(one[name].largest for one in alone)


def test_a_stored_table_gives_the_same_graph(
    exported_nano: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    path = tmp_path / "table.json"
    path.write_text(to_json(table))
    files = []
    for index, used in enumerate((table, read_table(path))):
        model, placement = quantize(exported_nano, used)
        assert sum(placement.quantized.values()) == 35
        files.append(tmp_path / f"{index}.onnx")
        ir.save(model, files[-1])
    assert files[0].read_bytes() == files[1].read_bytes()


def test_logits_stay_close(
    exported_nano: Path, table: CalibrationTable, images: CalibrationSet, tmp_path: Path
) -> None:
    model, _ = quantize(exported_nano, table)
    ir.save(model, tmp_path / "int8.onnx")
    batch = next(images.batches(8))
    expected = Session.open(exported_nano).run(batch).astype(np.float64)
    assert relative_error(expected, Session.open(tmp_path / "int8.onnx").run(batch)) < 0.1


def test_a_table_of_another_model_is_refused(exported_nano: Path, table: CalibrationTable) -> None:
    other = msgspec.structs.replace(table, model_sha256="0" * 64)
    with pytest.raises(ArtifactError, match="was made for the model 000000000000"):
        quantize(exported_nano, other)


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"schema": 2}', "\xff"])
def test_damaged_tables(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match="is not a calibration table"):
        read_table(path)


def test_missing_table(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="cannot read the table"):
        read_table(tmp_path / "none.json")
