"""The CPU is named where it is the reason, and only there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import msgspec
import pytest

pytest.importorskip("openvino")

from rest_deploy import machine, verbs
from rest_deploy.contracts import GateCheck, GateResult, Sums
from rest_deploy.errors import VerificationError
from rest_deploy.proofs import may_saturate
from rest_deploy.quant.recipe import load_recipe
from rest_deploy.quant.sensitivity import to_toml
from rest_deploy.report import quantization as text
from rest_deploy.verbs import Images, Request, judge, saturation

WITH, WITHOUT = ("avx2", "avx512f", "avx512_vnni"), ("avx2", "fma")
BOUNDED = Sums(block="stem", role="stem", pair=128, exact=True)
LOOSE = Sums(block="stage1.0", role="scores", pair=0, exact=False)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "features_for", lambda _backend: WITHOUT)


@pytest.mark.parametrize("backend", ["openvino/cpu", "onnxruntime/cpu", "onnxruntime"])
def test_what_nothing_bounds_may_saturate(plain: None, backend: str) -> None:
    words = may_saturate((BOUNDED, LOOSE, LOOSE), backend)
    assert words == (
        "this CPU (AVX2 without VNNI) saturates where 8-bit sums are large, and nothing bounds "
        "those of scores in 2 blocks"
    )


def test_an_older_file_says_nothing_of_its_sums(plain: None) -> None:
    assert "does not say" in may_saturate((), "onnxruntime/cpu")


@pytest.mark.parametrize("backend", ["onnxruntime/cuda", "tensorrt/cuda:0", "tensorrt-rtx/cuda:0"])
def test_a_gpu_adds_exactly(plain: None, backend: str) -> None:
    assert may_saturate((LOOSE,), backend) == ""


def test_what_is_bounded_cannot_saturate(plain: None) -> None:
    assert may_saturate((BOUNDED,), "openvino/cpu") == ""


def test_units_for_bytes_add_exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "features_for", lambda _backend: WITH)
    assert may_saturate((LOOSE,), "openvino/cpu") == ""


def test_only_int8_has_8_bit_sums(plain: None, trained_nano: Path) -> None:
    assert saturation.possible(None, "openvino/cpu") == ""


# --- the control ----------------------------------------------------------------------------------


def request(folder: Path, *, exact: bool) -> Request:
    recipe = msgspec.structs.replace(load_recipe("int8"), name="mine", exact_pairs=exact)
    (folder / "mine.toml").write_text(to_toml(recipe, "A user's own."), encoding="utf-8")
    return Request(
        precision="int8", recipe=str(folder / "mine.toml"), images=Images(limit=16), gate_images=22
    )


@pytest.fixture
def workspace(trained_nano: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained_nano.parent, tmp_path / "workspace")
    return tmp_path / "workspace"


def test_a_recipe_without_bounds_is_refused_for_the_cpu(workspace: Path, tmp_path: Path) -> None:
    """Where it is exact, the same file passes."""
    wanted = request(tmp_path, exact=False)
    if machine.adds_bytes_exactly(machine.features_for("openvino")):
        report = verbs.build_engine(None, wanted, workspace=workspace, backend="openvino")
        assert not report.build.exact_everywhere
        return
    with pytest.raises(VerificationError) as caught:
        verbs.build_engine(None, wanted, workspace=workspace, backend="openvino")
    assert "neither the checkpoint nor a layer is the reason" in caught.value.message
    assert "this CPU (" in caught.value.message
    assert "stem in" in caught.value.message
    assert (caught.value.hint or "").startswith("exact_pairs = true in the recipe")
    assert not list(workspace.glob("*.openvino.onnx"))


def test_with_bounds_the_same_recipe_passes(workspace: Path, tmp_path: Path) -> None:
    wanted = request(tmp_path, exact=True)
    report = verbs.build_engine(None, wanted, workspace=workspace, backend="openvino")
    assert report.build.exact_everywhere
    assert report.build.gate is not None
    assert report.build.gate.passed


def result(error: float) -> GateResult:
    check = GateCheck(name="relative logit error", value=error, bound=0.03, passed=error < 0.03)
    return GateResult(reference="", images=1, source="", checks=(check,))


@pytest.mark.parametrize(
    ("control", "found", "blamed"),
    [
        (0.01, 0.3, True),
        (0.01, 0.02, True),
        (0.01, 0.012, False),
        (0.2, 0.3, False),
        (float("nan"), 0.3, False),
    ],
)
def test_only_a_control_that_is_better_and_passes_blames_the_cpu(
    plain: None, control: float, found: float, blamed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saturation, "in_float", lambda *_a: None)
    monkeypatch.setattr(judge.Judge, "graph", lambda *_a: result(control))
    one = object.__new__(judge.Judge)
    object.__setattr__(one, "request", Request(precision="int8"))
    object.__setattr__(one, "source", type("Source", (), {"metadata": None}))
    words = one.because_of_the_cpu(result(found), Path("x"), (LOOSE,), "openvino/cpu")
    assert bool(words) == blamed
    assert one.because_of_the_cpu(result(found), Path("x"), (BOUNDED,), "openvino/cpu") == ""


@pytest.fixture
def loose_engine(workspace: Path, tmp_path: Path) -> Path:
    """Built without its gate, as on a machine with VNNI it would be with it."""
    wanted = dataclasses.replace(request(tmp_path, exact=False), gate=False)
    return Path(verbs.build_engine(None, wanted, workspace=workspace, backend="openvino").path)


def test_verify_and_bench_name_the_cpu(loose_engine: Path, workspace: Path) -> None:
    exact = machine.adds_bytes_exactly(machine.features_for("openvino"))
    found = verbs.verify(loose_engine, workspace=workspace, sizes=((224, 224),), batches=(4,))
    assert found.passed == exact
    assert ("this CPU (" in found.cause) == (not exact)
    wishes = verbs.BenchWishes(
        batches=(1,), seconds=0.1, images=16, in_flight=1, pytorch=False, profile=False,
        cold_start=False,
    )  # fmt: skip
    notes = verbs.bench((loose_engine,), wishes, workspace=workspace, command="test").record.notes
    assert any("with its sums in float" in note for note in notes) == (not exact)


@pytest.mark.parametrize("exact", [False, True])
def test_sensitivity_measures_the_backends_kernels(
    workspace: Path, tmp_path: Path, exact: bool
) -> None:
    """It computed every place on ONNX Runtime, which saturates less, and blamed no kernel."""
    recipe = msgspec.structs.replace(
        load_recipe("int8"), name="stem", quantize=("stem",), exact_pairs=exact
    )
    (tmp_path / "stem.toml").write_text(to_toml(recipe, ""), encoding="utf-8")
    found = verbs.sensitivity(
        None, workspace=workspace, recipe=str(tmp_path / "stem.toml"), backend="openvino",
        images=Images(limit=16), gate_images=16,
    )  # fmt: skip
    assert {place.role for place in found.places} == {"stem"}
    saturates = not exact and not machine.adds_bytes_exactly(machine.features_for("openvino"))
    blamed = "so the kernels of openvino on this CPU are the reason" in text.sensitivity(found)
    assert blamed == saturates
    ratio = found.whole.relative_error / found.in_float.relative_error
    assert (ratio > 2) == saturates
