import asyncio

import pytest
from runtime_fakes import UNIX_TIME, Bench, FakeGroup, error_of, now, run_virtually, settle, wait_until

from alpa_serve.errors import (
    GroupLostError,
    InvalidRequestError,
    ModelFailedError,
    ModelNotFoundError,
    OverloadedError,
    RequestRejectedError,
    RequestTimeoutError,
)
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.request import LONGEST_CONTEXT
from alpa_serve.scheduling import RUNTIME, ReplicaTiming, ServingRules

ONE_SECOND = ReplicaTiming((1.0,))


@pytest.fixture
def virtually(monkeypatch):
    """Return virtually(async function) -> what it returns, on a clock that jumps to the next event."""
    return lambda function: run_virtually(monkeypatch, function)


# ---- dispatch -------------------------------------------------------------------------------------------------------


def test_a_model_without_timing_goes_where_fewest_requests_are_in_flight(virtually):
    async def run():
        bench = Bench()
        fast, slow = bench.add(1, FakeGroup("fast", 1.0)), bench.add(2, FakeGroup("slow", 10.0))
        bench.publish()
        tasks = []
        for k in range(6):
            await wait_until(1.5 * k)
            tasks.append(bench.ask())
        assert await asyncio.gather(*tasks) == ["fast"] * 6
        tasks = [bench.ask() for _ in range(5)]
        await settle()
        assert (len(fast.begun), len(slow.begun)) == (6 + 3, 2)
        await asyncio.gather(*tasks)
        bench.check_empty()

    virtually(run)


def test_ties_go_to_the_lowest_uid_whatever_the_order_of_the_table(virtually):
    async def run():
        for timing in (None, ONE_SECOND):
            bench = Bench()
            for uid in (9, 3, 5):
                bench.add(uid, FakeGroup(uid, 0.5), {"a": timing})
            bench.publish()
            assert await asyncio.gather(*(bench.ask() for _ in range(4))) == [3, 5, 9, 3]

    virtually(run)


def test_a_model_goes_by_requests_in_flight_if_one_of_its_replicas_has_no_timing(virtually):
    async def run():
        bench = Bench()
        bench.add(1, FakeGroup("timed", 5.0), {"a": ReplicaTiming((0.0,))})
        bench.add(2, FakeGroup("other", 5.0))
        bench.publish()
        # by timing alone, all of them would go to the first; nor can the SLO be judged
        assert await asyncio.gather(*(bench.ask(slo=0.1) for _ in range(2))) == ["timed", "other"]

    virtually(run)


def test_the_way_in_is_part_of_the_overhead_and_not_counted_twice(virtually):
    async def run():
        # 44 ms beside a second of service, of which 20 ms are behind a request when it comes
        bench = Bench(ServingRules(stage_penalty=0.0, fixed_overhead_s=0.044))
        bench.add(1, FakeGroup("g"), {"a": ONE_SECOND})
        bench.publish()
        for on_its_way, slo, admitted in [
            (0.0, 1.045, True),
            (0.0, 1.043, False),
            (0.02, 1.045, True),
            (0.03, 1.053, False),
            (0.03, 1.055, True),
        ]:
            await wait_until(now() + 10.0)
            task = bench.ask(slo=slo, submit_time=UNIX_TIME + now() - on_its_way)
            if admitted:
                assert await task == "g"
            else:
                assert isinstance(await error_of(task), RequestRejectedError)

    virtually(run)


def test_the_slo_counts_from_when_the_request_was_sent(virtually):
    async def run():
        bench = Bench()
        group = bench.add(1, FakeGroup("g", 5.0), {"a": ONE_SECOND}, group_id=4)
        bench.publish()
        await wait_until(100.0)
        sent = UNIX_TIME + 99.0
        first = bench.ask(slo=2.0, submit_time=sent)
        await settle()
        assert isinstance(await error_of(bench.ask(slo=2.5, submit_time=sent)), RequestRejectedError)
        second = bench.ask(slo=3.0, submit_time=sent)
        await settle()
        # a clock that is ahead gives no more time
        assert isinstance(await error_of(bench.ask(slo=2.5, submit_time=sent + 60)), RequestRejectedError)
        assert await asyncio.gather(first, second) == ["g", "g"]
        assert len(group.begun) == 2
        assert bench.metric("requests_total", outcome="rejected", group="4") == 2
        bench.check_empty()

    virtually(run)


def test_rules_by_tokens_need_token_counts(virtually):
    async def run():
        bench = Bench(ServingRules(service="tokens", stage_penalty=0.0, fixed_overhead_s=0.0))
        bench.add(1, FakeGroup("g"), {"a": ReplicaTiming((1.0,), 0.5, 0.25), "b": None})
        bench.publish(["a", "b"])
        for fields in ({}, {"input_tokens": 2}, {"output_tokens": 5}):
            error = await error_of(bench.ask(**fields))
            assert isinstance(error, InvalidRequestError)
            assert "output_tokens" in str(error)
        tokens = {"input_tokens": 2, "output_tokens": 5}
        assert isinstance(await error_of(bench.ask(slo=2.9, **tokens)), RequestRejectedError)
        assert await bench.ask(slo=3.0, **tokens) == "g"
        # models that do not tell how long they take need none
        assert await bench.ask("b") == "g"
        bench.check_empty()

    virtually(run)


@pytest.mark.parametrize("method", ["ask", "listen"])
@pytest.mark.parametrize(
    ("rules", "begins"),
    [
        ({"dispatch_interval_s": 0.5}, [0.5, 2.0, 3.5, 5.0]),
        ({"queueing": "global_fifo", "execution": "exclusive"}, [0.0, 0.0, 1.0, 1.0]),
        ({"queueing": "global_fifo", "dispatch_interval_s": 0.5}, [0.5, 1.0, 2.0, 2.5]),
    ],
)
def test_requests_that_the_router_holds_back_begin_in_order_of_arrival(virtually, method, rules, begins):
    async def run():
        bench = Bench(ServingRules(stage_penalty=0.0, fixed_overhead_s=0.0, **rules))
        groups = [bench.add(uid, FakeGroup(uid), {"a": ONE_SECOND}) for uid in range(1 + ("queueing" in rules))]
        bench.publish()
        await asyncio.gather(*(getattr(bench, method)(idx=k) for k in range(4)))
        begun = sorted(((at, request["idx"]) for group in groups for at, request in group.begun))
        assert [at for at, _ in begun] == pytest.approx(begins)
        assert [idx for _, idx in begun] == [0, 1, 2, 3]
        bench.check_empty()

    virtually(run)


def test_a_request_that_is_held_back_for_too_long_times_out(virtually):
    async def run():
        rules = ServingRules(queueing="global_fifo", admission="all", stage_penalty=0.0, fixed_overhead_s=0.0)
        bench = Bench(rules, request_timeout_s=1.5)
        group = bench.add(1, FakeGroup("g"), {"a": ONE_SECOND})
        bench.publish()
        tasks = [bench.ask() for _ in range(3)] + [bench.listen()]
        assert [await task for task in tasks[:2]] == ["g", "g"]
        for task in tasks[2:]:
            assert isinstance(await error_of(task), RequestTimeoutError)
        assert now() == 1.5
        assert len(group.begun) == 2
        bench.check_empty()

    virtually(run)


# ---- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("timing", [None, ReplicaTiming((0.0,))])
def test_groups_take_as_many_requests_as_they_may_and_no_more(virtually, timing):
    async def run():
        bench = Bench(max_queue=2)
        for uid in (1, 2):
            bench.add(uid, FakeGroup(uid, 1.0), {"a": timing})
        bench.publish()
        tasks = [bench.ask() for _ in range(7)] + [bench.listen()]
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(results[:4]) == [1, 1, 2, 2]
        assert all(isinstance(result, OverloadedError) for result in results[4:])
        bench.check_empty()
        assert bench.metric("requests_total", outcome="overloaded") == 4
        assert await bench.ask() in (1, 2)

    virtually(run)


def test_only_so_many_requests_wait_for_a_group(virtually):
    async def run():
        bench = Bench(max_queue=3, recovery_timeout_s=10.0)
        bench.publish(["a", "b"])
        tasks = [bench.ask(model) for model in "abaab"]
        await settle()
        for task in tasks[3:]:
            assert isinstance(await error_of(task), OverloadedError)
        tasks[0].cancel()
        await settle()
        tasks.append(bench.ask())
        await settle()
        bench.add(1, FakeGroup("g"), {"a": None, "b": None})
        bench.publish(["a", "b"])
        assert await asyncio.gather(*tasks[1:3], tasks[5]) == ["g"] * 3
        bench.check_empty()

    virtually(run)


def test_what_is_not_served_is_told_at_once(virtually):
    async def run():
        bench = Bench()
        bench.add(1, FakeGroup("g"))
        bench.publish(["a", "unplaced"], placed=["a"])
        for method in (bench.ask, bench.listen):
            assert isinstance(await error_of(method("unknown")), ModelNotFoundError)
            error = await error_of(method("unplaced"))
            assert isinstance(error, GroupLostError)
            assert "no group holds model 'unplaced'" in str(error)
        assert now() == 0.0
        assert bench.metric("requests_total", outcome="not_found", model="") == 2
        assert bench.metric("requests_total", outcome="lost", model="unplaced") == 2

    virtually(run)


def test_a_model_that_is_deleted_while_requests_wait_for_it_is_not_found(virtually):
    async def run():
        bench = Bench()
        bench.publish()
        task = bench.ask()
        await wait_until(1.0)
        bench.publish([])
        assert isinstance(await error_of(task), ModelNotFoundError)

    virtually(run)


def test_a_model_that_takes_too_long_times_out(virtually):
    async def run():
        bench = Bench(request_timeout_s=2.0)
        slow = bench.add(1, FakeGroup("slow", 3.0))
        bench.publish()
        for method in (bench.ask, bench.listen):
            assert isinstance(await error_of(method()), RequestTimeoutError)
        assert now() == 4.0
        # pieces have the time each
        slow.service_s = 1.5
        assert len(await bench.listen()) == 3
        assert bench.metric("requests_total", outcome="timeout") == 2
        bench.check_empty()

    virtually(run)


def test_the_time_of_an_answer_counts_all_its_attempts(virtually):
    async def run():
        bench = Bench(request_timeout_s=3.0)
        dying = bench.add(1, FakeGroup("dying", 2.5))
        bench.add(2, FakeGroup("slow", 2.0))
        bench.publish()
        task = bench.ask()
        await wait_until(2.0)
        dying.die()
        assert isinstance(await error_of(task), RequestTimeoutError)
        assert now() == 3.0

    virtually(run)


def test_the_time_to_the_first_piece_counts_all_attempts_and_later_pieces_have_their_own(virtually):
    async def run():
        bench = Bench(request_timeout_s=3.0)
        dying = bench.add(1, FakeGroup("dying", 2.5))
        other = bench.add(2, FakeGroup("other", 2.0))
        bench.publish()
        task = bench.listen()
        await wait_until(2.0)
        dying.die()
        assert isinstance(await error_of(task), RequestTimeoutError)
        assert now() == 3.0
        assert other.num_open == 0
        dying = bench.add(3, FakeGroup("dying", 2.5))
        bench.routes.pop(1)
        bench.routes[4] = bench.routes.pop(2)._replace(uid=4)
        bench.publish()
        task = bench.listen()
        await wait_until(3.5)
        dying.die()
        await wait_until(4.0)
        other.service_s = 2.75  # more than was left for the first piece
        assert await task == ["other.0", "other.1", "other.2"]
        assert now() == 3.5 + 2.0 + 3 * 2.75
        bench.check_empty()

    virtually(run)


# ---- tables ---------------------------------------------------------------------------------------------------------


def test_older_tables_and_those_of_the_same_version_are_ignored(virtually):
    async def run():
        bench = Bench()
        bench.add(1, FakeGroup("old"))
        old = bench.publish()
        del bench.routes[1]
        bench.add(2, FakeGroup("new"))
        new = bench.publish(["a", "b"])
        bench.router.apply(old)
        bench.router.apply(new._replace(groups=()))
        assert await bench.ask() == "new"
        assert bench.router.model_cards() == [("a", 7), ("b", 7)]

    virtually(run)


def test_a_group_that_leaves_the_table_answers_what_it_has_and_gets_no_more(virtually):
    async def run():
        bench = Bench()
        bench.add(1, FakeGroup("leaving", 2.0))
        bench.publish()
        task = bench.ask()
        await settle()
        del bench.routes[1]
        bench.add(2, FakeGroup("other"))
        bench.publish()
        drained = asyncio.create_task(bench.router.in_flight.drained(1))
        assert [await bench.ask() for _ in range(3)] == ["other"] * 3
        assert not drained.done()
        assert await task == "leaving"
        await drained
        assert now() == 2.0

    virtually(run)


def test_work_of_a_group_is_known_whatever_else_changes(virtually):
    async def run():
        bench = Bench()
        bench.add(1, FakeGroup(1, 100.0), {"a": ONE_SECOND, "b": ONE_SECOND})
        bench.publish(["a", "b"])
        admitted = [bench.ask(slo=1.0)]
        await settle()
        # another group, another timing of the other model, then of this one
        bench.add(2, FakeGroup(2), {"b": ONE_SECOND})
        bench.add(1, bench.routes[1].group, {"a": ONE_SECOND, "b": ReplicaTiming((3.0,))})
        bench.publish(["a", "b"])
        assert isinstance(await error_of(bench.ask(slo=1.5)), RequestRejectedError)
        bench.add(1, bench.routes[1].group, {"a": ReplicaTiming((0.5,))})
        bench.publish(["a", "b"])
        assert isinstance(await error_of(bench.ask(slo=1.4)), RequestRejectedError)
        admitted.append(bench.ask(slo=1.5))
        await settle()
        # a model that has no timing any more, and one that has it again
        bench.add(1, bench.routes[1].group, {"a": None})
        bench.publish(["a", "b"])
        admitted.append(bench.ask(slo=0.0))
        await settle()
        bench.add(1, bench.routes[1].group, {"a": ReplicaTiming((0.5,))})
        bench.publish(["a", "b"])
        assert isinstance(await error_of(bench.ask(slo=1.9)), RequestRejectedError)
        admitted.append(bench.ask(slo=2.0))
        assert await asyncio.gather(*admitted) == [1, 1, 1, 1]

    virtually(run)


def test_requests_that_fail_at_once_take_no_time_from_those_that_come_next(virtually):
    async def run():
        bench = Bench()
        busy = bench.add(1, FakeGroup("g", 1.5), {"a": ReplicaTiming((2.0,))})
        bench.publish()
        served = bench.ask()
        await settle()
        busy.service_s, busy.reply = 0.0, Reply(None, ModelFailedError("no"))
        for _ in range(20):
            assert isinstance(await error_of(bench.ask()), ModelFailedError)
        assert isinstance(await error_of(bench.ask(slo=3.9)), RequestRejectedError)
        assert isinstance(await error_of(bench.ask(slo=4.0)), ModelFailedError)
        await asyncio.gather(served, return_exceptions=True)
        # what was faster than it said leaves its group free
        busy.reply = Reply("g")
        assert await bench.ask(slo=2.0) == "g"

    virtually(run)


def test_a_request_of_more_tokens_than_any_model_takes_books_no_time(virtually):
    async def run():
        bench = Bench(ServingRules(stage_penalty=0.0, fixed_overhead_s=0.0, service="tokens"))
        bench.add(1, FakeGroup("g", 1.0), {"a": ReplicaTiming((1.0,), 0.001, 0.01)})
        bench.publish()
        for tokens in ((10**9, 5), (5, 10**9), (LONGEST_CONTEXT, 1)):
            fields = dict(zip(("input_tokens", "output_tokens"), tokens, strict=True))
            assert isinstance(await error_of(bench.ask(**fields)), InvalidRequestError)
        assert await bench.ask(slo=1.5, input_tokens=100, output_tokens=1) == "g"

    virtually(run)


def test_the_pause_before_a_group_came_is_no_idling(virtually):
    async def run():
        bench = Bench(ServingRules(stage_penalty=0.0, fixed_overhead_s=0.0, idle_after_s=10.0, idle_penalty_s=1.0))
        await wait_until(100.0)
        bench.add(1, FakeGroup(1), {"a": ONE_SECOND})
        bench.publish()
        await wait_until(109.0)
        assert await bench.ask(slo=1.0) == 1
        await wait_until(121.0)
        assert isinstance(await error_of(bench.ask(slo=1.5)), RequestRejectedError)

    virtually(run)


def test_health_tells_how_many_groups_are_up(virtually):
    async def run():
        bench = Bench()
        assert bench.router.health() == ("ok", 0, 0)
        bench.publish(num_groups=2)
        assert bench.router.health() == ("unavailable", 0, 2)
        bench.add(1, FakeGroup(1))
        bench.publish(num_groups=2)
        assert bench.router.health() == ("degraded", 1, 2)
        bench.add(2, FakeGroup(2))
        bench.publish()
        assert bench.router.health() == ("ok", 2, 2)
        bench.router.drain()
        assert bench.router.health() == ("draining", 2, 2)

    virtually(run)


def test_groups_that_leave_are_not_taken_for_those_that_are_to_be_up(virtually):
    async def run():
        bench = Bench()
        for uid in (1, 2, 3):
            bench.add(uid, FakeGroup(uid))
        for uid in (1, 2):
            bench.routes[uid] = bench.routes[uid]._replace(is_leaving=True)
        bench.publish(num_groups=1)
        assert bench.router.health() == ("ok", 1, 1)
        bench.publish(num_groups=2)
        assert bench.router.health() == ("degraded", 1, 2)
        bench.router.lose(3)
        assert bench.router.health() == ("unavailable", 0, 2)
        assert await bench.ask() in (1, 2)

    virtually(run)


# ---- metrics --------------------------------------------------------------------------------------------------------


def test_latency_counts_from_sending_and_queueing_where_the_model_tells(virtually):
    async def run():
        bench = Bench(RUNTIME)
        bench.publish()
        task = bench.ask(slo=9.0, submit_time=UNIX_TIME - 1.0)
        await wait_until(2.0)
        bench.add(1, FakeGroup("g", 4.0, reply=Reply("g", None, 0.5)), group_id=3)
        bench.publish()
        await task
        assert bench.metric("latency_seconds_sum", group="3") == 7.0
        assert bench.metric("queue_seconds_sum", group="3") == 2.5
        await bench.listen(slo=1.0, submit_time=UNIX_TIME + 5.0)
        assert bench.metric("time_to_first_token_seconds_sum", model="a") == 5.0
        assert bench.metric("slo_requests_total", model="a") == 2
        assert bench.metric("slo_attained_total", model="a") == 1

    virtually(run)


def test_an_error_of_the_model_is_told_and_counted(virtually):
    async def run():
        bench = Bench()
        error = ModelFailedError("broken")
        bench.add(1, FakeGroup("g", reply=Reply(None, error)))
        bench.publish()
        assert await error_of(bench.ask()) is error
        assert bench.metric("requests_total", outcome="failed") == 1

    virtually(run)


def test_requests_in_flight_are_those_of_groups_that_are_there(virtually):
    async def run():
        bench = Bench()
        bench.add(1, FakeGroup("g", 5.0), group_id=0)
        bench.publish()
        tasks = [bench.ask() for _ in range(3)]
        await settle()
        assert bench.metric("in_flight", model="a", group="0") == 3
        # one that takes over has the same number
        bench.add(2, FakeGroup("next", 5.0), group_id=0)
        bench.publish()
        tasks.append(bench.ask())
        await settle()
        assert bench.metric("in_flight", model="a", group="0") == 4
        bench.routes.clear()
        bench.publish()
        assert bench.metric("in_flight") == 0
        await asyncio.gather(*tasks)

    virtually(run)
