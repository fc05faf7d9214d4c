"""A repository is written whole or not at all, and never over what somebody else made."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rest_deploy import artifact
from rest_deploy.artifact import read_sidecar, sha256_file, sidecar_path, to_json
from rest_deploy.cards import load_card
from rest_deploy.contracts import ProviderFit
from rest_deploy.errors import (
    ArtifactError,
    InputError,
    InvariantError,
    MissingDependencyError,
    OutputError,
)
from rest_deploy.report import triton as text
from rest_deploy.serve import triton, triton_models, triton_schema
from rest_deploy.serve.triton import check, read_marker, write
from rest_deploy.serve.triton_config import DataType, Kind, ModelConfig, render
from rest_deploy.serve.triton_models import Wishes, models
from rest_deploy.serve.triton_source import examine
from tests.serve.engines import SMALL, onnx_for, plan_for, relabelled

needs_schema = pytest.mark.skipif(
    triton_schema.why_not() is not None, reason="pip install 'rest-deploy[triton]'"
)
FOUR = ("rest_nano", "rest_nano_preprocess", "rest_nano_rank", "rest_nano_classify")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "models"


def tree(root: Path) -> dict[str, str]:
    """Hashes of all files."""
    return {
        path.relative_to(root).as_posix(): sha256_file(path)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read(root: Path, name: str) -> ModelConfig:
    return triton_schema.parse(root / name / "config.pbtxt")


@needs_schema
def test_an_export(exported_nano: Path, root: Path) -> None:
    found = write(exported_nano, root, Wishes())
    assert (found.models, found.whole, found.backend) == (FOUR, FOUR[-1], "onnxruntime")
    assert found.schema.startswith("tritonclient ")
    assert sorted(path.name for path in root.iterdir()) == sorted(FOUR)
    assert sha256_file(root / "rest_nano/1/model.onnx") == sha256_file(exported_nano)
    config = read(root, "rest_nano")
    assert (config.backend, config.platform, config.max_batch_size) == ("onnxruntime", "", 8)
    assert [(t.name, t.dims) for t in config.input] == [("image", (3, -1, -1))]
    assert [(t.name, t.dims) for t in config.output] == [("logits", (1000,))]
    assert [group.kind for group in config.instance_group] == [Kind.CPU]
    batching = config.dynamic_batching
    assert batching is not None
    assert batching.default_queue_policy is not None
    assert batching.preferred_batch_size == (8,)
    assert batching.max_queue_delay_microseconds == 2000
    assert batching.default_queue_policy.default_timeout_microseconds == 5_000_000
    assert batching.default_queue_policy.max_queue_size == 256
    assert [w.batch_size for w in config.model_warmup] == [1, 8]
    assert len((root / "rest_nano/labels.txt").read_text().splitlines()) == 1000
    assert check(root).passed
    assert "PASS" in text.checked(check(root))


@needs_schema
def test_options_arrive(exported_nano: Path, root: Path) -> None:
    wishes = Wishes(
        name="Model-1.x", max_batch=4, max_delay_ms=0.5, timeout_ms=0, queue=0, instances=3,
        threads=2, sizes=((64, 96),), preprocessors=2,
    )  # fmt: skip
    write(exported_nano, root, wishes)
    config = read(root, "Model-1.x")
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.max_queue_delay_microseconds == 500
    assert config.parameter("intra_op_thread_count") == "2"
    assert config.instance_group[0].count == 3
    assert [w.inputs["image"].dims for w in config.model_warmup] == [(3, 64, 96)] * 2
    before = read(root, "Model-1.x_preprocess")
    assert before.output[0].dims == (3, 64, 96)
    assert before.instance_group[0].count == 2


@needs_schema
def test_python(exported_nano: Path, root: Path) -> None:
    """The engine keeps its name and its sidecar: it is opened as any other."""
    write(exported_nano, root, Wishes(threads=2), backend="python")
    config, folder = read(root, "rest_nano"), root / "rest_nano/1"
    assert (config.backend, config.parameter("engine")) == ("python", "rest_nano.onnx")
    assert config.parameter("threads") == "2"
    assert config.parameter("engine_sha256") == sha256_file(exported_nano)
    assert read_sidecar(folder / "rest_nano.onnx") == read_sidecar(exported_nano)
    assert config.parameter("selftest") == ""


@needs_schema
def test_without_the_self_test(exported_nano: Path, root: Path) -> None:
    wishes = Wishes(threads=2, selftest=False)
    with pytest.raises(InputError, match="Triton's onnxruntime backend runs none"):
        write(exported_nano, root, wishes, backend="onnxruntime")
    write(exported_nano, root, wishes, backend="python")
    assert read(root, "rest_nano").parameter("selftest") == "off"


@needs_schema
def test_tensorrt(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine", io_type="float16")
    found = write(engine, root, Wishes(max_batch=16))
    config = read(root, "rest_nano")
    assert (config.platform, config.backend) == ("tensorrt_plan", "")
    assert config.instance_group[0].profile == ("0", "1")
    assert config.instance_group[0].kind is Kind.GPU
    assert config.dynamic_batching is not None
    assert config.dynamic_batching.preferred_batch_size == (2, 4, 16)
    assert sha256_file(root / "rest_nano/1/model.plan") == sha256_file(engine)
    types = {t.data_type.name for t in (*config.input, *config.output)}
    assert types == {"FP16"} == {t.data_type.name for t in read(root, FOUR[1]).output}
    assert any("TensorRT must be 10.14.1" in line for line in found.warnings)
    assert check(root).passed


@needs_schema
def test_tensorrt_of_any_version(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine", options={"version-compatible": ""})
    found = write(engine, root, Wishes())
    assert any("tensorrt,version-compatible=true" in line for line in found.warnings)


@needs_schema
def test_openvino(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    """Its backend fixes the batch of a batching model: so it is none."""
    pytest.importorskip("openvino")
    engine = onnx_for(exported_nano, tmp_path / "x.onnx", backend="openvino")
    with pytest.raises(InputError, match="without batching"):
        write(engine, root, Wishes(), backend="openvino")
    with pytest.raises(InputError, match="answers larger images wrong"):
        write(engine, root, Wishes(ensemble=False, sizes=((32, 224),)), backend="openvino")
    found = write(engine, root, Wishes(ensemble=False, threads=3), backend="openvino")
    config = read(root, "rest_nano")
    assert config.max_batch_size == 0
    assert config.input[0].dims == (-1, 3, -1, -1)
    assert config.output[0].dims == (-1, 1000)
    assert config.dynamic_batching is None
    assert config.default_model_filename == "model.onnx"
    assert config.parameter("INFERENCE_NUM_THREADS") == "3"
    assert not config.parameter("HINT_BF16")
    sent = [(w.batch_size, w.inputs["image"].dims) for w in config.model_warmup]
    assert sent == [(1, (1, 3, 224, 224)), (1, (8, 3, 224, 224))]
    assert any("computes in bf16" in line for line in found.warnings)


@needs_schema
def test_openvino_in_bf16(
    exported_nano: Path, root: Path, tmp_path: Path, openvino_bf16: Callable[[bool], None]
) -> None:
    """Asked of Triton's backend; and refused where the CPU at hand could not run it."""
    openvino_bf16(True)
    build = {"backend": "openvino", "precision": "bf16"}
    bf16 = onnx_for(exported_nano, tmp_path / "y.onnx", **build)
    found = write(bf16, root, Wishes(ensemble=False), backend="openvino")
    assert read(root, "rest_nano").parameter("HINT_BF16") == "YES"
    assert not any("computes in bf16" in line for line in found.warnings)
    openvino_bf16(False)
    with pytest.raises(MissingDependencyError, match="has no bf16 units"):
        write(bf16, root, Wishes(ensemble=False), backend="openvino")


@needs_schema
def test_a_provider_that_compiles(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    """On the first GPU, for the shapes it was built for."""
    fit = ProviderFit(version="1.32.0", nodes={}, profiles=(SMALL,))
    build = {"backend": "onnxruntime", "provider": "tensorrt", "through": fit}
    engine = onnx_for(exported_nano, tmp_path / "x.onnx", **build)
    with pytest.raises(InputError, match="no profile of"):
        write(engine, root, Wishes(max_batch=17))
    assert write(engine, root, Wishes(max_batch=16)).backend == "python"
    (group,) = read(root, "rest_nano").instance_group
    assert (group.kind, group.gpus, group.profile) == (Kind.GPU, (0,), ())
    plan = plan_for(exported_nano, tmp_path / "x.engine")
    write(plan, root, Wishes(), backend="python")
    (group,) = read(root, "rest_nano").instance_group
    assert (group.kind, group.gpus) == (Kind.GPU, ())


@needs_schema
def test_embeddings(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    """A model without a head: no labels, nothing to rank."""
    plan = plan_for(exported_nano, tmp_path / "x.engine")
    sidecar = read_sidecar(plan)
    assert sidecar is not None
    headless = msgspec.structs.replace(
        sidecar, metadata=relabelled(sidecar.metadata, num_classes=0, labels=(), outputs=())
    )
    sidecar_path(plan).write_text(to_json(artifact.sealed(headless)))
    found = write(plan, root, Wishes())
    assert found.models == ("rest_nano", "rest_nano_preprocess", "rest_nano_embed")
    width = sidecar.metadata.card.architecture.dims[-1]
    assert read(root, "rest_nano").output[0].dims == (width,)
    assert not (root / "rest_nano/labels.txt").exists()
    assert check(root).passed


@needs_schema
def test_several_outputs(everything_nano: Path, root: Path) -> None:
    """Each with its own shape; an ensemble for labels and one for the embedding."""
    found = write(everything_nano, root, Wishes(name="all", sizes=((64, 96),)))
    assert found.models == ("all", *(f"all_{part}" for part in (
        "preprocess", "rank", "classify", "embed")))  # fmt: skip
    assert found.whole == "all_classify"
    config = read(root, "all")
    dims = {tensor.name: tensor.dims for tensor in config.output}
    widths = load_card("nano").architecture.dims
    assert dims == {
        "logits": (22,), "probabilities": (22,), "embedding": (widths[3],),
        **{f"c{n + 2}": (width, -1, -1) for n, width in enumerate(widths)},
    }  # fmt: skip
    labelled = {tensor.name for tensor in config.output if tensor.label_filename}
    assert labelled == {"logits", "probabilities"}
    classify, embed = read(root, "all_classify"), read(root, "all_embed")
    assert [tensor.name for tensor in classify.output] == [
        "label",
        "probability",
        "index",
        "logits",
    ]
    assert [(tensor.name, tensor.dims) for tensor in embed.output] == [("embedding", (widths[3],))]
    assert check(root).passed
    # Without the embedding the ensemble for it is taken away again.
    write(everything_nano, root, Wishes(name="all", ensemble=False))
    assert [folder.name for folder in sorted(root.iterdir())] == ["all"]


@needs_schema
@pytest.mark.parametrize("backend", ["python", "onnxruntime", "openvino"])
def test_pixels(pixels_nano: Path, root: Path, backend: str) -> None:
    wishes = Wishes(name="p", sizes=((64, 96),), ensemble=backend != "openvino")
    write(pixels_nano, root, wishes, backend=backend)
    config = read(root, "p")
    any_batch = (-1,) if backend == "openvino" else ()
    (image,) = config.input
    assert (image.data_type, image.dims) == (DataType.UINT8, (*any_batch, -1, -1, 3))
    sent = config.model_warmup[0].inputs["image"]
    one = (1,) if backend == "openvino" else ()
    assert (sent.data_type, sent.dims) == (DataType.UINT8, (*one, 64, 96, 3))
    if wishes.ensemble:
        (prepared,) = read(root, "p_preprocess").output
        assert (prepared.data_type, prepared.dims) == (DataType.UINT8, (64, 96, 3))
    assert check(root).passed


def test_maps_alone_have_no_ensemble(everything_nano: Path) -> None:
    source = examine(everything_nano)
    maps = tuple(one for one in source.metadata.gives if one.kind == "features")
    only = replace(source, metadata=relabelled(source.metadata, outputs=maps))
    with pytest.raises(InputError, match="gives c2, c3, c4, c5"):
        models(only, Wishes(name="m"))
    (engine,) = models(only, Wishes(name="m", ensemble=False))
    assert [tensor.name for tensor in engine.config.output] == ["c2", "c3", "c4", "c5"]


def test_weights_beside_the_model(
    exported_nano: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They keep the name that the model has for them."""
    engine = tmp_path / "big.onnx"
    shutil.copyfile(exported_nano, engine)
    (tmp_path / "big.onnx.data").write_bytes(b"weights")
    write(engine, root, Wishes())
    assert (root / "rest_nano/1/big.onnx.data").read_bytes() == b"weights"
    assert (root / "rest_nano/1/model.onnx").is_file()


def test_the_same_twice(exported_nano: Path, root: Path) -> None:
    write(exported_nano, root, Wishes())
    before = tree(root)
    write(exported_nano, root, Wishes())
    assert tree(root) == before


def test_without_the_ensemble_its_folders_go(exported_nano: Path, root: Path) -> None:
    """They would serve an engine that is another by now. Folders of others stay."""
    write(exported_nano, root, Wishes())
    (root / "rest_nano_rank/rest-deploy.json").unlink()
    (root / "mine").mkdir()
    write(exported_nano, root, Wishes(ensemble=False))
    assert sorted(path.name for path in root.iterdir()) == ["mine", "rest_nano", "rest_nano_rank"]


@pytest.mark.parametrize("marker", [None, "{}", "nothing"])
def test_folders_of_others_are_refused(exported_nano: Path, root: Path, marker: str | None) -> None:
    (root / "rest_nano_rank").mkdir(parents=True)
    if marker is not None:
        (root / "rest_nano_rank/rest-deploy.json").write_text(marker)
    before = tree(root)
    with pytest.raises(InputError, match="was not written by rest-deploy"):
        write(exported_nano, root, Wishes())
    assert tree(root) == before
    assert [path.name for path in root.iterdir()] == ["rest_nano_rank"]
    write(exported_nano, root, Wishes(), force=True)
    assert read_marker(root / "rest_nano_rank") is not None


def test_an_edited_folder_is_refused(exported_nano: Path, root: Path) -> None:
    write(exported_nano, root, Wishes())
    config = root / "rest_nano/config.pbtxt"
    config.write_text(config.read_text().replace("count: 1", "count: 2"))
    with pytest.raises(InputError, match=r"was edited since it was written: config\.pbtxt"):
        write(exported_nano, root, Wishes())
    assert "count: 2" in config.read_text()
    write(exported_nano, root, Wishes(), force=True)
    assert "count: 2" not in config.read_text()


@pytest.mark.parametrize(
    ("wishes", "words"),
    [
        (Wishes(name="a/b"), "is no model name"),
        (Wishes(name="../up"), "is no model name"),
        (Wishes(name=".hidden"), "is no model name"),
        (Wishes(sizes=((31, 64),)), "--sizes 31x64: expected at least 32x32"),
    ],
)
def test_wishes_that_do_not_go(exported_nano: Path, root: Path, wishes: Wishes, words: str) -> None:
    with pytest.raises(InputError, match=words):
        write(exported_nano, root, wishes)
    assert not root.exists()


def test_wishes_that_the_engine_has_not(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine")
    with pytest.raises(InputError, match="no profile of"):
        write(engine, root, Wishes(max_batch=17))
    with pytest.raises(InputError, match="no profile of"):
        write(engine, root, Wishes(max_batch=4, sizes=((224, 224), (512, 512))))
    with pytest.raises(InputError, match="--threads is for engines on a CPU"):
        write(engine, root, Wishes(threads=2))
    assert not root.exists()


def test_a_bad_engine_leaves_nothing(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine")
    engine.write_bytes(b"other")
    with pytest.raises(ArtifactError, match="damaged or replaced"):
        write(engine, root, Wishes())
    assert not root.exists()


def test_a_label_of_two_lines(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    plan = plan_for(exported_nano, tmp_path / "x.engine")
    sidecar = read_sidecar(plan)
    assert sidecar is not None
    labels = ("cat\ndog", *sidecar.metadata.labels[1:])
    broken = msgspec.structs.replace(sidecar, metadata=relabelled(sidecar.metadata, labels=labels))
    sidecar_path(plan).write_text(to_json(artifact.sealed(broken)))
    with pytest.raises(InputError, match="has a line break"):
        write(plan, root, Wishes())


def test_a_copy_that_is_not_whole(
    exported_nano: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short(source: Path, target: Path) -> None:
        target.write_bytes(Path(source).read_bytes()[:-1])

    monkeypatch.setattr(triton.shutil, "copyfile", short)  # type: ignore[attr-defined]  # the module's own
    with pytest.raises(OutputError, match="another sha256"):
        write(exported_nano, root, Wishes())
    assert list(root.iterdir()) == []


def test_what_breaks_a_rule_is_not_published(
    exported_nano: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(exported_nano, root, Wishes())
    before = tree(root)
    monkeypatch.setattr(triton_models, "MODEL_FILE", "modell.py")
    with pytest.raises(InvariantError, match=r"model\.py is missing"):
        write(exported_nano, root, Wishes())
    assert tree(root) == before


@needs_schema
def test_what_reads_as_something_else_is_not_published(
    exported_nano: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = [("count: 1", "count: 2", "reads as something else"),
             ("KIND_CPU", "KIND_TPU", "KIND_TPU")]  # fmt: skip
    for old, new, words in wrong:
        monkeypatch.setattr(
            triton, "render", lambda *a, old=old, new=new: render(*a).replace(old, new)
        )
        with pytest.raises(InvariantError, match=words):
            write(exported_nano, root, Wishes())
    assert list(root.iterdir()) == []


def test_without_the_schema(
    exported_nano: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_schema, "installed", lambda _: False)
    triton_schema._schema.cache_clear()
    found = write(exported_nano, root, Wishes())
    assert found.schema == ""
    assert "not checked against Triton's schema" in text.written(found)
    assert "pip install" in text.written(found)
    with pytest.raises(MissingDependencyError, match="cannot be checked"):
        check(root)


@needs_schema
def test_check_finds_what_was_edited(exported_nano: Path, root: Path) -> None:
    write(exported_nano, root, Wishes(), backend="python")
    config = root / "rest_nano/config.pbtxt"
    config.write_text(config.read_text().replace("max_batch_size: 8", "max_batch_size: 16"))
    found = check(root)
    assert found.passed
    assert found.notes == ("rest_nano: config.pbtxt was edited",)
    config.write_text(config.read_text().replace("max_batch_size: 16", "max_batch_size: 4"))
    found = check(root)
    assert any("preferred_batch_size 8 is not within" in line for line in found.problems)
    assert any("is more than that of step 'rest_nano'" in line for line in found.problems)
    assert "FAIL: " in text.checked(found)


@needs_schema
@pytest.mark.parametrize("file", ["1/rest_nano.onnx", "1/model.py", "labels.txt"])
def test_check_finds_what_was_replaced(exported_nano: Path, root: Path, file: str) -> None:
    write(exported_nano, root, Wishes(), backend="python")
    path = root / "rest_nano" / file
    path.write_bytes(path.read_bytes() + b"\n")
    found = check(root)
    assert any(f"{file} is not the file that was written" in line for line in found.problems)


@needs_schema
def test_check_of_anything(root: Path) -> None:
    with pytest.raises(InputError, match="is no folder"):
        check(root)
    (root / ".rest-deploy-1@here-x").mkdir(parents=True)
    with pytest.raises(InputError, match="has no models"):
        check(root)
    (root / "empty").mkdir()
    (root / "bad").mkdir()
    (root / "bad/config.pbtxt").write_text("nothing")
    found = check(root)
    assert found.problems[1] == "empty: config.pbtxt is missing"
    assert "config.pbtxt:1:" in found.problems[0]
    assert found.notes == ("bad: not written by rest-deploy",)


@needs_schema
def test_gpus_are_noted(
    exported_nano: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted:
        def __init__(self) -> None:
            self.count = lambda: 1

    engine = plan_for(exported_nano, tmp_path / "x.engine")
    monkeypatch.setattr(triton, "_no_gpu", lambda: "this machine has none")
    assert "this machine has none" in write(engine, root, Wishes()).warnings
    assert check(root).notes == ("rest_nano: this machine has none",)
    monkeypatch.undo()
    monkeypatch.setattr(triton, "Driver", Counted)
    assert check(root).notes == ()
    assert len(write(engine, root, Wishes()).warnings) == 2  # fresh weights, and the version


def test_the_marker_names_every_file(exported_nano: Path, root: Path) -> None:
    write(exported_nano, root, Wishes(), backend="python")
    for name in FOUR:
        marker: Any = json.loads((root / name / "rest-deploy.json").read_text())
        there = {p.relative_to(root / name).as_posix() for p in (root / name).rglob("*.*")}
        assert set(marker["files"]) == there - {"rest-deploy.json"}
        assert marker["engine_sha256"] == sha256_file(exported_nano)
