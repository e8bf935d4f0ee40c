"""How a controller starts, and goes on looking after its processes, without Ray."""

import asyncio
from types import SimpleNamespace

import pytest
from cluster_fakes import ORIGIN, until

from alpa_serve.errors import InvalidConfigError
from alpa_serve.runtime import controller_actor
from alpa_serve.runtime.controller_actor import Controller
from alpa_serve.runtime.settings import ServerSettings
from alpa_serve.scheduling import RUNTIME


class FakeCluster:
    def __init__(self, starts, checks=()):
        self.starts, self.checks = list(starts), list(checks)
        self.num_checks = 0

    async def start(self):
        end = self.starts.pop(0)
        if end is not None:
            raise end

    def check(self):
        self.num_checks += 1
        if self.checks:
            raise self.checks.pop(0)


@pytest.fixture
def started(monkeypatch):
    """Return started(cluster, is_restarted, work): it runs ``await work(controller)`` of a controller with it."""
    monkeypatch.setattr(controller_actor, "RESTART_PAUSE_S", 0.01)
    monkeypatch.setattr(controller_actor, "HEALTH_INTERVAL_S", 0.01)

    def run(cluster, is_restarted, work):
        async def main():
            controller = Controller(ORIGIN, RUNTIME, ServerSettings(), "node", [])
            try:
                return await asyncio.wait_for(work(controller), 20)
            finally:
                controller._health.cancel()
                await asyncio.gather(controller._health, return_exceptions=True)

        monkeypatch.setattr(controller_actor, "Cluster", lambda *_: cluster)
        context = SimpleNamespace(was_current_actor_reconstructed=is_restarted)
        monkeypatch.setattr("ray.get_runtime_context", lambda: context)
        return asyncio.run(main())

    return run


def test_a_restarted_controller_tries_to_go_on_until_it_can(started):
    cluster = FakeCluster([RuntimeError("not yet"), InvalidConfigError("the port is taken"), None])
    started(cluster, True, Controller.sync)
    assert cluster.starts == []


def test_whoever_starts_a_service_that_cannot_be_is_told(started):
    with pytest.raises(InvalidConfigError, match="taken"):
        started(FakeCluster([InvalidConfigError("the port is taken")]), False, Controller.sync)


def test_processes_are_looked_after_whatever_failed_before(started):
    cluster = FakeCluster([None], [RuntimeError("once"), KeyError("twice")])

    async def work(controller):
        await until(lambda: cluster.num_checks > 3)

    started(cluster, False, work)
