"""The service in this process: bodies, embeddings, errors from inside, the contract of engines."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pytest

from rest_deploy import Session, verbs
from rest_deploy.cards import load_card
from rest_deploy.errors import InputError
from rest_deploy.preprocess import load_image, to_input, to_tensor
from rest_deploy.serve import app, bodies, protocol
from rest_deploy.serve.app import application
from rest_deploy.serve.metrics import Metrics
from rest_deploy.serve.model import ContractError, Served, check_contract
from rest_deploy.serve.pending import BatchLimits
from rest_deploy.serve.refusals import Refused
from rest_deploy.serve.service import Busy, Outcome, Service
from rest_deploy.serve.settings import Settings
from rest_deploy.signature import Output, OutputKind, outputs_for
from tests.serve.asgi import Client, error
from tests.serve.live import INFER, inference, random_images
from tests.serve.test_app import encoded

Float32 = npt.NDArray[np.float32]
DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


def settings(engine: Path, **changes: Any) -> Settings:
    return Settings(engine=str(engine), threads=1, max_batch=2, **changes)


async def never(accept: Sequence[str]) -> Outcome:
    raise Busy(f"not here: {accept}")


@pytest.fixture(scope="module")
def service(trained_nano: Path) -> Iterator[Service]:
    found = Service(settings(trained_nano, max_body_mb=1, memory_mb=2), Metrics())
    found.start()
    found.release()
    yield found
    found.close()


@pytest.fixture
def client(service: Service) -> Client:
    return Client(application(service, never))


def ask(client: Client, images: Float32, **options: Any) -> Any:
    body, length = inference(images)
    return client.ask("POST", INFER, body, {"inference-header-content-length": str(length)},
                      **options)  # fmt: skip


# --- what goes wrong inside --------------------------------------------------------------------


def failing(how: Callable[[Float32], Any], service: Service, monkeypatch: Any) -> None:
    assert service.batcher is not None
    monkeypatch.setattr(service.batcher.engine, "run_all", how)


def raises(_images: Float32) -> dict[str, Float32]:
    raise RuntimeError("secret path /etc/engine")


def answers_nan(images: Float32) -> dict[str, Float32]:
    return {"logits": np.full((len(images), 22), np.nan, np.float32)}


@pytest.mark.parametrize("how", [raises, answers_nan])
def test_failures_of_the_engine_are_500_without_details(
    client: Client, service: Service, how: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(how, service, monkeypatch)
    reply = ask(client, random_images())
    assert reply.status == 500
    assert "secret" not in error(reply)
    monkeypatch.undo()
    assert ask(client, random_images()).status == 200


def test_an_error_of_our_own_is_500_and_in_the_log(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Metrics, "render", raises)
    reply = client.ask("GET", "/metrics")
    assert reply is not None
    assert (reply.status, error(reply)) == (500, "internal error")
    assert "secret path" in caplog.text


def test_a_client_that_left_costs_no_computation(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It left while its request waited behind another."""
    import threading

    assert service.batcher is not None
    gate, begun = threading.Event(), threading.Event()
    seen: list[int] = []
    real = service.batcher.engine.run_all

    def slow(images: Float32) -> dict[str, Float32]:
        seen.append(len(images))
        begun.set()
        assert gate.wait(20)
        return real(images)

    failing(slow, service, monkeypatch)
    first = service.batcher.submit(random_images())
    assert begun.wait(20)
    left = ask(client, random_images(), gone=True)
    gate.set()
    assert left.status == 499
    first.result(20)
    assert ask(client, random_images()).status == 200
    assert seen == [1, 1]
    code = service.metrics.registry.get_sample_value(
        "rest_deploy_requests_total", {"route": "infer", "code": "499"}
    )
    assert code == 1


def test_a_full_queue_says_when_to_come_back(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert service.batcher is not None
    monkeypatch.setattr(service.batcher, "limits", BatchLimits(max_batch=2, queue=1))
    monkeypatch.setattr(service.batcher, "_images", 1)
    monkeypatch.setattr(service.batcher, "_seconds_per_image", 2.5)
    reply = ask(client, random_images())
    assert (reply.status, reply.header("retry-after")) == (429, "3")


def test_draining_closes_connections_and_is_not_ready(
    client: Client, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "draining", True)
    ready = client.ask("GET", "/v2/health/ready")
    assert ready is not None
    assert (ready.status, ready.header("connection")) == (503, "close")
    assert ask(client, random_images()).status == 200


def test_before_the_engine_is_open(trained_nano: Path) -> None:
    cold = Service(settings(trained_nano), Metrics())
    client = Client(application(cold, never))
    reply = ask(client, random_images())
    assert (reply.status, reply.header("retry-after")) == (503, "1")
    live = client.ask("GET", "/v2/health/live")
    assert live is not None
    assert live.status == 200
    with pytest.raises(Busy, match="not ready yet"):
        cold.prepare()
    cold.close()


def test_a_refused_load_is_a_conflict(client: Client) -> None:
    body = b'{"parameters": {"accept": "labels, width"}}'
    reply = client.ask("POST", "/v2/repository/models/rest_nano/load", body)
    assert reply is not None
    assert (reply.status, "('labels', 'width')" in error(reply)) == (409, True)


# --- bodies ------------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [1, 3, 1000])
def test_pieces_of_a_known_or_unknown_length(client: Client, pieces: int) -> None:
    body, length = inference(random_images())
    step = -(-len(body) // pieces)
    cut = [body[start : start + step] for start in range(0, len(body), step)]
    headers = {"inference-header-content-length": str(length)}
    for more in ({}, {"content-length": str(len(body))}):
        reply = client.ask("POST", INFER, cut, {**headers, **more})
        assert reply is not None
        assert reply.status == 200


@pytest.mark.parametrize("header", [0, 1, 63, 64, 137, 5000])
def test_tensors_are_aligned(header: int) -> None:
    body = bodies.aligned(10_000, header)
    assert len(body) == 10_000
    address = np.frombuffer(body, np.uint8).__array_interface__["data"][0]
    assert (address + header) % bodies.ALIGNMENT == 0


def test_a_client_that_leaves_within_its_body(client: Client, service: Service) -> None:
    assert client.ask("POST", INFER, [b"{", b""], {"content-length": "2"}, gone=True) is not None
    before = service.body_bytes, service.reading
    pieces: list[bytes] = []
    reply = client.ask("POST", INFER, pieces, {"content-length": "50"}, gone=True)
    assert reply is not None
    assert reply.status == 499
    assert (service.body_bytes, service.reading) == before == (0, 0)


def test_decompression_is_bounded() -> None:
    body = zlib.compress(bytes(1_000_000))
    assert bodies.decompressed(body, 1_000_000) == bytes(1_000_000)
    with pytest.raises(Refused, match="413"):
        bodies.decompressed(body, 999_999)


# --- engines -----------------------------------------------------------------------------------


def test_the_contract_is_what_clients_rely_on(trained_nano: Path) -> None:
    contract = Served(Session.open(trained_nano), "", settings(trained_nano)).contract()
    check_contract(contract, dict(contract), ())
    for name in contract:
        changed = {**contract, name: "else"}
        with pytest.raises(ContractError, match=f'{name}: .* -> else.*"accept": "{name}"'):
            check_contract(contract, changed, ())
        check_contract(contract, changed, (name,))
    with pytest.raises(ContractError, match="labels"):
        check_contract(contract, {**contract, "labels": "", "input": "x"}, ("input",))


def test_an_engine_that_is_not_what_it_says(
    trained_nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = Served.open(settings(trained_nano))
    served.warm()
    monkeypatch.setattr(
        served,
        "accepts",
        replace(served.accepts, outputs=(Output(name="logits", kind="logits", channels=7),)),
    )
    with pytest.raises(InputError, match=r"expected \(1, 7\)"):
        served.warm()
    monkeypatch.undo()
    monkeypatch.setattr(served, "run_all", answers_nan)
    with pytest.raises(InputError, match="not finite"):
        served.warm()


@pytest.fixture(scope="module")
def headless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("headless")
    return Path(verbs.export("nano", output_dir=folder, num_classes=0).path)


def test_embeddings(headless: Path) -> None:
    service = Service(settings(headless), Metrics())
    service.start()
    client = Client(application(service, never))
    reply = client.ask("POST", "/embed", encoded())
    assert reply is not None
    session = Session.open(headless, threads=1)
    tensor = to_tensor(load_image(encoded()), session.metadata.card.preprocessing)
    np.testing.assert_allclose(
        reply.json()["embedding"], session.run(tensor[None])[0], rtol=1e-3, atol=1e-4
    )
    assert "POST /embed" in error(client.ask("POST", "/classify", encoded()))
    found = client.ask("GET", "/v2/models/rest_nano")
    assert found is not None
    width = session.metadata.card.architecture.dims[-1]
    assert found.json()["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, width]}
    ]
    service.close()


# --- several outputs, pixels -------------------------------------------------------------------

ALL = ("logits", "probabilities", "embedding", "c2", "c3", "c4", "c5")


@pytest.fixture(scope="module", params=["float", "uint8"])
def several(
    request: pytest.FixtureRequest, everything_nano: Path, pixels_nano: Path
) -> Iterator[tuple[Service, Session]]:
    """A service of a model that gives everything, and a session of the same."""
    engine = everything_nano if request.param == "float" else pixels_nano
    service = Service(settings(engine), Metrics())
    service.start()
    with Session.open(engine, threads=1) as session:
        yield service, session
    service.close()


def images_for(session: Session, count: int) -> npt.NDArray[Any]:
    dice = np.random.default_rng(3)
    if session.metadata.input_kind == "uint8":
        return dice.integers(0, 256, (count, 64, 72, 3), dtype=np.uint8)
    return dice.standard_normal((count, 3, 64, 72)).astype(np.float32)


def asked(
    client: Client, session: Session, images: npt.NDArray[Any], **more: Any
) -> tuple[int, list[Any], bytes]:
    """Status, the outputs' descriptions, and the binary part of an answer."""
    kind = "UINT8" if images.dtype == np.uint8 else "FP32"
    tensor = {"name": "image", "datatype": kind, "shape": list(images.shape),
              "parameters": {"binary_data_size": images.nbytes}}  # fmt: skip
    header = json.dumps({"inputs": [tensor], **more}).encode()
    lengths = {"Inference-Header-Content-Length": str(len(header))}
    reply = client.ask("POST", INFER, header + images.tobytes(), lengths)
    assert reply is not None
    if reply.status != 200:
        return reply.status, [error(reply)], b""
    end = int(reply.header("inference-header-content-length") or len(reply.body))
    return 200, json.loads(reply.body[:end])["outputs"], reply.body[end:]


def test_all_outputs_in_binary(several: tuple[Service, Session]) -> None:
    service, session = several
    images = images_for(session, 2)
    client = Client(application(service, never))
    status, outputs, tail = asked(client, session, images, parameters={"binary_data_output": True})
    assert (status, [one["name"] for one in outputs]) == (200, list(ALL))
    first = 0
    for one in outputs:
        last = first + one["parameters"]["binary_data_size"]
        values = np.frombuffer(tail[first:last], "<f4").reshape(one["shape"])
        right = session.run_all(images)[one["name"]]
        np.testing.assert_allclose(values, right, rtol=1e-3, atol=1e-4)
        # The control: another image's answer is not this one's.
        assert not np.allclose(values[::-1], right, rtol=1e-3, atol=1e-4)
        first = last
    assert first == len(tail)


def test_large_answers_are_written_in_a_thread(
    several: tuple[Service, Session], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop serves others meanwhile; the answer is the same."""
    import threading

    service, session = several
    images = images_for(session, 1)
    client = Client(application(service, never))
    where: list[threading.Thread] = []
    real = protocol.respond

    def respond(*arguments: Any) -> Any:
        where.append(threading.current_thread())
        return real(*arguments)

    monkeypatch.setattr(protocol, "respond", respond)
    right = asked(client, session, images)
    monkeypatch.setattr(app, "INLINE", images.nbytes)  # the maps are larger
    assert asked(client, session, images) == right
    assert where[0] is threading.main_thread()
    assert where[1].name.startswith("rest-deploy-decode")


def test_some_outputs_in_the_order_asked_for(several: tuple[Service, Session]) -> None:
    service, session = several
    images = images_for(session, 1)
    wanted = [{"name": "c5"}, {"name": "logits", "parameters": {"classification": 1}},
              {"name": "embedding"}]  # fmt: skip
    client = Client(application(service, never))
    status, outputs, tail = asked(client, session, images, outputs=wanted)
    assert (status, tail) == (200, b"")
    assert [one["name"] for one in outputs] == ["c5", "logits", "embedding"]
    right = session.run_all(images)
    assert outputs[0]["shape"] == list(right["c5"].shape) == [1, outputs[0]["shape"][1], 2, 3]
    np.testing.assert_allclose(outputs[0]["data"], right["c5"].ravel(), rtol=1e-3, atol=1e-4)
    assert int(outputs[1]["data"][0].split(":")[1]) == int(right["logits"].argmax())


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([{"name": "c6"}], "got the outputs 'c6'; expected each once of logits, prob"),
        ([{"name": "c5"}, {"name": "c5"}], "got the outputs 'c5'"),
        ([{"name": "c5", "parameters": {"classification": 2}}], "'c5' has no classes"),
    ],
)
def test_outputs_that_are_refused(
    several: tuple[Service, Session], outputs: list[Any], words: str
) -> None:
    service, session = several
    client = Client(application(service, never))
    status, (said,), _ = asked(client, session, images_for(session, 1), outputs=outputs)
    assert status == 400
    assert words in said


def test_the_other_kind_of_input_is_refused(several: tuple[Service, Session]) -> None:
    service, session = several
    pixels = session.metadata.input_kind == "uint8"
    other = random_images() if pixels else np.zeros((1, 64, 64, 3), np.uint8)
    client = Client(application(service, never))
    status, (said,), _ = asked(client, session, other)
    assert (status, "'UINT8'" in said, "'FP32'" in said) == (400, True, True)


def test_metadata_of_several_outputs(several: tuple[Service, Session]) -> None:
    service, session = several
    reply = Client(application(service, never)).ask("GET", "/v2/models/rest_nano")
    assert reply is not None
    pixels = session.metadata.input_kind == "uint8"
    assert reply.json()["inputs"] == [
        {"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]} if pixels else
        {"name": "image", "datatype": "FP32", "shape": [-1, 3, -1, -1]}
    ]  # fmt: skip
    shapes = {one["name"]: one["shape"] for one in reply.json()["outputs"]}
    assert list(shapes) == list(ALL)
    assert shapes["logits"] == [-1, 22]
    assert shapes["c2"] == [-1, session.metadata.card.architecture.dims[0], -1, -1]


def test_an_image_is_classified_and_embedded(several: tuple[Service, Session]) -> None:
    service, session = several
    client = Client(application(service, never))
    metadata = session.metadata
    image = load_image(encoded())
    tensor = to_input(image, metadata.input_kind, metadata.card.preprocessing)
    right = session.run_all(tensor[None])
    reply = client.ask("POST", "/classify?top=1", encoded())
    assert reply is not None
    (found,) = reply.json()["predictions"]
    assert found["index"] == int(right["logits"].argmax())
    assert found["probability"] == pytest.approx(float(right["probabilities"].max()), abs=1e-4)
    reply = client.ask("POST", "/embed", encoded())
    assert reply is not None
    vector = np.array(reply.json()["embedding"])
    np.testing.assert_allclose(vector, right["embedding"][0], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("kinds", "classify", "embed"),
    [
        (("features",), "POST /v2/models/", "gives no embedding, but c2, c3, c4, c5"),
        (("embedding",), "gives no classes, but embedding: POST /embed", ""),
        (("probabilities",), "", "gives no embedding, but probabilities: POST /classify"),
    ],
)
def test_routes_that_a_model_is_not_for(
    everything_nano: Path, monkeypatch: pytest.MonkeyPatch,
    kinds: tuple[OutputKind, ...], classify: str, embed: str,
) -> None:  # fmt: skip
    service = Service(settings(everything_nano), Metrics())
    service.start()
    assert service.batcher is not None
    served = service.batcher.engine
    outputs = outputs_for(kinds, load_card("nano").architecture, 22)
    monkeypatch.setattr(served, "accepts", replace(served.accepts, outputs=outputs))
    client = Client(application(service, never))
    for path, words in (("/classify?top=1", classify), ("/embed", embed)):
        reply = client.ask("POST", path, encoded())
        assert reply is not None
        assert reply.status == (409 if words else 200)
        assert not words or words in error(reply)
        if kinds == ("probabilities",) and not words:
            image = to_tensor(load_image(encoded()), load_card("nano").preprocessing)
            right = served.run_all(image[None])["probabilities"].max()
            share = reply.json()["predictions"][0]["probability"]
            assert share == pytest.approx(float(right), abs=1e-5), "a second softmax"
    service.close()


# --- settings and the docs ---------------------------------------------------------------------


def test_settings_travel_as_json() -> None:
    told = Settings(engine="a.onnx", workers=3, max_batch=4, trust="b.onnx")
    assert msgspec.json.decode(msgspec.json.encode(told), type=Settings) == told


def test_workers_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rest_deploy.serve.settings._cores", lambda: 8)
    found = [
        Settings(engine="a", workers=workers, threads=threads).engine_threads()
        for workers, threads in ((1, None), (2, None), (3, None), (16, None), (2, 5))
    ]
    assert found == [None, 4, 2, 1, 5]


def test_the_example_of_the_docs_works(
    trained_nano: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = DOCS.read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- service.py -->\n```python\n(.*?)```", text, re.DOTALL)
    monkeypatch.setenv("ENGINE", str(trained_nano))
    names: dict[str, Any] = {}
    exec(compile(code, "service.py", "exec"), names)
    client = Client(names["app"])
    reply = client.ask("POST", "/classify", encoded())
    assert reply is not None
    assert len(reply.json()) == 5
    bad = client.ask("POST", "/classify", b"none")
    assert bad is not None
    assert bad.status == 400
    names["batcher"].close()


def test_the_docs_name_every_option_code_and_metric() -> None:
    from rest_deploy.commands.serve import serve
    from rest_deploy.serve.refusals import STATUS

    text = DOCS.read_text(encoding="utf-8")
    options = [option for one in serve.params for option in (*one.opts, *one.secondary_opts)]
    told = [name for name in options if name.startswith("--") and name not in ("--loading",)]
    assert [name for name in told if f"`{name}`" not in text] == []
    assert [code for _, code in STATUS if f"| {code} |" not in text] == []
    metrics = Metrics().render()[0].decode()
    names = set(re.findall(r"^# TYPE (rest_deploy_\S+)", metrics, re.MULTILINE))
    names = {name for name in names if not name.endswith("_created")}
    assert len(names) > 8
    assert [name for name in names if name not in text] == []
