import asyncio
import json
import math
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from alpa_serve.errors import (
    GroupLostError,
    InvalidConfigError,
    InvalidProfileError,
    InvalidRequestError,
    ModelFailedError,
    OverloadedError,
    RequestTimeoutError,
)
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.runtime.models import OpenAICompatibleModel, openai_compatible, sse
from alpa_serve.runtime.request import CHAT_COMPLETIONS, COMPLETIONS, ServeRequest
from alpa_serve.scheduling import ALPASERVE, replica_timing

ONE = ParallelConfig(1, 1, 1)


@asynccontextmanager
async def model_before(answer, **options):
    """Yield a model before a server that answers each request as `answer(request)` says, and what it was sent."""
    seen = []

    async def handle(request):
        seen.append((request.path, dict(request.headers), await request.json()))
        return await answer(request)

    app = web.Application()
    app.router.add_post("/{path:.*}", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    model = OpenAICompatibleModel(f"http://127.0.0.1:{port}/v1/", "meta/llama", **options)
    try:
        yield model, seen
    finally:
        await model.close()
        await runner.cleanup()


def completion(**fields):
    return ServeRequest(fields, model="llama", endpoint=COMPLETIONS)


def answering(status=200, text=None, **fields):
    async def answer(request):
        body = json.dumps(fields) if text is None else text
        return web.Response(status=status, text=body, content_type="application/json")

    return answer


def streaming(*parts, content_type="text/event-stream"):
    async def answer(request):
        response = web.StreamResponse(headers={"Content-Type": content_type})
        await response.prepare(request)
        for part in parts:
            await response.write(part)
        return response

    return answer


async def forever(request):
    await asyncio.sleep(3600)


def handle(answer, request, **options):
    """Return what the model before such a server answers, and what the server saw."""

    async def main():
        async with model_before(answer, **options) as (model, seen):
            return await model.handle_request(request), seen

    return asyncio.run(main())


def stream(answer, request, **options):
    async def main():
        async with model_before(answer, **options) as (model, seen):
            return [chunk async for chunk in model.stream_request(request)], seen

    return asyncio.run(main())


def test_a_request_is_forwarded_under_the_servers_name_and_without_what_is_the_runtimes():
    fields = {
        "prompt": "Hi",
        "max_tokens": 3,
        "slo": 1,
        "submit_time": 2,
        "input_tokens": 1,
        "output_tokens": 3,
        "idx": 4,
    }
    answer, [(path, headers, body)] = handle(
        answering(model="meta/llama", choices=[]), completion(**fields), api_key="secret"
    )
    assert answer == {"model": "llama", "choices": []}
    assert path == "/v1/completions"
    assert headers["Authorization"] == "Bearer secret"
    assert body == {"prompt": "Hi", "max_tokens": 3, "model": "meta/llama"}


@pytest.mark.parametrize(
    ("fields", "endpoint", "path"),
    [
        ({}, CHAT_COMPLETIONS, "/v1/chat/completions"),
        ({"messages": []}, "", "/v1/chat/completions"),
        ({"prompt": "Hi"}, "", "/v1/completions"),
        ({"prompt": "Hi", "messages": []}, "", "/v1/chat/completions"),
    ],
)
def test_the_endpoint_is_that_of_the_request_or_of_its_fields(fields, endpoint, path):
    _, [(posted_to, _, body)] = handle(answering(), ServeRequest(fields, model="llama", endpoint=endpoint))
    assert posted_to == path
    assert body == fields | {"model": "meta/llama"}


def test_an_object_without_prompt_is_refused_unsent():
    with pytest.raises(InvalidRequestError, match='"prompt" or "messages"'):
        handle(answering(), ServeRequest({"idx": 1}, model="llama"))


def test_what_json_lacks_is_refused():
    for value in (object(), math.nan):
        with pytest.raises(InvalidRequestError, match="JSON"):
            handle(answering(), completion(prompt=value))


def test_a_whole_answer_is_asked_for_whatever_the_client_wanted():
    _, [(_, _, body)] = handle(answering(), completion(prompt="Hi", stream=True, stream_options={}))
    assert body == {"prompt": "Hi", "model": "meta/llama"}


def test_chunks_are_streamed_until_done():
    events = (
        b': ping\n\ndata: {"model": "meta/llama", "n": 1}\n\nda',
        b'ta:{"n":\r\ndata: 2}\r\n\r\nevent: x\n\ndata: [DONE]\n\ndata: {"n": 3}\n\n',
    )
    options = {"include_usage": True}
    chunks, [(_, headers, body)] = stream(streaming(*events), completion(prompt="Hi", stream_options=options, slo=9))
    assert chunks == [{"model": "llama", "n": 1}, {"n": 2}]
    assert body == {"prompt": "Hi", "model": "meta/llama", "stream": True, "stream_options": options}
    assert "Authorization" not in headers


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, InvalidRequestError),
        (413, InvalidRequestError),
        (422, InvalidRequestError),
        (401, ModelFailedError),
        (404, ModelFailedError),
        (302, ModelFailedError),
        (429, OverloadedError),
        (503, OverloadedError),
        (500, ModelFailedError),
        (502, ModelFailedError),
    ],
)
def test_a_refusal_is_of_the_kind_that_its_status_says(status, error):
    refuse = answering(status, error={"message": "the context\nis too long " + 500 * "x"})
    for way in (handle, stream):
        with pytest.raises(error, match="the context is too long xxx") as raised:
            way(refuse, completion(prompt="Hi"))
        assert type(raised.value) is error
        assert len(str(raised.value)) < 300


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"message": "of vLLM"}', "of vLLM"),
        ('{"detail": "of FastAPI"}', "of FastAPI"),
        ('{"error": "plain"}', "plain"),
        ("<html>", "Bad Request"),
        ("[1]", "Bad Request"),
        ("{}", "no message"),
        (" " * 100_000, "Bad Request"),
    ],
)
def test_a_refusal_in_another_form_has_a_message_too(text, message):
    with pytest.raises(InvalidRequestError, match=message):
        handle(answering(400, text), completion(prompt="Hi"))


@pytest.mark.parametrize("text", ["", "garbage", "[]", "[" * 100_000, "\udcff".encode("utf-8", "surrogateescape")])
def test_an_answer_that_is_no_json_object_is_the_servers_failure(text):
    async def answer(request):
        body = text if isinstance(text, bytes) else text.encode()
        return web.Response(body=body, content_type="application/json")

    with pytest.raises(ModelFailedError, match="did not answer with a JSON object"):
        handle(answer, completion(prompt="Hi"))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (streaming(b"data: garbage\n\n"), "JSON object"),
        (streaming(b'data: {"error": {"message": "out of memory"}}\n\n'), "out of memory"),
        (streaming(b'data: {"n": 1}\n\n'), "ended its stream without"),
        (streaming(b"{}", content_type="application/json"), "answered application/json to a request for a stream"),
    ],
)
def test_a_stream_that_is_none_is_the_servers_failure(answer, message):
    with pytest.raises(ModelFailedError, match=message):
        stream(answer, completion(prompt="Hi"))


def test_sizes_are_bounded(monkeypatch):
    monkeypatch.setattr(openai_compatible, "LARGEST_ANSWER_BYTES", 1000)
    assert handle(answering(text="{" + 998 * " " + "}"), completion(prompt="Hi"))[0] == {}
    with pytest.raises(ModelFailedError, match="more than 1000 bytes"):
        handle(answering(text="{" + 999 * " " + "}"), completion(prompt="Hi"))
    with pytest.raises(ModelFailedError, match=f"more than {sse.LONGEST_EVENT_BYTES} bytes"):
        stream(streaming(b"data: " + b"x" * (sse.LONGEST_EVENT_BYTES + 1)), completion(prompt="Hi"))


def test_a_server_that_hangs_is_not_waited_for_forever():
    async def hang_in_stream(request):
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await response.write(b'data: {"n": 1}\n\n')
        await forever(request)

    with pytest.raises(RequestTimeoutError, match=r"timeout_s=0.2"):
        handle(forever, completion(prompt="Hi"), timeout_s=0.2)
    for answer in (forever, hang_in_stream):
        with pytest.raises(RequestTimeoutError):
            stream(answer, completion(prompt="Hi"), timeout_s=0.2)


def test_a_server_that_breaks_off_or_is_not_there_has_failed():
    async def break_off(request):
        response = web.StreamResponse(headers={"Content-Length": "100"})
        await response.prepare(request)
        request.transport.close()
        return response

    async def main():
        async with model_before(break_off) as (model, _):
            with pytest.raises(GroupLostError, match="broke off"):
                await model.handle_request(completion(prompt="Hi"))
        with pytest.raises(GroupLostError, match="cannot be reached") as raised:
            await model.handle_request(completion(prompt="Hi"))
        assert "127.0.0.1" not in str(raised.value)
        await model.close()

    asyncio.run(main())


def test_closing_a_stream_early_ends_it_at_the_server():
    async def main():
        gone = asyncio.Event()

        async def endless(request):
            response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
            await response.prepare(request)
            try:
                while True:
                    await response.write(b'data: {"n": 1}\n\n')
                    await asyncio.sleep(0.01)
            except (ConnectionError, asyncio.CancelledError):
                gone.set()
                raise

        async with model_before(endless) as (model, _):
            chunks = model.stream_request(completion(prompt="Hi"))
            assert await chunks.__anext__() == {"n": 1}
            await chunks.aclose()
            await asyncio.wait_for(gone.wait(), 10)

    asyncio.run(main())


def test_connections_are_kept_for_the_next_request():
    async def main():
        ports = set()

        async def answer(request):
            ports.add(request.transport.get_extra_info("peername")[1])
            return web.json_response({})

        async with model_before(answer) as (model, _):
            for _ in range(3):
                await model.handle_request(completion(prompt="Hi"))
        return ports

    assert len(asyncio.run(main())) == 1


def profile(with_tokens=True):
    result = ProfilingResult("llama")
    figures = PrefillDecode(0.0, 1e-6, None) if with_tokens else None
    result.add_result(ONE, 1, [0.1], [1.0], [1.0], prefill_decode=figures)
    return result


def test_it_is_timed_by_its_profile_if_it_has_one():
    url = "http://127.0.0.1:1"
    timed = OpenAICompatibleModel(url, "llama", ONE, (1, 1), profiling_result=profile())
    assert timed.timing(ALPASERVE) == replica_timing(profile(), ONE, ALPASERVE)
    assert OpenAICompatibleModel(url, "llama", ONE, (1, 1)).timing(ALPASERVE) is None
    assert OpenAICompatibleModel(url, "llama", profiling_result=profile()).timing(ALPASERVE) is None


def test_the_latency_scale_is_measured_where_the_profile_knows_tokens():
    usage = {"prompt_tokens": 1, "completion_tokens": 16}

    def scale(answer, **options):
        async def main():
            async with model_before(answer, **options) as (model, seen):
                return await model.warmup(), [body for _, _, body in seen]

        measured, bodies = asyncio.run(main())
        assert bodies == [{"model": "meta/llama", "prompt": "Hello", "max_tokens": 16}]
        return measured

    counted, placed = answering(usage=usage), {"parallel_config": ONE}
    # no server answers within 16 us
    assert scale(counted, profiling_result=profile(), **placed) > 1
    assert scale(counted, profiling_result=profile(with_tokens=False), **placed) is None
    assert scale(counted) is None
    assert scale(answering(), profiling_result=profile(), **placed) is None
    assert scale(answering(usage={"prompt_tokens": "1"}), profiling_result=profile(), **placed) is None


@pytest.mark.parametrize(
    "url",
    ["", None, "127.0.0.1:8000", "ftp://host/v1", "http://", "http://host:99999/", "http://host/v1?x=1", "http://a b/"],
)
def test_what_is_no_url_of_a_server_is_refused(url):
    with pytest.raises(InvalidConfigError, match="base_url must be an http or https URL"):
        OpenAICompatibleModel(url, "llama")


def test_wrong_arguments_are_refused():
    url = "https://host/v1"
    with pytest.raises(InvalidConfigError, match="not in the URL") as raised:
        OpenAICompatibleModel("https://me:secret@host/v1", "llama")
    assert "secret" not in str(raised.value)
    with pytest.raises(InvalidConfigError, match="model must be the name"):
        OpenAICompatibleModel(url, "")
    with pytest.raises(InvalidConfigError, match="api_key of model 'llama'") as raised:
        OpenAICompatibleModel(url, "llama", api_key="secret\r\nX: y")
    assert "secret" not in str(raised.value)
    with pytest.raises(InvalidConfigError, match="timeout_s"):
        OpenAICompatibleModel(url, "llama", timeout_s=0)
    with pytest.raises(InvalidProfileError, match="must be a ProfilingResult"):
        OpenAICompatibleModel(url, "llama", profiling_result={})
    with pytest.raises(InvalidProfileError, match="not profiled"):
        OpenAICompatibleModel(url, "llama", ParallelConfig(1, 2, 1), profiling_result=profile())
