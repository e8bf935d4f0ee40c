import asyncio
import math

import pytest
from runtime_fakes import Bench, FakeGroup, error_of, now, run_virtually, wait_until

from alpa_serve.errors import (
    GroupLostError,
    ModelFailedError,
    OverloadedError,
    RequestRejectedError,
)
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.request import ServeRequest
from alpa_serve.scheduling import ReplicaTiming, ServingRules

ONE_SECOND = ReplicaTiming((1.0,))


@pytest.fixture
def virtually(monkeypatch):
    """Return virtually(async function) -> what it returns, on a clock that jumps to the next event."""
    return lambda function: run_virtually(monkeypatch, function)


# ---- faults ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", [None, ONE_SECOND])
@pytest.mark.parametrize("method", ["ask", "listen"])
def test_a_request_whose_group_dies_is_answered_by_another(virtually, method, timing):
    async def run():
        bench = Bench()
        dying = bench.add(1, FakeGroup("dying", 1.0), {"a": timing})
        bench.add(2, FakeGroup("other"), {"a": timing})
        bench.publish()
        task = getattr(bench, method)()
        await wait_until(0.5)
        assert len(dying.begun) == 1
        dying.die()
        assert await task == ("other" if method == "ask" else ["other.0", "other.1", "other.2"])
        assert bench.lost == [1]
        assert (bench.router.health().status, bench.router.health().groups_up) == ("degraded", 1)
        assert bench.metric("requests_total") == bench.metric("requests_total", outcome="answered", group="2") == 1
        bench.check_empty()

    virtually(run)


def test_the_retry_of_a_request_that_can_no_longer_meet_its_slo_is_rejected(virtually):
    async def run():
        bench = Bench()
        dying = bench.add(1, FakeGroup("dying", 5.0), {"a": ONE_SECOND})
        bench.add(2, FakeGroup("other"), {"a": ONE_SECOND})
        bench.publish()
        task = bench.ask(slo=1.5)
        await wait_until(0.75)
        dying.die()
        assert isinstance(await error_of(task), RequestRejectedError)
        bench.check_empty()

    virtually(run)


def test_a_request_whose_only_group_dies_waits_for_the_next(virtually):
    async def run():
        bench = Bench(recovery_timeout_s=5.0)
        bench.add(1, FakeGroup("dying", 100.0), group_id=0)
        bench.publish()
        tasks = [bench.ask(), bench.listen()]
        # it may have run for longer than it may wait
        await wait_until(50.0)
        bench.routes.pop(1).group.die()
        await wait_until(53.0)
        # a change that does not help
        bench.publish(num_groups=1)
        await wait_until(54.0)
        assert not any(task.done() for task in tasks)
        bench.add(2, FakeGroup("next"), group_id=0)
        bench.publish()
        assert await asyncio.gather(*tasks) == ["next", ["next.0", "next.1", "next.2"]]
        assert now() == 54.0
        bench.check_empty()

    virtually(run)


def test_no_request_waits_for_longer_than_it_may(virtually):
    async def run():
        for settings, wait_s in (({"recovery_timeout_s": 5.0}, 5.0), ({"request_timeout_s": 3.0}, 3.0)):
            start = now()
            bench = Bench(**settings)
            bench.publish()
            tasks = [bench.ask(), bench.listen()]
            # changes that do not help give it no more time
            for second in (1, 2):
                await wait_until(start + second)
                bench.publish(num_groups=second)
            for task in tasks:
                error = await error_of(task)
                assert isinstance(error, GroupLostError)
                assert "came up in time" in str(error)
            assert now() - start == wait_s
            bench.check_empty()

    virtually(run)


def test_a_request_that_kills_its_groups_is_given_up(virtually):
    async def run():
        bench = Bench(max_attempts=3)
        groups = [bench.add(uid, FakeGroup(uid)) for uid in range(5)]
        bench.publish()
        for group in groups[:4]:
            group.die()
        assert isinstance(await error_of(bench.ask()), GroupLostError)
        assert bench.lost == [0, 1, 2]
        assert bench.metric("requests_total", outcome="lost") == 1
        assert await bench.ask() == 4
        bench.check_empty()

    virtually(run)


@pytest.mark.parametrize("timing", [None, ReplicaTiming((0.0,))])
@pytest.mark.parametrize("method", ["ask", "listen"])
def test_a_group_that_has_no_replica_after_all_is_passed_over(virtually, method, timing):
    async def run():
        bench = Bench(max_attempts=2)
        without = bench.add(1, FakeGroup("without", num_absent=math.inf), {"a": timing})
        bench.add(2, FakeGroup("with"), {"a": timing})
        bench.publish()
        assert await getattr(bench, method)() == ("with" if method == "ask" else ["with.0", "with.1", "with.2"])
        # it is not dead
        assert bench.lost == []
        assert without.num_open == 0
        bench.check_empty()

    virtually(run)


@pytest.mark.parametrize("method", ["ask", "listen"])
def test_a_group_that_has_its_replica_a_moment_later_is_asked_again(virtually, method):
    async def run():
        bench = Bench(max_attempts=3)
        group = bench.add(1, FakeGroup("g", num_absent=2))
        bench.publish()
        assert await getattr(bench, method)() == ("g" if method == "ask" else ["g.0", "g.1", "g.2"])
        group.num_absent = 3
        assert isinstance(await error_of(getattr(bench, method)()), GroupLostError)
        bench.check_empty()

    virtually(run)


def test_a_group_that_was_found_dead_stays_away_until_it_has_another_process(virtually):
    async def run():
        bench = Bench(recovery_timeout_s=1.0)
        dead = bench.add(1, FakeGroup("dead"), group_id=0)
        bench.add(2, FakeGroup("other"), group_id=1)
        first = bench.publish()
        dead.die()
        assert await bench.ask() == "other"
        bench.router.apply(first)
        # the controller has published something before it heard of the death
        bench.publish()
        assert [await bench.ask() for _ in range(3)] == ["other"] * 3
        assert len(bench.lost) == 1
        del bench.routes[1]
        bench.publish(num_groups=2)
        bench.add(3, FakeGroup("restarted"), group_id=0)
        del bench.routes[2]
        bench.publish()
        assert await bench.ask() == "restarted"
        # told twice, or of a group that is not there
        for uid in (1, 2, 99):
            bench.router.lose(uid)
        assert bench.lost == [1]

    virtually(run)


def test_while_draining_what_was_taken_is_answered_and_nothing_more_is_taken(virtually):
    async def run():
        bench = Bench()
        group, other = bench.add(1, FakeGroup("g", 2.0)), bench.add(2, FakeGroup("other", 2.0))
        bench.publish(["a", "b"])
        tasks = [bench.ask(), bench.listen()]
        waiting = bench.ask("b")
        await wait_until(1.0)
        bench.router.drain()
        for task in (waiting, bench.ask(), bench.listen(), bench.ask("unknown")):
            assert isinstance(await error_of(task), OverloadedError)
        assert now() == 1.0
        assert bench.router.health().status == "draining"
        group.die()
        # the request was taken before
        assert await tasks[0] == "other"
        assert len(await tasks[1]) == 3
        last = bench.ask()
        assert isinstance(await error_of(last), OverloadedError)
        assert other.num_open == 0
        bench.check_empty()

    virtually(run)


# ---- streams --------------------------------------------------------------------------------------------------------


def test_a_stream_that_has_begun_is_not_begun_again(virtually):
    async def run():
        bench = Bench()
        dying, other = bench.add(1, FakeGroup("dying", 1.0)), bench.add(2, FakeGroup("other"))
        bench.publish()
        pieces = []

        async def listen():
            async for piece in bench.router.stream(ServeRequest({"model": "a"})):
                pieces.append(piece)

        task = asyncio.create_task(listen())
        await wait_until(1.5)
        dying.die()
        assert isinstance(await error_of(task), GroupLostError)
        assert pieces == ["dying.0"]
        assert other.begun == []
        assert bench.lost == [1]
        bench.check_empty()

    virtually(run)


def test_an_error_within_a_stream_ends_it(virtually):
    class Failing(FakeGroup):
        async def stream(self, model, request, timeout_s):
            yield Reply("piece", None, 0.5)
            yield Reply(None, self.error)

    async def run():
        for error in (ModelFailedError("broken"), GroupLostError("cancelled")):
            bench = Bench()
            bench.add(1, Failing("g")).error = error
            bench.publish()
            assert await error_of(bench.listen()) is error
            bench.check_empty()

    virtually(run)


def test_a_stream_without_pieces_ends(virtually):
    async def run():
        bench = Bench()
        bench.add(1, FakeGroup("g", num_pieces=0))
        bench.publish()
        assert await bench.listen() == []
        bench.check_empty()

    virtually(run)


def test_a_stream_that_is_closed_is_closed_in_its_group_at_once(virtually):
    async def run():
        bench = Bench()
        group = bench.add(1, FakeGroup("g", 1.0))
        bench.publish()
        stream = bench.router.stream(ServeRequest({"model": "a"}))
        assert await anext(stream) == "g.0"
        assert (bench.router.in_flight.of_group(1), group.num_open) == (1, 1)
        await stream.aclose()
        assert group.num_open == 0
        assert group.answered == []
        assert bench.metric("requests_total", outcome="cancelled") == bench.metric("requests_total") == 1
        bench.check_empty()

    virtually(run)


@pytest.mark.parametrize("method", ["ask", "listen"])
@pytest.mark.parametrize("state", ["held back", "running", "waiting"])
def test_a_request_that_is_cancelled_is_with_no_group_any_more(virtually, method, state):
    async def run():
        interval = 5.0 if state == "held back" else 0.0
        bench = Bench(ServingRules(dispatch_interval_s=interval))
        group = FakeGroup("g", 5.0)
        if state != "waiting":
            bench.add(1, group, {"a": ONE_SECOND})
        bench.publish()
        task = getattr(bench, method)()
        await wait_until(1.0)
        assert bench.router.in_flight.of_group(1) == (state != "waiting")
        assert bench.router._num_waiting == (state == "waiting")
        assert group.num_open == (state == "running")
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert group.num_open == 0
        assert bench.metric("requests_total", outcome="cancelled") == bench.metric("requests_total") == 1
        bench.check_empty()

    virtually(run)
