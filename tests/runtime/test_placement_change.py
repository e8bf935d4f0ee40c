import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import GroupLostError, InfeasiblePlacementError, InvalidConfigError, InvalidPlacementError
from alpa_serve.runtime import placement_change
from alpa_serve.runtime.controller_state import RESTARTING, UP, ControllerState, GroupInfo, ModelInfo, ReplicaInfo
from alpa_serve.runtime.placement_change import change_placement
from alpa_serve.runtime.placement_moves import GroupSpec
from alpa_serve.scheduling.registry import CreateInfo

ONE, TWO, PAIR = ((1, 1, 1), (1, 1)), ((1, 1, 2), (1, 2)), ((1, 2, 1), (2, 1))


class FakeMethod:
    def options(self, **_options):
        return self


class FakeActor:
    handle_request = FakeMethod()
    stream_request = FakeMethod()


class FakeProcess:
    def __init__(self, slot, bundles):
        self.slot = slot
        self.bundles = bundles
        self.actor = None
        self.is_released = False

    async def release(self):
        await asyncio.sleep(0)
        self.actor = None
        self.is_released = True


class FakeCluster:
    """A cluster of `num_gpus` GPUs on which a placement is changed step by step, and what was done."""

    def __init__(self, monkeypatch, num_gpus=1000):
        self.state = ControllerState()
        for name in "abcd":
            self.state.models[name] = ModelInfo(CreateInfo(dict, (), {}), 0)
        self.num_gpus = num_gpus
        self.processes = []
        self.log = []
        self.tables = []
        self.failing = {}
        self.num_gpus_of_node = num_gpus
        self.scattered = lambda: False
        monkeypatch.setattr(placement_change, "free_resources", lambda: {"CPU": 1.0, "GPU": self.free_gpus()})
        monkeypatch.setattr(placement_change, "node_resources", lambda: [{"CPU": 1.0, "GPU": self.num_gpus_of_node}])

    def living(self):
        return [process for process in self.processes if process.actor is not None]

    def free_gpus(self):
        return self.num_gpus - sum(bundle.get("GPU", 0) for process in self.living() for bundle in process.bundles)

    def new_group(self, group_id, shape, bundles, config=None):
        uid, slot = self.state.new_number(), self.state.new_number()
        self.processes.append(FakeProcess(slot, bundles))
        return GroupInfo(group_id, uid, shape, config, self.processes[-1])

    async def start_group(self, group):
        assert group.lock.locked()
        await asyncio.sleep(0)
        needed = sum(bundle.get("GPU", 0) for bundle in group.process.bundles)
        if needed > self.free_gpus() or (needed > 1 and self.scattered()):
            raise InfeasiblePlacementError(f"group {group.group_id}: no room")
        group.process.actor = FakeActor()
        group.state = UP
        self.log.append(("start", group.group_id))

    async def make_replica(self, group, name, args, kwargs):
        assert group.lock.locked()
        if group.state != UP:
            raise GroupLostError(f"group {group.group_id} is {group.state}")
        await asyncio.sleep(0)
        if name in self.failing:
            raise self.failing[name]
        assert name not in group.replicas
        group.replicas[name] = ReplicaInfo(repr((name, args, kwargs)).encode(), None)
        self.log.append(("make", group.group_id, name))

    async def remove_replica(self, group, name):
        assert group.lock.locked()
        del group.replicas[name]
        await self.publish()
        self.log.append(("remove", group.group_id, name))

    async def remove_group(self, group):
        # nothing may be sent to it any more
        assert group.uid not in [route.uid for route in self.tables[-1].groups]
        group.is_wanted = False
        self.log.append(("end", group.uid))
        async with group.lock:
            await group.process.release()

    async def publish(self):
        table, _ = self.state.publish()
        self.tables.append(table)
        self.log.append(("publish", sorted(route.uid for route in table.groups)))
        await asyncio.sleep(0)

    def has(self, *wanted):
        """Check that there is what is wanted, and nothing else."""
        assert list(self.state.groups) == list(range(len(wanted)))
        for (group_id, group), spec in zip(self.state.groups.items(), wanted, strict=True):
            assert (group.group_id, group.config, group.shape) == (group_id, spec.config, spec.shape)
            assert set(group.replicas) == set(spec.members)
            assert not group.lock.locked()
        assert self.state.leaving == []
        assert self.state.expected == {name for spec in wanted for name in spec.members}
        self.has_no_other_process()

    def has_no_other_process(self):
        known = [group.process for group in self.state.all_groups()]
        assert all(process in known for process in self.living())
        # what there is has been told
        routes = {route.uid: set(route.timings) for route in self.tables[-1].groups}
        assert routes == {group.uid: set(group.replicas) for group in self.state.all_groups()}

    def uids(self):
        return [group.uid for group in self.state.groups.values()]

    def steps(self, *kinds):
        return [entry for entry in self.log if entry[0] in kinds]


def spec(kind, members, appended=((), {})):
    return GroupSpec(*kind, tuple(members), appended)


def change(cluster, *wanted, with_gpus=True):
    cluster.log.clear()
    asyncio.run(change_placement(cluster, wanted, with_gpus))


@pytest.fixture
def cluster(monkeypatch):
    return FakeCluster(monkeypatch)


def test_groups_are_told_of_only_once_they_have_their_replicas(cluster):
    change(cluster, spec(ONE, "ab"), spec(TWO, "b"))
    cluster.has(spec(ONE, "ab"), spec(TWO, "b"))
    assert cluster.steps("publish")[0] == cluster.log[5] == ("publish", cluster.uids())
    assert {model.name for model in cluster.tables[0].models if model.is_placed} == {"a", "b"}


def test_nothing_is_done_where_nothing_changes(cluster):
    wanted = spec(ONE, "ab"), spec(TWO, "b"), spec(ONE, "ab"), spec(ONE, "")
    change(cluster, *wanted)
    uids = cluster.uids()
    change(cluster, *wanted)
    assert cluster.uids() == uids
    assert cluster.steps("start", "make", "remove", "end") == []
    cluster.has(*wanted)


def test_new_groups_serve_before_old_ones_leave(cluster):
    change(cluster, spec(ONE, "a"))
    (old,) = cluster.uids()
    change(cluster, spec(TWO, "a"))
    (new,) = cluster.uids()
    both, alone = ("publish", [old, new]), ("publish", [new])
    assert cluster.log == [("start", 0), ("make", 0, "a"), both, alone, ("end", old), alone]
    assert all(any("a" in route.timings for route in table.groups) for table in cluster.tables)
    cluster.has(spec(TWO, "a"))


def test_old_groups_leave_first_where_there_is_no_room_for_both(monkeypatch):
    cluster = FakeCluster(monkeypatch, num_gpus=3)
    change(cluster, spec(TWO, "a"), spec(ONE, "b"))
    first, second = cluster.uids()
    cluster.tables.clear()
    change(cluster, spec(PAIR, "ac"), spec(ONE, "b"))
    assert cluster.uids()[1] == second
    assert cluster.steps("start", "end") == [("end", first), ("start", 0)]
    cluster.has(spec(PAIR, "ac"), spec(ONE, "b"))
    # meanwhile requests for its models wait
    for table in cluster.tables:
        assert {model.name for model in table.models if model.is_placed} >= {"a", "b", "c"}


def test_as_many_new_groups_as_fit_are_started_first(monkeypatch):
    cluster = FakeCluster(monkeypatch, num_gpus=4)
    change(cluster, spec(TWO, "a"))
    (old,) = cluster.uids()
    change(cluster, spec(ONE, "a"), spec(ONE, "b"), spec(ONE, "c"))
    assert cluster.steps("start", "end") == [("start", 0), ("start", 1), ("end", old), ("start", 2)]
    cluster.has(spec(ONE, "a"), spec(ONE, "b"), spec(ONE, "c"))


def test_without_gpus_all_fit(monkeypatch):
    cluster = FakeCluster(monkeypatch, num_gpus=0)
    change(cluster, spec(ONE, "a"), with_gpus=False)
    change(cluster, spec(PAIR, "a"), with_gpus=False)
    assert [kind for kind, *_ in cluster.steps("start", "end")] == ["start", "end"]
    cluster.has(spec(PAIR, "a"))


def test_within_a_group_that_stays_replicas_go_before_others_come(cluster):
    change(cluster, spec(ONE, "abc"))
    uids = cluster.uids()
    change(cluster, spec(ONE, "cd"))
    assert cluster.uids() == uids
    steps = cluster.steps("remove", "make", "start", "end")
    assert sorted(steps[:2]) == [("remove", 0, "a"), ("remove", 0, "b")]
    assert steps[2:] == [("make", 0, "d")]
    cluster.has(spec(ONE, "cd"))


def test_groups_that_only_gain_come_before_those_that_lose(cluster):
    change(cluster, spec(ONE, "ab"), spec(ONE, ""))
    change(cluster, spec(ONE, "a"), spec(ONE, "b"))
    assert cluster.steps("remove", "make") == [("make", 1, "b"), ("remove", 0, "b")]
    assert all(any("b" in route.timings for route in table.groups) for table in cluster.tables)


def test_groups_are_renumbered_by_position_and_not_moved(cluster):
    change(cluster, spec(ONE, "a"), spec(TWO, "b"))
    uids = cluster.uids()
    change(cluster, spec(TWO, "b"), spec(ONE, "a"))
    assert cluster.uids() == uids[::-1]
    assert [route.group_id for route in cluster.tables[-1].groups] == [0, 1]
    assert cluster.steps("start", "make", "remove", "end") == []


def test_groups_of_no_placement_go(cluster):
    async def run():
        group = cluster.new_group(5, (1, 1), [{"GPU": 1}])
        cluster.state.groups[5] = group
        async with group.lock:
            await cluster.start_group(group)
        await change_placement(cluster, [spec(ONE, "a")], True)
        assert group.process.is_released

    asyncio.run(run())
    cluster.has(spec(ONE, "a"))


def test_replicas_are_made_with_what_is_appended_for_their_group(cluster):
    change(cluster, spec(ONE, "a", ((1,), {"k": 2})), spec(ONE, ""))
    change(cluster, spec(ONE, "a"), spec(ONE, "a", ((3,), {})))
    made = [group.replicas["a"].pickled.decode() for group in cluster.state.groups.values()]
    assert made == [repr(("a", (1,), {"k": 2})), repr(("a", (3,), {}))]


def test_all_can_go(cluster):
    change(cluster, spec(ONE, "ab"), spec(TWO, "c"))
    change(cluster)
    cluster.has()
    assert not any(model.is_placed for model in cluster.tables[-1].models)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        (("x",), "group 1: model 'x' is not registered; registered: a, b, c, d"),
        (("a", "a"), "group 1 holds a model twice"),
    ],
)
def test_a_placement_that_cannot_be_changes_nothing(cluster, members, message):
    change(cluster, spec(ONE, "a"))
    with pytest.raises(InvalidPlacementError, match=message):
        change(cluster, spec(TWO, "b"), spec(ONE, members))
    assert cluster.log == []
    cluster.has(spec(ONE, "a"))


@pytest.mark.parametrize("error", [InvalidConfigError("broken"), GroupLostError("died"), RuntimeError("bug")])
def test_nothing_has_changed_if_a_group_that_is_started_first_cannot_be(cluster, error):
    before = spec(ONE, "ab"), spec(TWO, "a")
    change(cluster, *before)
    uids = cluster.uids()
    cluster.failing["d"] = error
    with pytest.raises(type(error), match=str(error)):
        change(cluster, spec(TWO, "a"), spec(PAIR, "c"), spec(PAIR, "d"))
    assert cluster.uids() == uids
    assert cluster.steps("publish", "remove", "end") == []
    # requests for the models that did not come must not wait either
    cluster.has(*before)


def test_a_first_placement_that_cannot_be_leaves_nothing(monkeypatch):
    cluster = FakeCluster(monkeypatch, num_gpus=2)
    with pytest.raises(InfeasiblePlacementError, match="no room"):
        change(cluster, spec(ONE, "a"), spec(TWO, "b"))
    assert cluster.living() == []
    assert cluster.state.groups == {}
    assert cluster.state.expected == set()


def test_a_change_that_is_given_up_leaves_no_process(cluster):
    async def run():
        task = asyncio.create_task(change_placement(cluster, [spec(ONE, "a"), spec(TWO, "bcd")], True))
        while len(cluster.steps("make")) < 3:
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
    assert cluster.living() == []
    assert cluster.state.groups == {}


def test_a_replica_that_cannot_be_made_in_a_group_that_stays_is_all_that_is_missing(cluster):
    change(cluster, spec(ONE, "a"), spec(ONE, "b"), spec(TWO, "a"))
    kept = cluster.uids()[:2]
    cluster.failing["d"] = InvalidConfigError("broken")
    with pytest.raises(InvalidConfigError, match="broken"):
        change(cluster, spec(ONE, "ad"), spec(ONE, "bc"), spec(PAIR, "c"))
    assert cluster.uids()[:2] == kept
    assert [set(group.replicas) for group in cluster.state.groups.values()] == [{"a"}, {"b", "c"}, {"c"}]
    assert cluster.state.leaving == []
    cluster.has_no_other_process()
    assert {model.name for model in cluster.tables[-1].models if model.is_placed} == {"a", "b", "c"}
    # it can be tried again
    cluster.failing.clear()
    change(cluster, spec(ONE, "ad"), spec(ONE, "bc"), spec(PAIR, "c"))
    cluster.has(spec(ONE, "ad"), spec(ONE, "bc"), spec(PAIR, "c"))


def test_a_group_that_cannot_be_started_last_is_all_that_is_missing(monkeypatch):
    cluster = FakeCluster(monkeypatch, num_gpus=2)
    change(cluster, spec(ONE, "a"), spec(ONE, "b"))
    kept = cluster.uids()[0]
    cluster.failing["d"] = InvalidConfigError("broken")
    with pytest.raises(InvalidConfigError, match="broken"):
        change(cluster, spec(ONE, "ac"), spec(((1, 2, 1), (1, 1)), "d"))
    assert cluster.uids() == [kept]
    assert cluster.state.leaving == []
    cluster.has_no_other_process()
    assert {model.name for model in cluster.tables[-1].models if model.is_placed} == {"a", "c"}


def test_groups_that_were_leaving_when_a_controller_died_go_with_the_next_change(cluster):
    change(cluster, spec(ONE, "a"), spec(TWO, "b"))
    cluster.state.leaving = [cluster.state.groups.pop(1)]
    change(cluster, spec(ONE, "a"))
    cluster.has(spec(ONE, "a"))
    assert len(cluster.living()) == 1


def test_a_group_that_comes_while_others_are_started_goes_too(cluster):
    change(cluster, spec(ONE, "a"))

    async def run():
        task = asyncio.create_task(change_placement(cluster, [spec(ONE, "a"), spec(TWO, "b")], True))
        await asyncio.sleep(0)
        group = cluster.new_group(7, (1, 1), [{"GPU": 1}])
        cluster.state.groups[7] = group
        async with group.lock:
            await cluster.start_group(group)
        await task

    asyncio.run(run())
    cluster.has(spec(ONE, "a"), spec(TWO, "b"))


def test_a_group_that_is_not_up_is_replaced_and_not_waited_for(cluster):
    change(cluster, spec(ONE, "a"), spec(ONE, "b"))
    (_, stays) = cluster.uids()
    cluster.state.groups[0].state = RESTARTING
    change(cluster, spec(ONE, "ab"), spec(ONE, "b"))
    assert cluster.uids()[1] == stays
    assert [kind for kind, *_ in cluster.steps("start", "end")] == ["start", "end"]
    cluster.has(spec(ONE, "ab"), spec(ONE, "b"))


def test_a_group_that_dies_before_it_is_changed_is_all_that_is_missing(cluster):
    change(cluster, spec(ONE, "a"), spec(ONE, "b"))

    async def run():
        task = asyncio.create_task(change_placement(cluster, [spec(ONE, "ac"), spec(ONE, "bd"), spec(TWO, "a")], True))
        await asyncio.sleep(0)
        cluster.state.groups[0].state = RESTARTING
        with pytest.raises(GroupLostError, match="group 0 is restarting"):
            await task

    asyncio.run(run())
    assert [set(group.replicas) for group in cluster.state.groups.values()] == [{"a"}, {"b", "d"}, {"a"}]


def test_a_group_that_has_no_room_although_enough_is_free_comes_when_others_have_left(monkeypatch):
    cluster = FakeCluster(monkeypatch, num_gpus=4)
    change(cluster, spec(ONE, "a"), spec(ONE, "b"))
    leaves = cluster.uids()[0]
    # two of the four are free, but one on each node
    cluster.scattered = lambda: any(group.uid == leaves for group in cluster.state.all_groups())
    change(cluster, spec(TWO, "c"), spec(ONE, "b"))
    assert cluster.steps("start", "end") == [("end", leaves), ("start", 0)]
    cluster.has(spec(TWO, "c"), spec(ONE, "b"))


def test_nothing_has_changed_if_no_node_could_ever_hold_a_group(monkeypatch):
    cluster = FakeCluster(monkeypatch, num_gpus=8)
    change(cluster, spec(ONE, "a"))
    cluster.scattered = lambda: True
    cluster.num_gpus_of_node = 1
    with pytest.raises(InfeasiblePlacementError, match="no room"):
        change(cluster, spec(TWO, "c"))
    cluster.has(spec(ONE, "a"))


member_lists = st.lists(st.sampled_from("abcd"), unique=True)
placements = st.lists(st.builds(spec, st.sampled_from([ONE, TWO, PAIR]), member_lists), max_size=4)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(placements=st.lists(placements, min_size=2, max_size=4), spare=st.integers(0, 8), with_gpus=st.booleans())
def test_every_placement_can_follow_every_other(monkeypatch, placements, spare, with_gpus):
    needed = max(sum(group.num_devices for group in placement) for placement in placements)
    cluster = FakeCluster(monkeypatch, num_gpus=needed + spare)
    served = set()
    for placement in placements:
        num_before = len(cluster.tables)
        wanted = {name for group in placement for name in group.members}
        change(cluster, *placement, with_gpus=with_gpus)
        cluster.has(*placement)
        for table in cluster.tables[num_before:]:
            # requests for what is served before and after are never turned away
            assert {model.name for model in table.models if model.is_placed} >= wanted & served
            assert len({route.uid for route in table.groups}) == len(table.groups)
        assert {model.name for model in cluster.tables[-1].models if model.is_placed} == wanted
        served = wanted
