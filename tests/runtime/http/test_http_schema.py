"""What the OpenAPI document says, held against the server by what schemathesis makes of it."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

# cases of a chat take the longest to make
EXAMPLES = {"/": 50, "/v1/completions": 50, "/v1/chat/completions": 15}

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]


async def _echo(request):
    return dict(request)


@pytest.fixture(scope="module")
def running(serving):
    with serving() as server:
        server.dispatcher.answers = dict.fromkeys(["m0", "0", "a/b"], _echo)
        yield server


@pytest.mark.parametrize("mode", GenerationMode)
def test_server_conforms_to_its_document(running, mode):
    schema = schemathesis.openapi.from_url(running.url + "/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"POST /", "POST /v1/completions", "GET /healthz"} <= {operation.label for operation in operations}
    asked, reached = 0, Counter()

    def call(case):
        nonlocal asked
        asked += 1
        num_answered = len(running.dispatcher.requests)
        response = case.call_and_validate(checks=CHECKS)
        reached[case.path] += response.status_code == 200 and len(running.dispatcher.requests) > num_answered

    for operation in operations:
        # what has no body cannot be wrong: any path names a model that may be
        if operation.path not in EXAMPLES and mode is GenerationMode.NEGATIVE:
            continue
        cases = operation.as_strategy(generation_mode=mode)
        limits = settings(
            max_examples=EXAMPLES.get(operation.path, 3),
            derandomize=True,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        limits(given(case=cases)(call))()
    assert asked > 100
    if mode is GenerationMode.POSITIVE:
        # models are named, so that what is valid comes to one
        assert all(reached[path] >= number // 4 for path, number in EXAMPLES.items()), reached


def test_document_describes_all_routes_and_loads_nothing_from_elsewhere(running, http):
    response = http.get(running.url + "/openapi.json")
    document = response.json()
    assert set(document["paths"]) == {
        "/",
        "/v1/completions",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/models/{model}",
        "/healthz",
        "/metrics",
        "/openapi.json",
    }
    assert "http" not in response.text.replace('"type":"http"', "")
    assert "components" in document
    assert "securitySchemes" not in document["components"]


def test_document_names_the_models_that_there_are(serving, http):
    def model_name(server):
        return http.get(server.url + "/openapi.json").json()["components"]["schemas"]["ModelName"]

    with serving() as server:
        assert model_name(server)["enum"] == ["echo"]
        server.dispatcher.answers["a/b"] = 1
        assert model_name(server)["enum"] == ["echo", "a/b"]
        server.dispatcher.answers.clear()
        # an enum must not be empty
        assert model_name(server)["type"] == "string"
        assert "enum" not in model_name(server)


def test_document_says_where_the_token_is_needed(serving, http):
    with serving(api_key="the-key") as server:
        headers = {"authorization": "Bearer the-key"}
        document = http.get(server.url + "/openapi.json", headers=headers).json()
    assert document["security"] == [{"token": []}]
    assert document["paths"]["/healthz"]["get"]["security"] == []
    assert "401" in document["paths"]["/"]["post"]["responses"]
