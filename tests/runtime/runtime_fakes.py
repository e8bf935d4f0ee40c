"""A clock that jumps to the next event, groups that answer without Ray, and a router that knows them."""

import asyncio
import selectors
from types import SimpleNamespace

from prometheus_client.parser import text_string_to_metric_families

from alpa_serve.errors import GroupLostError, RequestTimeoutError
from alpa_serve.runtime import course as course_module
from alpa_serve.runtime import request as request_module
from alpa_serve.runtime import router as router_module
from alpa_serve.runtime.reply import Reply
from alpa_serve.runtime.request import ServeRequest
from alpa_serve.runtime.router import RequestRouter
from alpa_serve.runtime.routing_table import GroupDiedError, GroupRoute, ModelRoute, RoutingTable
from alpa_serve.runtime.settings import ServerSettings
from alpa_serve.scheduling import ServingRules

UNIX_TIME = 2.0**20
"""What time.time() is when the virtual clock is 0, so that nobody can mistake one for the other."""


PLAIN = ServingRules(stage_penalty=0.0, fixed_overhead_s=0.0)


class _Selector(selectors.SelectSelector):
    loop = None

    def select(self, timeout=None):
        events = super().select(0)
        if timeout is None and not events:
            raise RuntimeError("everything waits for something that never comes")
        if timeout and not events:
            # exactly the time of the next timer: sums would be off by a bit
            self.loop.now = max(self.loop.now, self.loop._scheduled[0].when())
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose clock jumps to the next timer."""

    def __init__(self):
        self.now = 0.0
        selector = _Selector()
        selector.loop = self
        super().__init__(selector)

    def time(self):
        return self.now


def run_virtually(monkeypatch, coroutine_function, *args):
    """Return what a coroutine function returns, on a virtual clock that router and requests read too."""
    loop = VirtualLoop()
    clock = SimpleNamespace(monotonic=loop.time, time=lambda: loop.time() + UNIX_TIME)
    with monkeypatch.context() as patch:
        for module in (router_module, course_module, request_module):
            patch.setattr(module, "time", clock)
        try:
            result = loop.run_until_complete(coroutine_function(*args))
            left = [task for task in asyncio.all_tasks(loop) if not task.done()]
            assert not left, "tasks are left"
            return result
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()


def now():
    """Return the time of the running loop."""
    return asyncio.get_running_loop().time()


async def wait_until(when):
    """Wait until the clock of the running loop is exactly `when`, if that is still to come."""
    loop = asyncio.get_running_loop()
    if when > loop.time():
        done = loop.create_future()
        loop.call_at(when, done.set_result, None)
        await done


async def settle():
    """Let every task go on as far as it can at this time."""
    for _ in range(20):
        await asyncio.sleep(0)


class FakeGroup:
    """Answers each request with its own name after `service_s` seconds; a stream has `num_pieces` pieces.

    Each piece, and the end of a stream, comes `service_s` after the one before.
    """

    def __init__(self, name, service_s=0.0, num_pieces=3, reply=None, num_absent=0):
        self.name = name
        self.service_s = service_s
        self.num_pieces = num_pieces
        self.reply = Reply(name) if reply is None else reply
        self.num_absent = num_absent
        self.begun = []
        self.answered = []
        self.num_open = 0
        self._death = asyncio.Event()

    def die(self):
        self._death.set()

    async def _work(self, timeout_s):
        if not self._death.is_set():
            try:
                await asyncio.wait_for(self._death.wait(), min(self.service_s, timeout_s))
            except asyncio.TimeoutError:
                if self.service_s > timeout_s:
                    raise RequestTimeoutError("too long") from None
                return
        raise GroupDiedError

    def _absent(self):
        if self.num_absent > 0:
            self.num_absent -= 1
            return Reply(None, GroupLostError(f"{self.name} has no replica"))
        return None

    async def handle(self, model, request, timeout_s):
        self.num_open += 1
        try:
            if absent := self._absent():
                return absent
            self.begun.append((now(), request))
            await self._work(timeout_s)
            self.answered.append(request)
            return self.reply
        finally:
            self.num_open -= 1

    async def stream(self, model, request, timeout_s):
        self.num_open += 1
        try:
            if absent := self._absent():
                yield absent
                return
            self.begun.append((now(), request))
            for k in range(self.num_pieces):
                await self._work(timeout_s)
                yield Reply(f"{self.name}.{k}")
            await self._work(timeout_s)
            self.answered.append(request)
        finally:
            self.num_open -= 1


class Bench:
    """A router and the groups that it was told of; each change is a table of its own."""

    def __init__(self, rules=PLAIN, **settings):
        self.lost = []
        self.router = RequestRouter(rules, ServerSettings(**settings), self.lost.append)
        self.version = 0
        self.routes = {}

    def publish(self, models=("a",), num_groups=None, placed=None):
        self.version += 1
        table = RoutingTable(
            self.version,
            tuple(ModelRoute(name, 7, placed is None or name in placed) for name in models),
            tuple(self.routes.values()),
            len(self.routes) if num_groups is None else num_groups,
        )
        self.router.apply(table)
        return table

    def add(self, uid, group, timings=None, group_id=None):
        timings = {"a": None} if timings is None else timings
        self.routes[uid] = GroupRoute(uid, uid if group_id is None else group_id, group, timings)
        return group

    def ask(self, model="a", **fields):
        return asyncio.create_task(self.router.answer(ServeRequest({"model": model, **fields})))

    def listen(self, model="a", **fields):
        """Return a task that collects the pieces of a stream."""

        async def collect():
            return [piece async for piece in self.router.stream(ServeRequest({"model": model, **fields}))]

        return asyncio.create_task(collect())

    def metric(self, name, **labels):
        """Return the sum of the samples of this name that have these labels."""
        families = text_string_to_metric_families(self.router.metrics().decode())
        samples = [sample for family in families for sample in family.samples if sample.name == f"alpa_serve_{name}"]
        return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())

    def check_empty(self):
        assert not self.router.in_flight._by_group
        assert not self.router.in_flight._by_replica
        assert self.router._num_waiting == 0


async def error_of(task):
    """Return what a task raises, which it must."""
    (result,) = await asyncio.gather(task, return_exceptions=True)
    assert isinstance(result, Exception), result
    return result
