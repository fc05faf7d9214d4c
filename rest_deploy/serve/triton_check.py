"""What Triton would refuse, or trip over, in a model repository: checked without the server.

The rules are the server's (triton-inference-server/core, model_config_utils.cc, and its backends);
those marked "hangs" cost more there than an error: a Python model without its model.py kept
tritonserver 2.51 waiting for ever.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from rest_deploy.serve.triton_config import DataType, Kind, ModelConfig, Tensor

CONFIG_FILE = "config.pbtxt"

KINDS = {"tensorrt": (Kind.GPU,), "openvino": (Kind.CPU,)}
"""Where a backend runs; others run on both."""

FILES = {
    "tensorrt": "model.plan",
    "onnxruntime": "model.onnx",
    "openvino": "model.xml",
    "python": "model.py",
}
"""Name a backend looks for in a version's folder, unless default_model_filename says another."""

PLATFORMS = {
    "tensorrt_plan": "tensorrt",
    "onnxruntime_onnx": "onnxruntime",
    "pytorch_libtorch": "pytorch",
    "tensorflow_graphdef": "tensorflow",
    "tensorflow_savedmodel": "tensorflow",
    "ensemble": "ensemble",
}
"""The older way to name a backend; of TensorRT still the usual one."""


def problems(root: Path, configs: Mapping[str, ModelConfig]) -> list[str]:
    """configs: by the name of their folder in the repository `root`. One line a problem, each
    begins with the model's name."""
    found = []
    for folder, config in configs.items():
        for check in CHECKS:
            found += [f"{folder}: {line}" for line in check(root / folder, config)]
        if config.ensemble_scheduling is not None:
            found += [f"{folder}: {line}" for line in _ensemble(config, configs)]
    return found


def backend_of(config: ModelConfig) -> str:
    """ "tensorrt", "onnxruntime", "openvino", "python" or "ensemble"; "" when nothing says it."""
    return config.backend or PLATFORMS.get(config.platform, "")


def needs_gpu(config: ModelConfig) -> bool:
    return any(group.kind is Kind.GPU for group in config.instance_group)


def _names(folder: Path, config: ModelConfig) -> Iterator[str]:
    if config.name != folder.name:
        yield f"the name is {config.name!r}; expected the folder's"
    if config.platform and config.platform not in PLATFORMS:
        yield f"unknown platform {config.platform!r}; known are {', '.join(PLATFORMS)}"
    elif not backend_of(config):
        yield "neither a backend nor a platform is named"
    elif config.backend and PLATFORMS.get(config.platform, config.backend) != config.backend:
        yield f"platform {config.platform!r} and backend {config.backend!r} contradict each other"
    if (config.platform == "ensemble") != (config.ensemble_scheduling is not None):
        yield "the platform ensemble and ensemble_scheduling go together"


def _tensors(_: Path, config: ModelConfig) -> Iterator[str]:
    for what, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            yield f"there is no {what}"
        names = [tensor.name for tensor in tensors]
        if len(set(names)) < len(names):
            yield f"two {what}s have the same name: {', '.join(sorted(names))}"
        for tensor in tensors:
            if tensor.data_type is DataType.INVALID:
                yield f"{what} {tensor.name!r} has no data_type"
            if not tensor.dims or any(size == 0 or size < -1 for size in tensor.dims):
                yield f"{what} {tensor.name!r} has dims {list(tensor.dims)}; expected sizes or -1"
    if config.max_batch_size < 0:
        yield f"max_batch_size is {config.max_batch_size}; expected 0 or more"


def _files(folder: Path, config: ModelConfig) -> Iterator[str]:
    backend = backend_of(config)
    versions = _versions(folder)
    if not versions:
        yield "no version folder, named by a number (1), is in it"
    file = config.default_model_filename or FILES.get(backend, "")
    for version in versions:
        if file and not (version / file).is_file():
            hangs = "; the server hangs on that" if backend == "python" else ""
            yield f"{version.name}/{file} is missing{hangs}"
        engine = config.parameter("engine")
        if backend == "python" and engine and not (version / engine).is_file():
            yield f"{version.name}/{engine}, which the parameter engine names, is missing"
    for key in ("preprocessing", "labels"):
        named = config.parameter(key)
        if backend == "python" and named and not (folder / named).is_file():
            yield f"{named}, which the parameter {key} names, is missing"


def _labels(folder: Path, config: ModelConfig) -> Iterator[str]:
    for tensor in config.output:
        if not tensor.label_filename:
            continue
        path = folder / tensor.label_filename
        if not path.is_file():
            yield f"{tensor.label_filename}, the labels of {tensor.name!r}, is missing"
            continue
        count = len(path.read_text(encoding="utf-8").removesuffix("\n").split("\n"))
        if tensor.dims and tensor.dims[-1] != count:
            yield (
                f"{tensor.label_filename} has {count} labels, {tensor.name!r} {tensor.dims[-1]} "
                "classes"
            )


def _batching(_: Path, config: ModelConfig) -> Iterator[str]:
    batching = config.dynamic_batching
    if batching is None:
        return
    if config.max_batch_size == 0:
        yield "dynamic_batching needs a max_batch_size of 1 or more"
    for size in batching.preferred_batch_size:
        if not 0 < size <= config.max_batch_size:
            yield (
                f"preferred_batch_size {size} is not within 1 and max_batch_size "
                f"{config.max_batch_size}"
            )


def _instances(_: Path, config: ModelConfig) -> Iterator[str]:
    allowed = KINDS.get(backend_of(config))
    for group in config.instance_group:
        if group.count < 1:
            yield f"an instance group has the count {group.count}; expected 1 or more"
        if allowed and group.kind not in (*allowed, Kind.AUTO):
            yield f"{backend_of(config)} does not run on {group.kind}; expected {allowed[0]}"
        if group.gpus and group.kind is Kind.CPU:
            yield f"an instance group of KIND_CPU names GPUs: {list(group.gpus)}"
        if group.profile and backend_of(config) != "tensorrt":
            yield "an instance group names optimization profiles, which only TensorRT has"


def _warmup(folder: Path, config: ModelConfig) -> Iterator[str]:
    inputs = {tensor.name: tensor for tensor in config.input}
    for sample in config.model_warmup:
        if sample.batch_size > max(config.max_batch_size, 1):
            yield (
                f"warm-up {sample.name!r} has the batch_size {sample.batch_size}; expected at most "
                f"{max(config.max_batch_size, 1)}"
            )
        if sample.batch_size < 1:
            yield f"warm-up {sample.name!r} has no batch_size; the server would run nothing"
        if missing := sorted(set(inputs) - set(sample.inputs)):
            yield f"warm-up {sample.name!r} lacks the input {', '.join(missing)}"
        for name, sent in sample.inputs.items():
            tensor = inputs.get(name)
            if tensor is None:
                yield f"warm-up {sample.name!r} has the input {name!r}, which the model has not"
            elif sent.data_type is not tensor.data_type or not _fit(sent.dims, tensor.dims):
                yield (
                    f"warm-up {sample.name!r} sends {sent.data_type} {list(sent.dims)} to {name!r};"
                    f" expected {tensor.data_type} {list(tensor.dims)}"
                )
            elif min(sent.dims) < 1:
                yield f"warm-up {sample.name!r} has dims {list(sent.dims)}; expected true sizes"
            file = sent.input_data_file
            if file and not (folder / "warmup" / file).is_file():
                yield f"warmup/{file}, which warm-up {sample.name!r} sends, is missing"


CHECKS: tuple[Callable[[Path, ModelConfig], Iterator[str]], ...] = (
    *(_names, _tensors, _files, _labels, _batching, _instances, _warmup),
)


def _ensemble(config: ModelConfig, configs: Mapping[str, ModelConfig]) -> Iterator[str]:
    """Whether every step's tensors come from somewhere, fit, and arrive."""
    for field, set_ in (
        ("instance_group", config.instance_group),
        ("dynamic_batching", config.dynamic_batching),
        ("model_warmup", config.model_warmup),
    ):
        if set_:
            yield f"an ensemble has no {field}"
    assert config.ensemble_scheduling is not None
    if not config.ensemble_scheduling.step:
        yield "an ensemble has at least one step"
    steps = [
        (step, configs[step.model_name])
        for step in config.ensemble_scheduling.step
        if step.model_name in configs
    ]
    for step in config.ensemble_scheduling.step:
        if step.model_name not in configs:
            yield f"step {step.model_name!r} is no model of the repository"
    known = {tensor.name: tensor for tensor in config.input}
    for step, model in steps:  # whatever their order: the server goes by the tensors
        yield from _mapped(step.model_name, "output", step.output_map, model.output)
        outputs = {tensor.name: tensor for tensor in model.output}
        for name, mapped in step.output_map.items():
            if mapped in known:
                yield f"step {step.model_name!r} writes {mapped!r}, which is written already"
            elif name in outputs:
                known[mapped] = outputs[name]
    used: set[str] = set()
    for step, model in steps:
        if config.max_batch_size > model.max_batch_size:
            yield (
                f"its max_batch_size {config.max_batch_size} is more than that of step "
                f"{step.model_name!r}, {model.max_batch_size}"
            )
        yield from _mapped(step.model_name, "input", step.input_map, model.input)
        inputs = {tensor.name: tensor for tensor in model.input}
        for name, mapped in step.input_map.items():
            used.add(mapped)
            if mapped not in known:
                yield f"step {step.model_name!r} reads {mapped!r}, which nothing writes"
            elif name in inputs and not _same(known[mapped], inputs[name]):
                yield (
                    f"{mapped!r} is {_words(known[mapped])}, step {step.model_name!r} takes "
                    f"{_words(inputs[name])}"
                )
    for tensor in config.input:
        if tensor.name not in used:
            yield f"no step reads the input {tensor.name!r}"
    for tensor in config.output:
        if tensor.name not in known:
            yield f"no step writes the output {tensor.name!r}"
        elif tensor.name in used:
            yield (
                f"the output {tensor.name!r} is read by a step: requests that do not ask for it "
                "fail with 'unexpected deadlock'"
            )
        elif not _same(known[tensor.name], tensor):
            yield (
                f"the output {tensor.name!r} is {_words(tensor)}, the step that writes it gives "
                f"{_words(known[tensor.name])}"
            )


def _mapped(
    step: str, what: str, maps: Mapping[str, str], tensors: tuple[Tensor, ...]
) -> Iterator[str]:
    names = {tensor.name for tensor in tensors}
    if unknown := sorted(set(maps) - names):
        yield f"step {step!r} has no {what} {', '.join(unknown)}"
    if what == "input" and (missing := sorted(names - set(maps))):
        yield f"nothing goes into {', '.join(missing)} of step {step!r}"


def _same(one: Tensor, other: Tensor) -> bool:
    return one.data_type is other.data_type and _fit(one.dims, other.dims)


def _fit(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """-1 fits every size."""
    return len(one) == len(other) and all(
        left == right or -1 in (left, right) for left, right in zip(one, other, strict=True)
    )


def _words(tensor: Tensor) -> str:
    return f"{tensor.data_type} {list(tensor.dims)}"


def _versions(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob("*") if p.is_dir() and p.name.isdigit())
