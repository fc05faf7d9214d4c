"""config.pbtxt: what is written is what protobuf reads."""

from __future__ import annotations

from pathlib import Path

import pytest

from rest_deploy.errors import ArtifactError, MissingDependencyError
from rest_deploy.serve import triton_schema
from rest_deploy.serve.triton_config import (
    DataType,
    DynamicBatching,
    EnsembleScheduling,
    InstanceGroup,
    Kind,
    ModelConfig,
    Parameter,
    QueuePolicy,
    Step,
    Tensor,
    TimeoutAction,
    Warmup,
    WarmupInput,
    render,
)

needs_schema = pytest.mark.skipif(
    triton_schema.why_not() is not None, reason="pip install 'rest-deploy[triton]'"
)

SENT = WarmupInput(data_type=DataType.FP32, dims=(3, 32, 32), zero_data=True)
FULL = ModelConfig(
    name="rest",
    platform="tensorrt_plan",
    backend="tensorrt",
    default_model_filename="x.plan",
    max_batch_size=8,
    input=(Tensor(name="image", data_type=DataType.FP16, dims=(3, -1, -1)),),
    output=(
        Tensor(name="a", data_type=DataType.STRING, dims=(2,), label_filename="labels.txt"),
        Tensor(name="b", data_type=DataType.INT32, dims=(1, 7)),
    ),
    instance_group=(
        InstanceGroup(count=2, kind=Kind.GPU, gpus=(0, 1), profile=("0", "1")),
        InstanceGroup(count=1, kind=Kind.MODEL),
    ),
    dynamic_batching=DynamicBatching(
        preferred_batch_size=(4, 8),
        max_queue_delay_microseconds=1500,
        default_queue_policy=QueuePolicy(
            timeout_action=TimeoutAction.DELAY,
            default_timeout_microseconds=9,
            allow_timeout_override=True,
            max_queue_size=3,
        ),
    ),
    parameters={"k": Parameter(string_value='a "b" \\ \n é'), "empty": Parameter()},
    model_warmup=(Warmup(name="one", batch_size=1, inputs={"image": SENT}),),
)
ENSEMBLE = ModelConfig(
    name="whole",
    platform="ensemble",
    ensemble_scheduling=EnsembleScheduling(
        step=(Step(model_name="rest", model_version=-1, input_map={"i": "x"},
                   output_map={"o": "y", "p": "z"}),)
    ),
)  # fmt: skip


@needs_schema
@pytest.mark.parametrize("config", [FULL, ENSEMBLE, ModelConfig(name="bare")])
def test_what_is_written_is_read(config: ModelConfig, tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(render(config, "two\nlines"))
    assert triton_schema.parse(path) == config
    assert path.read_text().startswith("# two\n# lines\nname: ")


@needs_schema
def test_every_field_is_in_the_text() -> None:
    """The control of the round trip: a field that `render` left out would be a default."""
    text = render(FULL, "")
    for word in ("dims: [ 3, -1, -1 ]", "KIND_GPU", "gpus: [ 0, 1 ]", 'profile: [ "0", "1" ]',
                 "timeout_action: DELAY", "max_queue_size: 3", "allow_timeout_override: true",
                 "max_queue_delay_microseconds: 1500", "zero_data: true", "TYPE_FP16"):  # fmt: skip
        assert word in text


def test_text_is_ascii_in_quotes() -> None:
    assert 'string_value: "a \\042b\\042 \\134 \\012 \\303\\251"' in render(FULL, "")


@needs_schema
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('name: "x"\nmax_batch: 8', "config.pbtxt:2:1"),
        ('name: "x"\ninstance_group { kind: KIND_TPU }', "KIND_TPU"),
        ('max_batch_size: "8"', "config.pbtxt:1:17"),
        ('name: "x"\ninput {', "config.pbtxt"),
        ("\x00", "config.pbtxt:1:1"),
    ],
)
def test_what_the_schema_refuses(text: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text(text)
    with pytest.raises(ArtifactError, match=words):
        triton_schema.parse(path)


@needs_schema
def test_a_file_that_is_not_text(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="not UTF-8"):
        triton_schema.parse(path)
    with pytest.raises(ArtifactError, match="cannot read"):
        triton_schema.parse(tmp_path / "none")


@needs_schema
def test_fields_that_are_not_modelled_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "config.pbtxt"
    path.write_text('name: "x"\noptimization { priority: PRIORITY_MAX }\nversion_policy { all {} }')
    assert triton_schema.parse(path) == ModelConfig(name="x")


def test_without_the_client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton_schema, "installed", lambda name: name != "tritonclient")
    triton_schema._schema.cache_clear()
    why = triton_schema.why_not()
    assert why is not None
    assert "'tritonclient' is not installed" in why
    with pytest.raises(MissingDependencyError, match="cannot be checked"):
        triton_schema.parse(tmp_path / "config.pbtxt")
