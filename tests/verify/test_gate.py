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
from rest_deploy.signature import Output
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
        session.metadata.gives,
        {"logits": expected},
        gate.answers(Session.open(path).run_normalized, data.images, session.metadata.gives),
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
        CLASSES, {"logits": LOGITS}, {"logits": actual}, BOUNDS,
        fresh=bool(options.pop("fresh", False)), reference_name="r", source="s", **options,  # type: ignore[arg-type]  # test values
    )  # fmt: skip


LOGITS = np.eye(10) * 5.0
CLASSES = (Output(name="logits", kind="logits", channels=10),)
EMBEDDING = Output(name="embedding", kind="embedding", channels=8)
C3 = Output(name="c3", kind="features", channels=4, stride=8)
PROBABILITIES = Output(name="probabilities", kind="probabilities", channels=10)


def of_one(output: Output, exact: np.ndarray, actual: np.ndarray, **options: bool) -> GateResult:
    return gate.judge(
        (output,), {output.name: exact}, {output.name: actual}, BOUNDS,
        fresh=options.get("fresh", False), reference_name="r", source="s",
    )  # fmt: skip


def red(result: GateResult) -> list[str]:
    return [check.name for check in result.checks if not check.passed]


def vectors(rows: int = 40) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, 8))


def test_an_embedding_is_held_to_its_neighbours() -> None:
    """Pairs of near images: swapping partners changes no length and hardly the error."""
    base = vectors()
    near = np.concatenate([base, base + 1e-3 * vectors()[::-1]])
    assert red(of_one(EMBEDDING, near, near * 1.001)) == []
    names = [check.name for check in of_one(EMBEDDING, near, near).checks]
    assert names == ["relative error of embedding", "nearest neighbours kept"]
    crowd = vectors(400)
    blurred = crowd + 0.04 * np.random.default_rng(1).standard_normal(crowd.shape)
    assert red(of_one(EMBEDDING, crowd, blurred)) == ["nearest neighbours kept"]
    assert red(of_one(EMBEDDING, crowd, blurred, fresh=True)) == []
    shuffled = near[np.random.default_rng(2).permutation(len(near))]
    assert set(red(of_one(EMBEDDING, near, shuffled))) == set(names)
    broken = near.copy()
    broken[0, 0] = np.nan
    assert "relative error of embedding" in red(of_one(EMBEDDING, near, broken))


def test_every_map_has_its_error() -> None:
    exact = np.random.default_rng(0).standard_normal((3, 4, 5, 6))
    assert [check.name for check in of_one(C3, exact, exact).checks] == ["relative error of c3"]
    assert of_one(C3, exact, exact * 1.01).passed
    assert red(of_one(C3, exact, exact[:, ::-1])) == ["relative error of c3"]
    assert red(of_one(C3, exact, exact * np.nan)) == ["relative error of c3"]


def test_probabilities_are_judged_as_such() -> None:
    exact = np.full((4, 10), 0.01)
    exact[np.arange(4), np.arange(4)] = 0.91
    assert red(of_one(PROBABILITIES, exact, exact.astype(np.float32))) == []
    wrong = np.roll(exact, 1, axis=1)
    assert len(red(of_one(PROBABILITIES, exact, wrong))) == 3
    vanished = exact.copy()
    vanished[:, 9], vanished[:, 8] = 0.0, 0.02  # float16's softmax ends at 6e-8
    assert "KL divergence of probabilities" in red(of_one(PROBABILITIES, exact, vanished))


def test_maps_of_the_first_images_vectors_of_all() -> None:
    images = np.zeros((50, 3, 32, 32), np.float32)
    asked: list[int] = []

    def infer(batch: np.ndarray) -> dict[str, np.ndarray]:
        asked.append(len(batch))
        return {"c3": np.ones((len(batch), 4, 4, 4)), "embedding": np.ones((len(batch), 8))}

    found = gate.answers(infer, images, (C3, EMBEDDING))
    assert (len(found["c3"]), len(found["embedding"])) == (gate.MAP_IMAGES, 50)
    assert sum(asked) == 50
    asked.clear()
    assert len(gate.answers(infer, images, (C3,), 5)["c3"]) == gate.MAP_IMAGES == sum(asked)


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


FOUR = (Output(name="logits", kind="logits", channels=4),)


@pytest.mark.parametrize(
    ("engine", "float32", "bound", "passed"),
    [(1.5e-5, 2e-5, 2e-5, True), (2.5e-5, 2e-5, 2e-5, False), (2.5e-5, np.nan, 1e-5, False)],
)
def test_float32_may_be_as_far_off_as_pytorch(
    engine: float, float32: float, bound: float, passed: bool
) -> None:
    exact = {"logits": np.arange(8.0).reshape(2, 4)}
    bounds = GateBounds(agreement=0.9, kl=0.01, relative_error=1e-5, relative_error_fresh=1e-5)
    result = gate.judge(
        FOUR, exact, {"logits": exact["logits"] * (1 + engine)}, bounds, fresh=False,
        reference_name="PyTorch float64", source="photos", float32=lambda: {"logits": float32},
    )  # fmt: skip
    check = result.checks[0]
    assert (check.name, check.bound, check.passed) == (gate.LOGIT_ERROR, bound, passed)
    assert f"PyTorch itself in float32 {float32:.3g}, the card's bound 1e-05" in check.detail


def test_float32_is_not_asked_where_the_cards_bound_holds() -> None:
    exact = {"logits": np.arange(8.0).reshape(2, 4)}
    bounds = GateBounds(agreement=0.9, kl=0.01, relative_error=1e-5, relative_error_fresh=1e-5)

    def never() -> dict[str, float]:
        raise AssertionError("asked")

    result = gate.judge(
        FOUR, exact, exact, bounds, fresh=False, reference_name="r", source="s", float32=never
    )
    assert result.passed
    assert result.checks[0].bound == 1e-5
