"""The models of a repository: the engine, preprocessing, ranking, and the ensembles of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rest_deploy.artifact import to_json
from rest_deploy.contracts import Dims, Struct
from rest_deploy.errors import InputError
from rest_deploy.layout import layout_of
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
    Warmup,
    WarmupInput,
)
from rest_deploy.serve.triton_source import Source
from rest_deploy.signature import SCORES, Output

LABELS_FILE = "labels.txt"
MODEL_FILE = "model.py"
TOP = 5
"""Classes that the ensemble answers, at most."""

IMAGE_BYTES = "image_bytes"
"""Input of the ensemble: a JPEG, PNG or other file that Pillow reads."""

LEAST_FIRST = 64
"""Side in pixels of the first image that OpenVINO may see; `Session` sees to it by itself."""

DEFAULT_FILES = {"tensorrt": "model.plan", "onnxruntime": "model.onnx", "openvino": "model.onnx"}
"""Names that Triton's backends look for; an .onnx is not OpenVINO's, which is told."""


class Wishes(Struct, frozen=True):
    """What the options say.

    sizes: (height, width) in pixels, warmed up; the ensemble prepares images at the first.
    max_delay_ms: that a request waits for others; timeout_ms: in the queue at most, 0 for ever.
    queue: requests waiting at most, 0 for any number. threads: of one instance, None for the
    backend's own choice. preprocessors: processes that decode images. selftest: of the Python
    backend, see `Session.open`; Triton's own backends run none.
    """

    name: str = ""
    max_batch: int = 8
    max_delay_ms: float = 2.0
    timeout_ms: float = 5000.0
    queue: int = 256
    instances: int = 1
    preprocessors: int = 1
    threads: int | None = None
    sizes: tuple[tuple[int, int], ...] = ()
    ensemble: bool = True
    selftest: bool = True


@dataclass(frozen=True)
class Model:
    """One folder of the repository. files: text by relative path; copies: files likewise."""

    config: ModelConfig
    files: dict[str, str]
    copies: dict[str, Path]

    @property
    def name(self) -> str:
        return self.config.name


def names(name: str) -> tuple[str, str, str, str, str]:
    """Of the engine, preprocessing, ranking, and the ensembles for labels and for embeddings."""
    return name, *(f"{name}_{part}" for part in ("preprocess", "rank", "classify", "embed"))  # type: ignore[return-value]  # five


def whole_of(source: Source, name: str) -> str:
    """The ensemble that takes encoded images; where there are two, the one for labels."""
    _, _, _, classify, embed = names(name)
    return classify if source.scores else embed


def shapes(source: Source, wishes: Wishes) -> list[Dims]:
    """Input shapes that are served for certain: of every size one image and the largest batch."""
    side = source.metadata.card.preprocessing.crop
    batches = sorted({1, wishes.max_batch})
    return [
        (batch, 3, height, width)
        for height, width in wishes.sizes or ((side, side),)
        for batch in batches
    ]


def models(source: Source, wishes: Wishes) -> list[Model]:
    """Raises `InputError` for wishes that the backend does not have."""
    if source.backend == "openvino" and wishes.ensemble:
        raise InputError(
            "Triton's openvino backend serves models of any batch size without batching, and the "
            "ensemble's preprocessing batches",
            hint="--no-ensemble; or --backend python, which has both",
        )
    if source.backend == "openvino" and min(shapes(source, wishes)[0][2:]) < LEAST_FIRST:
        raise InputError(
            f"Triton's openvino backend would warm up at {shapes(source, wishes)[0]}, after which "
            "OpenVINO answers larger images wrong (docs/openvino.md)",
            hint=f"name a size of at least {LEAST_FIRST} first, or --backend python",
        )
    if source.backend != "python" and not wishes.selftest:
        raise InputError(
            f"--no-selftest is for --backend python; Triton's {source.backend} backend runs none"
        )
    if source.backend == "tensorrt" and wishes.threads is not None:
        raise InputError("--threads is for engines on a CPU; TensorRT runs on a GPU")
    found = [_engine(source, wishes)]
    if not wishes.ensemble:
        return found
    if source.scores is None and source.embedding is None:
        given = ", ".join(output.name for output in source.metadata.gives)
        raise InputError(
            f"the ensembles answer encoded images with labels or an embedding; {source.path} gives "
            f"{given}",
            hint="--no-ensemble: its clients send tensors and get the maps",
        )
    found.append(_preprocess(source, wishes))
    if source.scores is not None:
        found += [_rank(source, wishes, source.scores), _classify(source, wishes, source.scores)]
    if source.embedding is not None:
        found.append(_embed(source, wishes, source.embedding))
    return found


def _engine(source: Source, wishes: Wishes) -> Model:
    metadata, batch = source.metadata, wishes.max_batch
    python, scores = source.backend == "python", source.scores
    # OpenVINO's backend fixes the batch of a batching model and pads requests up to it.
    any_batch: tuple[int, ...] = ()
    if source.backend == "openvino":
        batch, any_batch = 0, (-1,)
    image = Tensor(
        name=metadata.input_name,
        data_type=source.image_type,
        dims=(*any_batch, *_image_dims(source, (-1, -1))),
    )
    outputs = tuple(
        Tensor(
            name=output.name,
            data_type=source.tensor_type,
            dims=(*any_batch, *_dims(output)),
            label_filename=LABELS_FILE if output.kind in SCORES else "",
        )
        for output in metadata.gives
    )
    file = source.path.name if python else DEFAULT_FILES[source.backend]
    config = ModelConfig(
        name=wishes.name,
        platform="tensorrt_plan" if source.backend == "tensorrt" else "",
        backend="" if source.backend == "tensorrt" else source.backend,
        default_model_filename=file if source.backend == "openvino" else "",
        max_batch_size=batch,
        input=(image,),
        output=outputs,
        instance_group=(
            InstanceGroup(
                count=wishes.instances,
                kind=Kind.GPU if source.gpu else Kind.CPU,
                # ONNX Runtime's providers take the first GPU, whichever the server means.
                gpus=(0,) if python and source.gpu and source.path.suffix == ".onnx" else (),
                profile=tuple(map(str, range(len(source.profiles))))
                if source.backend == "tensorrt"
                else (),
            ),
        ),
        dynamic_batching=_batching(source, wishes) if batch else None,
        parameters=_parameters(source, wishes, file),
        model_warmup=_warmup(source, wishes, batched=batch > 0),
    )
    copies = {f"1/{file}": source.path}
    if source.data is not None:
        copies[f"1/{source.data.name}"] = source.data
    files = {LABELS_FILE: _labels(source)} if scores else {}
    if python:
        files[f"1/{MODEL_FILE}"] = _python("EngineModel")
        if source.beside is not None:
            copies[f"1/{source.beside.name}"] = source.beside
    return Model(config, files, copies)


def _batching(source: Source, wishes: Wishes) -> DynamicBatching:
    """A batch waits until it has a preferred size: the largest, and those that a TensorRT engine
    is tuned for."""
    tuned = {profile.optimum[0] for profile in source.profiles}
    preferred = {wishes.max_batch, *(size for size in tuned if size <= wishes.max_batch)} - {1}
    return DynamicBatching(
        preferred_batch_size=tuple(sorted(preferred)),
        max_queue_delay_microseconds=round(wishes.max_delay_ms * 1000),
        default_queue_policy=QueuePolicy(
            default_timeout_microseconds=round(wishes.timeout_ms * 1000),
            allow_timeout_override=True,
            max_queue_size=wishes.queue,
        ),
    )


def _parameters(source: Source, wishes: Wishes, file: str) -> dict[str, Parameter]:
    threads = "" if wishes.threads is None else str(wishes.threads)
    values: dict[str, str]
    match source.backend:
        case "python":
            values = {"engine": file, "engine_sha256": source.sha256, "threads": threads}
            values |= {} if wishes.selftest else {"selftest": "off"}
        case "onnxruntime":
            values = {"intra_op_thread_count": threads}
        case "openvino":
            values = {
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": "1",
                "HINT_BF16": "YES" if source.bf16 else "",
                "INFERENCE_NUM_THREADS": threads,
            }
        case "tensorrt":
            values = {}
    return {key: Parameter(string_value=value) for key, value in values.items() if value}


def _warmup(source: Source, wishes: Wishes, *, batched: bool) -> tuple[Warmup, ...]:
    """Zeros: what random bytes make of a float may be NaN."""
    found = []
    for batch, *image in shapes(source, wishes):
        dims = _image_dims(source, (image[1], image[2]))
        sent = WarmupInput(
            data_type=source.image_type, dims=dims if batched else (batch, *dims), zero_data=True
        )
        found.append(
            Warmup(
                name=f"{batch}x" + "x".join(map(str, image)),
                batch_size=batch if batched else 1,
                inputs={source.metadata.input_name: sent},
            )
        )
    return tuple(found)


def _preprocess(source: Source, wishes: Wishes) -> Model:
    card = source.metadata.card.preprocessing
    height, width = (wishes.sizes or ((card.crop, card.crop),))[0]
    _, name, _, _, _ = names(wishes.name)
    image = Tensor(
        name="image", data_type=source.image_type, dims=_image_dims(source, (height, width))
    )
    config = ModelConfig(
        name=name,
        backend="python",
        max_batch_size=wishes.max_batch,
        input=(Tensor(name=IMAGE_BYTES, data_type=DataType.STRING, dims=(1,)),),
        output=(image,),
        instance_group=(InstanceGroup(count=wishes.preprocessors, kind=Kind.CPU),),
        parameters={"preprocessing": Parameter(string_value="preprocessing.json")},
    )
    return Model(
        config,
        {f"1/{MODEL_FILE}": _python("PreprocessModel"), "preprocessing.json": to_json(card)},
        {},
    )


def _rank(source: Source, wishes: Wishes, scores: Output) -> Model:
    _, _, name, _, _ = names(wishes.name)
    config = ModelConfig(
        name=name,
        backend="python",
        max_batch_size=wishes.max_batch,
        input=(Tensor(name=scores.name, data_type=source.tensor_type, dims=_dims(scores)),),
        output=_ranking(scores),
        instance_group=(InstanceGroup(count=1, kind=Kind.CPU),),
        parameters={
            "labels": Parameter(string_value=LABELS_FILE),
            "scores": Parameter(string_value=scores.kind),
        },
    )
    return Model(
        config, {f"1/{MODEL_FILE}": _python("RankModel"), LABELS_FILE: _labels(source)}, {}
    )


def _classify(source: Source, wishes: Wishes, scores: Output) -> Model:
    _, _, rank, name, _ = names(wishes.name)
    outputs = _ranking(scores)
    ranked = Step(
        model_name=rank,
        model_version=-1,
        input_map={scores.name: "answers"},
        output_map={tensor.name: tensor.name for tensor in outputs},
    )
    steps = (*_until_answered(source, wishes, {scores.name: "answers"}), ranked)
    return _ensemble(name, wishes, steps, outputs)


def _embed(source: Source, wishes: Wishes, embedding: Output) -> Model:
    *_, name = names(wishes.name)
    vector = Tensor(name=embedding.name, data_type=source.tensor_type, dims=_dims(embedding))
    steps = _until_answered(source, wishes, {embedding.name: embedding.name})
    return _ensemble(name, wishes, steps, (vector,))


def _until_answered(source: Source, wishes: Wishes, outputs: dict[str, str]) -> tuple[Step, Step]:
    """From the encoded image to those outputs of the engine; its others go nowhere."""
    engine, preprocess, *_ = names(wishes.name)
    return (
        Step(
            model_name=preprocess,
            model_version=-1,
            input_map={IMAGE_BYTES: IMAGE_BYTES},
            output_map={"image": "prepared"},
        ),
        Step(
            model_name=engine,
            model_version=-1,
            input_map={source.metadata.input_name: "prepared"},
            output_map=outputs,
        ),
    )


def _ensemble(
    name: str, wishes: Wishes, steps: tuple[Step, ...], outputs: tuple[Tensor, ...]
) -> Model:
    config = ModelConfig(
        name=name,
        platform="ensemble",
        max_batch_size=wishes.max_batch,
        input=(Tensor(name=IMAGE_BYTES, data_type=DataType.STRING, dims=(1,)),),
        output=outputs,
        ensemble_scheduling=EnsembleScheduling(step=steps),
    )
    # A version of an ensemble is a folder with nothing of its own in it.
    return Model(config, {"1/.keep": ""}, {})


def _ranking(scores: Output) -> tuple[Tensor, ...]:
    """The scores pass through: an ensemble's output that one of its steps reads must be asked for
    in every request, or it fails ("unexpected deadlock", triton-inference-server/server#7482). They
    become float32, since half precision does not go into an answer as JSON."""
    top = min(TOP, scores.channels)
    return (
        Tensor(name="label", data_type=DataType.STRING, dims=(top,)),
        Tensor(name="probability", data_type=DataType.FP32, dims=(top,)),
        Tensor(name="index", data_type=DataType.INT32, dims=(top,)),
        Tensor(name=scores.name, data_type=DataType.FP32, dims=_dims(scores)),
    )


def _dims(output: Output) -> tuple[int, ...]:
    """Without the batch."""
    return (output.channels, *((-1, -1) if output.stride else ()))


def _image_dims(source: Source, size: tuple[int, int]) -> tuple[int, ...]:
    """Of the input, without the batch. size: (height, width), -1 for any."""
    return layout_of(source.metadata.input_kind).shape((1, 3, *size))[1:]


def _labels(source: Source) -> str:
    for label in source.metadata.labels:
        if "\n" in label or "\r" in label:
            raise InputError(f"the label {label!r} has a line break; Triton reads one a line")
    return "".join(f"{label}\n" for label in source.metadata.labels)


def _python(model: str) -> str:
    """The file that Triton's Python backend loads; the code is in the package, where it is
    tested."""
    return (
        '"""Loaded by Triton\'s Python backend; needs rest-deploy in its environment."""\n\n'
        f"from rest_deploy.serve.triton_python import {model} as TritonPythonModel\n\n"
        '__all__ = ["TritonPythonModel"]\n'
    )
