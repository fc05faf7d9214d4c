"""/openapi.json, written from the types that requests and answers are made of."""

from __future__ import annotations

from typing import Any

import msgspec

from rest_deploy import __version__

REFUSALS = {
    400: "not of the protocol, or not for this model",
    404: "no such model or version",
    408: "the body came too slowly",
    409: "not with this engine, or not now",
    413: "too large",
    415: "an encoding or type that is not taken",
    429: "the queue is full; Retry-After says when to come back",
    500: "the engine failed",
    503: "not ready, or stopping",
    504: "the deadline passed",
}
INFERENCE = (400, 404, 408, 413, 415, 429, 500, 503, 504)
IMAGE = (400, 408, 409, 413, 415, 429, 500, 503, 504)


def document() -> dict[str, Any]:
    """OpenAPI 3.1."""
    from rest_deploy.serve import app, protocol

    types = [
        protocol.ServerMetadataResponse, protocol.ModelMetadataResponse, app.Health,
        protocol.InferenceRequest, protocol.InferenceResponse, protocol.ErrorResponse,
        app.Classified, app.Embedded, app.LoadRequest, app.LoadResponse, app.IndexEntry,
    ]  # fmt: skip
    _, components = msgspec.json.schema_components(
        types, ref_template="#/components/schemas/{name}"
    )
    # msgspec keeps `data` as raw bytes until the datatype is known; it is JSON to clients.
    components["RequestedInput"]["properties"]["data"] = {
        "type": "array",
        "description": "nested as the shape, or flat in row-major order",
    }
    model = [_path("model")]
    version = [*model, _path("version")]
    paths: dict[str, dict[str, Any]] = {
        "/v2": _get("server metadata", _ok("ServerMetadataResponse")),
        "/v2/health/live": _get("is the process alive?", _ok("Health")),
        "/v2/health/ready": _get("may requests be sent?", _or_503("Health")),
        "/v2/repository/index": {
            "post": _operation("the models", _ok([_ref("IndexEntry")], 503)),
        },
        "/v2/repository/models/{model}/load": {
            "parameters": model,
            "post": _operation(
                "open the engine file again",
                _ok("LoadResponse", 400, 403, 404, 408, 409, 413, 415, 503),
                _content("application/json", _ref("LoadRequest"), required=False),
            ),
        },
        "/classify": {
            "post": _operation(
                "the most probable classes of an encoded image",
                _ok("Classified", *IMAGE), _image(),
                [{"name": "top", "in": "query", "schema": {
                    "type": "integer", "minimum": 1, "maximum": 999_999, "default": 5}}],
            ),
        },
        "/embed": {
            "post": _operation("the embedding of an encoded image", _ok("Embedded", *IMAGE),
                               _image()),
        },
        "/metrics": _get("for Prometheus", {
            "200": {"description": "text format", "content": {"text/plain": {}}}}),
        "/openapi.json": _get("this", {
            "200": {"description": "OpenAPI", "content": {"application/json": {}}}}),
    }  # fmt: skip
    for place, named in (("", model), ("/versions/{version}", version)):
        path = "/v2/models/{model}" + place
        paths[path] = _get("model metadata", _ok("ModelMetadataResponse", 404, 503), named)
        paths[f"{path}/ready"] = _get("may requests be sent?", _or_503("Health", 404), named)
        paths[f"{path}/infer"] = {
            "parameters": named,
            "post": _operation("inference", _inferred(), _inference()),
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "rest-deploy", "version": __version__,
                 "description": "Open Inference Protocol v2, and encoded images."},
        "paths": paths,
        "components": {"schemas": components},
    }  # fmt: skip


def _ref(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _ok(answer: str | list[dict[str, Any]], *codes: int) -> dict[str, Any]:
    schema = _ref(answer) if isinstance(answer, str) else {"type": "array", "items": answer[0]}
    found = {"200": _response("done", schema)}
    if 403 in codes:
        found["403"] = _response("loading is switched off", _ref("ErrorResponse"))
    for code in codes:
        if code in REFUSALS:
            found[str(code)] = _response(REFUSALS[code], _ref("ErrorResponse"))
    return found


def _or_503(answer: str, *codes: int) -> dict[str, Any]:
    either = {"anyOf": [_ref(answer), _ref("ErrorResponse")]}
    return {**_ok(answer, *codes), "503": _response("not ready", either)}


def _operation(
    summary: str,
    responses: dict[str, Any],
    body: dict[str, Any] | None = None,
    parameters: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    found: dict[str, Any] = {"summary": summary, "responses": responses}
    if body is not None:
        found["requestBody"] = body
    if parameters:
        found["parameters"] = parameters
    return found


def _get(
    summary: str, responses: dict[str, Any], parameters: list[dict[str, Any]] | None = None
) -> dict[str, Any]:
    found: dict[str, Any] = {"get": _operation(summary, responses)}
    if parameters:
        found["parameters"] = parameters
    return found


def _content(kind: str, schema: dict[str, Any], *, required: bool = True) -> dict[str, Any]:
    return {"required": required, "content": {kind: {"schema": schema}}}


def _image() -> dict[str, Any]:
    return _content("application/octet-stream", {"type": "string", "format": "binary"})


def _inference() -> dict[str, Any]:
    found = _content("application/json", _ref("InferenceRequest"))
    found["content"]["application/octet-stream"] = {
        "schema": {"type": "string", "format": "binary"}
    }
    return found


def _inferred() -> dict[str, Any]:
    found = _ok("InferenceResponse", *INFERENCE)
    found["200"]["content"]["application/octet-stream"] = {
        "schema": {"type": "string", "format": "binary"}
    }
    return found
