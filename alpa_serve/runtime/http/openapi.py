"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic.json_schema import models_json_schema

from alpa_serve.runtime.http.openai_messages import ChatCompletionRequest, CompletionRequest
from alpa_serve.runtime.request import LARGEST_TOKEN_COUNT

if TYPE_CHECKING:
    from collections.abc import Sequence

_SCHEMAS = "#/components/schemas/"
_TEXT = {"type": "string"}
_WHOLE = {"type": "integer"}

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {"message": _TEXT, "type": _TEXT, "code": _TEXT},
        }
    },
}
_MODEL = {
    "type": "object",
    "required": ["id", "object", "created", "owned_by"],
    "properties": {"id": _TEXT, "object": {"const": "model"}, "created": _WHOLE, "owned_by": _TEXT},
}
_HEALTH = {
    "type": "object",
    "required": ["status", "groups_up", "groups"],
    "properties": {
        "status": {"enum": ["starting", "ok", "degraded", "unavailable", "draining"]},
        "groups_up": _WHOLE,
        "groups": _WHOLE,
    },
}
_TOKENS = {"type": ["integer", "null"], "minimum": 0, "maximum": LARGEST_TOKEN_COUNT}
_MODEL_NAME = {"type": "string", "minLength": 1, "description": "The name of a model."}
_ALPASERVE_REQUEST = {
    "type": "object",
    "description": "What the model is to answer. Fields that are not named here are the model's.",
    "properties": {
        "model": {"$ref": _SCHEMAS + "ModelName", "description": "Needed unless the query names it."},
        "slo": {"type": ["number", "null"], "minimum": 0, "description": "Seconds from submit_time."},
        "submit_time": {"type": ["number", "null"], "description": "Unix seconds."},
        "input_tokens": _TOKENS,
        "output_tokens": _TOKENS,
    },
}
_GENERATED = {"type": "object", "required": ["id", "object", "created", "model", "choices"]}

_POST_ERRORS = {
    "400": "The request is not what the endpoint, or the model, takes.",
    "404": "There is no such model.",
    "408": "The request did not come in time.",
    "413": "The body is too long.",
    "415": "The body is encoded.",
    "500": "The model failed.",
    "503": "Too many requests wait, or the groups that have the model are down.",
    "504": "The model took too long.",
}


def naming_models(document: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """Return `document` with the names of the models that there are: only these get further than a 404."""
    if not names:
        return document
    components = document["components"]
    schemas = {**components["schemas"], "ModelName": {**_MODEL_NAME, "enum": list(names)}}
    return {**document, "components": {**components, "schemas": schemas}}


def openapi_document(base: str, *, needs_token: bool) -> dict[str, Any]:
    """Return the document of a server whose routes are under `base`, which has no slash at its end."""
    _, definitions = models_json_schema(
        [(CompletionRequest, "validation"), (ChatCompletionRequest, "validation")], ref_template=_SCHEMAS + "{model}"
    )
    for request in ("CompletionRequest", "ChatCompletionRequest"):
        definitions["$defs"][request]["properties"]["model"] = _named("ModelName")
    components: dict[str, Any] = {
        "schemas": {
            **definitions["$defs"],
            "AlpaServeRequest": _ALPASERVE_REQUEST,
            "Error": _ERROR,
            "Model": _MODEL,
            "ModelName": _MODEL_NAME,
            "Health": _HEALTH,
        }
    }
    in_query = {"name": "model", "in": "query", "schema": _named("ModelName")}
    in_path = {"name": "model", "in": "path", "required": True, "schema": _named("ModelName")}
    stream = {"text/event-stream": {"schema": {"description": "Events whose data are pieces, and [DONE] at last."}}}
    generated = {**_json(_GENERATED), **stream}
    unknown = {"404": "There is no such model."}
    listing = {
        "type": "object",
        "required": ["object", "data"],
        "properties": {"object": {"const": "list"}, "data": {"type": "array", "items": _named("Model")}},
    }
    paths: dict[str, Any] = {
        f"{base}/": {
            "post": {
                **_operation("answer", "Has a model answer.", _json({}), _POST_ERRORS),
                "parameters": [in_query],
                "requestBody": _body("AlpaServeRequest"),
            }
        },
        f"{base}/v1/completions": {
            "post": {
                **_operation("complete", "Completes a prompt.", generated, _POST_ERRORS),
                "requestBody": _body("CompletionRequest"),
            }
        },
        f"{base}/v1/chat/completions": {
            "post": {
                **_operation("chat", "Continues a chat.", generated, _POST_ERRORS),
                "requestBody": _body("ChatCompletionRequest"),
            }
        },
        f"{base}/v1/models": {"get": _operation("list_models", "Lists the models.", _json(listing), {})},
        f"{base}/v1/models/{{model}}": {
            "get": {
                **_operation("describe_model", "Describes a model.", _json(_named("Model")), unknown),
                "parameters": [in_path],
            }
        },
        f"{base}/metrics": {
            "get": _operation("metrics", "Metrics in Prometheus' text format.", {"text/plain": {"schema": _TEXT}}, {})
        },
        f"{base}/openapi.json": {"get": _operation("openapi", "This document.", _json({"type": "object"}), {})},
    }
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {"title": "alpa_serve", "version": "1", "description": "Models that share a cluster."},
        "paths": paths,
        "components": components,
    }
    if needs_token:
        components["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"token": []}]
        for path in paths.values():
            for operation in path.values():
                operation["responses"]["401"] = _error("The API key is missing or wrong.")
    health = _operation("health", "Whether requests are served.", _json(_named("Health")), {})
    health["responses"]["503"] = {
        "description": "No group is up, or no new requests are taken.",
        "content": _json(_named("Health")),
    }
    health["security"] = []
    paths[f"{base}/healthz"] = {"get": health}
    return document


def _operation(name: str, summary: str, content: dict[str, Any], errors: dict[str, str]) -> dict[str, Any]:
    responses = {"200": {"description": "The answer.", "content": content}}
    responses.update((status, _error(description)) for status, description in errors.items())
    return {"operationId": name, "summary": summary, "responses": responses}


def _error(description: str) -> dict[str, Any]:
    return {"description": description, "content": _json(_named("Error"))}


def _body(schema: str) -> dict[str, Any]:
    return {"required": True, "content": _json(_named(schema))}


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _named(schema: str) -> dict[str, Any]:
    return {"$ref": _SCHEMAS + schema}
