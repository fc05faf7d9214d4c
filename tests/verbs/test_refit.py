"""New weights into an engine: NVIDIA's builder is real, the GPU that runs it is simulated."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rest_deploy import verbs
from rest_deploy.artifact import read_sidecar, sha256_file, sidecar_path
from rest_deploy.engine.tensorrt import Flavour
from rest_deploy.errors import (
    ArtifactError,
    BuildError,
    InputError,
    RestDeployError,
    VerificationError,
)
from rest_deploy.runtime.loading import read_sealed
from rest_deploy.runtime.session import Session
from rest_deploy.verbs import Images, Request, Wishes
from tests.conftest import TRAINED_WEIGHTS
from tests.doubles.gpu import simulated_gpu
from tests.doubles.tensorrt import Known, SimulatedTensorRt

pytest.importorskip("tensorrt_rtx_bindings")
torch = pytest.importorskip("torch")
REQUEST = Request(precision="fp16", images=Images(limit=16), gate_images=22)


@pytest.fixture(scope="module")
def other_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trained weights with the classes turned round: as good, and told apart."""
    from safetensors.torch import load_file, save_file

    state = load_file(TRAINED_WEIGHTS)
    for name in ("head.weight", "head.bias"):
        state[name] = state[name].flip(0).contiguous()
    path = tmp_path_factory.mktemp("other") / "other.safetensors"
    save_file(state, path)
    return path


@pytest.fixture(scope="module")
def once(
    trained_nano: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Known]]:
    """A refittable engine, and what its bytes stand for."""
    folder = tmp_path_factory.mktemp("refittable")
    with pytest.MonkeyPatch.context() as patch:
        module = simulated_gpu(patch, folder, "tensorrt")
        return built(trained_nano, folder, "tensorrt", refit=True), module.engines


@pytest.fixture
def gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, once: tuple[Path, dict[str, Known]]
) -> SimulatedTensorRt:
    module = simulated_gpu(monkeypatch, tmp_path, "tensorrt")
    for index, (sha256, known) in enumerate(once[1].items()):
        graph = tmp_path / f"known-{index}.onnx"
        shutil.copy(known.graph, graph)
        module.engines[sha256] = replace(known, graph=graph)
    return module


@pytest.fixture
def engine(gpu: SimulatedTensorRt, once: tuple[Path, dict[str, Known]], tmp_path: Path) -> Path:
    shutil.copytree(once[0].parent, tmp_path / "workspace")
    return tmp_path / "workspace" / once[0].name


def built(export: Path, folder: Path, flavour: Flavour, *, refit: bool) -> Path:
    shutil.copytree(export.parent, folder / "workspace")
    report = verbs.build_engine(
        None, REQUEST, workspace=folder / "workspace", backend=flavour,
        wishes=Wishes(refit=refit, max_shapes=("16x3x224x224",)),
    )  # fmt: skip
    return Path(report.path)


def images() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)


def test_the_new_weights_answer(engine: Path, other_weights: Path, tmp_path: Path) -> None:
    with Session.open(engine) as session:
        before = session.run(images())
    old = read_sidecar(engine)
    report = verbs.refit(engine, other_weights, gate_images=22)
    assert report.warnings == ()
    with Session.open(engine) as session:
        assert np.abs(session.run(images()) - before[:, ::-1]).max() < 1e-3
    new = read_sealed(engine)
    assert old is not None
    assert new is not None
    assert old.build is not None
    assert new.build is not None
    assert new.build.gated == "the engine itself, on the GPU here"
    assert new.build.gate is not None
    assert new.build.gate.passed
    assert new.metadata.weights.path == str(other_weights)
    assert new.metadata.labels == old.metadata.labels
    assert new.build.fit is not None
    assert old.build.fit is not None
    assert new.build.fit.key != old.build.fit.key, "a build of the old weights is not reused"
    assert new.build.fit.profiles == old.build.fit.profiles
    assert new.command.startswith("rest-deploy refit ")

    elsewhere = tmp_path / "copy.engine"
    again = verbs.refit(engine, other_weights, output=elsewhere, no_gate=True)
    assert again.path == str(elsewhere)
    assert [warning.split(":")[0] for warning in again.warnings] == [
        "these are the weights the engine had",
        "refitted without the accuracy gate (--no-gate); the sidecar says so",
    ]
    assert read_sealed(elsewhere) is not None


@pytest.mark.slow
def test_stripped_weights(
    gpu: SimulatedTensorRt, trained_nano: Path, other_weights: Path, tmp_path: Path
) -> None:
    """Not run, not judged and not opened until they are there."""
    shutil.copytree(trained_nano.parent, tmp_path / "workspace")
    report = verbs.build_engine(
        None, REQUEST, workspace=tmp_path / "workspace", backend="tensorrt",
        wishes=Wishes(strip_weights=True, max_shapes=("16x3x224x224",)),
    )  # fmt: skip
    assert report.warnings[0].endswith("it has no weights until it is refitted")
    with pytest.raises(ArtifactError, match="was built without its weights") as caught:
        Session.open(report.path)
    assert f"refit {report.path}" in (caught.value.hint or "")
    verbs.refit(Path(report.path), other_weights, gate_images=22)
    with Session.open(report.path) as session:
        assert session.run(images()).shape == (2, 22)
    sidecar = read_sealed(Path(report.path))
    assert sidecar is not None
    assert sidecar.build is not None
    assert sidecar.build.fit is not None
    assert sidecar.build.fit.options == {"refit": "True"}


def refuses(
    error: type[RestDeployError], words: str, engine: Path, checkpoint: Path
) -> RestDeployError:
    before = sha256_file(engine), sha256_file(sidecar_path(engine))
    with pytest.raises(error, match=words) as caught:
        verbs.refit(engine, checkpoint, gate_images=22)
    assert (sha256_file(engine), sha256_file(sidecar_path(engine))) == before
    return caught.value


def test_weights_of_another_model(
    engine: Path, other_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import load_file, save_file

    state = load_file(other_weights)
    more = {name: torch.cat([state[name], state[name]]) for name in ("head.weight", "head.bias")}
    save_file(state | more, tmp_path / "more.safetensors")
    refuses(InputError, "has 44 classes, the engine has 22", engine, tmp_path / "more.safetensors")
    del state["stage2.0.attn.q.weight"]
    save_file(state, tmp_path / "less.safetensors")
    refuses(InputError, "stage2.0.attn.q.weight", engine, tmp_path / "less.safetensors")


@pytest.mark.slow
def test_a_graph_that_does_not_fit(
    engine: Path, other_weights: Path, gpu: SimulatedTensorRt
) -> None:
    """TensorRT's refusal, in its words: as if the engine came from another export."""
    import onnx

    for known in gpu.engines.values():
        model = onnx.load(known.graph)
        model.graph.initializer[0].name += "?"
        for node in model.graph.node:
            for index, name in enumerate(node.input):
                if f"{name}?" == model.graph.initializer[0].name:
                    node.input[index] += "?"
        onnx.save(model, known.graph)
    refuses(BuildError, "do not fit the engine: a weight of that name", engine, other_weights)


def test_an_engine_that_lost_accuracy(
    engine: Path, other_weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Session.run_all

    def wrong(self: Session, batch: np.ndarray) -> dict[str, np.ndarray]:
        factor = 2 if self.path.suffix == ".engine" else 1
        return {name: factor * answer for name, answer in run(self, batch).items()}

    monkeypatch.setattr(Session, "run_all", wrong)
    refuses(VerificationError, "the refitted engine does not pass", engine, other_weights)


def test_not_built_for_it(
    gpu: SimulatedTensorRt, trained_nano: Path, other_weights: Path, tmp_path: Path
) -> None:
    engine = built(trained_nano, tmp_path, "tensorrt", refit=False)
    error = refuses(InputError, "was not built to be refitted", engine, other_weights)
    assert (error.hint or "").endswith("--refit")


def test_rtx(
    trained_nano: Path, other_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulated_gpu(monkeypatch, tmp_path, "tensorrt-rtx")
    engine = built(trained_nano, tmp_path, "tensorrt-rtx", refit=False)
    refuses(InputError, "runs the compiler's CUDA code while it builds", engine, other_weights)


def test_eight_bits(gpu: SimulatedTensorRt, trained_nano: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--refit does not go with --int8: 8-bit scales belong"):
        verbs.build_engine(
            trained_nano, Request(precision="int8"), workspace=tmp_path, backend="tensorrt",
            wishes=Wishes(refit=True),
        )  # fmt: skip


def test_no_engine(trained_nano: Path, other_weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="is no engine with a sidecar"):
        verbs.refit(tmp_path / "none.engine", other_weights)
