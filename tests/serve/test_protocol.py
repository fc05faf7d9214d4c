"""Requests and answers of the Open Inference Protocol, byte for byte, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy.serve import protocol
from rest_deploy.serve.accepts import Accepts, ProtocolError, shape_of
from rest_deploy.serve.protocol import Inference, WantedOutput
from rest_deploy.signature import Output

Float32 = npt.NDArray[np.float32]

ACCEPTS = Accepts(
    name="nano", version="1", input_name="image",
    outputs=(Output(name="logits", kind="logits", channels=3),), labels=("cat", "dog", "a:b"),
    max_side=64,
)  # fmt: skip
SEVERAL = Accepts(
    name="nano", version="1", input_name="image", labels=("cat", "dog", "a:b"), max_side=64,
    input_kind="uint8",
    outputs=(
        Output(name="probabilities", kind="probabilities", channels=3),
        Output(name="embedding", kind="embedding", channels=2, unit_length=True),
        Output(name="c2", kind="features", channels=4, stride=4),
    ),
)  # fmt: skip
PIXELS = np.random.default_rng(1).integers(0, 256, (2, 32, 33, 3), dtype=np.uint8)
SHAPE = (2, 3, 32, 33)
IMAGES = np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)
LOGITS = np.array([[0.5, 2.0, -1.0], [3.0, 3.0, 4.0]], np.float32)


def binary(images: Float32 = IMAGES, **changes: Any) -> tuple[bytes, int]:
    """A request with a binary tensor; changes: of the one input."""
    tensor: dict[str, Any] = {
        "name": "image", "datatype": "FP32", "shape": list(images.shape),
        "parameters": {"binary_data_size": images.nbytes}, **changes,
    }  # fmt: skip
    header = json.dumps({"inputs": [tensor]}).encode()
    return header + images.tobytes(), len(header)


def inline(data: Any, **changes: Any) -> bytes:
    """A request with values in JSON; changes: of the request."""
    tensor = {"name": "image", "datatype": "FP32", "shape": list(SHAPE), "data": data}
    return json.dumps({"inputs": [tensor], **changes}).encode()


def asking(**wishes: Any) -> dict[str, Any]:
    return {"name": "logits", "parameters": wishes}


def test_binary_tensor() -> None:
    found = protocol.parse(*binary(), ACCEPTS)
    np.testing.assert_array_equal(found.images, IMAGES)
    assert found == Inference("", found.images, (WantedOutput("logits", False, 0),), None)


@pytest.mark.parametrize("padding", range(4))
def test_binary_tensor_at_any_address_comes_aligned(padding: int) -> None:
    tail, length = IMAGES.tobytes(), 0
    body, length = binary()
    header = body[:length] + b" " * padding
    found = protocol.parse(bytearray(header + tail), len(header), ACCEPTS)
    assert found.images.flags.aligned
    np.testing.assert_array_equal(found.images, IMAGES)


@pytest.mark.parametrize("flat", [True, False])
def test_json_tensor(flat: bool) -> None:
    data = (IMAGES.ravel() if flat else IMAGES).tolist()
    found = protocol.parse(inline(data), None, ACCEPTS)
    np.testing.assert_array_equal(found.images, IMAGES)


def test_whole_numbers_are_numbers() -> None:
    found = protocol.parse(inline([7] * IMAGES.size), None, ACCEPTS)
    assert (found.images == 7).all()


def test_id_timeout_and_unknown_fields() -> None:
    body = inline([0] * IMAGES.size, id="abc", parameters={"timeout": 1500, "mine": "x"}, more=[1])
    found = protocol.parse(body, None, ACCEPTS)
    assert (found.id, found.timeout_s) == ("abc", 0.0015)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, (False, 0)),
        ({"parameters": {"binary_data_output": True}}, (True, 0)),
        ({"outputs": [asking()], "parameters": {"binary_data_output": True}}, (True, 0)),
        ({"outputs": [asking(binary_data=True)]}, (True, 0)),
        (
            {
                "outputs": [asking(binary_data=False)],
                "parameters": {"binary_data_output": True},
            },
            (False, 0),
        ),
        ({"outputs": [asking(classification=2)]}, (False, 2)),
        ({"outputs": [asking(classification=2, binary_data=True)]}, (True, 2)),
    ],
)
def test_outputs(changes: dict[str, Any], expected: tuple[bool, int]) -> None:
    (found,) = protocol.parse(inline([0] * IMAGES.size, **changes), None, ACCEPTS).outputs
    assert (found.binary, found.classes) == expected


def answer(output: WantedOutput) -> tuple[dict[str, Any], bytes]:
    asked = Inference("abc", IMAGES, (output,), None)
    body, length = protocol.respond(asked, {"logits": LOGITS}, ACCEPTS, {"batch": 8})
    assert (length is not None) == output.binary
    head = body if length is None else body[:length]
    return json.loads(head), b"" if length is None else body[length:]


def test_answer_in_json() -> None:
    found, tail = answer(WantedOutput("logits", False, 0))
    assert tail == b""
    assert found == {
        "model_name": "nano", "model_version": "1", "id": "abc", "parameters": {"batch": 8},
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [2, 3],
                     "data": [0.5, 2.0, -1.0, 3.0, 3.0, 4.0]}],
    }  # fmt: skip


def test_answer_in_binary() -> None:
    found, tail = answer(WantedOutput("logits", True, 0))
    assert found["outputs"] == [
        {"name": "logits", "datatype": "FP32", "shape": [2, 3],
         "parameters": {"binary_data_size": 24}}
    ]  # fmt: skip
    np.testing.assert_array_equal(np.frombuffer(tail, "<f4").reshape(2, 3), LOGITS)


def test_classification() -> None:
    found, _ = answer(WantedOutput("logits", False, 2))
    assert found["outputs"][0]["shape"] == [2, 2]
    assert found["outputs"][0]["datatype"] == "BYTES"
    assert found["outputs"][0]["data"] == [
        *("2.000000:1:dog", "0.500000:0:cat", "4.000000:2:a:b", "3.000000:0:cat"),
    ]
    found, tail = answer(WantedOutput("logits", True, 99))
    assert found["outputs"][0]["shape"] == [2, 3]
    assert found["outputs"][0]["parameters"] == {"binary_data_size": len(tail)}
    assert tail.startswith(b"\x0e\x00\x00\x002.000000:1:dog\x0e\x00\x00\x000.500000:0:cat")
    assert protocol.classification(LOGITS[:1], (), 1) == ["2.000000:1"]


# --- several outputs, pixels ---------------------------------------------------------------------


def of_pixels(pixels: Any = PIXELS, **changes: Any) -> tuple[bytes, int]:
    tensor: dict[str, Any] = {
        "name": "image", "datatype": "UINT8", "shape": list(pixels.shape),
        "parameters": {"binary_data_size": pixels.nbytes},
    }  # fmt: skip
    header = json.dumps({"inputs": [{**tensor, **changes.pop("input", {})}], **changes}).encode()
    return header + pixels.tobytes(), len(header)


def test_pixels_in_binary_and_in_json() -> None:
    found = protocol.parse(*of_pixels(), SEVERAL)
    assert found.images.dtype == np.uint8
    np.testing.assert_array_equal(found.images, PIXELS)
    for data in (PIXELS.tolist(), PIXELS.ravel().tolist()):
        tensor = {"name": "image", "datatype": "UINT8", "shape": list(PIXELS.shape), "data": data}
        found = protocol.parse(json.dumps({"inputs": [tensor]}).encode(), None, SEVERAL)
        np.testing.assert_array_equal(found.images, PIXELS)


def test_all_outputs_by_default_and_those_asked_for_in_their_order() -> None:
    found = protocol.parse(*of_pixels(), SEVERAL)
    assert [one.name for one in found.outputs] == ["probabilities", "embedding", "c2"]
    outputs = [
        {"name": "c2", "parameters": {"binary_data": False}},
        {"name": "probabilities", "parameters": {"classification": 2}},
    ]
    parameters = {"binary_data_output": True}
    found = protocol.parse(*of_pixels(outputs=outputs, parameters=parameters), SEVERAL)
    assert found.outputs == (
        WantedOutput("c2", False, 0),
        WantedOutput("probabilities", True, 2),
    )


def test_several_answers() -> None:
    answers = {
        "probabilities": np.array([[0.25, 0.5, 0.25]], np.float32),
        "embedding": np.array([[0.6, -0.8]], np.float32),
        "c2": np.arange(4, dtype=np.float32).reshape(1, 1, 2, 2),
    }
    wanted = (
        WantedOutput("c2", True, 0),
        WantedOutput("probabilities", False, 0),
        WantedOutput("embedding", True, 0),
    )
    asked = Inference("", PIXELS, wanted, None)
    body, length = protocol.respond(asked, answers, SEVERAL, {})
    assert length is not None
    c2, probabilities, embedding = json.loads(body[:length])["outputs"]
    assert c2 == {"name": "c2", "datatype": "FP32", "shape": [1, 1, 2, 2],
                  "parameters": {"binary_data_size": 16}}  # fmt: skip
    assert probabilities == {"name": "probabilities", "datatype": "FP32", "shape": [1, 3],
                             "data": [0.25, 0.5, 0.25]}  # fmt: skip
    assert embedding["parameters"] == {"binary_data_size": 8}
    tail = np.frombuffer(body[length:], "<f4")
    np.testing.assert_array_equal(tail, [0, 1, 2, 3, np.float32(0.6), np.float32(-0.8)])


def test_shapes_of_outputs() -> None:
    assert [SEVERAL.output_shape(one) for one in SEVERAL.outputs] == [
        *([-1, 3], [-1, 2], [-1, 4, -1, -1]),
    ]
    assert SEVERAL.input_shape() == [-1, -1, -1, 3]
    assert ACCEPTS.input_shape() == [-1, 3, -1, -1]
    assert [shape_of(one, (2, 3, 97, 131)) for one in SEVERAL.outputs] == [
        *((2, 3), (2, 2), (2, 4, 25, 33)),
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"input": {"datatype": "FP32"}}, "expected 'UINT8'"),
        ({"input": {"shape": [2, 3, 32, 33]}}, r"expected \[batch, height, width, 3\]"),
        ({"input": {"shape": [2, 31, 33, 3]}}, r"expected \[batch, height, width, 3\]"),
        ({"input": {"parameters": {"binary_data_size": 5}}}, f"has {PIXELS.nbytes} bytes"),
        ({"outputs": [{"name": "logits"}]}, "'logits'; expected each once of probabilities, emb"),
        ({"outputs": [{"name": "c2"}, {"name": "c2"}]}, "got the outputs 'c2'"),
        ({"outputs": [{"name": "c2", "parameters": {"classification": 1}}]}, "has no classes"),
        ({"outputs": [{"name": "embedding", "parameters": {"classification": 1}}]}, "no classes"),
    ],
)
def test_pixels_and_outputs_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        protocol.parse(*of_pixels(**changes), SEVERAL)


@pytest.mark.parametrize("value", [-1, 256, 0.5, "7", None])
def test_what_is_no_pixel(value: Any) -> None:
    data = [value, *([0] * (PIXELS.size - 1))]
    tensor = {"name": "image", "datatype": "UINT8", "shape": list(PIXELS.shape), "data": data}
    with pytest.raises(ProtocolError, match="not numbers"):
        protocol.parse(json.dumps({"inputs": [tensor]}).encode(), None, SEVERAL)


# --- what is refused ---------------------------------------------------------------------------


def refused(body: bytes, length: int | None, words: str) -> None:
    with pytest.raises(ProtocolError, match=words):
        protocol.parse(body, length, ACCEPTS)


@pytest.mark.parametrize("length", [-1, 10**9])
def test_header_length_outside_the_body(length: int) -> None:
    refused(b"{}", length, f"is {length}, the body has 2 bytes")


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"inputs": 1}', b'{"inputs": [1]}'),
        b'{"inputs": [{"name": "image"}]}',
        b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1.5]}]}',
        b'{"inputs": [], "id": 7}',
        b'{"inputs": [], "parameters": {"a": [1]}}',
        b'{"inputs": ' + b"[" * 100_000,
        b'{"inputs": [], "more": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_not_a_request(body: bytes) -> None:
    refused(body, None, "not a JSON inference request")


@pytest.mark.parametrize(
    "inputs", [[], [{"name": "x", "datatype": "FP32", "shape": [1]}] * 2, ["other"]]
)
def test_other_inputs(inputs: list[Any]) -> None:
    tensors = [
        {"name": one, "datatype": "FP32", "shape": [1]} if isinstance(one, str) else one
        for one in inputs
    ]
    refused(json.dumps({"inputs": tensors}).encode(), None, "expected one, 'image'")


@pytest.mark.parametrize(
    "shape",
    [
        *([], [1], [3, 32, 32], [0, 3, 32, 32], [-1, 3, 32, 32], [1, 4, 32, 32], [1, 3, 31, 32]),
        *([1, 3, 32, 65], [1, 3, 32, 32, 1], [1, 3, 10**12, 10**12]),
    ],
)
def test_shapes(shape: list[int]) -> None:
    refused(*binary(shape=shape), r"expected \[batch, 3, height, width\]")


@pytest.mark.parametrize("datatype", ["FP16", "UINT8", "fp32", ""])
def test_datatypes(datatype: str) -> None:
    refused(*binary(datatype=datatype), "expected 'FP32'")


@pytest.mark.parametrize("size", [0, -4, IMAGES.nbytes + 1, True, "12", 1.5])
def test_binary_size_that_contradicts_the_shape(size: Any) -> None:
    refused(*binary(parameters={"binary_data_size": size}), f"has {IMAGES.nbytes} bytes")


def test_truncated_and_trailing_bytes() -> None:
    body, length = binary()
    refused(body[:-1], length, f"{IMAGES.nbytes - 1} bytes follow")
    refused(body + b"x", length, f"{IMAGES.nbytes + 1} bytes follow")
    refused(body, None, "not a JSON inference request")
    body = inline([0] * IMAGES.size)
    refused(body + b"abcd", len(body), "no input has a binary_data_size")


def test_data_and_binary_at_once_or_neither() -> None:
    refused(*binary(data=[1.0]), "both data and a binary_data_size")
    refused(*binary(parameters={}), "no input has a binary_data_size")
    header = b'{"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32]}]}'
    refused(header, None, "neither data nor")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 3000, -1])
def test_values_that_are_not_finite(value: float, place: int) -> None:
    images = IMAGES.copy()
    images.ravel()[place] = value
    refused(*binary(images), "NaN or infinite")


def test_values_whose_sum_is_not_finite_are_fine() -> None:
    images = np.full(SHAPE, 3e38, np.float32)
    assert protocol.parse(*binary(images), ACCEPTS).images.max() == np.float32(3e38)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("x", "not numbers"), (7, "not numbers"), ({}, "not numbers"), ([], "0 values"),
        (["1"] * IMAGES.size, "not numbers"), ([None] * IMAGES.size, "not numbers"),
        ([True] * IMAGES.size, "not numbers"), ([1.0] * (IMAGES.size + 1), "values; the shape"),
        ([[1.0]], "not numbers"), ([[[[1.0]]]], "the shape says"),
        ([[[[1.0], [1.0, 2.0]]]], "its rows differ"),
        ([1e300] * IMAGES.size, "NaN or infinite"),
    ],
)  # fmt: skip
def test_json_data(data: Any, words: str) -> None:
    refused(inline(data), None, words)


@pytest.mark.parametrize("word", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_json_words_that_are_not_numbers(word: str) -> None:
    body = inline([0] * IMAGES.size).replace(b"[0,", f"[{word},".encode())
    refused(body, None, "JSON|not numbers")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"outputs": [{"name": "x"}]}, "got the outputs 'x'; expected each once of"),
        ({"outputs": [asking(), asking()]}, "got the outputs 'logits'; expected each once"),
        ({"outputs": [asking(classification=-1)]}, "expected a whole number"),
        ({"outputs": [asking(classification="2")]}, "expected a whole number"),
        ({"outputs": [asking(classification=True)]}, "expected a whole number"),
        ({"outputs": [asking(binary_data=1)]}, "expected true or false"),
        ({"outputs": [asking(shared_memory_region="r")]}, "shared memory is not supported"),
        ({"parameters": {"binary_data_output": "yes"}}, "expected true or false"),
        ({"parameters": {"timeout": -1}}, "expected microseconds"),
        ({"parameters": {"timeout": 1.5}}, "expected microseconds"),
        ({"parameters": {"sequence_id": 3}}, "sequences are not supported"),
    ],
)
def test_wishes_that_are_not_granted(changes: dict[str, Any], words: str) -> None:
    refused(inline([0] * IMAGES.size, **changes), None, words)
