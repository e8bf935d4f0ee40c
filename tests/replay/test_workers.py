import multiprocessing
import os
import signal
import threading

import numpy as np
import pytest

from alpa_serve.errors import InvalidConfigError, InvalidWorkloadError, ReplayInterrupted, WorkerError
from alpa_serve.replay import Status, replay_workload, workers
from alpa_serve.simulator.stats import compute_stats
from alpa_serve.simulator.workload import Workload


@pytest.fixture(autouse=True)
def nothing_left_behind():
    """Fail the test if a process or a handler of Ctrl-C is left."""
    before = signal.getsignal(signal.SIGINT)
    yield
    assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGINT) is before


def workload_of(asked, gap=0.01, slo=10.0):
    ids = np.arange(len(asked)) % 2
    return Workload.from_columns(np.arange(len(asked)) * gap, ids, ["m0", "m1"], slo, [*asked])


@pytest.mark.parametrize("num_processes", [1, 2])
def test_each_request_is_sent_once_and_each_answer_counted(server, num_processes):
    asked = ([None] * 7 + ["reject", "busy", "fail"]) * 10
    reports = []
    result = replay_workload(workload_of(asked), server.url, num_processes=num_processes, on_progress=reports.append)
    counts = result.counts()
    assert counts == {
        "sent": 100,
        "answered": 100,
        "served": 70,
        "rejected": 10,
        "overloaded": 10,
        "failed": 10,
        "unanswered": 0,
        "retries": 0,
    }
    assert sorted(body["idx"] for body in server.bodies) == list(range(100))
    assert [Status(status).name for status in result.status[6:10]] == ["SERVED", "REJECTED", "OVERLOADED", "FAILED"]
    for body in server.bodies:
        assert body["model"] == f"m{body['idx'] % 2}"
        assert body.get("input") == asked[body["idx"]]
    last = reports[-1]
    assert (last.total, last.sent, last.answered, last.done, last.good) == (100, 100, 100, 100, 70)
    assert last.lateness_max == result.lateness.max
    assert last.lateness_mean == pytest.approx(result.lateness.mean)


def test_two_processes_keep_one_schedule(server):
    result = replay_workload(workload_of([None] * 40), server.url, num_processes=2, time_scale=2.0)
    assert result.arrivals == pytest.approx(np.arange(40) * 0.02)
    # no process may send before the common begin; clocks are compared across processes
    assert (result.sent - result.arrivals).min() > -0.001
    submitted = [body["submit_time"] for body in sorted(server.bodies, key=lambda body: body["idx"])]
    begins = np.array(submitted) - result.sent
    assert np.ptp(begins) < 0.5


def test_statistics_equal_those_made_by_hand(server):
    asked = [0.0, 0.4, "reject", 0.0, "fail", 0.4]
    workload = workload_of(asked, slo=0.3, gap=0.1)
    result = replay_workload(workload, server.url)
    served = result.status == Status.SERVED
    latency = [result.finish[i] - result.sent[i] if served[i] else 0.0 for i in range(6)]
    good = [served[i] and latency[i] <= 0.3 for i in range(6)]
    assert not any(good[position] for position in (1, 2, 4, 5))
    finish = workload.arrivals + latency
    expected = compute_stats(workload.model_ids, ("m0", "m1"), workload.arrivals, finish, np.array(good), 0)
    found = result.stats()
    assert (found.goodput, found.num_requests, found.request_rate) == (expected.goodput, 6, expected.request_rate)
    assert found.latency_mean == pytest.approx(sum(latency) / 6)
    for ours, theirs in zip(found.per_model_stats, expected.per_model_stats, strict=True):
        assert (ours.name, ours.goodput, ours.latency_p99) == (theirs.name, theirs.goodput, theirs.latency_p99)


def test_no_request_is_no_replay(server):
    result = replay_workload(Workload.empty(), server.url)
    assert (len(result), result.counts()["sent"], result.stats().num_requests) == (0, 0, 0)


def test_ctrl_c_gives_what_was_measured_so_far(server):
    def press(progress):
        if progress.answered == 2 and progress.in_flight == 1 and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), signal.SIGINT)

    pressed = []
    workload = Workload.from_columns(
        [0, 0.01, 0.02, 3600, 3600], [0] * 5, ["m0"], 60.0, [None, None, "hang", None, None]
    )
    with pytest.raises(ReplayInterrupted) as caught:
        replay_workload(workload, server.url, num_processes=2, on_progress=press)
    result = caught.value.result
    assert result.stopped
    assert [Status(status).name for status in result.status] == ["SERVED", "SERVED", "UNANSWERED", "UNSENT", "UNSENT"]
    assert (result.counts()["sent"], result.counts()["answered"], result.stats().num_requests) == (3, 2, 3)


def test_ctrl_c_before_the_begin_leaves_all_unsent(server, monkeypatch):
    def press(self, number):
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(workers._Team, "_receive", press)
    with pytest.raises(ReplayInterrupted) as caught:
        replay_workload(workload_of([None] * 3), server.url)
    assert caught.value.result.status.tolist() == [Status.UNSENT] * 3
    assert not server.bodies


def test_ctrl_c_that_python_raises_stops_processes_that_have_not_begun(server, monkeypatch):
    def press(team, number, message):
        if isinstance(message, float) and number == 1:
            raise KeyboardInterrupt
        send(team, number, message)

    send = workers._Team._send
    monkeypatch.setattr(workers._Team, "_send", press)
    with pytest.raises(ReplayInterrupted) as caught:
        replay_workload(workload_of([None] * 4, gap=100), server.url, num_processes=2)
    assert caught.value.result.status[1::2].tolist() == [Status.UNSENT] * 2


def test_a_callback_may_stop_the_replay(server):
    def stop(progress):
        if progress.answered:
            raise KeyboardInterrupt

    with pytest.raises(ReplayInterrupted) as caught:
        replay_workload(workload_of([None] * 2, gap=1000), server.url, on_progress=stop)
    assert caught.value.result.status.tolist() == [Status.SERVED, Status.UNSENT]


def test_what_the_callback_raises_ends_the_replay(server):
    def fail(progress):
        raise LookupError

    with pytest.raises(LookupError):
        replay_workload(workload_of([None] * 2, gap=1000), server.url, on_progress=fail)


def test_a_process_that_dies_leaves_no_result_in_part(server):
    def kill_one(progress):
        multiprocessing.active_children()[0].kill()

    with pytest.raises(WorkerError, match=r"of 2 that sends requests died \(exit code -9\)"):
        replay_workload(workload_of([None] * 4, gap=100), server.url, num_processes=2, on_progress=kill_one)


def test_a_thread_may_replay(server):
    results = []
    thread = threading.Thread(target=lambda: results.append(replay_workload(workload_of([None]), server.url)))
    thread.start()
    thread.join(60)
    assert results[0].counts()["served"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_processes": 0}, "num_processes"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"time_scale": -1}, "time_scale"),
        ({"retries": -1}, "retries"),
        ({"url": "nowhere"}, "url"),
    ],
)
def test_an_argument_out_of_range_is_named(changes, message):
    with pytest.raises(InvalidConfigError, match=message):
        replay_workload(**{"workload": workload_of([None]), "url": "http://127.0.0.1:1/", **changes})


@pytest.mark.parametrize("data", [object(), float("nan")])
def test_data_that_is_no_json_is_named_before_anything_is_sent(data):
    with pytest.raises(InvalidWorkloadError, match="data of request 1 "):
        replay_workload(workload_of(["a", data]), "http://127.0.0.1:1/")


def test_what_is_no_workload_is_refused():
    with pytest.raises(InvalidWorkloadError, match="got list"):
        replay_workload([1.0], "http://127.0.0.1:1/")
