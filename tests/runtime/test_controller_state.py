import asyncio

import pytest
import ray.cloudpickle

from alpa_serve.runtime.controller_state import (
    RESTARTING,
    STARTING,
    UP,
    ControllerState,
    GroupInfo,
    ModelInfo,
    ReplicaInfo,
)
from alpa_serve.runtime.group_process import GroupProcess, bundles_of
from alpa_serve.runtime.origin import Origin
from alpa_serve.runtime.snapshots import Snapshot
from alpa_serve.scheduling import ReplicaTiming
from alpa_serve.scheduling.registry import CreateInfo

ORIGIN = Origin("controller", "run")
ONE_SECOND = ReplicaTiming((1.0,), 0.5, 0.25)


class StreamMethod:
    def options(self, num_returns):
        return self, num_returns


class Actor:
    """What a group's actor has that is asked for before any request."""

    def __init__(self):
        self.handle_request = "handle"
        self.stream_request = StreamMethod()


def group_of(state, group_id, models=(), group_state=UP, shape=(2, 1), config=(1, 2, 1)):
    """Return a group of this state, with an actor if it is up."""
    uid, slot = state.new_number(), state.new_number()
    group = GroupInfo(group_id, uid, shape, config, GroupProcess(ORIGIN, slot, shape, bundles_of(shape, 2)))
    group.replicas = {name: ReplicaInfo(name.encode(), ONE_SECOND) for name in models}
    group.state = group_state
    group.process.actor = Actor() if group_state == UP else None
    return group


@pytest.fixture
def state():
    """Return what a controller knows of groups of every state."""
    state = ControllerState()
    for name in "ab":
        state.models[name] = ModelInfo(CreateInfo(dict, (name,), {"k": 1}), 17)
    state.groups = {4: group_of(state, 4, "ab"), 1: group_of(state, 1, "b", RESTARTING)}
    state.groups[6] = group_of(state, 6, "", STARTING, None, None)
    state.leaving = [group_of(state, 1, "a")]
    return state


def test_numbers_are_never_used_twice(state):
    numbers = [state.new_number() for _ in range(3)]
    state.groups.clear()
    restored = ControllerState.restored(state.publish()[1], ORIGIN)
    numbers += [restored.new_number() for _ in range(3)]
    assert numbers == list(range(numbers[0], numbers[0] + 6))


def test_requests_go_to_groups_that_are_up_and_to_those_that_leave(state):
    table, _ = state.publish()
    up, leaving = state.groups[4], state.leaving[0]
    assert [(route.uid, route.group_id) for route in table.groups] == [(up.uid, 4), (leaving.uid, 1)]
    assert [route.group.actor for route in table.groups] == [up.process.actor, leaving.process.actor]
    assert table.groups[0].timings == {"a": ONE_SECOND, "b": ONE_SECOND}
    assert [route.is_leaving for route in table.groups] == [False, True]
    # those that leave are not among those that are to be up
    assert table.num_groups == 3


def test_a_group_without_process_is_not_told_of(state):
    state.groups[4].process.actor = None
    table, _ = state.publish()
    assert [route.uid for route in table.groups] == [state.leaving[0].uid]
    assert table.num_groups == 3


def test_models_are_placed_if_a_group_is_to_hold_them_or_they_are_expected(state):
    def placed():
        return {model.name: model.is_placed for model in state.publish()[0].models}

    state.models["c"] = state.models["a"]
    assert placed() == {"a": True, "b": True, "c": False}
    del state.groups[4]
    # one restarts, the other leaves
    assert placed() == {"a": True, "b": True, "c": False}
    state.leaving = []
    assert placed() == {"a": False, "b": True, "c": False}
    state.expected = {"c", "gone"}
    assert placed() == {"a": False, "b": True, "c": True}


def test_models_are_told_in_the_order_of_registration(state):
    state.models = {name: ModelInfo(CreateInfo(dict), k) for k, name in enumerate("ba")}
    assert [(model.name, model.created) for model in state.publish()[0].models] == [("b", 0), ("a", 1)]


def test_what_is_measured_scales_what_is_declared(state):
    replicas = state.groups[4].replicas
    replicas["a"].latency_scale = 2.0
    replicas["b"] = ReplicaInfo(b"", None, 3.0)
    (route, _) = state.publish()[0].groups
    assert route.timings == {"a": ReplicaTiming((2.0,), 1.0, 0.5), "b": None}


def test_groups_of_a_model_ascend_and_do_not_count_those_that_leave(state):
    state.groups[2] = group_of(state, 2, "ab")
    assert (state.groups_of("a"), state.groups_of("b"), state.groups_of("c")) == ([2, 4], [1, 2, 4], [])


def test_each_version_is_newer_also_after_a_restart(state):
    versions = []
    for _ in range(3):
        table, snapshot = state.publish()
        assert table.version == snapshot.version
        # told to a process that died, so that the successor does not find it
        lost, _ = state.publish()
        versions += [table.version, lost.version]
        state = ControllerState.restored(snapshot, ORIGIN)
    assert versions == sorted(set(versions))


def test_a_successor_knows_what_the_controller_knew(state):
    state.expected, state.port, state.router_uid = {"a"}, 8000, 5
    replica = state.groups[4].replicas["a"]
    replica.latency_scale = 1.5
    state.groups[6].is_wanted = False
    _, snapshot = state.publish()
    restored = ControllerState.restored(Snapshot(*snapshot), ORIGIN)
    assert (restored.expected, restored.port, restored.router_uid) == ({"a"}, 8000, 5)
    assert restored.models == state.models
    assert list(restored.groups) == list(state.groups)
    assert len(restored.leaving) == 1
    for known, found in zip(state.all_groups(), restored.all_groups(), strict=True):
        assert vars(found).keys() == vars(known).keys()
        for name in ("group_id", "uid", "shape", "config", "replicas", "state", "is_wanted"):
            assert getattr(found, name) == getattr(known, name)
        # the devices are the same, and where the process is has to be found out
        assert (found.process.slot, found.process.bundles) == (known.process.slot, known.process.bundles)
        assert (found.process.origin, found.process.shape, found.process.actor) == (ORIGIN, known.shape, None)
        assert found.process.placement_group_name == known.process.placement_group_name


def test_a_successor_can_tell_a_router_before_it_has_found_any_group(state):
    restored = ControllerState.restored(state.publish()[1], ORIGIN)
    table, _ = restored.publish()
    assert (table.groups, table.num_groups) == ((), 3)
    assert all(model.is_placed for model in table.models)


def test_a_snapshot_can_be_taken_while_groups_are_being_changed(state):
    async def run():
        async with state.groups[4].lock:
            restored = ControllerState.restored(state.publish()[1], ORIGIN)
        assert not restored.groups[4].lock.locked()
        async with restored.groups[4].lock:
            pass

    asyncio.run(run())


def test_models_of_a_program_that_successors_cannot_import_come_along(state):
    class Local:
        def __init__(self, number):
            self.number = number

    state.models["local"] = ModelInfo(CreateInfo(Local, (3,), {}), 0)
    restored = ControllerState.restored(state.publish()[1], ORIGIN)
    info = ray.cloudpickle.loads(restored.models["local"].pickled)
    assert info.model_def(*info.init_args).number == 3


def test_what_models_are_made_of_is_pickled_once_however_often_the_state_is_told(state):
    class Large:
        times = 0

        def __reduce__(self):
            Large.times += 1
            return bytes, (b"x" * 100_000,)

    state.models["large"] = ModelInfo(CreateInfo(dict, (Large(),), {}), 0)
    for group_id in range(10, 20):
        state.groups[group_id] = group_of(state, group_id, ["large"])
    sizes = [len(state.publish()[1].pickled) for _ in range(3)]
    assert Large.times == 1
    assert max(sizes) < 150_000


def test_requests_do_not_go_to_a_group_that_is_put_aside_until_a_successor_comes(state):
    state.groups[4].is_aside = True
    table, snapshot = state.publish()
    assert [route.group_id for route in table.groups] == [1]
    assert table.num_groups == 3
    assert not ControllerState.restored(snapshot, ORIGIN).groups[4].is_aside
