import pickle

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
