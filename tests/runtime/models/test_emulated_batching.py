import asyncio
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, RequestRejectedError
from alpa_serve.placement import ModelPlacement
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.runtime.models import EXACT, EmulatedDevices, EmulatedModel
from alpa_serve.runtime.request import ServeRequest
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.controller import approximate_one_case_one_placement

ONE = ParallelConfig(1, 1, 1)
SIZES = (1, 2, 4, 8, 16)
SECONDS = st.floats(0, 3).map(lambda seconds: round(seconds, 2))


@pytest.fixture
def batched(profile_of):
    """A profile of one stage: 1 s alone, 1.5 s for two, 2 s for four."""
    return profile_of({ONE: {1: [1.0], 2: [1.5], 4: [2.0]}})


def fates(answers):
    """Return (latency or None if rejected, when it was known) of each request."""
    assert all(isinstance(answer, (dict, RequestRejectedError)) for answer, _ in answers)
    return [(answer["latency_s"] if isinstance(answer, dict) else None, came) for answer, came in answers]


def test_requests_that_wait_are_served_together(batched, virtual_time, answers_of):
    model = EmulatedModel(batched, ONE)
    answers = virtual_time(answers_of([(arrival, model, {}) for arrival in (0.0, 0.25, 0.5, 0.75)]))
    assert fates(answers) == [(1.0, 1.0), (2.25, 2.5), (2.0, 2.5), (2.75, 3.5)]
    assert [answer["queue_s"] for answer, _ in answers] == [0.0, 0.75, 0.5, 1.75]


def test_a_head_that_is_too_late_is_rejected_when_its_turn_comes(batched, virtual_time, answers_of):
    model = EmulatedModel(batched, ONE)
    sent = [(0.0, model, {}), (0.25, model, {"slo": 1.7}), (0.5, model, {"slo": 1.5}), (0.5, model, {"slo": 2.0})]
    assert fates(virtual_time(answers_of(sent))) == [(1.0, 1.0), (None, 1.0), (1.5, 2.0), (None, 2.0)]


def test_the_deadline_counts_from_when_a_request_was_sent(batched, virtual_time, until):
    async def main():
        await until(10.0)
        model = EmulatedModel(batched, ONE)
        early, late = (ServeRequest({"slo": 2.0, "submit_time": sent}, model="m") for sent in (9.0, 8.9))
        await model.handle_request(early)
        with pytest.raises(RequestRejectedError, match="would miss its SLO"):
            await model.handle_request(late)

    virtual_time(main())


def test_all_are_served_where_all_are_admitted(batched, virtual_time, answers_of):
    model = EmulatedModel(batched, ONE, rules=replace(EXACT, admission="all"))
    assert fates(virtual_time(answers_of([(0.0, model, {"slo": 0.1})] * 2))) == [(1.0, 1.0), (2.0, 2.0)]


def test_a_batch_holds_its_group_to_the_end_under_exclusive_execution(profile_of, virtual_time, answers_of):
    config = ParallelConfig(1, 1, 2)
    profile = profile_of({config: {1: [1.0, 2.0], 2: [1.5, 2.5]}})
    for execution, came in (("pipelined", [3.0, 5.5, 5.5]), ("exclusive", [3.0, 7.0, 7.0])):
        model = EmulatedModel(profile, config, rules=replace(EXACT, execution=execution))
        assert [when for _, when in virtual_time(answers_of([(0.0, model, {})] * 3))] == came


def test_the_model_whose_oldest_request_is_oldest_goes_first(batched, virtual_time, answers_of):
    devices = EmulatedDevices()
    a, b = (EmulatedModel(batched, ONE, devices) for _ in range(2))
    answers = virtual_time(answers_of([(0.0, a, {}), (0.25, b, {}), (0.5, a, {}), (0.75, b, {})]))
    assert [came for _, came in answers] == [1.0, 2.5, 3.5, 2.5]


def test_a_batch_takes_its_longest_prompt_and_answer(virtual_time, answers_of):
    profile = ProfilingResult("by tokens")
    for size, step in ((1, 1.0), (2, 2.0)):
        figures = PrefillDecode(0.0, step, 1)
        profile.add_result(ONE, size, [1.0], [1.0], [1.0], prefill_decode=figures)
    model = EmulatedModel(profile, ONE, rules=replace(EXACT, service="tokens"))
    counts = [(1, 1), (3, 1), (1, 5)]
    sent = [(0.0, model, {"input_tokens": inputs, "output_tokens": outputs}) for inputs, outputs in counts]
    # alone 1 * 1; then as two: 2 * 3 for the prompt, 2 * 4 for the further tokens
    assert [came for _, came in virtual_time(answers_of(sent))] == [1.0, 15.0, 15.0]


def test_a_client_that_goes_leaves_the_queue_but_not_its_batch(batched, virtual_time, until):
    async def main():
        model = EmulatedModel(batched, ONE)
        tasks = [asyncio.ensure_future(model.handle_request(ServeRequest({}, model="m"))) for _ in range(4)]
        await until(0.5)
        tasks[0].cancel()
        tasks[1].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        return [outcome["latency_s"] if isinstance(outcome, dict) else type(outcome) for outcome in outcomes]

    # the first goes on until 1 s; then the two that are left are a batch
    assert virtual_time(main()) == [asyncio.CancelledError] * 2 + [2.5, 2.5]


def test_requests_that_wait_are_served_though_their_replica_goes(batched, virtual_time):
    async def main():
        devices = EmulatedDevices()
        model = EmulatedModel(batched, ONE, devices)
        tasks = [asyncio.ensure_future(model.handle_request(ServeRequest({}, model="m"))) for _ in range(2)]
        await asyncio.sleep(0)
        await model.close()
        with pytest.raises(InvalidPlacementError, match="no replica"):
            await devices.start(model, ServeRequest({}, model="m"))
        return [answer["latency_s"] for answer in await asyncio.gather(*tasks)]

    assert virtual_time(main()) == [1.0, 2.0]


def test_replicas_without_batches_and_unknown_delays_are_refused(batched, profile_of):
    devices = EmulatedDevices()
    EmulatedModel(batched, ONE, devices)
    with pytest.raises(InvalidPlacementError, match="pass enable_batching=False"):
        EmulatedModel(profile_of({ONE: {1: [1.0]}}), ONE, devices)
    with pytest.raises(InvalidConfigError, match=r"no dispatch_interval_s, got 0.5 s"):
        EmulatedModel(batched, ONE, rules=replace(EXACT, dispatch_interval_s=0.5))
    EmulatedModel(batched, ONE, rules=replace(EXACT, dispatch_interval_s=0.5), enable_batching=False)


@given(
    latencies=st.lists(st.lists(SECONDS, min_size=10, max_size=10), min_size=1, max_size=3),
    requests=st.lists(st.tuples(SECONDS, st.integers(0, 2), SECONDS.map(lambda slo: slo * 3)), max_size=40),
)
@settings(deadline=None, max_examples=150)
def test_every_request_fares_as_in_the_fast_simulator(latencies, requests, profile_of, virtual_time, answers_of):
    config = ParallelConfig(1, 1, 2)
    profiles = [
        profile_of({config: {size: drawn[2 * k : 2 * k + 2] for k, size in enumerate(SIZES)}}) for drawn in latencies
    ]
    requests = [(arrival, model % len(profiles), slo) for arrival, model, slo in sorted(requests)]
    arrivals, model_ids, slos = (np.array([request[k] for request in requests]) for k in range(3))
    names = [f"m{k}" for k in range(len(profiles))]
    placement = ModelPlacement([config], [list(range(len(profiles)))])
    devices = EmulatedDevices((1, 2))
    models = [EmulatedModel(profile, config, devices, rules=ALPASERVE) for profile in profiles]
    sent = [(arrival, models[model], {"slo": slo}) for arrival, model, slo in requests]
    answers = virtual_time(answers_of(sent))
    assert len(answers) == len(requests)
    if not requests:
        return
    run = approximate_one_case_one_placement(
        placement, names, profiles, model_ids.astype(int), slos, arrivals, enable_batching=True
    )
    for (latency, came), arrival, finish, good, slo in zip(
        fates(answers), arrivals, run.finish, run.good, slos, strict=True
    ):
        if latency is None:
            assert (finish, good) == (arrival, False)
        else:
            assert came == pytest.approx(finish, rel=1e-12)
            assert latency == pytest.approx(finish - arrival, abs=1e-9)
            assert good == (finish - arrival <= slo)


@given(requests=st.lists(st.tuples(SECONDS, st.integers(0, 1), SECONDS, st.booleans()), max_size=30))
@settings(deadline=None, max_examples=60)
def test_every_request_is_answered_or_rejected_once_whoever_goes(requests, profile_of, virtual_time, until):
    profile = profile_of({ONE: {1: [0.4], 2: [0.5], 4: [0.6]}})

    async def main():
        devices = EmulatedDevices()
        models = [EmulatedModel(profile, ONE, devices) for _ in range(2)]
        tasks = []
        for arrival, model, slo, goes in sorted(requests):
            await until(arrival)
            request = ServeRequest({"slo": slo}, model="m")
            tasks.append(asyncio.ensure_future(models[model].handle_request(request)))
            if goes:
                tasks[len(tasks) // 2].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        kinds = (dict, RequestRejectedError, asyncio.CancelledError)
        assert all(isinstance(outcome, kinds) for outcome in outcomes)
        assert all(outcome["latency_s"] >= 0.4 - 1e-9 for outcome in outcomes if isinstance(outcome, dict))
        # the devices are not worn out: a late request finds them idle
        await until(1000.0)
        return await models[0].handle_request(ServeRequest({}, model="m"))

    assert virtual_time(main())["latency_s"] == pytest.approx(0.4)


def test_a_late_timer_changes_no_batch(batched, virtual_time):
    async def main():
        loop = asyncio.get_running_loop()
        on_time = loop.call_at
        loop.call_at = lambda when, *call: on_time(when + 0.5, *call)
        model = EmulatedModel(batched, ONE)
        tasks = []
        for arrival in (0.0, 0.25, 1.25):
            reached = loop.create_future()
            on_time(arrival, reached.set_result, None)
            await reached
            tasks.append(asyncio.ensure_future(model.handle_request(ServeRequest({}, model="m"))))
        return [answer["latency_s"] for answer in await asyncio.gather(*tasks)]

    # the second was taken alone at 1 s, when the third was not there yet
    assert virtual_time(main()) == [1.0, 1.75, 1.75]
