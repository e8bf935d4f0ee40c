import json

import numpy as np
import pytest

from alpa_serve.errors import ModelFailedError, RequestRejectedError
from alpa_serve.runtime.http.bodies import MAX_NESTING
from alpa_serve.runtime.http.replies import encode_answer


@pytest.fixture(scope="module")
def running(serving):
    async def nan(request):
        return float("nan")

    answers = {
        "late": RequestRejectedError("too late"),
        "number": 3,
        "nothing": None,
        "text": "ü",
        "nan": nan,
        "object": [object()],
        "a/b c": "named",
    }
    with serving(answers) as server:
        yield server


def test_posted_object_reaches_the_model_and_its_answer_is_the_body(running, http):
    posted = {"model": "echo", "slo": 2.5, "data": [1, "zwölf", {"x": None}], "surrogate": "\ud800"}
    response = http.post(running.url + "/", content=json.dumps(posted))
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "server" not in response.headers
    assert response.json() == posted
    request = running.dispatcher.requests[-1]
    assert (request.model, request.slo, request.endpoint) == ("echo", 2.5, "")


@pytest.mark.parametrize(("model", "answer"), [("number", 3), ("nothing", None), ("text", "ü")])
def test_anything_that_json_has_is_an_answer(running, http, model, answer):
    response = http.post(running.url, json={"model": model})
    assert response.status_code == 200
    assert response.json() == answer


def test_request_that_is_not_admitted_is_told_so_with_200(running, http):
    response = http.post(running.url, json={"model": "late", "slo": 0.1})
    assert (response.status_code, response.json()) == (200, {"rejected": True})


def test_query_names_the_model(running, http):
    assert http.post(running.url, params={"model": "a/b c"}, json={}).json() == "named"
    assert http.post(running.url, params={"model": "number"}, json={"model": "text"}).json() == 3


@pytest.mark.parametrize("query", ["model=", "model=a&model=b", "model=%ff", "&".join(["x=1"] * 200)])
def test_query_that_names_no_model_is_refused(running, http, assert_error, query):
    assert_error(http.post(f"{running.url}/?{query}", json={"model": "echo"}), 400, "invalid_request")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"model": "echo"} x', "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"model": "\xff"}', "UTF-8"),
        (b"[1]", "a list"),
        (b"null", "null"),
        (b'"model"', "a string"),
        (b'{"model": "echo", "model": "text"}', "twice"),
        (b'{"model": "echo", "x": {"a": 1, "a": 2}}', "twice"),
        (b'{"model": "echo", "x": NaN}', "NaN"),
        (b'{"model": "echo", "x": -Infinity}', "-Infinity"),
        (b'{"model": "echo", "x": 1e999}', "1e308"),
        (b'{"model": "echo", "x": ' + b"9" * 5000 + b"}", "not JSON"),
        (b'{"model": "echo", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "deep"),
        (b'{"model": "echo", "x": ' + b"[" * MAX_NESTING + b"]" * MAX_NESTING + b"}", "deep"),
        (b'{"model": "echo", "x": ' + b'{"a":' * 500 + b"1" + b"}" * 500 + b"}", "deep"),
        (b"{}", '"model"'),
        (b'{"model": 3}', '"model"'),
        (b'{"model": ""}', '"model"'),
        (b'{"model": "echo", "slo": "1"}', '"slo"'),
        (b'{"model": "echo", "slo": -1}', '"slo"'),
        (b'{"model": "echo", "output_tokens": 1.5}', '"output_tokens"'),
    ],
)
def test_body_that_is_no_request_is_refused_with_the_reason(running, http, assert_error, body, said):
    assert said in assert_error(http.post(running.url, content=body), 400, "invalid_request")


def test_nesting_and_lists_within_the_limit_pass(running, http):
    depth = MAX_NESTING - 1
    body = b'{"model": "echo", "x": ' + b"[" * depth + b"]" * depth + b', "y": [' + b"[]," * 500 + b"[]]}"
    assert http.post(running.url, content=body).status_code == 200


@pytest.mark.parametrize("model", ["nan", "object"])
def test_answer_that_json_does_not_have_is_the_models_failure(running, http, assert_error, model):
    assert "JSON" in assert_error(http.post(running.url, json={"model": model}), 500, "model_failed")


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_content_type_of_the_request_does_not_matter(running, http, content_type):
    response = http.post(running.url, content=b'{"model": "number"}', headers={"content-type": content_type})
    assert response.json() == 3


def test_routes_are_under_the_root_path_with_and_without_slash(serving, http, assert_error):
    with serving(root_path="/serve/") as server:
        base = server.url
        assert base.endswith("/serve")
        for url in (base, base + "/"):
            assert http.post(url, json={"model": "echo"}).json() == {"model": "echo"}
        assert http.get(base + "/healthz").status_code == 200
        assert http.get(base + "/v1/models/echo").json()["id"] == "echo"
        document = http.get(base + "/openapi.json").json()
        assert "/serve/v1/completions" in document["paths"]
        assert_error(http.get(base.removesuffix("/serve") + "/healthz"), 404, "not_found")
        assert_error(http.post(base.removesuffix("/serve") + "/", json={"model": "echo"}), 404, "not_found")


def test_arrays_are_answered_as_lists():
    answer = {"y": np.arange(4).reshape(2, 2), "mean": np.float64(1.5), "count": np.int64(4)}
    assert json.loads(encode_answer(answer)) == {"y": [[0, 1], [2, 3]], "mean": 1.5, "count": 4}
    with pytest.raises(ModelFailedError, match="object"):
        encode_answer({"y": object()})
