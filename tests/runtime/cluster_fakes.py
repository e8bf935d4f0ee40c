"""A cluster without processes: groups that start as the test says, and a router that notes what it is told."""

import asyncio
import concurrent.futures

from alpa_serve.runtime.cluster import Cluster
from alpa_serve.runtime.controller_state import UP, ControllerState, GroupInfo, ModelInfo, ReplicaInfo
from alpa_serve.runtime.origin import Origin
from alpa_serve.runtime.ray_calls import pickled_by_value
from alpa_serve.runtime.settings import ServerSettings
from alpa_serve.scheduling import RUNTIME
from alpa_serve.scheduling.registry import CreateInfo

ORIGIN = Origin("controller", "run")


class Reference:
    """What a remote call returns: it can be awaited, or asked for its future."""

    def __init__(self, work):
        self._future = concurrent.futures.Future()
        self._task = asyncio.ensure_future(work)
        self._task.add_done_callback(self._settle)

    def _settle(self, task):
        if self._future.cancelled() or task.cancelled():
            return
        if task.exception() is not None:
            self._future.set_exception(task.exception())
        else:
            self._future.set_result(task.result())

    def future(self):
        return self._future

    def __await__(self):
        return self._task.__await__()


class RemoteMethod:
    def __init__(self, function):
        self._function = function

    def remote(self, *args):
        return Reference(self._function(*args))

    def options(self, **_options):
        return self


class FakeActor:
    """An actor whose calls end as `ends` says: method -> an error, an event to wait for, a coroutine
    function, or a value; or a list of these, one per call."""

    def __init__(self, **ends):
        self.ends = ends
        self.calls = []

    def __getattr__(self, method):
        async def call(*args):
            self.calls.append((method, *args))
            end = self.ends.get(method)
            if isinstance(end, list):
                end = end.pop(0)
            if isinstance(end, asyncio.Event):
                await end.wait()
                end = None
            if callable(end):
                end = await end()
            await asyncio.sleep(0)
            if isinstance(end, Exception):
                raise end
            return end

        if method.startswith("__"):
            raise AttributeError(method)
        return RemoteMethod(call)

    def args_of(self, method):
        return [args for name, *args in self.calls if name == method]


class FakeProcess:
    """A group's process; each start ends as the next of `starts` says, and the last of them again and again."""

    def __init__(self, starts=(None,), **ends):
        self.slot, self.bundles = 1, [{"CPU": 0.001}]
        self.starts = list(starts)
        self.ends = ends
        self.actor = FakeActor(**ends)
        self.num_starts = 0
        self.is_released = False

    async def start(self, uid, group_id, rules, devices_timeout_s):
        self.num_starts += 1
        end = self.starts.pop(0) if len(self.starts) > 1 else self.starts[0]
        await asyncio.sleep(0)
        if end is not None:
            raise end
        self.actor = FakeActor(**self.ends)

    def kill(self):
        self.actor = None

    async def release(self):
        await asyncio.sleep(0)
        self.actor = None
        self.is_released = True


def cluster_of(groups, models="ab", router=None, **settings):
    """Return a cluster of groups that are up, with a router: groups are {group: (process, models)}."""
    cluster = Cluster(ORIGIN, RUNTIME, ServerSettings(**settings), "node")
    assert isinstance(cluster.state, ControllerState)
    for name in models:
        cluster.state.models[name] = ModelInfo(CreateInfo(dict, (), {}), 0)
    for group_id, (process, members) in groups.items():
        group = GroupInfo(group_id, cluster.state.new_number(), None, None, process, state=UP)
        group.replicas = {name: ReplicaInfo(pickled_by_value(name), None) for name in members}
        cluster.state.groups[group_id] = group
    cluster._router.actor = FakeActor(drained=True, listen=8000) if router is None else router
    return cluster


async def until(holds):
    """Let tasks go on until `holds()`."""
    for _ in range(2000):
        if holds():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not come to that")
