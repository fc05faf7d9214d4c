"""config.pbtxt as values: the part of Triton's ModelConfig that is written or checked here.

Fields have the names of the protobuf message (triton-inference-server/common, model_config.proto),
so that a file read by protobuf converts to these values and back. `render` writes protobuf's text
format.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec


class DataType(StrEnum):
    """Of a tensor."""

    INVALID = "TYPE_INVALID"
    BOOL = "TYPE_BOOL"
    UINT8 = "TYPE_UINT8"
    UINT16 = "TYPE_UINT16"
    UINT32 = "TYPE_UINT32"
    UINT64 = "TYPE_UINT64"
    INT8 = "TYPE_INT8"
    INT16 = "TYPE_INT16"
    INT32 = "TYPE_INT32"
    INT64 = "TYPE_INT64"
    FP16 = "TYPE_FP16"
    FP32 = "TYPE_FP32"
    FP64 = "TYPE_FP64"
    STRING = "TYPE_STRING"
    BF16 = "TYPE_BF16"


class Kind(StrEnum):
    """Where an instance runs."""

    AUTO = "KIND_AUTO"
    GPU = "KIND_GPU"
    CPU = "KIND_CPU"
    MODEL = "KIND_MODEL"


class TimeoutAction(StrEnum):
    REJECT = "REJECT"
    DELAY = "DELAY"


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """Base. Defaults are the protobuf's. Fields of a file that are not here are left out when it is
    read, not refused."""


class Tensor(Message, frozen=True):
    """An input or output. dims: without the batch where max_batch_size > 0; -1 is any size."""

    name: str = ""
    data_type: DataType = DataType.INVALID
    dims: tuple[int, ...] = ()
    label_filename: str = ""


class InstanceGroup(Message, frozen=True):
    """profile: indices of a TensorRT engine's optimization profiles."""

    count: int = 0
    kind: Kind = Kind.AUTO
    gpus: tuple[int, ...] = ()
    profile: tuple[str, ...] = ()


class QueuePolicy(Message, frozen=True):
    """0 means without a limit, for both the time and the size."""

    timeout_action: TimeoutAction = TimeoutAction.REJECT
    default_timeout_microseconds: int = 0
    allow_timeout_override: bool = False
    max_queue_size: int = 0


class DynamicBatching(Message, frozen=True):
    preferred_batch_size: tuple[int, ...] = ()
    max_queue_delay_microseconds: int = 0
    default_queue_policy: QueuePolicy | None = None


class Parameter(Message, frozen=True):
    string_value: str = ""


class WarmupInput(Message, frozen=True):
    """One of the last three says what is sent."""

    data_type: DataType = DataType.INVALID
    dims: tuple[int, ...] = ()
    zero_data: bool = False
    random_data: bool = False
    input_data_file: str = ""


class Warmup(Message, frozen=True):
    """`batch_size` requests of one image each, executed together when the model is loaded."""

    name: str = ""
    batch_size: int = 0
    inputs: dict[str, WarmupInput] = {}


class Step(Message, frozen=True):
    """Maps: the step's tensor -> the ensemble's. model_version: -1 for the newest."""

    model_name: str = ""
    model_version: int = 0
    input_map: dict[str, str] = {}
    output_map: dict[str, str] = {}


class EnsembleScheduling(Message, frozen=True):
    step: tuple[Step, ...] = ()


class ModelConfig(Message, frozen=True):
    name: str = ""
    platform: str = ""
    backend: str = ""
    default_model_filename: str = ""
    max_batch_size: int = 0
    input: tuple[Tensor, ...] = ()
    output: tuple[Tensor, ...] = ()
    instance_group: tuple[InstanceGroup, ...] = ()
    dynamic_batching: DynamicBatching | None = None
    ensemble_scheduling: EnsembleScheduling | None = None
    parameters: dict[str, Parameter] = {}
    model_warmup: tuple[Warmup, ...] = ()

    def parameter(self, key: str) -> str:
        """Its value, "" where it is not set."""
        return self.parameters[key].string_value if key in self.parameters else ""


def render(config: ModelConfig, comment: str) -> str:
    """As protobuf's text format. comment: lines for the head of the file."""
    head = [f"# {line}".rstrip() for line in comment.splitlines()]
    return "\n".join([*head, *_fields(config, 0)]) + "\n"


def _fields(message: Message, depth: int) -> list[str]:
    """Lines of all fields that differ from their default."""
    lines = []
    for field in msgspec.structs.fields(message):
        value = getattr(message, field.name)
        default = (
            field.default_factory()
            if field.default_factory is not msgspec.NODEFAULT
            else field.default
        )
        if value != default:
            lines += _field(field.name, value, depth)
    return lines


def _field(name: str, value: Any, depth: int) -> list[str]:
    indent = "  " * depth
    if isinstance(value, dict):
        return [
            line
            for key, item in value.items()
            for line in _block(name, [*_field("key", key, depth + 1),
                                      *_field("value", item, depth + 1)], depth)
        ]  # fmt: skip
    if isinstance(value, Message):
        return _block(name, _fields(value, depth + 1), depth)
    if isinstance(value, tuple) and value and isinstance(value[0], Message):
        return [line for item in value for line in _field(name, item, depth)]
    if isinstance(value, tuple):
        return [f"{indent}{name}: [ {', '.join(map(_scalar, value))} ]"]
    return [f"{indent}{name}: {_scalar(value)}"]


def _block(name: str, lines: list[str], depth: int) -> list[str]:
    indent = "  " * depth
    return [f"{indent}{name} {{", *lines, f"{indent}}}"]


def _scalar(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, int):
        return str(value)
    return f'"{_escaped(value)}"'


def _escaped(text: str) -> str:
    """Bytes beyond printable ASCII as octal, which every version of the format reads."""
    plain = set(range(0x20, 0x7F)) - {ord('"'), ord("\\")}
    return "".join(chr(byte) if byte in plain else f"\\{byte:03o}" for byte in text.encode())
