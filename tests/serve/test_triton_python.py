"""The models of Triton's Python backend, called as its stub calls them."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from rest_deploy.errors import ArtifactError, DeviceError, RestDeployError, ShapeError
from rest_deploy.preprocess import load_image, normalize, to_pixels, to_tensor
from rest_deploy.runtime.classifier import Classifier
from rest_deploy.runtime.session import Session
from rest_deploy.serve import triton, triton_python
from rest_deploy.serve.triton_check import CONFIG_FILE
from rest_deploy.serve.triton_config import ModelConfig, Parameter
from rest_deploy.serve.triton_models import IMAGE_BYTES, Wishes, models
from rest_deploy.serve.triton_python import (
    EngineModel,
    PreprocessModel,
    RankModel,
    run_together,
    warm_shapes,
)
from rest_deploy.serve.triton_source import examine
from tests.doubles.triton import MODULE, InferenceResponse, arguments, encoded, request

Float32 = npt.NDArray[np.float32]


@pytest.fixture(autouse=True)
def _inside_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", MODULE)


@pytest.fixture(scope="module")
def repository(trained_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("triton") / "repository"
    triton.write(trained_nano, root, WISHES, backend="python")
    return root


WISHES = Wishes(name="m", max_batch=2, threads=1, sizes=((64, 96), (48, 48)))


def opened(model: Any, root: Path, name: str, trained: Path) -> Any:
    config = configs(trained)[name]
    model.initialize(arguments(root, config))
    return model


def configs(trained: Path) -> dict[str, ModelConfig]:
    return {model.name: model.config for model in models(examine(trained, "python"), WISHES)}


@pytest.fixture
def engine(repository: Path, trained_nano: Path) -> Iterator[EngineModel]:
    model = opened(EngineModel(), repository, "m", trained_nano)
    yield model
    model.finalize()


def noise(*shape: int, seed: int = 0) -> Float32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def photo(height: int, width: int, form: str = "JPEG") -> bytes:
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form)
    return stream.getvalue()


def test_the_engine_answers_as_session_does(engine: EngineModel, trained_nano: Path) -> None:
    asked = [noise(1, 3, 64, 64), noise(2, 3, 48, 80), noise(1, 3, 64, 64, seed=1)]
    answers = engine.execute([request(image=images) for images in asked])
    with Session.open(trained_nano, threads=1) as session:
        for images, answer in zip(asked, answers, strict=True):
            assert np.abs(answer.array("logits") - session.run(images)).max() < 1e-4
            assert answer.array("logits").shape == (len(images), 22)


def test_it_is_warmed_up_at_the_sizes(
    repository: Path, trained_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(Session, "warm_up", lambda _, shapes: seen.extend(shapes))
    opened(EngineModel(), repository, "m", trained_nano)
    assert seen == [(1, 3, 64, 96), (2, 3, 64, 96), (1, 3, 48, 48), (2, 3, 48, 48)]
    assert seen == warm_shapes(configs(trained_nano)["m"].model_warmup)


@pytest.mark.parametrize("selftest", [True, False])
def test_threads_and_selftest_are_the_configurations(
    repository: Path, trained_nano: Path, monkeypatch: pytest.MonkeyPatch, *, selftest: bool
) -> None:
    config = configs(trained_nano)["m"]
    if not selftest:
        more = {**config.parameters, "selftest": Parameter(string_value="off")}
        config = msgspec.structs.replace(config, parameters=more)
    arguments_ = arguments(repository, config)
    asked: dict[str, Any] = {}

    def refuse(path: Path, **options: Any) -> Session:
        asked.update(options, path=path)
        raise ArtifactError("stop")

    monkeypatch.setattr(Session, "open", refuse)
    with pytest.raises(ArtifactError, match="stop"):
        EngineModel().initialize(arguments_)
    path = repository / "m/1/rest_nano.onnx"
    assert asked == {"threads": 1, "gpu": None, "path": path, "selftest": selftest}


def test_an_engine_that_was_replaced(
    repository: Path, trained_nano: Path, exported_nano: Path, tmp_path: Path
) -> None:
    root = tmp_path / "other"
    (root / "m/1").mkdir(parents=True)
    (root / "m/1/rest_nano.onnx").write_bytes(exported_nano.read_bytes())
    with pytest.raises(ArtifactError, match="not the engine that the repository was written with"):
        opened(EngineModel(), root, "m", trained_nano)


@pytest.mark.parametrize(
    "images",
    [
        noise(1, 3, 16, 64), noise(3, 64, 64), noise(1, 1, 64, 64),
        noise(1, 3, 64, 64).astype(np.float64), np.full((1, 3, 64, 64), np.nan, np.float32),
    ],
    ids=["small", "rank", "channels", "type", "nan"],
)  # fmt: skip
def test_a_bad_request_fails_alone(engine: EngineModel, images: npt.NDArray[Any]) -> None:
    good = noise(1, 3, 64, 64)
    answers = engine.execute([request(image=array) for array in (good, images, good)])
    code, message = answers[1].refused()
    assert code == "INVALID_ARG"
    assert message
    for answer in (answers[0], answers[2]):
        assert np.isfinite(answer.array("logits")).all()


def test_requests_of_one_size_run_together() -> None:
    ran: list[tuple[int, ...]] = []

    def run(images: Float32) -> dict[str, Float32]:
        ran.append(images.shape)
        sums = np.asarray(images.sum(axis=(1, 2, 3)).reshape(-1, 1), np.float32)
        return {"sums": sums, "means": images.mean(axis=1, keepdims=True)}

    asked = [noise(1, 3, 32, 32), noise(2, 3, 32, 64), noise(3, 3, 32, 32, seed=4)]
    wanted = [{"sums"}, {"means", "sums"}, {"means"}]
    answers = run_together(run, asked, wanted)
    assert sorted(ran) == [(2, 3, 32, 64), (4, 3, 32, 32)]
    for images, answer, names in zip(asked, answers, wanted, strict=True):
        assert not isinstance(answer, RestDeployError)
        assert answer.keys() == names
        if "sums" in names:
            expected = images.sum(axis=(1, 2, 3)).reshape(-1, 1)
            assert np.allclose(answer["sums"], expected, atol=1e-3)
        if "means" in names:
            assert np.allclose(answer["means"], images.mean(axis=1, keepdims=True), atol=1e-5)


def test_an_engine_that_answers_nan() -> None:
    """The request's own fault where its images are not finite, else the engine's."""
    asked = [noise(1, 3, 32, 32), np.full((1, 3, 32, 32), np.inf, np.float32)]
    answers = run_together(
        lambda images: {"a": np.full((len(images), 4), np.nan, np.float32)}, asked, [{"a"}] * 2
    )
    assert [type(answer) for answer in answers] == [ArtifactError, ShapeError]


def test_an_engine_that_fails() -> None:
    def run(images: Float32) -> dict[str, Float32]:
        if images.shape[2] == 64:
            raise DeviceError("out of memory")
        return {"a": np.zeros((len(images), 4), np.float32)}

    asked = [noise(1, 3, 64, 64), noise(1, 3, 32, 32), noise(2, 3, 64, 64)]
    answers = run_together(run, asked, [{"a"}] * 3)
    assert [type(answer) for answer in answers] == [DeviceError, dict, DeviceError]
    assert triton_python._response(answers[0]).refused() == ("INTERNAL", "out of memory")  # type: ignore[arg-type]  # an error


def test_preprocessing_is_the_packages(repository: Path, trained_nano: Path) -> None:
    model = opened(PreprocessModel(), repository, "m_preprocess", trained_nano)
    images = [photo(120, 90), photo(70, 200, "PNG")]
    (answer,) = model.execute([request(**{IMAGE_BYTES: encoded(*images)})])
    with Session.open(trained_nano) as session:
        card = session.metadata.card.preprocessing
    expected = np.stack([
        normalize(to_pixels(load_image(image), card, (64, 96)), card) for image in images
    ])  # fmt: skip
    assert answer.array("image").dtype == np.float32
    assert np.array_equal(answer.array("image"), expected)


def test_an_image_that_is_none(repository: Path, trained_nano: Path) -> None:
    model = opened(PreprocessModel(), repository, "m_preprocess", trained_nano)
    asked = [encoded(photo(90, 90)), encoded(photo(90, 90), b"nonsense"), encoded(photo(20, 90))]
    answers = model.execute([request(**{IMAGE_BYTES: images}) for images in asked])
    assert answers[0].array("image").shape == (1, 3, 64, 96)
    code, message = answers[1].refused()
    assert (code, "image 1 of 2" in message) == ("INVALID_ARG", True)
    assert answers[2].refused()[0] == "INVALID_ARG"


def test_ranking_is_the_classifiers(repository: Path, trained_nano: Path) -> None:
    model = opened(RankModel(), repository, "m_rank", trained_nano)
    image = load_image(photo(300, 260))
    with Session.open(trained_nano) as session:
        expected = Classifier(session).classify(image, top=5)
        logits = session.run(to_tensor(image, session.metadata.card.preprocessing)[None])
    (half,) = model.execute([request(logits=logits.astype(np.float16))])
    assert half.array("logits").dtype == np.float32
    assert half.array("index")[0][0] == logits.argmax()
    (answer,) = model.execute([request(logits=np.concatenate([logits, -logits]))])
    assert answer.array("label")[0].tolist() == [found.label.encode() for found in expected]
    assert answer.array("index")[0].tolist() == [found.index for found in expected]
    found = answer.array("probability")
    assert np.allclose(found[0], [p.probability for p in expected], atol=1e-6)
    assert answer.array("index")[1][0] == logits.argmin()
    assert np.array_equal(answer.array("logits")[0], logits[0])
    assert (found.dtype, answer.array("index").dtype) == (np.float32, np.int32)


def test_ranking_refuses_nan(repository: Path, trained_nano: Path) -> None:
    model = opened(RankModel(), repository, "m_rank", trained_nano)
    logits = np.zeros((2, 22), np.float32)
    good, bad = logits.copy(), logits.copy()
    bad[1, 3] = np.nan
    answers: list[InferenceResponse] = model.execute([request(logits=bad), request(logits=good)])
    assert answers[0].refused()[0] == "INTERNAL"
    assert answers[1].array("label").shape == (2, 5)


@pytest.fixture(scope="module")
def of_pixels(pixels_nano: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With every output, from uint8 images."""
    root = tmp_path_factory.mktemp("pixels") / "repository"
    triton.write(pixels_nano, root, WISHES, backend="python")
    return root


def test_the_outputs_that_are_asked_for(of_pixels: Path, pixels_nano: Path) -> None:
    model = opened(EngineModel(), of_pixels, "m", pixels_nano)
    dice = np.random.default_rng(0)
    first, second = (dice.integers(0, 256, (n, 64, 96, 3), dtype=np.uint8) for n in (1, 2))
    asked = [
        request(image=first),
        request(["c3", "logits"], image=second),
        request(image=noise(1, 3, 64, 96)),
    ]
    answers = model.execute(asked)
    with Session.open(pixels_nano, threads=1) as session:
        expected = session.run_all(first)
        for name, values in expected.items():
            assert np.abs(answers[0].array(name) - values).max() < 1e-3
        assert [tensor.name() for tensor in answers[1].output_tensors] == ["logits", "c3"]
        assert answers[1].array("c3").shape == session.run_all(second)["c3"].shape
    code, message = answers[2].refused()
    assert (code, "pixels" in message) == ("INVALID_ARG", True)
    model.finalize()


def test_pixels_are_prepared_as_pixels(of_pixels: Path, pixels_nano: Path) -> None:
    model = opened(PreprocessModel(), of_pixels, "m_preprocess", pixels_nano)
    (answer,) = model.execute([request(**{IMAGE_BYTES: encoded(photo(120, 90))})])
    with Session.open(pixels_nano) as session:
        card = session.metadata.card.preprocessing
    assert answer.array("image").dtype == np.uint8
    expected = to_pixels(load_image(photo(120, 90)), card, (64, 96))
    assert np.array_equal(answer.array("image")[0], expected)


def test_ranking_of_probabilities() -> None:
    """Told as they are: a second softmax would flatten them."""
    model = RankModel()
    model._labels, model._input, model._top = ("a", "b", "c"), "probabilities", 2
    model._probable = True
    shares = np.array([[0.25, 0.0, 0.75]], np.float32)
    (answer,) = model.execute([request(probabilities=shares)])
    assert answer.array("label")[0].tolist() == [b"c", b"a"]
    assert answer.array("probability")[0].tolist() == [0.75, 0.25]
    assert np.array_equal(answer.array("probabilities"), shares)


@pytest.mark.parametrize("name", ["m", "m_preprocess", "m_rank"])
def test_the_file_that_triton_loads(repository: Path, name: str) -> None:
    text = (repository / name / "1/model.py").read_text()
    scope: dict[str, Any] = {}
    exec(compile(text, "model.py", "exec"), scope)  # the stub does the same
    assert scope["TritonPythonModel"].__module__ == "rest_deploy.serve.triton_python"
    assert 'backend: "python"' in (repository / name / CONFIG_FILE).read_text()
