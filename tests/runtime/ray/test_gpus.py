"""Groups whose devices are GPUs of Ray's: pretended ones, which Ray counts and assigns all the same."""

import pytest
import requests
from models_for_tests import GpuModel

from alpa_serve.errors import InfeasiblePlacementError
from alpa_serve.placement import ClusterEnv
from alpa_serve.runtime.group_process import bundles_of
from alpa_serve.runtime.settings import ServerSettings


@pytest.mark.parametrize(
    ("shape", "num_gpus", "bundles"),
    [
        ((1, 2), 2, [{"GPU": 2.0}]),
        ((2, 4), 8, [{"GPU": 4.0}] * 2),
        (None, 1, [{"GPU": 1.0}]),
        (None, 0.5, [{"GPU": 0.5}]),
    ],
)
def test_the_gpus_of_a_group_are_spread_over_its_hosts(shape, num_gpus, bundles):
    assert bundles_of(shape, num_gpus) == bundles


def test_a_group_without_gpus_takes_next_to_nothing_of_a_host():
    for shape, hosts in ((None, 1), ((1, 4), 1), ((2, 4), 2)):
        bundles = bundles_of(shape, 0)
        assert len(bundles) == hosts
        assert all(0 < bundle["CPU"] <= 0.01 and "GPU" not in bundle for bundle in bundles)


@pytest.fixture
def gpu_ray(ray_of_session):
    """Return the package, connected to a Ray that counts four GPUs."""
    ray_of_session.end()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray_of_session, "options", {"num_gpus": 4})
        ray_of_session.ensure()
        yield
    ray_of_session.end()


@pytest.fixture
def on_gpus(gpu_ray, serve, recorded):
    """Return on_gpus(placement) -> (Deployment, Service) on four GPUs, of models that tell theirs."""
    defs = {name: PlacedGpuModel(recorded.path) for name in "abc"}

    def run(placement, **options):
        return serve(placement, model_defs=defs, cluster=ClusterEnv(4, 100.0), **options)

    return run


class PlacedGpuModel:
    def __init__(self, path):
        self.path = str(path)

    def __call__(self, *placement):
        return GpuModel(self.path, 0.1, *placement)


def gpus_of(url, model):
    return requests.post(url, json={"model": model}, timeout=30).json()["gpus"]


@pytest.mark.slow
def test_every_group_has_gpus_of_its_own(on_gpus, placement_of):
    # by default, as there are GPUs and the models are not emulated
    deployed, _ = on_gpus(placement_of((1, [0]), (2, [1]), (1, [2])))
    gpus = [gpus_of(deployed.url, model) for model in "abc"]
    assert [len(of_group) for of_group in gpus] == [1, 2, 1]
    assert sorted(str(gpu) for of_group in gpus for gpu in of_group) == ["0", "1", "2", "3"]


@pytest.mark.slow
def test_a_group_that_is_killed_has_its_gpus_again(on_gpus, placement_of, load):
    deployed, service = on_gpus(placement_of((2, [0]), (2, [0])))
    killed = service.pid_of_group(0)
    # so many that both groups always have some
    with load(deployed.url, [{"model": "a"}], rate=50) as requests_sent:
        requests_sent.wait_for_answers(30)
        service.kill(killed)
        service.wait_until_up(without=[killed])
        requests_sent.wait_for_answers(60)
    requests_sent.check()
    by_process = {answer["pid"]: tuple(answer["gpus"]) for _, _, answer in requests_sent.answers}
    assert by_process[service.pid_of_group(0)] == by_process[killed]


@pytest.mark.slow
def test_a_placement_for_which_there_is_no_room_beside_the_old_one_loses_no_request(
    on_gpus, placement_of, load, recorded
):
    deployed, service = on_gpus(placement_of((2, [0, 1]), (2, [0, 2])))
    with load(deployed.url, [{"model": name} for name in "abc"]) as requests_sent:
        requests_sent.wait_for_answers(15)
        deployed.apply_placement(placement_of((1, [0]), (1, [1]), (2, [0, 2])))
        requests_sent.wait_for_answers(15)
        deployed.apply_placement(placement_of((2, [0, 1, 2]), (2, [0])))
        requests_sent.wait_for_answers(15)
    requests_sent.check()
    assert recorded() == dict.fromkeys(range(requests_sent.sent), 1)
    assert service.groups == {0: ["a", "b", "c"], 1: ["a"]}


@pytest.mark.slow
def test_groups_have_gpus_by_default_even_if_all_are_taken_for_now(on_gpus, placement_of, local_ray):
    holder = local_ray.util.placement_group([{"GPU": 4}])
    local_ray.get(holder.ready())
    with pytest.raises(InfeasiblePlacementError, match=r"no room for .*'GPU': 2.0"):
        on_gpus(placement_of((2, [0])), settings=ServerSettings(devices_timeout_s=1.0))
    local_ray.util.remove_placement_group(holder)


@pytest.mark.slow
def test_gpus_that_another_program_holds_are_not_waited_for_longer_than_said(on_gpus, placement_of, local_ray):
    settings = ServerSettings(devices_timeout_s=1.0)
    holder = local_ray.util.placement_group([{"GPU": 3}])
    local_ray.get(holder.ready())
    with pytest.raises(InfeasiblePlacementError, match=r"no room for .*'GPU': 2.0"):
        on_gpus(placement_of((2, [0])), settings=settings)
    local_ray.util.remove_placement_group(holder)
