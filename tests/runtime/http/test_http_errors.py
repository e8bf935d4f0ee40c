import asyncio
import gzip
import logging
import threading

import pytest

from alpa_serve.errors import (
    GroupLostError,
    InvalidRequestError,
    ModelFailedError,
    OverloadedError,
    RequestRejectedError,
    RequestTimeoutError,
    ServingError,
)

SECRET = "words of the server's inside"
RAISED = {
    "invalid": (InvalidRequestError("bad field"), 400, "invalid_request", "bad field"),
    "overloaded": (OverloadedError("too many wait"), 503, "overloaded", "too many wait"),
    "lost": (GroupLostError("group 1 died"), 503, "group_lost", "group 1 died"),
    "slow": (RequestTimeoutError("took 600 s"), 504, "timeout", "took 600 s"),
    "failed": (ModelFailedError("ValueError: no"), 500, "model_failed", "ValueError: no"),
    "other": (ServingError(SECRET), 500, "internal_error", "log"),
    "bug": (ZeroDivisionError(SECRET), 500, "internal_error", "log"),
}
LIMIT = 10_000


@pytest.fixture(scope="module")
def running(serving):
    answers = {name: error for name, (error, *_) in RAISED.items()}
    answers["rejected"] = RequestRejectedError("would be late by 0.3 s")
    with serving(answers, max_body_bytes=LIMIT, retry_after_s=1.2) as server:
        yield server


def post_completion(http, running, model, **fields):
    return http.post(running.url + "/v1/completions", json={"model": model, "prompt": "hi", **fields})


@pytest.mark.parametrize("name", RAISED)
@pytest.mark.parametrize("way", ["alpaserve", "completions", "stream"])
def test_error_of_a_request_has_its_status_on_every_endpoint(running, http, assert_error, name, way):
    _, status, code, said = RAISED[name]
    if way == "alpaserve":
        response = http.post(running.url, json={"model": name})
    else:
        response = post_completion(http, running, name, stream=way == "stream")
    assert said in assert_error(response, status, code)
    assert SECRET not in response.text
    assert response.headers.get("retry-after") == ("2" if status == 503 else None)


def test_unexpected_error_is_logged_with_its_traceback(running, http, caplog):
    with caplog.at_level(logging.ERROR, "alpa_serve.runtime.http"):
        http.post(running.url, json={"model": "bug"})
    (record,) = caplog.records
    assert record.exc_info[0] is ZeroDivisionError
    assert record.exc_info[2] is not None


@pytest.mark.parametrize("stream", [False, True])
def test_openai_clients_are_told_not_to_repeat_what_missed_its_slo(running, http, assert_error, stream):
    response = post_completion(http, running, "rejected", stream=stream)
    assert_error(response, 503, "slo_rejected")
    assert response.headers["x-should-retry"] == "false"
    assert "retry-after" not in response.headers


def test_unknown_model_and_unknown_path_are_404(running, http, assert_error):
    assert_error(http.post(running.url, json={"model": "none"}), 404, "model_not_found")
    assert_error(post_completion(http, running, "none"), 404, "model_not_found")
    assert_error(http.get(running.url + "/v1/models/none"), 404, "model_not_found")
    for path in ("/v2", "/v1/models/../../etc/passwd%00", "/%ff", "/healthz/", "/docs"):
        assert http.get(running.url + path).status_code == 404, path


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/", "POST"),
        ("PUT", "/", "POST"),
        ("OPTIONS", "/", "POST"),
        ("GET", "/v1/completions", "POST"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("DELETE", "/v1/models/echo", "GET, HEAD"),
        ("POST", "/healthz", "GET, HEAD"),
        ("TRACE", "/metrics", "GET, HEAD"),
    ],
)
def test_wrong_method_is_405_and_says_which_are_right(running, http, assert_error, method, path, allow):
    response = http.request(method, running.url + path)
    assert_error(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allow


def test_head_has_no_body(running, http):
    response = http.head(running.url + "/healthz")
    assert (response.status_code, response.content) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/v1/completions", "/v1/chat/completions"])
def test_body_over_the_limit_is_413_and_one_at_the_limit_is_read(running, http, assert_error, path):
    too_long = b"x" * (LIMIT + 1)
    chunked = (too_long[i : i + 1000] for i in range(0, len(too_long), 1000))
    assert_error(http.post(running.url + path, content=too_long), 413, "body_too_large")
    assert_error(http.post(running.url + path, content=chunked), 413, "body_too_large")
    assert_error(http.post(running.url + path, content=too_long[1:]), 400, "invalid_request")


def test_encoded_body_is_415_and_identity_is_read(running, http, assert_error):
    body = b'{"model": "echo"}'
    encoded = http.post(running.url, content=gzip.compress(body), headers={"content-encoding": "gzip"})
    assert_error(encoded, 415, "unsupported_encoding")
    assert http.post(running.url, content=body, headers={"content-encoding": "identity"}).status_code == 200


def test_token_is_asked_for_everywhere_but_at_healthz(serving, http, assert_error):
    with serving(api_key="the-key") as server:
        calls = [("POST", "/"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/openapi.json"), ("GET", "/no")]
        for method, path in calls:
            for token in (None, "Bearer", "Bearer the-ke", "Bearer the-key2", "Basic the-key", "the-key"):
                headers = {} if token is None else {"authorization": token}
                response = http.request(method, server.url + path, headers=headers, content=b"{")
                assert_error(response, 401, "invalid_api_key")
                assert response.headers["www-authenticate"] == "Bearer"
        for token in (b"Bearer the-key", b"bearer  the-key"):
            response = http.post(server.url, json={"model": "echo"}, headers={b"authorization": token})
            assert response.status_code == 200
        assert_error(http.get(server.url, headers={b"authorization": b"Bearer \xff\xfe"}), 401, "invalid_api_key")
        assert http.get(server.url + "/healthz").status_code == 200
        assert server.dispatcher.requests == [{"model": "echo"}] * 2


def test_token_is_checked_before_the_body_comes(serving):
    with serving(api_key="the-key") as server, server.connect() as client:
        client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("status", "http_status"), [("ok", 200), ("degraded", 200), ("unavailable", 503), ("draining", 503)]
)
def test_health_says_how_the_groups_are(serving, http, status, http_status):
    with serving() as server:
        server.dispatcher.status = status
        response = http.get(server.url + "/healthz")
        assert response.status_code == http_status
        assert response.json() == {"status": status, "groups_up": 1, "groups": 2}


def test_metrics_are_prometheus_text(running, http):
    response = http.get(running.url + "/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert response.content == running.dispatcher.metrics()


def test_no_answer_allows_other_origins(running, http):
    response = http.options(running.url, headers={"origin": "http://a.b", "access-control-request-method": "POST"})
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_request_is_answered_with_503_when_the_time_to_drain_is_over(serving, http, assert_error):
    entered = threading.Event()

    async def hang(request):
        entered.set()
        await asyncio.sleep(1000)

    responses = []
    with serving({"hang": hang}) as server:
        asking = threading.Thread(target=lambda: responses.append(http.post(server.url, json={"model": "hang"})))
        asking.start()
        assert entered.wait(20)
        server.stop(0.1)
        asking.join(20)
    assert_error(responses[0], 503, "shutting_down")
