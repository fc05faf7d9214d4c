"""Fixtures for all tests: what is expensive to make is made once."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rest_deploy.artifact import read_sidecar, sha256_file, sidecar_path
from rest_deploy.quant.table import CalibrationTable
from rest_deploy.signature import OUTPUT_KINDS, InputKind
from tests.here import here

ASSETS = Path(__file__).parent / "assets"
TRAINED_WEIGHTS = ASSETS / "rest_nano_photos.safetensors"
TRAINED_V2_WEIGHTS = ASSETS / "rest_v2_nano_photos.safetensors"


def pytest_report_header() -> str:
    """Shown without -q."""
    return here()


@pytest.fixture(scope="session")
def answered_once() -> Iterator[None]:
    """See `tests.answers`. Asked for by the exports: torch is not loaded for those without one."""
    pytest.importorskip("torch")
    from tests import answers

    with answers.once():
        yield


@pytest.fixture(scope="session")
def exported_nano(answered_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """rest_nano.onnx with fresh weights of seed 0, its sidecar beside it: read it, or copy it."""
    pytest.importorskip("torch")
    from rest_deploy import verbs

    folder = tmp_path_factory.mktemp("workspace")
    model = folder / "rest_nano.onnx"
    assert verbs.export("nano", output_dir=folder).path == str(model)
    yield from _unchanged(model)


@pytest.fixture(scope="session")
def trained_nano(answered_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same with the weights trained on scikit-image's photos."""
    pytest.importorskip("torch")
    from rest_deploy import verbs

    folder = tmp_path_factory.mktemp("trained")
    verbs.export("nano", output_dir=folder, checkpoint=TRAINED_WEIGHTS)
    yield from _unchanged(folder / "rest_nano.onnx")


@pytest.fixture(scope="session")
def calibrated_nano(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace to copy: `trained_nano`, and what `--int8 --limit 24` calibrates, done."""
    from rest_deploy import verbs

    folder = tmp_path_factory.mktemp("calibrated") / "workspace"
    shutil.copytree(trained_nano.parent, folder)
    verbs.calibrate(folder / trained_nano.name, images=verbs.Images(limit=24), workspace=folder)
    return folder


@pytest.fixture(scope="session")
def nano_table(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> CalibrationTable:
    """What the recipe int8 found in `trained_nano` on eight images."""
    from rest_deploy.cards import load_card
    from rest_deploy.quant.calibrate import calibrate
    from rest_deploy.quant.dataset import open_set
    from rest_deploy.quant.recipe import load_recipe
    from tests.quant.test_dataset import photo_like

    folder = tmp_path_factory.mktemp("set")
    photo_like(folder, 8)
    images = open_set(folder, load_card("nano").preprocessing)
    return calibrate(trained_nano, images, load_recipe("int8"))


@pytest.fixture(scope="session")
def trained_v2_nano(
    answered_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """restv2_nano.onnx, trained on the same photos."""
    pytest.importorskip("torch")
    from rest_deploy import verbs

    folder = tmp_path_factory.mktemp("trained-v2")
    verbs.export("v2-nano", output_dir=folder, checkpoint=TRAINED_V2_WEIGHTS)
    yield from _unchanged(folder / "restv2_nano.onnx")


@pytest.fixture(scope="session")
def everything_nano(
    answered_once: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Trained; gives every kind of output, from normalized images."""
    yield from _all_outputs(tmp_path_factory.mktemp("everything"), "float")


@pytest.fixture(scope="session")
def pixels_nano(answered_once: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Trained; gives every kind of output, the embedding of unit length, from uint8 pixels."""
    yield from _all_outputs(tmp_path_factory.mktemp("pixels"), "uint8")


def _all_outputs(folder: Path, input_kind: InputKind) -> Iterator[Path]:
    pytest.importorskip("torch")
    from rest_deploy import verbs

    report = verbs.export(
        "nano",
        output_dir=folder,
        checkpoint=TRAINED_WEIGHTS,
        outputs=OUTPUT_KINDS,
        unit_length=input_kind == "uint8",
        input_kind=input_kind,
    )
    yield from _unchanged(Path(report.path))


@pytest.fixture
def no_openvino(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which `auto` does not find OpenVINO."""
    from rest_deploy.engine import backends
    from rest_deploy.errors import installed

    monkeypatch.setattr(backends, "installed", lambda name: name != "openvino" and installed(name))


@pytest.fixture
def openvino_bf16(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Call it to have a CPU on which OpenVINO computes in bf16, or one on which it does not. Where
    the real one does not, OpenVINO takes float32 without a word."""
    pytest.importorskip("openvino")
    from rest_deploy.engine import openvino

    core = openvino._core()

    class Core:
        def __init__(self, bf16: bool) -> None:
            self._bf16 = bf16

        def get_property(self, device: str, name: str) -> Any:
            found = core.get_property(device, name)
            if name != "OPTIMIZATION_CAPABILITIES":
                return found
            return [*(one for one in found if one != "BF16"), *["BF16"] * self._bf16]

        def __getattr__(self, name: str) -> Any:
            return getattr(core, name)

    return lambda bf16: monkeypatch.setattr(openvino, "_core", lambda: Core(bf16))


def _unchanged(model: Path) -> Iterator[Path]:
    before = [sha256_file(path) for path in (model, sidecar_path(model))]
    yield model
    after = [sha256_file(path) for path in (model, sidecar_path(model))]
    assert after == before, "a test changed the model that all tests share"
    assert read_sidecar(model) is not None
