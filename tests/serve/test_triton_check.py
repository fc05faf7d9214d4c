"""Every rule on a repository that keeps it and on one that breaks it, and only it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from rest_deploy.serve.triton_check import needs_gpu, problems
from rest_deploy.serve.triton_config import (
    DataType,
    DynamicBatching,
    InstanceGroup,
    Kind,
    ModelConfig,
    Parameter,
    Step,
    Tensor,
    Warmup,
    WarmupInput,
)
from rest_deploy.serve.triton_models import Wishes, models
from rest_deploy.serve.triton_source import examine
from tests.serve.engines import plan_for

Configs = dict[str, ModelConfig]
ENGINE, PREPROCESS, RANK, WHOLE = "m", "m_preprocess", "m_rank", "m_classify"


def laid(root: Path, engine: Path, backend: str, wishes: Wishes) -> Configs:
    """The files that the rules look at."""
    configs = {}
    for model in models(examine(engine, backend), wishes):
        configs[model.name] = model.config
        for name, text in model.files.items():
            path = root / model.name / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        for name in model.copies:
            (root / model.name / name).parent.mkdir(parents=True, exist_ok=True)
            (root / model.name / name).write_bytes(b"engine")
    return configs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def configs(exported_nano: Path, root: Path) -> Configs:
    return laid(root, exported_nano, "python", Wishes(name=ENGINE))


@pytest.mark.parametrize("backend", ["python", "onnxruntime", "openvino"])
def test_what_is_written_keeps_the_rules(exported_nano: Path, root: Path, backend: str) -> None:
    pytest.importorskip("openvino")
    wishes = Wishes(name=ENGINE, ensemble=backend != "openvino", max_batch=1, sizes=((64, 96),))
    assert problems(root, laid(root, exported_nano, backend, wishes)) == []


@pytest.mark.parametrize("backend", ["tensorrt", "python"])
def test_so_does_a_plan(exported_nano: Path, root: Path, tmp_path: Path, backend: str) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine", io_type="float16")
    found = laid(root, engine, backend, Wishes(name=ENGINE))
    assert problems(root, found) == []
    assert needs_gpu(found[ENGINE])
    assert not needs_gpu(found[RANK])


def changed(configs: Configs, model: str, /, **fields: Any) -> None:
    configs[model] = msgspec.structs.replace(configs[model], **fields)


def tensor(configs: Configs, name: str, side: str, **fields: Any) -> None:
    first, *rest = getattr(configs[name], side)
    changed(configs, name, **{side: (msgspec.structs.replace(first, **fields), *rest)})


def steps(configs: Configs, index: int, **fields: Any) -> None:
    scheduling = configs[WHOLE].ensemble_scheduling
    assert scheduling is not None
    found: list[Step] = list(scheduling.step)
    found[index] = msgspec.structs.replace(found[index], **fields)
    changed(
        configs, WHOLE, ensemble_scheduling=msgspec.structs.replace(scheduling, step=tuple(found))
    )


def batching(configs: Configs, **fields: Any) -> None:
    found = configs[ENGINE].dynamic_batching
    assert found is not None
    changed(configs, ENGINE, dynamic_batching=msgspec.structs.replace(found, **fields))


def warmup(configs: Configs, sent: dict[str, Any] | None = None, **fields: Any) -> None:
    first, *_ = configs[ENGINE].model_warmup
    if sent is not None:
        image = msgspec.structs.replace(first.inputs["image"], **sent)
        fields["inputs"] = {"image": image}
    changed(configs, ENGINE, model_warmup=(msgspec.structs.replace(first, **fields),))


CPU, GPU = (InstanceGroup(count=1, kind=kind) for kind in (Kind.CPU, Kind.GPU))
Spoil = Callable[[Configs, Path], Any]
BROKEN: dict[str, tuple[Spoil, str]] = {
    "name": (lambda c, _: changed(c, PREPROCESS, name="other"), "the name is 'other'"),
    "platform": (lambda c, _: changed(c, ENGINE, platform="onnx"), "unknown platform 'onnx'"),
    "no backend": (lambda c, _: changed(c, RANK, backend=""), "neither a backend nor a platform"),
    "contradiction": (
        lambda c, _: changed(c, ENGINE, platform="tensorrt_plan"), "contradict each other"),
    "ensemble platform": (
        lambda c, _: changed(c, WHOLE, platform="", backend="python"), "go together"),
    "no input": (lambda c, _: changed(c, RANK, input=(), model_warmup=()), "there is no input"),
    "no output": (lambda c, _: changed(c, RANK, output=()), "there is no output"),
    "twice": (
        lambda c, _: changed(c, RANK, output=(*c[RANK].output, c[RANK].output[0])), "same name"),
    "data type": (
        lambda c, _: tensor(c, PREPROCESS, "input", data_type=DataType.INVALID), "no data_type"),
    "no dims": (lambda c, _: tensor(c, PREPROCESS, "input", dims=()), "expected sizes or -1"),
    "zero dims": (lambda c, _: tensor(c, RANK, "output", dims=(0,)), "expected sizes or -1"),
    "negative batch": (lambda c, _: changed(c, RANK, max_batch_size=-1), "expected 0 or more"),
    "no version": (lambda _, root: (root / WHOLE / "1").rename(root / WHOLE / "v1"), "no version"),
    "no model.py": (
        lambda _, root: (root / RANK / "1/model.py").unlink(), "1/model.py is missing; the server"),
    "no engine": (
        lambda _, root: (root / ENGINE / "1/rest_nano.onnx").unlink(), "1/rest_nano.onnx, which"),
    "no preprocessing": (
        lambda _, root: (root / PREPROCESS / "preprocessing.json").unlink(),
        "preprocessing.json, which the parameter preprocessing names"),
    "no labels of the ranking": (
        lambda _, root: (root / RANK / "labels.txt").unlink(), "labels.txt, which the parameter"),
    "no labels": (lambda _, root: (root / ENGINE / "labels.txt").unlink(), "the labels of"),
    "labels": (lambda _, root: (root / ENGINE / "labels.txt").write_text("a\nb\n"), "has 2 labels"),
    "preferred": (lambda c, _: batching(c, preferred_batch_size=(4, 9)), "preferred_batch_size 9"),
    "preferred 0": (lambda c, _: batching(c, preferred_batch_size=(0,)), "preferred_batch_size 0"),
    "batching without": (
        lambda c, _: changed(c, RANK, max_batch_size=0, dynamic_batching=DynamicBatching()),
        "needs a max_batch_size"),
    "count": (
        lambda c, _: changed(c, ENGINE, instance_group=(InstanceGroup(kind=Kind.CPU),)),
        "has the count 0"),
    "gpus of a cpu": (
        lambda c, _: changed(
            c, ENGINE, instance_group=(msgspec.structs.replace(CPU, gpus=(0,)),)), "names GPUs"),
    "profiles": (
        lambda c, _: changed(
            c, ENGINE, instance_group=(msgspec.structs.replace(CPU, profile=("0",)),)),
        "which only TensorRT has"),
    "warm-up batch": (lambda c, _: warmup(c, batch_size=9), "has the batch_size 9"),
    "warm-up of nothing": (lambda c, _: warmup(c, batch_size=0), "has no batch_size"),
    "warm-up channels": (lambda c, _: warmup(c, {"dims": (1, 224, 224)}), "sends TYPE_FP32 [1, "),
    "warm-up rank": (lambda c, _: warmup(c, {"dims": (1, 3, 224, 224)}), "sends TYPE_FP32 [1, 3"),
    "warm-up type": (lambda c, _: warmup(c, {"data_type": DataType.FP16}), "sends TYPE_FP16"),
    "warm-up size": (lambda c, _: warmup(c, {"dims": (3, -1, -1)}), "expected true sizes"),
    "warm-up file": (
        lambda c, _: warmup(c, {"zero_data": False, "input_data_file": "x"}), "warmup/x, which"),
    "warm-up lacks": (lambda c, _: warmup(c, inputs={}), "lacks the input image"),
    "ensemble groups": (lambda c, _: changed(c, WHOLE, instance_group=(CPU,)), "no instance_group"),
    "ensemble warm-up": (
        lambda c, _: changed(c, WHOLE, model_warmup=(Warmup(
            name="x", batch_size=1, inputs={"image_bytes": WarmupInput(
                data_type=DataType.STRING, dims=(1,), zero_data=True)}),)), "no model_warmup"),
    "ensemble batch": (lambda c, _: changed(c, WHOLE, max_batch_size=9), "is more than that of"),
    "ensemble type": (
        lambda c, _: tensor(c, WHOLE, "output", data_type=DataType.FP16), "the step that writes"),
    "ensemble output in between": (
        lambda c, _: changed(c, WHOLE, output=(*c[WHOLE].output, Tensor(
            name="answers", data_type=DataType.FP32, dims=(1000,)))), "'unexpected deadlock'"),
    "ensemble output": (
        lambda c, _: changed(c, WHOLE, output=(*c[WHOLE].output, Tensor(
            name="more", data_type=DataType.FP32, dims=(1,)))), "no step writes the output 'more'"),
    "ensemble input": (
        lambda c, _: changed(c, WHOLE, input=(*c[WHOLE].input, Tensor(
            name="more", data_type=DataType.FP32, dims=(1,)))), "no step reads the input 'more'"),
    "step twice": (
        lambda c, _: steps(c, 1, output_map={"logits": "prepared"}), "which is written already"),
    "step output": (
        lambda c, _: steps(c, 2, output_map={"label": "label", "probability": "probability",
                                             "index": "index", "logits": "logits",
                                             "no": "no"}), "has no output no"),
    "step type": (
        lambda c, _: tensor(c, PREPROCESS, "output", dims=(3, 224)), "takes TYPE_FP32 [3, -1, -1]"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_found(configs: Configs, root: Path, case: str) -> None:
    spoil, words = BROKEN[case]
    assert problems(root, configs) == []
    spoil(configs, root)
    found = problems(root, configs)
    assert [line for line in found if words in line], found
    assert len(found) <= 6, found


def test_backends_and_devices(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    engine = plan_for(exported_nano, tmp_path / "x.engine")
    found = laid(root, engine, "tensorrt", Wishes(name=ENGINE, ensemble=False))
    changed(found, ENGINE, instance_group=(CPU,))
    assert problems(root, found) == ["m: tensorrt does not run on KIND_CPU; expected KIND_GPU"]
    found = laid(root, exported_nano, "openvino", Wishes(name=ENGINE, ensemble=False))
    changed(found, ENGINE, instance_group=(GPU,))
    assert problems(root, found) == ["m: openvino does not run on KIND_GPU; expected KIND_CPU"]


def test_a_plan_that_is_missing(exported_nano: Path, root: Path, tmp_path: Path) -> None:
    engine = plan_for(exported_nano, tmp_path / "x.engine")
    found = laid(root, engine, "tensorrt", Wishes(name=ENGINE, ensemble=False))
    (root / ENGINE / "1/model.plan").unlink()
    assert problems(root, found) == ["m: 1/model.plan is missing"]


def test_steps_that_lead_nowhere(configs: Configs, root: Path) -> None:
    steps(configs, 1, input_map={"image": "nothing"})
    assert problems(root, configs) == ["m_classify: step 'm' reads 'nothing', which nothing writes"]
    steps(configs, 1, input_map={})
    assert "m_classify: nothing goes into image of step 'm'" in problems(root, configs)


def test_a_step_that_is_not_there(configs: Configs, root: Path) -> None:
    del configs[RANK]
    found = problems(root, configs)
    assert found[0] == "m_classify: step 'm_rank' is no model of the repository"
    assert len(found) == 5  # and its four outputs


def test_steps_in_any_order(configs: Configs, root: Path) -> None:
    """The server goes by the tensors."""
    scheduling = configs[WHOLE].ensemble_scheduling
    assert scheduling is not None
    backwards = msgspec.structs.replace(scheduling, step=scheduling.step[::-1])
    changed(configs, WHOLE, ensemble_scheduling=backwards)
    assert problems(root, configs) == []


def test_an_ensemble_without_steps(configs: Configs, root: Path) -> None:
    scheduling = configs[WHOLE].ensemble_scheduling
    assert scheduling is not None
    changed(configs, WHOLE, ensemble_scheduling=msgspec.structs.replace(scheduling, step=()))
    assert "m_classify: an ensemble has at least one step" in problems(root, configs)


def test_a_model_of_somebody_else(root: Path) -> None:
    """Nothing is known of its files, and nothing is said."""
    (root / "other/1").mkdir(parents=True)
    config = ModelConfig(
        name="other",
        platform="pytorch_libtorch",
        input=(Tensor(name="x", data_type=DataType.INT8, dims=(1,)),),
        output=(Tensor(name="y", data_type=DataType.INT8, dims=(1,)),),
        parameters={"engine": Parameter(string_value="gone")},
    )
    assert problems(root, {"other": config}) == []
