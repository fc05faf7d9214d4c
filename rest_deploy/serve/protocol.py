"""The Open Inference Protocol, version 2: bytes -> request, answer -> bytes. Pure functions.

JSON, and the binary tensor extension that KServe and Triton share: after a JSON header of
`Inference-Header-Content-Length` bytes come the raw little-endian tensors, in the order in which
the header names those with a `binary_data_size`. Also Triton's classification extension.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from rest_deploy.serve.accepts import DATATYPE, Accepts, ProtocolError, check_shape
from rest_deploy.signature import SCORES

Float32 = npt.NDArray[np.float32]
Images = npt.NDArray[np.generic]
Body = bytes | bytearray | memoryview
Parameter = bool | int | float | str

EXTENSIONS = ("binary_tensor_data", "classification", "model_repository")
_UNSUPPORTED = {
    "shared_memory_region": "shared memory is not supported; send the tensor in the body",
    "sequence_id": "sequences are not supported: every image stands for itself",
}


class RequestedInput(msgspec.Struct):
    """One tensor: its values follow in `data`, nested or flat in row-major order, or in the binary
    part of the body (`parameters.binary_data_size`)."""

    name: str
    shape: list[int]
    datatype: str
    parameters: dict[str, Parameter] = {}
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class RequestedOutput(msgspec.Struct):
    """parameters: binary_data (bool), classification (int, of logits and probabilities: so many
    classes as text)."""

    name: str
    parameters: dict[str, Parameter] = {}


class InferenceRequest(msgspec.Struct):
    """outputs: in the order they are wanted; none: all. parameters: binary_data_output (bool),
    timeout (microseconds)."""

    inputs: list[RequestedInput]
    id: str = ""
    parameters: dict[str, Parameter] = {}
    outputs: list[RequestedOutput] = []


class AnsweredOutput(msgspec.Struct, omit_defaults=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Parameter] = {}
    data: list[Any] | None = None


class InferenceResponse(msgspec.Struct):
    model_name: str
    model_version: str
    id: str
    parameters: dict[str, Parameter]
    outputs: list[AnsweredOutput]


class TensorMetadata(msgspec.Struct):
    """shape: -1 for an axis of any length."""

    name: str
    datatype: str
    shape: list[int]


class ModelMetadataResponse(msgspec.Struct):
    name: str
    versions: list[str]
    platform: str
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]
    parameters: dict[str, Parameter]


class ServerMetadataResponse(msgspec.Struct):
    name: str
    version: str
    extensions: list[str]


class ErrorResponse(msgspec.Struct):
    """What arrived, what was expected; how to mend it."""

    error: str


@dataclass(frozen=True)
class WantedOutput:
    """classes: 0 for the values, else so many classes as text."""

    name: str
    binary: bool
    classes: int


@dataclass(frozen=True)
class Inference:
    """images: (N, 3, H, W) float32, all finite, or (N, H, W, 3) uint8, as the model takes them.
    outputs: in the order asked for. timeout_s: None for the server's."""

    id: str
    images: Images
    outputs: tuple[WantedOutput, ...]
    timeout_s: float | None


_decoder = msgspec.json.Decoder(InferenceRequest)
Pixel = Annotated[int, msgspec.Meta(ge=0, le=255)]
_numbers: dict[str, tuple[msgspec.json.Decoder[Any], msgspec.json.Decoder[Any]]] = {
    DATATYPE: (msgspec.json.Decoder(list[float]),
               msgspec.json.Decoder(list[list[list[list[float]]]])),
    "UINT8": (msgspec.json.Decoder(list[Pixel]),
              msgspec.json.Decoder(list[list[list[list[Pixel]]]])),
}  # fmt: skip
"""Of an input's `data`, flat and nested, by its datatype."""
_dtypes: dict[str, str] = {DATATYPE: "<f4", "UINT8": "u1"}
_encoder = msgspec.json.Encoder()


def parse(body: Body, header_length: int | None, accepts: Accepts) -> Inference:
    """A request for the images of one inference. header_length: of the JSON; None: all of it.

    Raises `ProtocolError` that says what arrived and what was expected.
    """
    if header_length is not None and not 0 <= header_length <= len(body):
        raise ProtocolError(
            f"Inference-Header-Content-Length is {header_length}, the body has {len(body)} bytes"
        )
    end = len(body) if header_length is None else header_length
    try:
        request = _decoder.decode(memoryview(body)[:end])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"the request is not a JSON inference request: {error}") from error
    _refuse_unsupported(request.parameters)
    if len(request.inputs) != 1 or request.inputs[0].name != accepts.input_name:
        names = ", ".join(repr(one.name[:40]) for one in request.inputs[:5]) or "none"
        raise ProtocolError(f"got the inputs {names}; expected one, {accepts.input_name!r}")
    images = _tensor(request.inputs[0], memoryview(body)[end:], accepts)
    return Inference(
        id=request.id,
        images=images,
        outputs=_outputs(request, accepts),
        timeout_s=_timeout(request.parameters),
    )


def respond(
    asked: Inference,
    answers: Mapping[str, Float32],
    accepts: Accepts,
    parameters: dict[str, Parameter],
) -> tuple[bytes, int | None]:
    """answers: by output name, (N, channels) or (N, channels, height, width). The body, and the
    length of its JSON where tensors follow it."""
    outputs, tails = [], []
    for wanted in asked.outputs:
        values = answers[wanted.name]
        if wanted.classes:
            shape = [len(values), min(wanted.classes, values.shape[1])]
            texts = classification(values, accepts.labels, shape[1])
            output = AnsweredOutput(name=wanted.name, datatype="BYTES", shape=shape, data=texts)
            encoded = (text.encode() for text in texts)
            tail = b"".join(struct.pack("<I", len(data)) + data for data in encoded)
        else:
            shape = list(values.shape)
            output = AnsweredOutput(name=wanted.name, datatype=DATATYPE, shape=shape)
            output.data = None if wanted.binary else values.ravel().tolist()
            tail = values.astype("<f4", copy=False).tobytes() if wanted.binary else b""
        if wanted.binary:
            output.data = None
            output.parameters = {"binary_data_size": len(tail)}
            tails.append(tail)
        outputs.append(output)
    header = _encoder.encode(
        InferenceResponse(
            model_name=accepts.name,
            model_version=accepts.version,
            id=asked.id,
            parameters=parameters,
            outputs=outputs,
        )
    )
    any_binary = any(wanted.binary for wanted in asked.outputs)
    return b"".join((header, *tails)), len(header) if any_binary else None


def classification(scores: Float32, labels: Sequence[str], count: int) -> list[str]:
    """The `count` highest values of each row as "value:index:label", as Triton writes them."""
    found = []
    for row in scores:
        for index in np.argsort(-row, kind="stable")[:count].tolist():
            label = f":{labels[index]}" if labels else ""
            found.append(f"{row[index]:f}:{index}{label}")
    return found


def finite(values: Float32) -> bool:
    """Whether no value is NaN or infinite. The sum tells in one pass, unless it overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.add.reduce(values, axis=None))
    return math.isfinite(total) or bool(np.isfinite(values).all())


def _tensor(tensor: RequestedInput, binary: memoryview, accepts: Accepts) -> Images:
    _refuse_unsupported(tensor.parameters)
    datatype = accepts.datatype
    if tensor.datatype != datatype:
        raise ProtocolError(f"got the datatype {tensor.datatype[:20]!r}; expected {datatype!r}")
    check_shape(tensor.shape, accepts)
    dtype = np.dtype(_dtypes[datatype])
    expected = math.prod(tensor.shape) * dtype.itemsize
    inline = b"" if tensor.data is msgspec.UNSET else bytes(tensor.data)
    size = tensor.parameters.get("binary_data_size")
    if size is None:
        if len(binary):
            raise ProtocolError(
                f"{len(binary)} bytes follow the JSON, and no input has a binary_data_size"
            )
        if not inline:
            raise ProtocolError("the input has neither data nor a binary_data_size")
        values = _from_json(inline, tensor.shape, datatype)
    else:
        if inline:
            raise ProtocolError("the input has both data and a binary_data_size; expected one")
        if isinstance(size, bool) or not isinstance(size, int) or size != expected:
            raise ProtocolError(
                f"binary_data_size is {str(size)[:40]}; {tensor.shape} of {datatype} has "
                f"{expected} bytes"
            )
        if len(binary) != size:
            raise ProtocolError(
                f"{len(binary)} bytes follow the JSON; binary_data_size says {size}"
            )
        values = np.frombuffer(binary, dtype).reshape(tensor.shape)
    if datatype != DATATYPE:
        return values
    # The binary part may begin anywhere; engines read floats from addresses that are aligned.
    images: Float32 = np.require(values, np.float32, ["C", "A"])
    if not finite(images):
        raise ProtocolError("the input has values that are NaN or infinite; expected finite ones")
    return images


def _from_json(text: bytes, shape: list[int], datatype: str) -> Images:
    """Nested as the shape, or flat."""
    nested = text.lstrip()[1:].lstrip().startswith(b"[")
    decoder = _numbers[datatype][nested]
    try:
        with np.errstate(over="ignore"):
            values: Images = np.array(decoder.decode(text), _dtypes[datatype])
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise ProtocolError(f"data is not numbers of {shape}: {error}") from error
    except ValueError as error:  # rows of different length
        raise ProtocolError(f"data does not have the shape {shape}: its rows differ") from error
    if (list(values.shape) != shape) if nested else (values.size != math.prod(shape)):
        got = list(values.shape) if nested else f"{values.size} values"
        raise ProtocolError(f"data has {got}; the shape says {shape}")
    return values.reshape(shape)


def _outputs(request: InferenceRequest, accepts: Accepts) -> tuple[WantedOutput, ...]:
    """Those named, in their order; all, in the engine's, where none is."""
    by_default = _flag(request.parameters, "binary_data_output")
    asked = request.outputs or [RequestedOutput(output.name) for output in accepts.outputs]
    counted = Counter(one.name for one in asked)
    odd = [name for name, count in counted.items() if accepts.find(name) is None or count > 1]
    if odd:
        shown = ", ".join(repr(name[:40]) for name in odd[:5])
        raise ProtocolError(f"got the outputs {shown}; expected each once of {accepts.gives}")
    return tuple(_wanted(one, accepts, by_default) for one in asked)


def _wanted(asked: RequestedOutput, accepts: Accepts, binary: bool) -> WantedOutput:
    _refuse_unsupported(asked.parameters)
    classes = asked.parameters.get("classification", 0)
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 0:
        raise ProtocolError(f"classification is {str(classes)[:40]!r}; expected a whole number")
    output = accepts.find(asked.name)
    if classes and (output is None or output.kind not in SCORES):
        raise ProtocolError(f"{asked.name!r} has no classes; classification is of logits")
    return WantedOutput(asked.name, _flag(asked.parameters, "binary_data", default=binary), classes)


def _flag(parameters: dict[str, Parameter], name: str, *, default: bool = False) -> bool:
    value = parameters.get(name, default)
    if not isinstance(value, bool):
        raise ProtocolError(f"{name} is {str(value)[:40]!r}; expected true or false")
    return value


def _timeout(parameters: dict[str, Parameter]) -> float | None:
    """Microseconds, as Triton's clients send them; 0 is none."""
    value = parameters.get("timeout", 0)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ProtocolError(f"timeout is {str(value)[:40]!r}; expected microseconds")
    return value / 1e6 if value else None


def _refuse_unsupported(parameters: dict[str, Parameter]) -> None:
    for name, why in _UNSUPPORTED.items():
        if parameters.get(name):
            raise ProtocolError(why)
