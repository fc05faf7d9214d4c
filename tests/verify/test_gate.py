"""The gate, and the controls that must turn it red."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from rest_deploy.contracts import GateBounds, GateCheck, GateResult
from rest_deploy.errors import VerificationError
from rest_deploy.quant.calibrate import calibrate, prepared, quantize
from rest_deploy.quant.dataset import CalibrationSet, open_set
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.quant.table import CalibrationTable
from rest_deploy.runtime.session import Session
from rest_deploy.verbs.gate import GateData, gate_data
from rest_deploy.verify import gate

INT8 = load_recipe("int8")


@pytest.fixture(scope="module")
def session(trained_nano: Path) -> Session:
    return Session.open(trained_nano)


@pytest.fixture(scope="module")
def data(session: Session) -> GateData:
    return gate_data(session.metadata, None, 44)


@pytest.fixture(scope="module")
def expected(session: Session, data: GateData) -> np.ndarray:
    """The float export stands for PyTorch: it is within 1e-6 of it."""
    return gate.logits(session.run, data.images)


@pytest.fixture(scope="module")
def images(session: Session) -> CalibrationSet:
    return open_set(None, session.metadata.card.preprocessing, limit=96)


@pytest.fixture(scope="module")
def table(trained_nano: Path, images: CalibrationSet) -> CalibrationTable:
    return calibrate(trained_nano, images, INT8)


def judged(
    model: ir.Model,
    folder: Path,
    session: Session,
    data: GateData,
    expected: np.ndarray,
    original: ir.Model | None = None,
) -> GateResult:
    path = folder / "engine.onnx"
    ir.save(model, path)
    return gate.judge(
        expected,
        gate.logits(Session.open(path).run, data.images),
        session.metadata.card.gate.int8,
        fresh=False,
        ranges=gate.range_use(path, data.images[:32]),
        weights=gate.weight_errors(path, original) if original else None,
        labels=data.labels,
        reference_name="float",
        source=data.source,
    )


def test_a_good_engine_passes(
    trained_nano: Path, table: CalibrationTable, tmp_path: Path, session: Session, data: GateData,
    expected: np.ndarray,
) -> None:  # fmt: skip
    model, _ = quantize(trained_nano, table)
    result = judged(model, tmp_path, session, data, expected, prepared(trained_nano, table))
    assert result.passed, result.checks
    assert result.labelled == 44
    low, high = result.top1_engine_interval
    assert low < result.top1_engine < high
    gate.enforce(result, "engine")


@pytest.mark.parametrize(
    ("checks", "recipe"),
    [(("weight error",), True), (("least range use", "most range use"), True), ((), False)],
)
def test_what_a_refusal_advises(checks: tuple[str, ...], recipe: bool) -> None:
    """Another recipe, where there is one."""
    made = [GateCheck(name=name, value=0.1, bound=0.2, passed=True) for name in checks]
    red = GateCheck(name="relative logit error", value=0.5, bound=0.03, passed=False)
    result = GateResult(reference="r", images=16, source="photos", checks=(red, *made))
    with pytest.raises(VerificationError) as caught:
        gate.enforce(result, "engine")
    assert caught.value.hint is not None
    assert ("sensitivity --budget" in caught.value.hint) is recipe
    assert "--no-gate" in caught.value.hint


SCALES = [
    "stage1.0.norm2.LayerNormalization.out",
    "stage2.0.mlp.act.Gelu.out",
    "stage3.1.norm1.LayerNormalization.out",
    "stage4.0.attn.Reshape_3.out",
    "ReduceMean.out",
]


@pytest.mark.parametrize(
    ("tensor", "factor"), [*((tensor, 8.0) for tensor in SCALES), (SCALES[2], 1 / 8)]
)
def test_one_scale_off_by_eight_is_red(
    trained_nano: Path, table: CalibrationTable, tmp_path: Path, session: Session, data: GateData,
    expected: np.ndarray, tensor: str, factor: float,
) -> None:  # fmt: skip
    model, _ = quantize(trained_nano, table)
    scale = model.graph.initializers[f"{tensor}.scale"]
    assert scale.const_value is not None
    scale.const_value = ir.tensor(np.float32(scale.const_value.numpy() * factor), name=scale.name)
    result = judged(model, tmp_path, session, data, expected)
    with pytest.raises(VerificationError, match="range use") as caught:
        gate.enforce(result, "engine")
    assert tensor in str(caught.value), "the tensor is named"


@pytest.mark.parametrize("layer", ["stage1.0.mlp.fc1", "stage3.0.attn.proj", "stage4.0.attn.v"])
def test_swapped_weight_scales_are_red(
    trained_nano: Path, table: CalibrationTable, tmp_path: Path, session: Session, data: GateData,
    expected: np.ndarray, layer: str,
) -> None:  # fmt: skip
    model, _ = quantize(trained_nano, table)
    scale = model.graph.initializers[f"{layer}.weight.T.scale"]
    assert scale.const_value is not None
    scale.const_value = ir.tensor(scale.const_value.numpy()[::-1].copy(), name=scale.name)
    original = prepared(trained_nano, table)
    with pytest.raises(VerificationError, match="weight error") as caught:
        gate.enforce(judged(model, tmp_path, session, data, expected, original), "engine")
    assert f"({layer}.weight.T)" in str(caught.value)


def test_calibration_on_noise_is_red(
    trained_nano: Path, images: CalibrationSet, tmp_path: Path, session: Session, data: GateData,
    expected: np.ndarray,
) -> None:  # fmt: skip
    """Past the health check, which refuses such a set."""
    noise = np.random.default_rng(0).standard_normal((16, 3, 224, 224)).astype(np.float32)
    wrong = CalibrationSet(images.manifest, images.health, lambda index: noise[index % 16])
    model, _ = quantize(trained_nano, calibrate(trained_nano, wrong, INT8))
    assert not judged(model, tmp_path, session, data, expected).passed


BOUNDS = GateBounds(agreement=0.9, kl=0.01, relative_error=0.05, relative_error_fresh=0.2)


def result(actual: np.ndarray, **options: object) -> GateResult:
    return gate.judge(
        LOGITS, actual, BOUNDS, fresh=bool(options.pop("fresh", False)), reference_name="r",
        source="s", **options,  # type: ignore[arg-type]  # test values
    )  # fmt: skip


LOGITS = np.eye(10) * 5.0


def test_non_finite_logits_are_red() -> None:
    broken = LOGITS.copy()
    broken[0, 0] = np.nan
    assert not result(broken).passed
    assert not result(broken, fresh=True).passed


def test_fresh_weights_count_errors_only() -> None:
    rolled = LOGITS.copy()
    rolled[0] = np.roll(rolled[0], 1)
    assert [check.name for check in result(LOGITS, fresh=True).checks] == ["relative logit error"]
    assert not result(rolled, fresh=True).passed


def test_lost_top1_is_red_although_the_classes_mostly_agree() -> None:
    worse = LOGITS.copy()
    worse[0, 1] = 5.01
    found = result(worse, labels=list(range(10)))
    assert (found.top1_reference, found.top1_engine) == (1.0, 0.9)
    assert not next(check for check in found.checks if check.name == "top-1 lost").passed


def test_unknown_labels_are_not_counted() -> None:
    assert result(LOGITS, labels=[-1] * 10).labelled == 0
    assert result(LOGITS, labels=[0, *[-1] * 9]).labelled == 1


def test_ranges_that_are_not_numbers_are_red() -> None:
    assert result(LOGITS, ranges={"a": 0.9, "b": 1.1}).passed
    assert not result(LOGITS, ranges={"a": 0.9, "b": float("nan")}).passed


def test_a_weight_without_its_original_is_red(
    trained_nano: Path, table: CalibrationTable, tmp_path: Path
) -> None:
    model, _ = quantize(trained_nano, table)
    ir.save(model, tmp_path / "engine.onnx")
    original = prepared(trained_nano, table)
    del original.graph.initializers["stage1.0.mlp.fc1.weight.T"]
    errors = gate.weight_errors(tmp_path / "engine.onnx", original)
    assert errors.pop("stage1.0.mlp.fc1.weight.T") == float("inf")
    assert max(errors.values()) < gate.WEIGHT_ERROR
    assert not result(LOGITS, weights={"a": float("inf")}).passed
    assert not result(LOGITS, weights={"a": float("nan"), "b": 0.01}).passed


def test_wilson_interval() -> None:
    """Against the figures of Brown, Cai, DasGupta, "Interval Estimation" (2001), n = 10, x = 1."""
    assert gate.wilson(1, 10) == pytest.approx((0.0179, 0.4042), abs=5e-4)
    assert gate.wilson(10, 10)[1] == 1.0
    assert gate.wilson(0, 10)[0] == 0.0
