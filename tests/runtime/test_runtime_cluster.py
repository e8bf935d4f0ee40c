"""The controller's processes, without Ray: what is busy, dead, or cannot be started keeps nothing else up."""

import asyncio

import pytest
from cluster_fakes import ORIGIN, FakeActor, FakeProcess, cluster_of, until
from ray.exceptions import RayActorError, RayError

from alpa_serve.errors import GroupLostError, InfeasiblePlacementError
from alpa_serve.runtime import cluster as cluster_module
from alpa_serve.runtime import group_recovery
from alpa_serve.runtime.controller_state import RESTARTING, UP
from alpa_serve.runtime.group_process import GroupProcess

BROKEN = RuntimeError("no such device")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch):
    """Make the pauses short, and have nothing ask Ray."""
    monkeypatch.setattr(group_recovery, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(cluster_module, "free_resources", dict)
    monkeypatch.setattr("ray.kill", lambda actor: None)


def run(work, *args, **options):
    async def main():
        cluster = cluster_of(*args, **options)
        try:
            return await asyncio.wait_for(work(cluster), 20)
        finally:
            await cluster.close()

    return asyncio.run(main())


def test_a_group_comes_up_again_with_its_replicas_however_often_that_fails():
    process = FakeProcess([BROKEN, RayError("gone"), None])

    async def work(cluster):
        group = cluster.state.groups[0]
        before = group.uid
        cluster.lost(before)
        cluster.lost(before)
        await until(lambda: group.state == UP)
        assert (process.num_starts, group.num_restarts) == (3, 1)
        assert group.uid > before
        assert [args[0] for args in process.actor.args_of("create_replica")] == ["a", "b"]

    run(work, {0: (process, "ab")})


def test_a_group_that_cannot_be_restarted_is_free_to_be_changed_between_the_attempts(monkeypatch):
    monkeypatch.setattr(group_recovery, "FIRST_PAUSE_S", 60.0)
    process = FakeProcess([BROKEN])

    async def work(cluster):
        group = cluster.state.groups[0]
        cluster.lost(group.uid)
        await until(lambda: process.num_starts == 1 and not group.lock.locked())
        async with group.lock:
            await cluster.remove_replica(group, "a")
            with pytest.raises(GroupLostError, match="group 0 is restarting"):
                await cluster.make_replica(group, "b", None, None)
        await cluster.warm_up(group)
        assert list(group.replicas) == []

    run(work, {0: (process, "a")})


def test_a_group_that_leaves_while_it_is_restarted_is_gone():
    process = FakeProcess([BROKEN])

    async def work(cluster):
        group = cluster.state.groups.pop(0)
        cluster.state.leaving = [group]
        cluster.lost(group.uid)
        await until(lambda: process.num_starts > 1)
        cluster.state.leaving = []
        await cluster.remove_group(group)
        tried = process.num_starts
        await asyncio.sleep(0.1)
        assert (process.num_starts, process.is_released) == (tried, True)

    run(work, {0: (process, "a")})


def test_a_group_that_leaves_does_not_wait_for_an_attempt_that_hangs():
    process = FakeProcess()

    async def work(cluster):
        process.ends["create_replica"] = asyncio.Event()
        group = cluster.state.groups[0]
        cluster.lost(group.uid)
        await until(lambda: process.actor is not None and process.actor.args_of("create_replica"))
        await cluster.remove_group(group)
        assert process.is_released

    run(work, {0: (process, "a")})


def test_a_busy_process_keeps_none_of_the_others_from_being_found_dead():
    dead = FakeProcess(ping=RayActorError())

    async def work(cluster):
        hung = asyncio.Event()
        cluster.state.groups[0].process.actor.ends["ping"] = hung
        cluster._router.actor.ends["ping"] = hung
        cluster.check()
        await until(lambda: cluster.state.groups[1].num_restarts == 1)
        group = cluster.state.groups[1]
        cluster.check()
        assert cluster.state.groups[0].num_restarts == 0
        # it is asked once only
        await asyncio.sleep(0.02)
        assert len(cluster.state.groups[0].process.actor.args_of("ping")) == 1
        hung.set()
        assert group.state in (UP, RESTARTING)

    run(work, {0: (FakeProcess(), "a"), 1: (dead, "a")})


@pytest.mark.parametrize(
    ("end", "error"),
    [(RayActorError(), GroupLostError), (asyncio.TimeoutError(), InfeasiblePlacementError), (BROKEN, RuntimeError)],
)
def test_a_group_that_cannot_be_started_gives_its_devices_back_and_says_why(end, error):
    process = FakeProcess([end])

    async def work(cluster):
        group = cluster.state.groups.pop(0)
        with pytest.raises(error):
            await cluster.start_group(group)
        assert process.is_released

    run(work, {0: (process, "")})


def test_what_leaves_has_as_long_as_a_request_may_take_and_the_end_of_the_service_its_own_limit():
    router = FakeActor(drained=True)

    async def work(cluster):
        first, second = cluster.state.groups.values()
        async with first.lock:
            await cluster.remove_replica(first, "a")
        await cluster.remove_group(cluster.state.groups.pop(1))
        await cluster.close()
        assert router.args_of("drained") == [[first.uid, "a", 77.0], [second.uid, None, 77.0]]
        assert router.args_of("stop") == [[5.0]]

    groups = {0: (FakeProcess(), "a"), 1: (FakeProcess(), "a")}
    run(work, groups, router=router, request_timeout_s=77.0, drain_timeout_s=5.0)


def test_requests_are_waited_for_though_the_router_was_out_of_reach_for_a_moment():
    router = FakeActor(drained=[RayActorError(), True])

    async def work(cluster):
        await cluster.remove_group(cluster.state.groups.pop(0))
        assert len(router.args_of("drained")) == 2

    run(work, {0: (FakeProcess(), "a")}, router=router)


@pytest.mark.parametrize("error", [RayActorError(), RayError("stop failed")])
def test_groups_are_given_back_whatever_happens_to_the_router(error):
    processes = [FakeProcess(), FakeProcess()]

    async def work(cluster):
        await cluster.close()
        assert all(process.is_released for process in processes)

    run(work, dict(enumerate((process, "a") for process in processes)), router=FakeActor(stop=error))


def test_a_router_that_was_out_of_reach_is_told_what_it_missed():
    router = FakeActor(apply=[RayActorError(), RayActorError(), None, None])

    async def work(cluster):
        await cluster.publish()
        assert len(router.args_of("apply")) == 2
        cluster.check()
        await until(lambda: len(router.args_of("apply")) == 3)
        (first, *_), _, (last, *_) = router.args_of("apply")
        assert last.version > first.version
        await cluster._watches.close()
        cluster.check()
        await until(lambda: len(router.args_of("ping")) == 3)
        await asyncio.sleep(0.02)
        # it knows everything by now
        assert len(router.args_of("apply")) == 3

    run(work, {0: (FakeProcess(), "a")}, router=router)


def test_a_group_takes_no_requests_while_it_is_measured_and_has_answered_all_before():
    router = FakeActor(drained=True)
    order = []

    def routed():
        table, _ = router.args_of("apply")[-1]
        return [route.group_id for route in table.groups]

    async def measure():
        order.append((len(router.args_of("drained")), routed()))
        return 2.0

    async def work(cluster):
        await cluster.warm_up(cluster.state.groups[0])
        assert order == [(1, [1])]
        assert routed() == [0, 1]
        assert cluster.state.groups[0].replicas["a"].latency_scale == 2.0
        assert cluster.state.groups[1].replicas["a"].latency_scale == 1.0

    run(work, {0: (FakeProcess(warmup=measure), "a"), 1: (FakeProcess(warmup=measure), "a")}, router=router)


@pytest.mark.parametrize("end", [RayActorError(), RayError("it broke")])
def test_a_group_takes_requests_again_though_it_could_not_be_measured(end):
    router = FakeActor(drained=True)

    async def work(cluster):
        await cluster.warm_up(cluster.state.groups[0])
        table, _ = router.args_of("apply")[-1]
        assert [route.group_id for route in table.groups] == [0]
        assert cluster.state.groups[0].replicas["a"].latency_scale == 1.0

    run(work, {0: (FakeProcess(warmup=end), "a")}, router=router)


def test_groups_are_told_their_numbers_with_what_the_controller_knows():
    async def work(cluster):
        group = cluster.state.groups.pop(0)
        group.group_id = 5
        cluster.state.groups[5] = group
        await cluster.publish()
        assert [args[1:] for args in group.process.actor.args_of("keep")] == [[5]]

    run(work, {0: (FakeProcess(), "a")})


def test_a_successor_takes_up_what_it_knows_without_waiting_for_it_and_ends_the_rest(monkeypatch):
    killed, removed, actors = [], [], {}

    async def find(process, uid):
        process.actor = actors.get(uid)
        return process.actor is not None

    async def start(process, uid, *_):
        process.actor = actors[uid] = FakeActor()

    async def release(process):
        process.actor = None

    async def newest(peers):
        return snapshot

    async def work(cluster):
        busy = asyncio.Event()
        known = cluster_of({0: (FakeProcess(), "a"), 1: (FakeProcess(), "ab")})
        up = known.state.groups[0]
        actors[up.uid] = FakeActor(ping=busy, retain=busy)
        nonlocal snapshot
        known.state.router_uid = 77
        _, snapshot = known.state.publish()
        router = FakeActor(listen=8000)
        prefix = ORIGIN.prefix
        peers = {f"{prefix}router-77": router, f"{prefix}group-{up.uid}": actors[up.uid], f"{prefix}group-900": "x"}
        monkeypatch.setattr(cluster_module, "find_peers", lambda _: dict(peers))
        monkeypatch.setattr(cluster_module, "placement_groups", lambda _: {f"{prefix}devices-901": "devices"})
        # it can be called again if it failed
        router.ends["apply"] = [RuntimeError("not yet"), None, None, None, None]
        with pytest.raises(RuntimeError, match="not yet"):
            await cluster.start()
        await cluster.start()
        assert actors[up.uid].args_of("retain")[-1] == [["a"]]
        assert (set(killed), set(removed)) == ({"x"}, {"devices"})
        assert cluster.state.port == 8000
        again = cluster.state.groups[1]
        await until(lambda: again.state == UP)
        assert again.uid > 901
        assert [args[0] for args in actors[again.uid].args_of("create_replica")] == ["a", "b"]
        assert cluster.state.groups[0].state == UP
        busy.set()

    snapshot = None
    monkeypatch.setattr("ray.kill", killed.append)
    monkeypatch.setattr(cluster_module, "remove_placement_group", removed.append)
    monkeypatch.setattr(cluster_module, "newest_snapshot", newest)
    for name, method in (("find", find), ("start", start), ("release", release)):
        monkeypatch.setattr(GroupProcess, name, method)
    run(work, {})
