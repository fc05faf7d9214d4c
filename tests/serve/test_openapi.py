"""/openapi.json is true: what it says of answers is what is answered."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from rest_deploy.serve import app, openapi, protocol
from tests.serve.live import INFER, Live, inference, random_images
from tests.serve.test_app import encoded

DOCUMENT = openapi.document()


def references(value: Any) -> set[str]:
    if isinstance(value, dict):
        own = {value["$ref"]} if "$ref" in value else set()
        return own.union(*map(references, value.values()))
    return set().union(*map(references, value)) if isinstance(value, list) else set()


def test_every_reference_leads_somewhere() -> None:
    found = references(DOCUMENT)
    known = {f"#/components/schemas/{name}" for name in DOCUMENT["components"]["schemas"]}
    assert found <= known
    assert len(found) > 8


def test_every_parameter_of_a_path_is_described() -> None:
    for path, item in DOCUMENT["paths"].items():
        named = {one["name"] for one in item.get("parameters", [])}
        assert named == {part[1:-1] for part in path.split("/") if part.startswith("{")}, path


@pytest.mark.parametrize(
    ("method", "path", "kind"),
    [
        ("GET", "/v2", protocol.ServerMetadataResponse),
        ("GET", "/v2/models/rest_nano", protocol.ModelMetadataResponse),
        ("GET", "/v2/health/ready", app.Health),
        ("POST", "/v2/repository/index", list[app.IndexEntry]),
        ("POST", "/v2/repository/models/rest_nano/load", app.LoadResponse),
        ("GET", "/v2/nothing", protocol.ErrorResponse),
    ],
)
def test_answers_are_of_their_types(live: Live, method: str, path: str, kind: Any) -> None:
    body = live.ask(method, path).body
    strict = msgspec.json.decode(body, type=kind)
    assert json.loads(msgspec.json.encode(strict)) == json.loads(body)


def test_inference_and_images_are_of_their_types(live: Live) -> None:
    body, length = inference(random_images())
    headers = {"Inference-Header-Content-Length": str(length)}
    found = live.ask("POST", INFER, body, headers).body
    msgspec.json.decode(found, type=protocol.InferenceResponse)
    msgspec.json.decode(live.ask("POST", "/classify", encoded()).body, type=app.Classified)


def test_every_route_is_described_and_no_other(live: Live) -> None:
    """Described routes answer something else than 404 for a route; undescribed methods 405."""
    for path, item in DOCUMENT["paths"].items():
        real = path.replace("{model}", "rest_nano").replace("{version}", "1")
        methods = {name.upper() for name in item if name in ("get", "post")}
        for method in ("GET", "POST"):
            reply = live.ask(method, real)
            if method in methods:
                assert str(reply.status) in item[method.lower()]["responses"], (method, real)
            else:
                assert reply.status == 405, (method, real)


@pytest.mark.slow
@pytest.mark.parametrize("path", sorted(DOCUMENT["paths"]))
def test_schemathesis(live: Live, path: str) -> None:
    """Requests made from the document: no code, type or body that it does not describe."""
    schemathesis = pytest.importorskip("schemathesis")
    hypothesis = pytest.importorskip("hypothesis")
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_url(f"http://{live.url}/openapi.json")
    settings = hypothesis.settings(
        max_examples=100, deadline=None, suppress_health_check=list(hypothesis.HealthCheck)
    )

    def check(case: Any, known: bool) -> None:
        if known:
            real = {"model": "rest_nano", "version": "1"}
            case.path_parameters = {name: real[name] for name in case.path_parameters or {}}
        # A schema does not say that an image has 32 pixels, or what shape its numbers have.
        case.call_and_validate(excluded_checks=[positive_data_acceptance])

    for method in ("GET", "POST"):
        if method.lower() in DOCUMENT["paths"][path]:
            cases = schema[path][method].as_strategy()
            known = hypothesis.strategies.booleans()
            settings(hypothesis.given(case=cases, known=known)(check))()
