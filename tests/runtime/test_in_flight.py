import asyncio

import pytest

from alpa_serve.runtime.in_flight import InFlight


def test_requests_are_counted_by_group_and_by_replica():
    in_flight = InFlight()
    for uid, model in ((1, "a"), (1, "a"), (1, "b"), (2, "a")):
        in_flight.enter(uid, model)
    assert (in_flight.of_group(1), in_flight.of_group(2), in_flight.of_group(3)) == (3, 1, 0)
    assert (in_flight.of_replica(1, "a"), in_flight.of_replica(1, "b"), in_flight.of_replica(2, "b")) == (2, 1, 0)
    in_flight.leave(1, "a")
    assert (in_flight.of_group(1), in_flight.of_replica(1, "a")) == (2, 1)


def test_groups_that_are_done_take_no_memory():
    in_flight = InFlight()
    for uid in range(100):
        in_flight.enter(uid, "a")
        in_flight.leave(uid, "a")
    assert not in_flight._by_group
    assert not in_flight._by_replica


def test_a_group_without_requests_is_drained_at_once():
    in_flight = InFlight()
    in_flight.enter(1, "a")

    async def run():
        for uid, model in ((2, None), (2, "a"), (1, "b")):
            # a coroutine that does not wait ends at its first step
            with pytest.raises(StopIteration):
                in_flight.drained(uid, model).send(None)

    asyncio.run(run())


def test_everyone_who_waits_is_woken_however_many_there_are():
    in_flight = InFlight()
    done = []

    async def wait(uid, model):
        await in_flight.drained(uid, model)
        done.append((uid, model))

    async def settle():
        for _ in range(5):
            await asyncio.sleep(0)

    async def run():
        for uid, model in ((1, "a"), (1, "b"), (2, "a")):
            in_flight.enter(uid, model)
        waiters = [asyncio.create_task(wait(*key)) for key in ((1, "a"), (1, None), (2, None), (1, None), (1, "b"))]
        await settle()
        assert done == []
        in_flight.leave(1, "a")
        await settle()
        assert done == [(1, "a")]
        in_flight.leave(1, "b")
        await settle()
        assert sorted(done, key=str) == [(1, "a"), (1, "b"), (1, None), (1, None)]
        in_flight.leave(2, "a")
        await asyncio.wait_for(asyncio.gather(*waiters), 10)
        assert len(done) == 5

    asyncio.run(run())


def test_a_waiter_that_gives_up_does_not_keep_others_from_waking():
    in_flight = InFlight()

    async def run():
        in_flight.enter(1, "a")
        first = asyncio.create_task(in_flight.drained(1))
        second = asyncio.create_task(in_flight.drained(1))
        await asyncio.sleep(0)
        second.cancel()
        await asyncio.sleep(0)
        in_flight.leave(1, "a")
        await asyncio.wait_for(first, 10)
        assert second.cancelled()

    asyncio.run(run())


def test_requests_that_come_meanwhile_are_waited_for_too():
    in_flight = InFlight()

    async def run():
        in_flight.enter(1, "a")
        waiter = asyncio.create_task(in_flight.drained(1))
        await asyncio.sleep(0)
        in_flight.leave(1, "a")
        in_flight.enter(1, "a")
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiter.done()
        in_flight.leave(1, "a")
        await asyncio.wait_for(waiter, 10)

    asyncio.run(run())
