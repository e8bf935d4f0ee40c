import asyncio
import pickle

import pytest
from cluster_fakes import FakeActor
from ray.exceptions import RayActorError

from alpa_serve.runtime import group_process
from alpa_serve.runtime.group_process import GroupProcess, RayGroup, bundles_of
from alpa_serve.runtime.origin import Origin

ORIGIN = Origin("controller", "run")


class StreamMethod:
    def options(self, num_returns):
        return self, num_returns


class Actor:
    """What a group's actor has that is asked for before any request."""

    def __init__(self):
        self.handle_request = "handle"
        self.stream_request = StreamMethod()


def test_a_group_that_is_sent_is_its_actor():
    group = RayGroup(Actor())
    function, args = group.__reduce__()
    again = function(*args)
    assert isinstance(again, RayGroup)
    assert again.actor is group.actor


def test_devices_are_set_aside_per_host():
    assert bundles_of((2, 4), 8) == [{"GPU": 4.0}, {"GPU": 4.0}]
    assert bundles_of(None, 3) == [{"GPU": 3.0}]
    assert bundles_of((3, 1), 0) == [{"CPU": 0.001}] * 3


def test_names_of_processes_have_the_run_of_their_controller():
    process = GroupProcess(ORIGIN, 3, None, [])
    assert process.placement_group_name == "controller:run:devices-3"
    assert process.actor_name(8) == "controller:run:group-8"
    assert pickle.loads(pickle.dumps(ORIGIN)) == ORIGIN


async def hang():
    await asyncio.Event().wait()


@pytest.mark.parametrize("end", [None, RayActorError(), hang])
def test_models_are_closed_before_their_process_is_ended_if_they_close_in_time(monkeypatch, end):
    def no_devices(name):
        raise ValueError(name)

    async def release():
        actor = FakeActor(close=end)
        monkeypatch.setattr("ray.kill", lambda killed: calls.append(killed is actor and len(actor.args_of("close"))))
        process = GroupProcess(ORIGIN, 3, None, [])
        process.actor = actor
        await asyncio.wait_for(process.release(), 20)
        await process.release()
        return process.actor

    calls = []
    monkeypatch.setattr(group_process, "get_placement_group", no_devices)
    monkeypatch.setattr(group_process, "CLOSE_TIMEOUT_S", 0.05)
    assert asyncio.run(release()) is None
    assert calls == [1]
