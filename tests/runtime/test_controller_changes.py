"""The controller's calls against a cluster without Ray: what each may find changed while it waits."""

import asyncio

import pytest

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.runtime import controller_actor
from alpa_serve.runtime.controller_actor import Controller
from alpa_serve.runtime.controller_state import UP, ControllerState, GroupInfo, ReplicaInfo
from alpa_serve.runtime.origin import Origin
from alpa_serve.runtime.placement_moves import GroupSpec
from alpa_serve.runtime.settings import ServerSettings
from alpa_serve.scheduling import RUNTIME


class Process:
    slot = 0
    bundles = ()
    actor = None

    async def release(self):
        pass


class Cluster:
    """Makes what it is told to once :attr:`go` is set."""

    def __init__(self, *_):
        self.state = ControllerState()
        self.go = asyncio.Event()
        self.removed = []
        self.num_closed = 0

    async def start(self):
        pass

    async def check(self):
        pass

    async def publish(self):
        pass

    def new_group(self, group_id, shape, bundles, config=None):
        return GroupInfo(group_id, self.state.new_number(), shape, config, Process())

    async def start_group(self, group):
        group.state = UP

    async def make_replica(self, group, name, args, kwargs):
        await self.go.wait()
        group.replicas[name] = ReplicaInfo(
            repr(self.state.models[name]).encode() if name in self.state.models else b"", None
        )

    async def remove_replica(self, group, name):
        del group.replicas[name]
        self.removed.append((group.group_id, name))

    async def remove_group(self, group):
        group.is_wanted = False

    async def close(self):
        await self.go.wait()
        self.num_closed += 1


def with_controller(monkeypatch, test):
    """Run test(controller, cluster), where the controller knows the model a, and groups 0 and 1."""
    monkeypatch.setattr(controller_actor, "Cluster", Cluster)

    async def run():
        controller = Controller(Origin("c", "1"), RUNTIME, ServerSettings(), "node", [])
        await controller.register_model("a", dict)
        for group_id in (0, 1):
            await controller.create_mesh_group_manager(group_id)
        try:
            await test(controller, controller._cluster)
        finally:
            controller._health.cancel()

    asyncio.run(run())


async def settle():
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("call", [("delete_model", "a"), ("register_model", "a", list, None, None, True)])
def test_a_replica_that_is_being_made_does_not_outlive_its_model(monkeypatch, call):
    async def test(controller, cluster):
        making = asyncio.create_task(controller.create_replica("a", 0))
        await settle()
        method, *args = call
        await getattr(controller, method)(*args)
        cluster.go.set()
        with pytest.raises(InvalidPlacementError, match="deleted or replaced meanwhile"):
            await making
        assert cluster.state.groups[0].replicas == {}

    with_controller(monkeypatch, test)


def test_a_group_without_the_model_is_not_waited_for_when_the_model_is_deleted(monkeypatch):
    async def test(controller, cluster):
        cluster.go.set()
        await controller.create_replica("a", 0)
        # as while a group is being restarted
        async with cluster.state.groups[1].lock:
            await asyncio.wait_for(controller.delete_model("a"), 10)
        assert cluster.removed == [(0, "a")]

    with_controller(monkeypatch, test)


def test_replicas_of_a_replaced_model_go_at_once_and_not_one_after_another(monkeypatch):
    async def test(controller, cluster):
        cluster.go.set()
        await controller.create_replica("a", 0)
        await controller.create_replica("a", 1)
        async with cluster.state.groups[0].lock:
            replacing = asyncio.create_task(controller.register_model("a", list, override=True))
            await settle()
            assert cluster.removed == [(1, "a")]
        await replacing
        assert cluster.removed == [(1, "a"), (0, "a")]

    with_controller(monkeypatch, test)


@pytest.mark.parametrize(
    "call",
    [
        ("delete_mesh_group_manager", 0),
        ("delete_model", "b"),
        ("register_model", "b", list, None, None, True),
        ("delete_replica", "b", 0),
        ("create_mesh_group_manager", 7),
        ("create_replica", "b", 0),
    ],
    ids=lambda call: call[0],
)
def test_what_is_changed_while_a_placement_is_applied_comes_after_it(monkeypatch, call):
    begun, goes_on = asyncio.Event(), asyncio.Event()

    async def change(cluster, wanted, with_gpus):
        begun.set()
        await goes_on.wait()

    monkeypatch.setattr(controller_actor, "change_placement", change)

    async def test(controller, cluster):
        cluster.go.set()
        await controller.register_model("b", dict)
        if call[0] != "create_replica":
            await controller.create_replica("b", 0)
        applying = asyncio.create_task(controller.apply_placement([GroupSpec((1, 1, 1), (1, 1), ("a",))]))
        await begun.wait()
        models, groups, replicas = (
            dict(cluster.state.models),
            dict(cluster.state.groups),
            dict(cluster.state.groups[0].replicas),
        )
        method, *args = call
        changing = asyncio.create_task(getattr(controller, method)(*args))
        await settle()
        assert (cluster.state.models, cluster.state.groups) == (models, groups)
        assert cluster.state.groups[0].replicas == replicas
        # a new name is in nobody's way
        await controller.register_model("c", dict)
        goes_on.set()
        await applying
        await changing
        after = (cluster.state.models.keys() - {"c"}, cluster.state.groups.keys())
        changed = after != (models.keys(), groups.keys()) or cluster.state.models["b"] is not models["b"]
        assert changed or cluster.state.groups[0].replicas != replicas

    with_controller(monkeypatch, test)


def test_requests_for_what_was_only_in_a_deleted_group_are_not_expected_any_more(monkeypatch):
    async def test(controller, cluster):
        cluster.go.set()
        await controller.register_model("b", dict)
        for name, group_id in (("a", 0), ("b", 0), ("b", 1)):
            await controller.create_replica(name, group_id)
        cluster.state.expected = {"a", "b"}
        await controller.delete_mesh_group_manager(0)
        assert cluster.state.expected == {"b"}

    with_controller(monkeypatch, test)


def test_every_caller_of_a_shutdown_waits_for_the_one_end(monkeypatch):
    async def test(controller, cluster):
        callers = [asyncio.create_task(controller.shutdown()) for _ in range(3)]
        await settle()
        assert not any(caller.done() for caller in callers)
        # one that gives up does not stop it for the others
        callers[0].cancel()
        await settle()
        cluster.go.set()
        await asyncio.gather(*callers[1:])
        assert cluster.num_closed == 1

    with_controller(monkeypatch, test)


def test_a_controller_that_cannot_go_on_can_be_shut_down(monkeypatch):
    async def start(self):
        await asyncio.Event().wait()

    monkeypatch.setattr(controller_actor, "Cluster", type("Stuck", (Cluster,), {"start": start}))
    monkeypatch.setattr(controller_actor, "START_TIMEOUT_S", 0.01)

    async def run():
        controller = Controller(Origin("c", "1"), RUNTIME, ServerSettings(), "node", [])
        controller._cluster.go.set()
        await asyncio.wait_for(controller.shutdown(), 10)
        assert controller._cluster.num_closed == 1

    asyncio.run(run())
