import asyncio
import json
import time

import openai
import pytest

from alpa_serve.errors import ModelFailedError, RequestRejectedError

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
CHOICE = {"index": 0, "text": "own", "logprobs": None, "finish_reason": "length"}
CHAT_CHOICE = {"index": 0, "message": {"role": "assistant", "content": "own"}, "finish_reason": "length"}
USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
DELTAS = [
    {"choices": [{"index": 0, "delta": {"role": "assistant", "content": "a"}, "finish_reason": None}], "id": "own"},
    {"choices": [{"index": 0, "delta": {"content": "b"}, "finish_reason": "length"}], "id": "own"},
]


@pytest.fixture(scope="module")
def running(serving):
    answers = {
        "text": "Hello, world",
        "dict": {"text": "cut", "finish_reason": "length", "usage": USAGE},
        "own": {"id": "own-1", "object": "text_completion", "created": 7, "model": "inner", "choices": [CHOICE]},
        "own-chat": {"object": "chat.completion", "model": "inner", "choices": [CHAT_CHOICE], "usage": USAGE},
        "json": {"answer": [1, None]},
        "pieces": ["Hel", "lo", {"text": ", world"}, {"finish_reason": "length", "usage": USAGE}],
        "plain pieces": ["Hello", ", world"],
        "deltas": DELTAS,
        "silent": [],
        "breaks": ["Hello", ModelFailedError("ValueError: no")],
        "bug": ["Hello", ZeroDivisionError("words of the server's inside")],
        "unwritable": ["Hello", {"x": float("nan")}],
        "late": RequestRejectedError("would be late"),
    }
    with serving(answers) as server:
        yield server


@pytest.fixture(scope="module")
def client(running):
    with openai.OpenAI(base_url=running.url + "/v1", api_key="any", max_retries=2) as client:
        yield client


def test_client_lists_and_describes_models(running, client):
    models = client.models.list().data
    assert [model.id for model in models] == list(running.dispatcher.answers)
    assert (models[0].object, models[0].created, models[0].owned_by) == ("model", 1_700_000_000, "alpa_serve")
    assert client.models.retrieve("plain pieces").id == "plain pieces"
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.models.retrieve("none")


def test_models_whose_names_have_slashes_are_described(serving):
    with (
        serving({"alpa/bert-1.3b": 1}) as server,
        openai.OpenAI(base_url=server.url + "/v1", api_key="any") as client,
    ):
        assert client.models.retrieve("alpa/bert-1.3b").id == "alpa/bert-1.3b"


def test_client_completes(running, client):
    completion = client.completions.create(model="text", prompt="12345678 ", max_tokens=7, extra_body={"top_k": 3})
    assert completion.id.startswith("cmpl-")
    assert completion.object == "text_completion"
    assert abs(completion.created - time.time()) < 3600
    assert completion.model == "text"
    (choice,) = completion.choices
    assert (choice.index, choice.text, choice.finish_reason) == (0, "Hello, world", "stop")
    assert completion.usage.to_dict() == {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6}
    request = running.dispatcher.requests[-1]
    assert request == {"model": "text", "prompt": "12345678 ", "max_tokens": 7, "top_k": 3}
    assert (request.endpoint, request.input_tokens, request.output_tokens) == ("completions", 3, 7)


def test_client_chats(running, client):
    parts = [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    messages = [MESSAGES[0], {"role": "user", "content": parts}]
    completion = client.chat.completions.create(model="text", messages=messages, max_completion_tokens=9)
    assert completion.id.startswith("chatcmpl-")
    assert completion.object == "chat.completion"
    (choice,) = completion.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello, world")
    assert choice.finish_reason == "stop"
    assert completion.usage.prompt_tokens == 4
    request = running.dispatcher.requests[-1]
    assert (request.endpoint, request.input_tokens, request.output_tokens) == ("chat/completions", 4, 9)
    assert request["messages"] == messages


def test_models_may_say_why_they_ended_and_what_they_counted(client):
    completion = client.completions.create(model="dict", prompt="x")
    assert (completion.choices[0].text, completion.choices[0].finish_reason) == ("cut", "length")
    assert completion.usage.to_dict() == USAGE


def test_models_that_speak_openais_api_are_passed_through_under_their_served_name(client):
    completion = client.completions.create(model="own", prompt="x")
    assert (completion.id, completion.created, completion.model) == ("own-1", 7, "own")
    assert completion.choices[0].to_dict() == CHOICE


def test_answers_of_other_kinds_become_their_json(client):
    assert client.completions.create(model="json", prompt="x").choices[0].text == '{"answer":[1,null]}'


def test_client_streams_a_chat(running, client):
    stream = client.chat.completions.create(
        model="pieces", messages=MESSAGES, stream=True, stream_options={"include_usage": True}
    )
    *chunks, finish, usage = list(stream)
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["Hel", "lo", ", world"]
    assert [chunk.choices[0].delta.role for chunk in chunks] == ["assistant", None, None]
    assert {chunk.object for chunk in [*chunks, finish, usage]} == {"chat.completion.chunk"}
    assert len({chunk.id for chunk in [*chunks, finish, usage]}) == 1
    assert finish.choices[0].finish_reason == "length"
    assert usage.choices == []
    assert usage.usage.to_dict() == USAGE
    assert all(chunk.usage is None for chunk in [*chunks, finish])
    assert running.dispatcher.stream_closed.wait(20)


def test_client_streams_a_completion_whose_tokens_are_estimated(client):
    options = {"include_usage": True}
    stream = client.completions.create(model="plain pieces", prompt="1234", stream=True, stream_options=options)
    *chunks, finish, usage = list(stream)
    assert [chunk.choices[0].text for chunk in chunks] == ["Hello", ", world"]
    assert finish.choices[0].finish_reason == "stop"
    assert usage.usage.to_dict() == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}


def test_usage_is_not_sent_unless_asked_for(client):
    chunks = list(client.chat.completions.create(model="pieces", messages=MESSAGES, stream=True))
    assert all(chunk.choices for chunk in chunks)
    assert all("usage" not in chunk.to_dict() for chunk in chunks)


def test_streamed_pieces_in_openais_words_are_passed_through_and_end_once(client):
    chunks = list(client.chat.completions.create(model="deltas", messages=MESSAGES, stream=True))
    assert [chunk.choices[0].delta.content for chunk in chunks] == ["a", "b"]
    assert [chunk.choices[0].finish_reason for chunk in chunks] == [None, "length"]
    assert {(chunk.id, chunk.model) for chunk in chunks} == {("own", "deltas")}


def test_model_that_does_not_stream_answers_a_stream_in_one_piece(client):
    options = {"include_usage": True}
    first, usage = list(
        client.chat.completions.create(model="own-chat", messages=MESSAGES, stream=True, stream_options=options)
    )
    assert first.object == "chat.completion.chunk"
    assert (first.choices[0].delta.content, first.choices[0].finish_reason) == ("own", "length")
    assert usage.usage.to_dict() == USAGE
    text, finish = list(client.chat.completions.create(model="text", messages=MESSAGES, stream=True))
    assert (text.choices[0].delta.content, finish.choices[0].finish_reason) == ("Hello, world", "stop")


def test_stream_without_pieces_ends_properly(client):
    (finish,) = list(client.chat.completions.create(model="silent", messages=MESSAGES, stream=True))
    assert finish.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("breaks", "model_failed", "ValueError: no"),
        ("bug", "internal_error", "log"),
    ],
)
def test_error_after_the_first_piece_ends_the_stream_with_an_error(running, http, client, model, code, said):
    stream = client.completions.create(model=model, prompt="x", stream=True)
    assert next(stream).choices[0].text == "Hello"
    with pytest.raises(openai.APIError, match=said) as raised:
        next(stream)
    assert raised.value.code == code
    response = http.post(running.url + "/v1/completions", json={"model": model, "prompt": "x", "stream": True})
    events = response.text.split("\n\n")
    assert events[-1] == ""
    assert json.loads(events[-2].removeprefix("data: "))["error"]["code"] == code
    assert "words of the server's inside" not in response.text


def test_stream_has_the_headers_of_server_sent_events(running, http):
    response = http.post(running.url + "/v1/completions", json={"model": "text", "prompt": "x", "stream": True})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert response.text.endswith("data: [DONE]\n\n")


def test_client_does_not_repeat_what_missed_its_slo(running, client):
    before = len(running.dispatcher.requests)
    with pytest.raises(openai.InternalServerError) as raised:
        client.completions.create(model="late", prompt="x", extra_body={"slo": 0.5})
    assert raised.value.code == "slo_rejected"
    assert len(running.dispatcher.requests) == before + 1
    assert running.dispatcher.requests[-1].slo == 0.5


def test_client_that_leaves_a_stream_has_it_closed(serving):
    async def sleep(request):
        await asyncio.sleep(1000)

    with serving({"endless": ["Hello", sleep], "mute": [sleep]}) as server:
        for model in ("endless", "mute"):
            server.dispatcher.stream_closed.clear()
            body = json.dumps({"model": model, "prompt": "x", "stream": True}).encode()
            with server.connect() as client:
                client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body))
                client.sendall(body)
                if model == "endless":
                    assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            assert server.dispatcher.stream_closed.wait(20), model


def test_iterator_that_is_no_generator_is_closed_too(serving, http):
    class Pieces:
        closed = 0
        left = 2

        def __aiter__(self):
            return self

        async def __anext__(self):
            if not self.left:
                raise StopAsyncIteration
            self.left -= 1
            return "x"

        async def aclose(self):
            self.closed += 1

    pieces = Pieces()
    with serving() as server:
        server.dispatcher.stream = lambda request: pieces
        fields = {"model": "any", "prompt": "x", "stream": True}
        assert http.post(server.url + "/v1/completions", json=fields).text.endswith("data: [DONE]\n\n")
    assert pieces.closed == 1


@pytest.mark.parametrize(
    ("prompt", "tokens"), [("", 0), ("12345", 2), (["12345"], 2), ([5, 6, 7], 3), ([[5, 6]], 2), ([], 0)]
)
def test_prompts_come_as_text_or_tokens_of_which_tokens_are_counted(running, http, prompt, tokens):
    assert http.post(running.url + "/v1/completions", json={"model": "text", "prompt": prompt}).status_code == 200
    request = running.dispatcher.requests[-1]
    assert (request.input_tokens, request.output_tokens) == (tokens, 16)
    assert request["prompt"] == prompt


def test_lengths_that_the_request_states_are_believed(running, http):
    fields = {"prompt": "x", "input_tokens": 100, "output_tokens": 50, "max_tokens": 60}
    http.post(running.url + "/v1/completions", json={"model": "text", **fields})
    request = running.dispatcher.requests[-1]
    assert (request.input_tokens, request.output_tokens) == (100, 50)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": ["a", "b"]}, "prompt"),
        ({"prompt": [[1], [2]]}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": "x", "n": 2}, "n"),
        ({"prompt": "x", "stream": "yes"}, "stream"),
        ({"prompt": "x", "stream_options": {"include_usage": 1}}, "stream_options"),
        ({"prompt": "x", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "x", "max_tokens": 10**10}, "max_tokens"),
        ({"prompt": "x", "slo": -1}, "slo"),
        ({"prompt": "x", "submit_time": "now"}, "submit_time"),
        ({"prompt": "x", "model": ""}, "model"),
        ({"prompt": "x", "model": 1}, "model"),
    ],
)
def test_completion_with_a_wrong_field_is_refused_by_its_name(running, http, assert_error, fields, field):
    response = http.post(running.url + "/v1/completions", json={"model": "text", **fields})
    assert f'"{field}" must be ' in assert_error(response, 400, "invalid_request")


@pytest.mark.parametrize(
    "messages",
    [None, [], "hello", [{"content": "x"}], [{"role": "user", "content": 3}], [{"role": "user", "content": [{}]}]],
)
def test_chat_without_proper_messages_is_refused(running, http, assert_error, messages):
    response = http.post(running.url + "/v1/chat/completions", json={"model": "text", "messages": messages})
    assert '"messages" must be ' in assert_error(response, 400, "invalid_request")


def test_piece_that_json_does_not_have_ends_the_stream_with_the_models_error(running, http):
    response = http.post(running.url + "/v1/completions", json={"model": "unwritable", "prompt": "x", "stream": True})
    assert '"code":"model_failed"' in response.text
    assert "[DONE]" not in response.text
