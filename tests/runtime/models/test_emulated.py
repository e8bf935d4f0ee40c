import asyncio
import json
import time
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import (
    InvalidConfigError,
    InvalidPlacementError,
    InvalidProfileError,
    InvalidRequestError,
)
from alpa_serve.profiles import maveriq
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.runtime.models import EXACT, EmulatedDevices, EmulatedModel
from alpa_serve.runtime.models.emulated import LONGEST_CONTEXT
from alpa_serve.runtime.request import CHAT_COMPLETIONS, COMPLETIONS, ServeRequest
from alpa_serve.scheduling import ALPASERVE, MAVERIQ, Scheduler, replica_timing

ONE, TWO = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2)
TOKENS = replace(EXACT, service="tokens")
SECONDS = st.floats(0, 10).map(lambda seconds: round(seconds, 2))


@pytest.fixture
def two_stages(profile_of):
    """A model that takes 1 s and 2 s on its two stages."""
    return profile_of({TWO: {1: [1.0, 2.0]}})


def by_tokens(prompt_tokens=None, latency_s=2.0, config=ONE):
    """Return a profile whose first token takes 1 s (for `prompt_tokens`), and each further one 0.25 s."""
    profile = ProfilingResult("by tokens")
    stages = [latency_s / config.pp] * config.pp
    figures = PrefillDecode(0.75, 0.25, prompt_tokens)
    profile.add_result(config, 1, stages, stages, stages, prefill_decode=figures)
    return profile


async def streamed(model, request):
    """Return [(when, piece of text)], after checking that the last piece says how many tokens it were."""
    loop = asyncio.get_running_loop()
    *pieces, (_, ending) = [(loop.time(), piece) async for piece in model.stream_request(request)]
    assert (ending["text"], ending["finish_reason"]) == ("", "length")
    assert ending["usage"]["completion_tokens"] == request.output_tokens
    return pieces


def completion(output_tokens, input_tokens=8):
    return ServeRequest({}, model="m", endpoint=COMPLETIONS, input_tokens=input_tokens, output_tokens=output_tokens)


def test_a_request_takes_the_profiled_time_and_waits_for_the_first_stage_only(two_stages, virtual_time, answers_of):
    model = EmulatedModel(two_stages, TWO)
    answers = virtual_time(answers_of([(0.0, model, {"idx": 7}), (0.5, model, {})]))
    assert answers == [
        ({"model": "m", "latency_s": 3.0, "queue_s": 0.0, "idx": 7}, 3.0),
        ({"model": "m", "latency_s": 4.5, "queue_s": 0.5}, 5.0),
    ]


def test_the_request_carries_how_long_it_waited(two_stages, virtual_time):
    model = EmulatedModel(two_stages, TWO)

    async def main():
        requests = [ServeRequest({}, model="m") for _ in range(3)]
        await asyncio.gather(*map(model.handle_request, requests))
        return [request.queue_s for request in requests]

    assert virtual_time(main()) == [0.0, 1.0, 2.0]


@given(
    stages=st.lists(st.lists(SECONDS, min_size=1, max_size=3), min_size=1, max_size=3),
    arrivals=st.lists(st.tuples(SECONDS, st.integers(0, 2)), max_size=12),
    exclusive=st.booleans(),
)
@settings(deadline=None)
def test_every_request_ends_when_the_stages_of_its_group_let_it(
    stages, arrivals, exclusive, profile_of, virtual_time, answers_of
):
    devices = EmulatedDevices((1, 4))
    rules = replace(EXACT, execution="exclusive" if exclusive else "pipelined")
    models = []
    for latency in stages:
        config = ParallelConfig(1, 1, len(latency))
        models.append(EmulatedModel(profile_of({config: {1: latency}}), config, devices, rules=rules))
    chosen = [(arrival, model % len(stages)) for arrival, model in sorted(arrivals)]
    answers = virtual_time(answers_of([(arrival, models[model], {}) for arrival, model in chosen]))
    clocks = [0.0] * 4
    for (arrival, model), (answer, came) in zip(chosen, answers, strict=True):
        end = max(arrival, max(clocks) if exclusive else clocks[0])
        assert answer["queue_s"] == end - arrival
        for k, latency in enumerate(stages[model]):
            clocks[k] = end = max(end, clocks[k]) + latency
        assert (answer["latency_s"], came) == (end - arrival, end)


@pytest.mark.parametrize(
    "rules", [TOKENS, MAVERIQ, replace(ALPASERVE, service="tokens")], ids=["exact", "maveriq", "alpa"]
)
@given(st.lists(st.tuples(st.floats(0, 100), st.integers(0, 500), st.integers(0, 300)), max_size=10))
@settings(deadline=None, max_examples=30)
def test_service_by_tokens_is_that_of_the_scheduler(virtual_time, answers_of, rules, requests):
    profile, config = maveriq.load("falcon-40b"), ParallelConfig(1, 4, 2)
    requests.sort()
    scheduler = Scheduler(replace(rules, admission="all", queueing="per_group"), since=float("-inf"))
    scheduler.add_group(0)
    scheduler.add_replica("m", 0, replica_timing(profile, config, rules))
    expected = [scheduler.place("m", now, 9e9, inputs, outputs) for now, inputs, outputs in requests]
    model = EmulatedModel(profile, config, rules=rules, enable_batching=False)
    sent = [(now, model, {"input_tokens": inputs, "output_tokens": outputs}) for now, inputs, outputs in requests]
    answers = virtual_time(answers_of(sent))
    assert [came for _, came in answers] == [assignment.end for assignment in expected]


def test_replicas_of_a_group_share_its_devices_once_they_are_placed(two_stages, virtual_time, answers_of):
    devices = EmulatedDevices((1, 2))
    apart = [EmulatedModel(two_stages, TWO, (1, 2)) for _ in range(2)]
    together = [EmulatedModel(two_stages, TWO, (1, 2)) for _ in range(2)]
    for model in together:
        model.place_on(devices)
    for models, came in ((apart, [3.0, 3.0]), (together, [3.0, 5.0])):
        answers = virtual_time(answers_of([(0.0, model, {}) for model in models]))
        assert [when for _, when in answers] == came


def test_a_replica_that_goes_leaves_the_stages_busy(two_stages, virtual_time):
    devices = EmulatedDevices()
    first = EmulatedModel(two_stages, TWO, devices)

    async def main():
        running = asyncio.ensure_future(first.handle_request(ServeRequest({}, model="m")))
        await asyncio.sleep(0)
        await first.close()
        second = EmulatedModel(two_stages, TWO, devices)
        answer = await second.handle_request(ServeRequest({}, model="m"))
        with pytest.raises(InvalidPlacementError, match="is closed"):
            await first.handle_request(ServeRequest({}, model="m"))
        return (await running)["latency_s"], answer["latency_s"]

    assert virtual_time(main()) == (3.0, 5.0)


def test_openais_endpoints_get_text_and_usage(two_stages, virtual_time):
    model = EmulatedModel(two_stages, TWO)
    for endpoint in (COMPLETIONS, CHAT_COMPLETIONS):
        request = ServeRequest({}, model="m", endpoint=endpoint, input_tokens=5, output_tokens=3)
        assert virtual_time(model.handle_request(request)) == {
            "text": "token token token",
            "usage": {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8},
            "finish_reason": "length",
        }
        model = EmulatedModel(two_stages, TWO)


def test_an_answer_of_a_billion_tokens_takes_no_memory_and_no_more_time(two_stages, virtual_time):
    answer = virtual_time(EmulatedModel(two_stages, TWO).handle_request(completion(10**9)))
    assert len(answer["text"].split()) == 4096
    assert answer["usage"]["completion_tokens"] == 10**9
    pieces = virtual_time(streamed(EmulatedModel(two_stages, TWO), completion(10**9)))
    assert len(pieces) <= 302
    assert max(len(piece.split()) for _, piece in pieces) == 4096


def test_tokens_are_asked_for_where_they_take_time():
    model = EmulatedModel(by_tokens(), ONE, rules=TOKENS)
    for fields, message in (
        ({"output_tokens": 3}, '"input_tokens"'),
        ({"input_tokens": 3}, '"output_tokens"'),
        ({"input_tokens": LONGEST_CONTEXT, "output_tokens": 1}, f"at most {LONGEST_CONTEXT} tokens"),
    ):
        with pytest.raises(InvalidRequestError, match=message):
            asyncio.run(model.handle_request(ServeRequest(fields, model="m")))


def test_the_first_token_is_streamed_after_the_prefill_and_the_others_a_decode_step_apart(virtual_time):
    model = EmulatedModel(by_tokens(prompt_tokens=4), ONE, rules=TOKENS)
    pieces = virtual_time(streamed(model, completion(4, input_tokens=8)))
    assert pieces == [(2.0, "token"), (2.25, " token"), (2.5, " token"), (2.75, " token")]


def test_the_share_of_the_prefill_is_kept_when_tokens_take_no_time(virtual_time):
    # by its tokens it would take 1.5 s, 1 s of them for the prefill; its profiled latency is 3 s
    model = EmulatedModel(by_tokens(latency_s=3.0), ONE)
    assert [when for when, _ in virtual_time(streamed(model, completion(3)))] == [2.0, 2.5, 3.0]


def test_tokens_are_evenly_apart_where_the_prefill_is_not_known(two_stages, virtual_time):
    model = EmulatedModel(two_stages, TWO)
    assert [when for when, _ in virtual_time(streamed(model, completion(4)))] == [0.75, 1.5, 2.25, 3.0]


def test_a_stream_of_no_token_ends_with_its_request(two_stages, virtual_time):
    async def main():
        assert await streamed(EmulatedModel(two_stages, TWO), completion(0)) == []
        return asyncio.get_running_loop().time()

    assert virtual_time(main()) == 3.0


def test_a_stream_that_is_closed_early_leaves_the_devices_busy(two_stages, virtual_time):
    model = EmulatedModel(two_stages, TWO)

    async def main():
        stream = model.stream_request(completion(4))
        await stream.__anext__()
        await stream.aclose()
        return await model.handle_request(ServeRequest({}, model="m"))

    # at 0.75 s the first stage has 0.25 s to go, and the second is busy until 3 s
    assert virtual_time(main())["latency_s"] == 5.0 - 0.75


def test_a_streamed_answer_is_the_same_text(virtual_time):
    pieces = virtual_time(streamed(EmulatedModel(by_tokens(), ONE), completion(1000)))
    whole = virtual_time(EmulatedModel(by_tokens(), ONE).handle_request(completion(1000)))
    assert "".join(piece for _, piece in pieces) == whole["text"]
    assert len(pieces) < 202


def test_answers_are_json(two_stages, virtual_time):
    request = ServeRequest({"idx": 1}, model="m")
    answer = virtual_time(EmulatedModel(two_stages, TWO).handle_request(request))
    assert json.loads(json.dumps(answer)) == answer


def test_the_latency_scale_is_that_of_the_rules(two_stages, virtual_time):
    for rules, scale in ((EXACT, 1.0), (ALPASERVE, 1.018)):
        assert virtual_time(EmulatedModel(two_stages, TWO, rules=rules).warmup()) == pytest.approx(scale)
    assert virtual_time(EmulatedModel(by_tokens(), ONE, rules=TOKENS).warmup()) == 1.0


def test_a_model_that_takes_no_time_has_no_latency_scale(profile_of, virtual_time):
    assert virtual_time(EmulatedModel(profile_of({ONE: {1: [0.0]}}), ONE).warmup()) is None


def test_its_times_are_told_unless_it_serves_in_batches(two_stages, profile_of):
    assert EmulatedModel(two_stages, TWO).timing(ALPASERVE) == replica_timing(two_stages, TWO, ALPASERVE)
    batched = profile_of({ONE: {1: [1.0], 4: [2.0]}})
    assert EmulatedModel(batched, ONE).timing(ALPASERVE) is None
    alone = EmulatedModel(batched, ONE, enable_batching=False)
    assert alone.timing(EXACT).latency == (1.0,)
    assert alone.get_latency_dict() == {1: [1.0], 4: [2.0]}


def test_what_does_not_fit_is_refused(two_stages, profile_of):
    with pytest.raises(InvalidPlacementError, match=r"needs 2 devices; a mesh of shape \(1, 1\) has 1"):
        EmulatedModel(two_stages, TWO, (1, 1))
    with pytest.raises(InvalidPlacementError, match="shape of a mesh"):
        EmulatedModel(two_stages, TWO, "2")
    with pytest.raises(InvalidProfileError, match="not profiled"):
        EmulatedModel(two_stages, ONE)
    with pytest.raises(InvalidProfileError, match="needs a ProfilingResult, got None"):
        EmulatedModel(None, ONE)
    with pytest.raises(InvalidProfileError, match="no prefill and decode times"):
        EmulatedModel(two_stages, TWO, rules=TOKENS)
    with pytest.raises(InvalidConfigError, match="rules must be ServingRules"):
        EmulatedModel(two_stages, TWO, rules="exact")
    devices = EmulatedDevices((1, 2))
    first = EmulatedModel(two_stages, TWO, devices)
    with pytest.raises(InvalidPlacementError, match="other rules"):
        EmulatedModel(two_stages, TWO, devices, rules=ALPASERVE)
    with pytest.raises(InvalidPlacementError, match="pass enable_batching=False"):
        EmulatedModel(profile_of({ONE: {1: [1.0], 2: [2.0]}}), ONE, devices)
    with pytest.raises(InvalidPlacementError, match="already"):
        devices.add_replica(first, {1: first.timing(EXACT)}, EXACT)


def test_on_the_real_clock_lateness_does_not_add_up(profile_of):
    model = EmulatedModel(profile_of({ONE: {1: [0.01]}}), ONE)

    async def main():
        started = time.perf_counter()
        answers = await asyncio.gather(*(model.handle_request(ServeRequest({}, model="m")) for _ in range(50)))
        return answers[-1], time.perf_counter() - started

    answer, took_s = asyncio.run(main())
    assert answer["latency_s"] == pytest.approx(0.5, abs=0.05)
    assert 0.49 < took_s < 2.0
