"""The parity gate, and the broken engines that must turn it red."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from rest_deploy import verbs
from rest_deploy.artifact import sidecar_path
from rest_deploy.contracts import ModelMetadata
from rest_deploy.errors import CheckpointError, InputError
from rest_deploy.signature import Output
from rest_deploy.verify.parity import (
    MOST_FLOAT32_ERROR,
    Case,
    ParityReport,
    allowed,
    bound,
    compare,
    load_reference,
    own_errors,
    synthetic_images,
)

Breakage = Callable[[onnx.GraphProto], None]


def verify(model: Path) -> ParityReport:
    return verbs.verify(model, workspace=model.parent, sizes=((64, 96), (97, 131)), batches=(2,))


def weight(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    found: onnx.TensorProto = next(i for i in graph.initializer if i.name == name)
    return found


def change(graph: onnx.GraphProto, name: str, how: Callable[..., object]) -> None:
    tensor = weight(graph, name)
    changed = np.ascontiguousarray(how(numpy_helper.to_array(tensor)))
    tensor.CopyFrom(numpy_helper.from_array(changed.astype(np.float32), name))


def swap_channels(graph: onnx.GraphProto) -> None:
    change(graph, "stem.conv1.weight", lambda w: w[:, ::-1])


def perturb_one_tensor(graph: onnx.GraphProto) -> None:
    change(graph, "stage3.1.attn.v.weight.T", lambda w: w * 1.02)


def bypass(graph: onnx.GraphProto, name: str) -> None:
    node = next(n for n in graph.node if n.name == name)
    for other in graph.node:
        for index, used in enumerate(other.input):
            if used == node.output[0]:
                other.input[index] = node.input[0]
    graph.node.remove(node)


def drop_layer_norm(graph: onnx.GraphProto) -> None:
    bypass(graph, "stage4.0.norm2.LayerNormalization")


def drop_instance_norm(graph: onnx.GraphProto) -> None:
    """v * r -> v: the map is centred but not normalized."""
    bypass(graph, "stage2.0.attn.norm.Mul_1")


def drop_centring(graph: onnx.GraphProto) -> None:
    """v stays with its mean and the map with its own: D -> P, v0 -> v."""
    bypass(graph, "stage2.0.attn.norm.Sub")
    bypass(graph, "stage2.0.attn.norm.Sub_1")


def test_the_exported_model_passes(exported_nano: Path) -> None:
    report = verify(exported_nano)
    assert report.passed
    assert max(result.relative_error for result in report.results) < 5e-5
    assert {str(result.case) for result in report.results} == {"2x3x64x96", "2x3x97x131"}


@pytest.mark.parametrize(
    "breakage",
    [swap_channels, perturb_one_tensor, drop_layer_norm, drop_instance_norm, drop_centring],
)
def test_broken_engines_fail(exported_nano: Path, tmp_path: Path, breakage: Breakage) -> None:
    model = onnx.load(exported_nano)
    breakage(model.graph)
    broken = tmp_path / exported_nano.name
    onnx.save(model, broken)
    assert not sidecar_path(broken).exists()  # its hash alone would already give it away
    report = verify(broken)
    assert not report.passed
    assert all(not result.passed for result in report.results)


LOGITS = (Output(name="logits", kind="logits", channels=4),)


def filled(classes: int, value: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    return lambda images: {"logits": np.full((len(images), classes), value, np.float32)}


def test_nan_fails() -> None:
    case = Case(batch=2, height=32, width=32)
    (result,) = compare(filled(4, np.nan), filled(4, 1), LOGITS, [case], synthetic_images, 1e9)
    assert not result.passed


@pytest.mark.parametrize(
    ("float32_error", "bound"),
    [
        (None, 1e-5),
        (3e-6, 1e-5),  # the card's is the larger
        (3e-5, 3e-5),
        (MOST_FLOAT32_ERROR, MOST_FLOAT32_ERROR),
        (1.01 * MOST_FLOAT32_ERROR, 1e-5),  # such a float32 is no measure of anything
        (np.inf, 1e-5),
        (np.nan, 1e-5),
    ],
)
def test_the_larger_of_both_bounds(float32_error: float | None, bound: float) -> None:
    assert allowed(1e-5, float32_error) == bound


@pytest.mark.parametrize(
    ("engine", "float32", "bound", "passed"),
    [
        (1.5e-5, 2e-5, 2e-5, True),
        (2.5e-5, 2e-5, 2e-5, False),
        (2.5e-5, 1e-6, 1e-5, False),
        (2.5e-5, np.inf, 1e-5, False),
        (0.9, 1.0, 1e-5, False),
        (np.nan, 2e-5, 2e-5, False),
    ],
)
def test_an_engine_may_be_as_far_off_as_float32(
    engine: float, float32: float, bound: float, passed: bool
) -> None:
    case = Case(batch=2, height=32, width=32)

    def off(by: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        return lambda images: {"logits": np.full((len(images), 4), 1 + by, np.float64)}

    (result,) = compare(off(engine), off(0), LOGITS, [case], synthetic_images, 1e-5, [off(float32)])
    assert result.passed is passed
    assert result.bound == pytest.approx(bound)
    assert result.card_bound == 1e-5
    assert result.float32_error == pytest.approx(float32)


def test_the_worst_image_of_all_cases_and_layouts_counts() -> None:
    """Rounding is one draw of many: the others say how far float32 may be off."""
    cases = [Case(batch=1, height=32, width=32), Case(batch=3, height=32, width=32)]

    def off(*by: float) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
        """By so much for each image of the larger batch; the single one is exact."""
        errors = {3: by, 1: (0.0,)}
        return lambda images: {
            "logits": np.ones((len(images), 4)) + np.c_[list(errors[len(images)])]
        }

    found = compare(
        lambda images: {"logits": np.full((len(images), 4), 1 + 4e-5)}, off(0, 0, 0), LOGITS, cases,
        synthetic_images, 1e-5, [off(1e-5, 2e-5, 1e-5), off(0, 0, 5e-5)],
    )  # fmt: skip
    assert [result.float32_error for result in found] == [pytest.approx(5e-5)] * 2
    assert all(result.passed for result in found)


def test_float32_that_is_not_a_number_stays_so() -> None:
    one, none = {"logits": np.ones((2, 4))}, {"logits": np.zeros((2, 4))}
    with np.errstate(invalid="ignore"):
        found = own_errors([(none, none), (one, one)])
    assert np.isnan(found["logits"])


def test_float32_is_asked_only_where_it_counts() -> None:
    def never(_images: np.ndarray) -> dict[str, np.ndarray]:
        raise AssertionError("run for a case that keeps the card's bound")

    case = Case(batch=2, height=32, width=32)
    (result,) = compare(filled(4, 1), filled(4, 1), LOGITS, [case], synthetic_images, 1e-5, [never])
    assert result.passed
    assert result.float32_error is None


def test_against_float32_the_cards_bound_alone_counts(exported_nano: Path) -> None:
    """Both sides round; the error of one says nothing about their difference."""
    report = verbs.verify(
        exported_nano, workspace=exported_nano.parent, sizes=((64, 96),), batches=(2,),
        reference="float32",
    )  # fmt: skip
    assert report.passed
    assert all(result.float32_error is None for result in report.results)


def test_other_output_shape_is_an_error() -> None:
    case = Case(batch=2, height=32, width=32)
    with pytest.raises(InputError, match="returns shape"):
        compare(filled(5, 0), filled(4, 1), LOGITS, [case], synthetic_images, 1.0)


def test_no_case_is_no_pass() -> None:
    report = ParityReport(model="m", backend="b", reference="float64", inputs="i", results=())
    assert not report.passed


def test_the_bound_depends_on_the_weights(nano_metadata: ModelMetadata) -> None:
    assert nano_metadata.weights.kind == "fresh"
    assert bound(nano_metadata) == nano_metadata.card.parity.relative_error_fresh
    assert nano_metadata.card.parity.relative_error < bound(nano_metadata)


def test_reference_with_other_weights_is_refused(nano_metadata: ModelMetadata) -> None:
    import msgspec

    weights = msgspec.structs.replace(nano_metadata.weights, seed=nano_metadata.weights.seed + 1)
    other = msgspec.structs.replace(nano_metadata, weights=weights)
    with pytest.raises(CheckpointError, match="are not the exported ones"):
        load_reference(other)


def test_synthetic_images_are_deterministic_and_photo_like() -> None:
    case = Case(batch=2, height=64, width=80)
    images = synthetic_images(case)
    np.testing.assert_array_equal(images, synthetic_images(case))
    assert images.shape == (2, 3, 64, 80)
    assert images.dtype == np.float32
    np.testing.assert_allclose(images.std(axis=(2, 3)), 1, rtol=1e-5)
    neighbours = np.corrcoef(images[0, 0, :, :-1].ravel(), images[0, 0, :, 1:].ravel())[0, 1]
    assert neighbours > 0.5  # white noise would have 0
