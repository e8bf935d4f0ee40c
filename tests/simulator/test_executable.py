import pytest

from alpa_serve.errors import InvalidPlacementError, InvalidProfileError
from alpa_serve.profiling import ParallelConfig
from alpa_serve.simulator.cluster import VirtualMesh
from alpa_serve.simulator.event_loop import clock, current_loop, run_event_loop
from alpa_serve.simulator.executable import Executable

PIPELINE = ParallelConfig(1, 2, 2)


@pytest.fixture
def profile(profile_of):
    return profile_of({(1, 2, 2): {1: [1.0, 2.0], 4: [3.0, 5.0]}, (1, 1, 1): {1: [2.5]}})


def ends_of(*executables):
    """Return when each of two requests ends that are sent to each executable at once."""

    async def serve(executable):
        await executable.handle_request(object())
        return clock()

    async def main():
        tasks = [current_loop().spawn(serve(executable)) for executable in executables for _ in range(2)]
        return [await task for task in tasks]

    return run_event_loop(main())


def test_a_request_occupies_the_stages_in_turn_and_the_next_follows_in_the_pipeline(profile):
    assert ends_of(Executable(profile, PIPELINE, (1, 4))) == [3.0, 5.0]


def test_models_on_the_same_devices_wait_for_each_other(profile):
    mesh = VirtualMesh((1, 4))
    assert ends_of(Executable(profile, PIPELINE, mesh), Executable(profile, PIPELINE, mesh)) == [3.0, 5.0, 7.0, 9.0]


def test_models_on_devices_of_their_own_do_not(profile):
    assert ends_of(Executable(profile, PIPELINE, (1, 4)), Executable(profile, PIPELINE, (1, 4))) == [3, 5, 3, 5]


def test_every_stage_has_its_own_devices(profile):
    executable = Executable(profile, PIPELINE, VirtualMesh((1, 4)))
    assert [len(streams) for streams in executable.stage_streams] == [2, 2]
    assert len({name for streams in executable.stage_streams for name in streams}) == 4


def test_latencies_are_given_by_batch_size(profile):
    assert Executable(profile, PIPELINE, (1, 4)).get_latency_dict() == {1: [1.0, 2.0], 4: [3.0, 5.0]}


def test_stages_wider_than_a_host_take_whole_hosts(profile_of):
    wide = profile_of({(1, 8, 1): {1: [1.0]}})
    executable = Executable(wide, ParallelConfig(1, 8, 1), (2, 4))
    assert len(executable.stage_streams[0]) == 8


def test_what_does_not_fit_is_refused(profile):
    with pytest.raises(InvalidPlacementError, match="need 4 devices"):
        Executable(profile, PIPELINE, (1, 2))
    with pytest.raises(InvalidProfileError, match="not profiled"):
        Executable(profile, ParallelConfig(1, 1, 4), (1, 4))
    with pytest.raises(InvalidProfileError, match="needs a ProfilingResult, got 'x'"):
        Executable("x", PIPELINE, (1, 4))
