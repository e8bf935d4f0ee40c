import asyncio
import socket
import time

import numpy as np
import pytest

from alpa_serve.replay.client import MAX_FAILURE_KINDS, OTHER_FAILURES, Part, SendSettings, _Sender, send_part
from alpa_serve.replay.endpoint import Endpoint
from alpa_serve.replay.results import Status


def part_of(asked, due=None, slo=np.inf, model="m0", **tokens):
    number = len(asked)
    return Part(
        idx=np.arange(number),
        due=np.zeros(number) if due is None else np.asarray(due, dtype=float),
        model_ids=np.zeros(number, dtype=np.int32),
        model_names=(model,),
        slos=np.full(number, slo),
        input_tokens=tokens.get("input_tokens"),
        output_tokens=tokens.get("output_tokens"),
        data=np.array([*asked, None], dtype=object)[:-1],
    )


def send(url, part, *, timeout_s=30.0, retries=0, from_schedule=False, api_key=None, start=None, stop_after=None):
    settings = SendSettings(
        endpoint=Endpoint(url=url, api_key=api_key), timeout_s=timeout_s, retries=retries, from_schedule=from_schedule
    )
    reports = []

    async def run():
        stop = asyncio.Event()
        if stop_after is not None:
            asyncio.get_running_loop().call_later(stop_after, stop.set)
        return await send_part(part, settings, time.time() if start is None else start, stop, reports.append)

    return asyncio.run(run()), reports


def statuses(outcome):
    return [Status(status).name for status in outcome.status]


def test_each_answer_gets_its_status(server):
    asked = [None, 0.0, "reject", "busy", "fail", "text", "drop"]
    outcome, reports = send(server.url, part_of(asked))
    assert statuses(outcome) == ["SERVED", "SERVED", "REJECTED", "OVERLOADED", "FAILED", "FAILED", "FAILED"]
    assert outcome.http_status.tolist() == [200, 200, 200, 503, 500, 200, 0]
    assert (reports[-1].sent, reports[-1].done, reports[-1].answered, reports[-1].good) == (7, 7, 6, 2)
    assert sum(outcome.failures.values()) == 3


def test_words_of_the_server_are_kept_without_control_characters(server):
    outcome, _ = send(server.url, part_of(["fail"]))
    assert outcome.failures == {"HTTP 500:  [31mbroken": 1}


def test_a_request_tells_what_the_workload_has(server):
    tokens = {"input_tokens": np.array([5, -1]), "output_tokens": np.array([7, 0])}
    before = time.time()
    send(server.url, part_of([None, {"a": "é"}], slo=2.5, model='m"0', **tokens), api_key="secret")
    first, second = sorted(server.bodies, key=lambda body: body["idx"])
    assert before <= first.pop("submit_time") <= time.time()
    assert second.pop("submit_time") >= before
    assert first == {"model": 'm"0', "idx": 0, "slo": 2.5, "input_tokens": 5, "output_tokens": 7}
    assert second == {"model": 'm"0', "idx": 1, "slo": 2.5, "output_tokens": 0, "input": {"a": "é"}}
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret"}


def test_a_request_without_slo_sends_none(server):
    send(server.url, part_of([None]))
    assert "slo" not in server.bodies[0]


def test_requests_are_sent_when_they_are_due_whatever_became_of_those_before(server):
    due = np.arange(20) * 0.05
    outcome, _ = send(server.url, part_of(["hang", *[None] * 19], due), timeout_s=2.5)
    assert (outcome.sent >= due).all()
    # all after the first were answered while that was hanging
    assert statuses(outcome) == ["UNANSWERED"] + ["SERVED"] * 19
    assert outcome.finish[1:].max() < outcome.finish[0]


def test_requests_that_come_after_the_begin_are_sent_at_once_and_are_late(server):
    outcome, reports = send(server.url, part_of([None] * 3), start=time.time() - 5)
    assert (outcome.sent >= 5).all()
    assert reports[-1].lateness_max >= 5
    assert reports[-1].lateness_sum == pytest.approx(outcome.sent.sum())


def test_by_the_schedule_the_time_of_sending_is_when_it_was_due(server):
    start = time.time() - 5
    _, reports = send(server.url, part_of([None], due=[1.0], slo=2.0), start=start, from_schedule=True)
    assert server.bodies[0]["submit_time"] == start + 1
    assert (reports[-1].done, reports[-1].good) == (1, 0)


def test_an_answer_that_does_not_come_in_time_is_none(server):
    outcome, _ = send(server.url, part_of(["hang"]), timeout_s=0.3)
    assert statuses(outcome) == ["UNANSWERED"]
    assert outcome.finish[0] - outcome.sent[0] >= 0.3
    assert outcome.failures == {"no answer within 0.3 s": 1}


def test_nothing_is_sent_twice_unless_asked_for(server):
    server.drops = 1
    outcome, _ = send(server.url, part_of([None]))
    assert (statuses(outcome), len(server.bodies)) == (["FAILED"], 1)


def test_retries_are_counted_apart(server):
    server.drops = 2
    outcome, reports = send(server.url, part_of([None]), retries=3)
    assert (statuses(outcome), outcome.retries.tolist(), len(server.bodies)) == (["SERVED"], [2], 3)
    assert reports[-1].sent == 1


def test_retries_have_an_end(server):
    outcome, _ = send(server.url, part_of(["drop"]), retries=2)
    assert (statuses(outcome), outcome.retries.tolist(), len(server.bodies)) == (["FAILED"], [2], 3)


def test_an_answer_that_is_an_error_is_not_asked_for_again(server):
    outcome, _ = send(server.url, part_of(["fail", "busy"]), retries=2)
    assert outcome.retries.tolist() == [0, 0]
    assert len(server.bodies) == 2


def test_a_server_that_is_not_there_is_a_failure_of_each_request():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        outcome, _ = send(url, part_of([None] * 3), retries=1)
    assert statuses(outcome) == ["FAILED"] * 3
    assert outcome.retries.tolist() == [1] * 3
    assert outcome.http_status.tolist() == [0] * 3


def test_when_stopped_nothing_more_is_sent_or_waited_for(server):
    began = time.monotonic()
    outcome, _ = send(server.url, part_of([None, "hang", None], due=[0, 0, 3600]), stop_after=1.0)
    assert statuses(outcome) == ["SERVED", "UNANSWERED", "UNSENT"]
    assert np.isnan(outcome.sent).tolist() == [False, False, True]
    assert time.monotonic() - began < 60


def test_reasons_of_failures_are_bounded():
    sender = _Sender(part_of([None]), None, None, 0.0)
    for number in range(MAX_FAILURE_KINDS + 10):
        sender._note(f"reason {number}")
    sender._note("reason 0")
    failures = sender.outcome.failures
    assert (len(failures), failures[OTHER_FAILURES], failures["reason 0"]) == (MAX_FAILURE_KINDS + 1, 10, 2)
