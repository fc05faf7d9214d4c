"""What a build for one of ONNX Runtime's providers may wish, and what it has to show."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from rest_deploy.artifact import read_sidecar
from rest_deploy.contracts import ModelMetadata, Profile
from rest_deploy.engine import backends, onnxruntime_session
from rest_deploy.engine.backends import Choice
from rest_deploy.engine.placement import Placement
from rest_deploy.engine.providers import DEFAULTS, PROVIDERS, ProviderOptions
from rest_deploy.errors import BuildError, InputError, MissingDependencyError, VerificationError
from rest_deploy.verbs import provider
from rest_deploy.verbs.engine import NO_WISHES, Wishes
from rest_deploy.verbs.make import Made, Request, rest_for
from rest_deploy.verbs.provider import (
    NO_PROVIDER,
    ProviderWishes,
    Route,
    check_backend,
    choose_with,
    infer,
    prove,
    remarks,
    route,
    told,
)

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
INT8, UNGATED = Request(precision="int8"), Request(precision="int8", gate=False)
SMALL = Profile(minimum=(1, 3, 32, 32), optimum=(3, 3, 224, 224), maximum=(3, 3, 224, 224))


@pytest.fixture
def metadata(exported_nano: Path) -> ModelMetadata:
    sidecar = read_sidecar(exported_nano)
    assert sidecar is not None
    return sidecar.metadata


def on(name: str, *profiles: Profile, **wishes: Any) -> Route:
    return Route(PROVIDERS[name], ProviderWishes(provider=name, **wishes), profiles)


def test_words() -> None:
    assert NO_PROVIDER.words() == []
    assert ProviderWishes("tensorrt", Path("c"), True).words() == [
        "--provider", "tensorrt", "--provider-cache", "c", "--embed-context",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("compiled_in", "gpus", "told"),
    [(True, 1, True), (True, 0, False), (True, None, False), (False, 1, False)],
)
def test_a_gpu_that_the_engine_does_not_use(
    monkeypatch: pytest.MonkeyPatch, compiled_in: bool, gpus: int | None, told: bool
) -> None:
    """Said where both are here: a provider that computes there, and a GPU. None: no driver."""

    def driver() -> SimpleNamespace:
        if gpus is None:
            raise MissingDependencyError("no NVIDIA driver")
        return SimpleNamespace(count=lambda: gpus)

    monkeypatch.setattr(onnxruntime_session, "Driver", driver)
    monkeypatch.setattr(
        onnxruntime, "get_available_providers", lambda: [CUDA, CPU] if compiled_in else [CPU]
    )
    auto = Choice("onnxruntime", (("tensorrt", "not installed"),))
    found = provider.idle_gpu(auto)
    assert bool(found) == told
    assert provider.idle_gpu(Choice("onnxruntime", ())) == [], "it was asked for by name"
    assert all("--backend onnxruntime --provider cuda" in words for words in found)


@pytest.mark.parametrize("backend", ["auto", "tensorrt", "tensorrt-rtx", "openvino"])
@pytest.mark.parametrize(
    "wishes",
    [ProviderWishes("cpu"), ProviderWishes("cuda"), ProviderWishes(cache=Path("c")),
     ProviderWishes(embed_context=True)],
)  # fmt: skip
def test_only_for_onnxruntime(backend: str, wishes: ProviderWishes) -> None:
    with pytest.raises(InputError, match=f"{wishes.words()[0]} goes with --backend onnxruntime"):
        check_backend(wishes, backend)
    check_backend(NO_PROVIDER, backend)


@pytest.mark.parametrize("name", ["", "cpu", "cuda"])
@pytest.mark.parametrize("wish", [{"cache": Path("c")}, {"embed_context": True}])
def test_caches_are_for_what_compiles(name: str, wish: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"is for providers that compile; (cpu|cuda) does not"):
        check_backend(ProviderWishes(name, **wish), "onnxruntime")
    check_backend(ProviderWishes("tensorrt", **wish), "onnxruntime")


def test_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed", lambda name: name == "onnxruntime")
    assert choose_with(NO_PROVIDER, "auto", "int8").backend == "onnxruntime"
    assert choose_with(ProviderWishes("cpu"), "onnxruntime", "int8").passed_over == ()
    with pytest.raises(MissingDependencyError, match="does not compute in bf16"):
        choose_with(ProviderWishes("cpu"), "onnxruntime", "bf16")
    for precision in ("int8", "fp8"):
        with pytest.raises(InputError, match=f"cuda does not compute in {precision}: it has no"):
            choose_with(ProviderWishes("cuda"), "onnxruntime", precision)


def test_a_choice_that_is_not_here(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(provider, "check_provider", asked.append)
    assert choose_with(ProviderWishes("cuda"), "onnxruntime", "bf16").backend == "onnxruntime"
    choose_with(ProviderWishes("cpu"), "onnxruntime", "fp32")
    assert asked == ["cuda"]


def test_route(metadata: ModelMetadata) -> None:
    card = metadata.card.preprocessing
    for wishes in (NO_PROVIDER, ProviderWishes("cpu")):
        assert route(wishes, NO_WISHES, card, INT8) is None
    cuda = route(ProviderWishes("cuda"), NO_WISHES, card, INT8)
    assert cuda is not None
    assert (cuda.name, cuda.backend, cuda.profiles) == ("onnxruntime-cuda", "onnxruntime/cuda", ())
    shapes = Wishes(max_shapes=("4x3x224x224",))
    compiled = route(ProviderWishes("tensorrt"), shapes, card, INT8)
    assert compiled is not None
    assert compiled.profiles[0].maximum == (4, 3, 224, 224)
    default = route(ProviderWishes("nv-tensorrt-rtx"), NO_WISHES, card, INT8)
    assert default is not None
    assert default.profiles[0].maximum == (32, 3, 224, 224)


@pytest.mark.parametrize(
    ("name", "wishes", "message"),
    [
        ("cuda", Wishes(max_shapes=("4x3x224x224",)), "--max-shapes does not go with --provider"),
        ("tensorrt", Wishes(target_sm=("89",)), "--target-sm does not go with --provider tensorrt"),
        ("tensorrt", Wishes(refit=True, max_shapes=("4x3x224x224",)), "--refit does not go"),
        ("tensorrt", Wishes(save_engine=Path("x")), "--save-engine does not go"),
        ("nv-tensorrt-rtx", Wishes(max_shapes=("4x3x224x224", "1x3x512x512")), "one profile"),
        ("tensorrt", Wishes(max_shapes=("4x3x96x96",)), "no profile holds an image of 224x224"),
    ],
)
def test_route_refuses(metadata: ModelMetadata, name: str, wishes: Wishes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        route(ProviderWishes(name), wishes, metadata.card.preprocessing, INT8)


def test_without_the_gate_any_shape_is_built_for(metadata: ModelMetadata) -> None:
    wishes = Wishes(max_shapes=("4x3x96x96",))
    assert route(ProviderWishes("tensorrt"), wishes, metadata.card.preprocessing, UNGATED)


def test_what_is_not_quantized() -> None:
    for backend in ("onnxruntime-tensorrt", "onnxruntime-nv-tensorrt-rtx", "tensorrt"):
        assert rest_for(INT8, backend) == "fp16"
        assert rest_for(Request(precision="int8", rest="bf16"), backend) == "bf16"
    assert rest_for(INT8, "onnxruntime") == "fp32"
    with pytest.raises(InputError, match="on a CPU has no fp16 kernels"):
        rest_for(Request(precision="int8", rest="fp16"), "onnxruntime")


def test_the_gate_keeps_to_the_profiles(
    exported_nano: Path, metadata: ModelMetadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """16 images of the gate in runs of at most three; the same logits."""
    sizes: list[int] = []

    class Runner:
        def __init__(self, *_: object, **__: object) -> None:
            self.inputs = (SimpleNamespace(name="image", dtype="float32"),)
            self.outputs = (SimpleNamespace(name="logits"),)

        def infer(self, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            (images,) = feeds.values()
            sizes.append(len(images))
            return {"logits": images.mean((2, 3))}

    monkeypatch.setattr(provider, "OnnxRuntimeRunner", Runner)
    images = np.random.default_rng(0).standard_normal((16, 3, 224, 224)).astype(np.float32)
    run = infer(on("tensorrt", SMALL), exported_nano, DEFAULTS, metadata)
    answers = run(images)
    assert list(answers) == ["logits"]
    np.testing.assert_array_equal(answers["logits"], images.mean((2, 3)))
    assert sizes == [3, 3, 3, 3, 3, 1]
    sizes.clear()
    infer(on("cuda"), exported_nano, DEFAULTS, metadata)(images)
    assert sizes == [16]


def test_options_are_those_of_the_published_file(
    exported_nano: Path, tmp_path: Path, metadata: ModelMetadata
) -> None:
    target = tmp_path / "m.onnx"
    assert on("cuda").options(exported_nano, target, metadata) == DEFAULTS
    found = on("tensorrt", SMALL).options(exported_nano, target, metadata)
    assert found.timings == tmp_path / "m.onnx.cache"
    assert found.profiles == (SMALL,)
    elsewhere = on("tensorrt", SMALL, cache=Path("/c")).options(exported_nano, target, metadata)
    assert elsewhere.timings == Path("/c")
    assert elsewhere.cache is not None
    assert found.cache is not None
    assert elsewhere.cache.name == found.cache.name


def stub(monkeypatch: pytest.MonkeyPatch, ran: Placement) -> list[ProviderOptions]:
    seen: list[ProviderOptions] = []

    def run_once(_path: Path, _name: str, options: ProviderOptions) -> Placement:
        seen.append(options)
        return ran

    monkeypatch.setattr(provider, "run_once", run_once)
    return seen


def test_proof(exported_nano: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, Placement(CUDA, {CUDA: 240, CPU: 9}, ()))
    fit = prove(on("cuda"), exported_nano, DEFAULTS, "m.onnx")
    assert fit.nodes == {CUDA: 240, CPU: 9}
    assert (fit.profiles, fit.cache) == ((), "")
    stub(monkeypatch, Placement(CUDA, {CUDA: 240, CPU: 1}, (f"stem.conv1:stem (Conv on {CPU})",)))
    with pytest.raises(VerificationError, match=r"1 matrix layers of m\.onnx .*stem\.conv1:stem"):
        prove(on("cuda"), exported_nano, DEFAULTS, "m.onnx")


def test_a_context_model_that_was_wished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = Placement("TensorrtExecutionProvider", {"TensorrtExecutionProvider": 1}, ())
    seen = stub(monkeypatch, ran)
    found = on("tensorrt", SMALL, embed_context=True, cache=tmp_path)
    options = ProviderOptions(cache=tmp_path / "hash")
    with pytest.raises(BuildError, match=r"wrote no context model .*m_ctx\.onnx"):
        prove(found, tmp_path / "m.onnx", options, "m.onnx")
    context = tmp_path / "hash" / "m_ctx.onnx"
    assert seen[0].context_model == context

    def write(_path: Path, _name: str, options: ProviderOptions) -> Placement:
        assert options.context_model is not None
        assert not options.context_model.exists(), "ONNX Runtime writes over none"
        options.context_model.parent.mkdir(exist_ok=True)
        options.context_model.write_text("engine")
        return ran

    monkeypatch.setattr(provider, "run_once", write)
    for _ in range(2):
        fit = prove(found, tmp_path / "m.onnx", options, "m.onnx")
    assert fit.cache == str(tmp_path)


def test_what_is_told(exported_nano: Path) -> None:
    """Of CUDA the type of a node is that of its kernel; of an engine nobody tells."""
    model = ir.load(exported_nano)
    whole = Made(model, model, {"mlp": {"fp16": 10}}, rest="fp16")
    kinds = told(on("cuda"), whole, "fp16")
    assert kinds["mlp"] == {"fp16": 10}
    assert kinds["sr"] == {"fp16": 4}
    quantized = Made(model, model, {"mlp": {"int8": 8}}, original=model, rest="fp16")
    kinds = told(on("tensorrt"), quantized, "int8")
    assert kinds["mlp"] == {"int8 asked": 8, "fp16 asked": 2}
    assert kinds["sr"] == {"fp16 asked": 4}
    assert remarks(on("cuda")) == []
    (remark,) = remarks(on("tensorrt"))
    assert "does not tell" in remark
