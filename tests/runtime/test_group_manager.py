"""A group's manager without Ray: it makes replicas, and has them answer."""

import asyncio
import threading
import time

import pytest

from alpa_serve.errors import GroupLostError, InvalidConfigError, InvalidRequestError, ModelFailedError
from alpa_serve.runtime import group_manager
from alpa_serve.runtime.group_manager import GroupManager
from alpa_serve.runtime.origin import Origin
from alpa_serve.runtime.ray_calls import pickled_by_value
from alpa_serve.runtime.request import ServeRequest
from alpa_serve.runtime.snapshots import Snapshot
from alpa_serve.scheduling import RUNTIME, ReplicaTiming
from alpa_serve.scheduling.registry import CreateInfo

CLOSED = []

NOTHING = pickled_by_value(((), {}))


@pytest.fixture(autouse=True)
def no_controller(monkeypatch):
    """Have no manager look for its controller, of which there is none."""
    monkeypatch.setattr(group_manager, "exit_if_orphaned", lambda *origin: asyncio.sleep(0))


class Model:
    def __init__(self, greeting="hello"):
        self.greeting = greeting

    async def handle_request(self, request):
        if request.get("fail") == "refuse":
            raise InvalidRequestError("no such thing")
        if request.get("fail"):
            raise KeyError("secret")
        return request if request.get("echo") else self.greeting

    def close(self):
        CLOSED.append(self.greeting)


class Streaming(Model):
    async def stream_request(self, request):
        yield "a"
        if request.get("fail"):
            raise KeyError("secret")
        yield "b"

    async def close(self):
        CLOSED.append("streaming")


class Profiled(Model):
    """Takes twice what it says, but its first request ten times that."""

    calls = 0

    async def handle_request(self, request):
        self.calls += 1
        time.sleep(0.2 if self.calls == 1 else 0.02)

    def get_latency_dict(self):
        return {1: [0.004, 0.006]}


class WarmedItself(Profiled):
    async def warmup(self):
        return 3.0


class Handless:
    pass


def managed(work, **models):
    """Run ``await work(manager)`` with replicas of `models`, and return what it returns."""

    async def run():
        manager = GroupManager(4, None, RUNTIME, Origin("controller", "0"))
        timings = {
            name: await manager.create_replica(name, pickled_by_value(CreateInfo(made)), NOTHING)
            for name, made in models.items()
        }
        return await work(manager), timings

    return asyncio.run(run())[0]


def test_a_replica_answers_and_the_posted_object_comes_back_as_a_plain_one():
    async def work(manager):
        echoed = await manager.handle_request("m", ServeRequest({"model": "m", "echo": 1}))
        greeted = await manager.handle_request("m", ServeRequest({"model": "m"}))
        return echoed, greeted

    echoed, greeted = managed(work, m=Model)
    assert (type(echoed.answer), echoed.answer) == (dict, {"model": "m", "echo": 1})
    assert (greeted.answer, greeted.error) == ("hello", None)


def test_what_a_model_refuses_is_said_and_what_it_fails_with_is_not():
    async def work(manager):
        return [
            (await manager.handle_request("m", ServeRequest({"model": "m", "fail": how}))).error
            for how in ("refuse", "break")
        ]

    refused, failed = managed(work, m=Model)
    assert (type(refused), str(refused)) == (InvalidRequestError, "no such thing")
    assert type(failed) is ModelFailedError
    assert "secret" not in str(failed)


def test_a_model_that_is_not_there_is_a_loss_that_another_group_can_mend():
    async def work(manager):
        return await manager.handle_request("other", ServeRequest({"model": "other"}))

    assert type(managed(work, m=Model).error) is GroupLostError


def test_a_group_that_got_another_number_goes_by_it_in_messages():
    async def work(manager):
        await manager.keep(Snapshot(2, b""), 9)
        # it came later, but is older
        await manager.keep(Snapshot(1, b""), 4)
        return await manager.handle_request("other", ServeRequest({"model": "other"}))

    assert str(managed(work).error) == "group 9 has no replica of 'other'"


@pytest.mark.parametrize(
    ("model", "fields", "answers", "error"),
    [
        (Streaming, {}, ["a", "b"], None),
        (Streaming, {"fail": 1}, ["a", None], ModelFailedError),
        (Model, {}, ["hello"], None),
        (Model, {"fail": 1}, [None], ModelFailedError),
    ],
)
def test_a_stream_comes_in_pieces_and_the_whole_answer_is_one_if_the_model_does_not_stream(
    model, fields, answers, error
):
    async def work(manager):
        return [reply async for reply in manager.stream_request("m", ServeRequest({"model": "m", **fields}))]

    replies = managed(work, m=model)
    assert [reply.answer for reply in replies] == answers
    assert type(replies[-1].error) is (error or type(None))


def test_a_replica_that_goes_is_closed_however_it_closes():
    CLOSED.clear()

    async def work(manager):
        for name in ("m", "s", "absent"):
            await manager.delete_replica(name)
        return await manager.handle_request("m", ServeRequest({"model": "m"}))

    assert type(managed(work, m=Model, s=Streaming).error) is GroupLostError
    assert CLOSED == ["hello", "streaming"]


def test_all_replicas_of_a_group_that_goes_are_closed_though_one_cannot_be(caplog):
    CLOSED.clear()

    class Stuck(Model):
        def close(self):
            raise KeyError("it is stuck")

    managed(GroupManager.close, m=Model, stuck=Stuck, s=Streaming)
    assert sorted(CLOSED) == ["hello", "streaming"]
    assert "model 'stuck' in group 4 could not be closed" in caplog.text


MADE = []
MAY_GO_ON = {}


class Gate(Model):
    """Is made once its thread may go on."""

    def __init__(self, greeting):
        super().__init__(greeting)
        MADE.append(greeting)
        assert MAY_GO_ON[greeting].wait(20)


def gated(greeting, event):
    # not among the arguments, for an event cannot be pickled
    MAY_GO_ON[greeting] = event
    return pickled_by_value(CreateInfo(Gate, (greeting,)))


async def begun(greeting):
    while greeting not in MADE:
        await asyncio.sleep(0.001)


def test_what_a_dead_controller_and_its_successor_both_make_is_made_one_after_the_other():
    CLOSED.clear()
    MADE.clear()

    async def work(manager):
        go_on, open_gate = threading.Event(), threading.Event()
        open_gate.set()
        first = asyncio.create_task(manager.create_replica("m", gated("dead", go_on), NOTHING))
        await begun("dead")
        second = asyncio.create_task(manager.create_replica("m", gated("successor", open_gate), NOTHING))
        await asyncio.sleep(0.05)
        assert MADE == ["dead"]
        go_on.set()
        await asyncio.gather(first, second)
        return await manager.handle_request("m", ServeRequest({"model": "m"}))

    assert managed(work).answer == "successor"
    assert CLOSED == ["dead"]


def test_replicas_that_a_successor_does_not_know_are_closed_those_too_that_are_being_made():
    CLOSED.clear()
    MADE.clear()

    async def work(manager):
        go_on = threading.Event()
        making = asyncio.create_task(manager.create_replica("late", gated("late", go_on), NOTHING))
        await begun("late")
        retaining = asyncio.create_task(manager.retain(["known"]))
        await asyncio.sleep(0)
        go_on.set()
        await asyncio.gather(making, retaining)
        known = await manager.handle_request("known", ServeRequest({"model": "known"}))
        lost = [await manager.handle_request(name, ServeRequest({"model": name})) for name in ("s", "late")]
        return known, lost

    known, lost = managed(work, known=Model, s=Streaming)
    assert known.answer == "hello"
    assert [type(reply.error) for reply in lost] == [GroupLostError] * 2
    assert sorted(CLOSED) == ["late", "streaming"]


class Placed(Model):
    def place_on(self, devices):
        CLOSED.append("placed")

    def get_latency_dict(self):
        return {2: [1.0]}


def test_a_replica_whose_times_are_none_leaves_the_devices():
    CLOSED.clear()

    with pytest.raises(InvalidConfigError):
        managed(None, m=Placed)
    assert CLOSED == ["placed", "hello"]


def test_arguments_of_a_group_are_appended_to_those_of_the_model():
    def model_of(*args, **kwargs):
        return Model((args, kwargs))

    async def run():
        manager = GroupManager(4, None, RUNTIME, Origin("controller", "0"))
        model = pickled_by_value(CreateInfo(model_of, (1,), {"a": 1, "b": 1}))
        await manager.create_replica("m", model, pickled_by_value(((2,), {"b": 2})))
        return await manager.handle_request("m", ServeRequest({"model": "m"}))

    assert asyncio.run(run()).answer == ((1, 2), {"a": 1, "b": 2})


def test_what_cannot_handle_requests_is_refused():
    with pytest.raises(InvalidConfigError, match=r"model 'm': .* makes a Handless, which has no handle_request"):
        managed(None, m=Handless)


def test_the_times_of_a_replica_are_its_latencies_or_unknown():
    async def run():
        manager = GroupManager(4, None, RUNTIME, Origin("controller", "0"))
        made = [pickled_by_value(CreateInfo(model)) for model in (Profiled, Model)]
        return [await manager.create_replica(str(i), pickled, NOTHING) for i, pickled in enumerate(made)]

    assert asyncio.run(run()) == [ReplicaTiming((0.004, 0.006)), None]


def test_a_warm_up_measures_what_a_model_says_of_itself_without_its_first_request():
    async def work(manager):
        return [await manager.warmup(name) for name in ("profiled", "itself", "plain")]

    measured, itself, plain = managed(work, profiled=Profiled, itself=WarmedItself, plain=Model)
    # it sleeps for twice its latency; the machine may be slow, but not that slow that the first would look like it
    assert 2.0 <= measured < 15.0
    assert (itself, plain) == (3.0, None)
