"""Models, groups and placements change while requests come: none is lost, none is served twice."""

import threading
import time

import pytest
import requests
from models_for_tests import RecordingModel

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, RequestTimeoutError
from alpa_serve.runtime.settings import ServerSettings

pytestmark = pytest.mark.slow


@pytest.fixture
def counting(start, recorded):
    """Return a Service with replicas of one counting model in two groups."""
    return start({"a": (RecordingModel, [str(recorded.path)])}, {0: ["a"], 1: ["a"]})


def test_replicas_share_the_requests(counting, load):
    with load(counting.url, [{"model": "a"}], rate=50) as requests_sent:
        requests_sent.wait_for_answers(60)
    requests_sent.check()
    by_group = [
        sum(answer["pid"] == pid for _, _, answer in requests_sent.answers) for pid in counting.group_pids.values()
    ]
    assert sum(by_group) == requests_sent.sent
    assert min(by_group) > 0


@pytest.mark.parametrize(
    "change", [("delete_replica", "a", 1), ("delete_mesh_group_manager", 1)], ids=lambda change: change[0]
)
def test_a_replica_that_is_deleted_answers_what_it_has(counting, load, recorded, change):
    leaving = counting.pid_of_group(1)
    with load(counting.url, [{"model": "a"}], rate=50) as requests_sent:
        requests_sent.wait_for_answers(20)
        counting.call(*change)
        already = len(requests_sent.answers)
        requests_sent.wait_for_answers(20)
    requests_sent.check()
    assert recorded() == dict.fromkeys(range(requests_sent.sent), 1)
    assert leaving not in {answer["pid"] for _, _, answer in requests_sent.answers[already:]}
    assert counting.info["models"] == {"a": [0]}


def test_a_model_that_is_deleted_answers_what_it_has_and_is_then_not_found(start, load, recorded):
    create = (RecordingModel, [str(recorded.path), 0.3])
    service = start({"a": create, "b": create}, {0: ["a", "b"]})
    with load(service.url, [{"model": "a"}, {"model": "b"}], rate=50) as requests_sent:
        requests_sent.wait_for_answers(20)
        service.call("delete_model", "a")
        requests_sent.wait_for_answers(20)
    served = recorded()
    for idx, status, _ in requests_sent.answers:
        # even ones are for a
        assert status == 200 or (idx % 2 == 0 and status in (404, 503))
        assert served[idx] == (status == 200)
    assert requests.post(service.url, json={"model": "a"}, timeout=30).status_code == 404
    assert service.info["groups"] == {0: ["b"]}
    with pytest.raises(InvalidPlacementError, match="no model 'a'"):
        service.call("delete_model", "a")


def test_a_model_that_is_replaced_is_served_by_its_new_replicas_only(start, recorded, tmp_path):
    service = start({"a": (RecordingModel, [str(recorded.path)])}, {0: ["a"]})
    service.call("register_model", "a", RecordingModel, [str(tmp_path / "other")], override=True)
    assert service.info["models"] == {"a": []}
    service.call("create_replica", "a", 0)
    assert service.call("handle_request", {"model": "a", "idx": 3})["idx"] == 3
    assert not recorded()
    assert (tmp_path / "other").read_text() == "3\n"


def test_a_placement_takes_over_from_another_under_load(serve, placement_of, load, recorded):
    defs = {name: PlacedRecordingModel(recorded.path) for name in "abc"}
    deployed, service = serve(placement_of((1, [0, 1]), (1, [0, 2]), (2, [1, 2])), model_defs=defs)
    before = service.group_pids
    with load(deployed.url, [{"model": name} for name in "abc"]) as requests_sent:
        time.sleep(1.5)
        # the group of two stages stays, with other models; the others end, one of them is replaced
        deployed.apply_placement(placement_of((2, [0, 2]), (2, [0, 1, 2])))
        between = service.group_pids
        time.sleep(1)
        deployed.apply_placement(placement_of((1, [0, 1, 2]), (2, [0, 1, 2]), (2, [1])))
        time.sleep(1.5)
    requests_sent.check()
    assert recorded() == dict.fromkeys(range(requests_sent.sent), 1)
    assert before[2] in between.values()
    assert set(service.group_pids.values()) > set(between.values())
    assert service.groups == {0: ["a", "b", "c"], 1: ["a", "b", "c"], 2: ["b"]}


class PlacedRecordingModel:
    """Makes models of a placement that write to the same file."""

    def __init__(self, path):
        self.path = str(path)

    def __call__(self, *placement):
        return RecordingModel(self.path, 0.02, *placement)


def test_groups_that_leave_together_do_not_wait_for_one_another(serve, placement_of, load):
    deployed, _ = serve(placement_of((1, [0]), (1, [0]), (1, [0]), (1, [0])))
    with load(deployed.url, [{"model": "a"}], rate=40) as requests_sent:
        requests_sent.wait_for_answers(20)
        began = time.monotonic()
        deployed.apply_placement(placement_of((2, [0])))
        # a wait that nobody ends lasts until the time to drain is over
        assert time.monotonic() - began < 25
    requests_sent.check()


def test_a_placement_that_is_impossible_leaves_the_one_that_is_served(serve, placement_of, load, recorded):
    placement = placement_of((1, [0, 1]))
    broken = {"c": PlacedBrokenModel()}
    deployed, service = serve(placement, model_defs=broken)
    before = service.group_pids
    with load(deployed.url, [{"model": "a"}, {"model": "b"}]) as requests_sent:
        with pytest.raises(InvalidPlacementError):
            deployed.apply_placement(placement_of((2, [0]), (2, [0]), (2, [0]), (2, [0]), (1, [0])))
        with pytest.raises(InvalidPlacementError):
            deployed.apply_placement("no such file.json")
        with pytest.raises(InvalidConfigError, match="model 'c' cannot be made in group 1: OSError: no such weights"):
            deployed.apply_placement(placement_of((1, [0, 1]), (2, [2])))
        requests_sent.wait_for_answers(10)
    requests_sent.check()
    assert deployed.placement == placement
    assert service.group_pids == before
    # c is in no group, and nobody has to wait to be told
    began = time.monotonic()
    assert requests.post(deployed.url, json={"model": "c"}, timeout=30).status_code == 503
    assert time.monotonic() - began < 10


class PlacedBrokenModel:
    def __call__(self, *placement):
        raise OSError("no such weights")


def test_what_a_change_that_failed_left_behind_goes_with_the_next(serve, placement_of, local_ray):
    deployed, service = serve(placement_of((1, [0]), (2, [1])), model_defs={"c": PlacedBrokenModel()})
    leaving = service.info["group_names"][0]
    with pytest.raises(InvalidConfigError, match="'c' cannot be made"):
        # the first group is replaced before the second, which is kept, is found to be impossible
        deployed.apply_placement(placement_of((2, [1, 2]), (2, [0])))
    deployed.apply_placement(placement_of((2, [0, 1])))
    assert service.groups == {0: ["a", "b"]}
    names = [actor["name"] for actor in local_ray.util.list_named_actors(all_namespaces=True)]
    assert leaving not in names
    assert sum(":group-" in name for name in names) == 1


def test_a_placement_that_came_about_in_part_is_told(serve, placement_of):
    deployed, service = serve(placement_of((1, [0]), (2, [1])), model_defs={"c": PlacedBrokenModel()})
    with pytest.raises(InvalidConfigError, match="'c' cannot be made"):
        # the group of two stages stays, and gains one of two models
        deployed.apply_placement(placement_of((2, [1, 2, 0])))
    assert service.groups == {0: ["b"]}
    assert deployed.placement == placement_of((2, [1]))


def test_a_request_of_a_group_that_leaves_has_longer_than_the_end_of_the_service_would_leave_it(
    serve, placement_of, recorded
):
    defs = {"a": PlacedSlowModel(recorded.path)}
    settings = ServerSettings(drain_timeout_s=0.5, request_timeout_s=20.0)
    deployed, service = serve(placement_of((1, [0]), (2, [1])), model_defs=defs, settings=settings)
    asked = service.controller.handle_request.remote({"model": "a", "idx": 1})
    time.sleep(0.5)
    deployed.apply_placement(placement_of((2, [0, 1])))
    # this returns when all is gone
    assert recorded() == {1: 1}
    assert service.ray.get(asked, timeout=30)["idx"] == 1


class PlacedSlowModel(PlacedRecordingModel):
    def __call__(self, *placement):
        return RecordingModel(self.path, 4.0, *placement)


def test_a_group_that_leaves_is_ended_when_its_requests_have_had_their_time(serve, placement_of, recorded):
    defs = {"a": PlacedSlowModel(recorded.path)}
    settings = ServerSettings(request_timeout_s=1.0)
    deployed, service = serve(placement_of((1, [0]), (2, [1])), model_defs=defs, settings=settings)
    asked = service.controller.handle_request.remote({"model": "a", "idx": 1})
    time.sleep(0.3)
    deployed.apply_placement(placement_of((2, [0, 1])))
    assert service.groups == {0: ["a", "b"]}
    with pytest.raises(RequestTimeoutError):
        service.ray.get(asked, timeout=30)
    assert not recorded()


def test_a_group_that_cannot_be_restarted_holds_up_no_change(serve, placement_of, tmp_path, eventually):
    broken = tmp_path / "broken"
    deployed, service = serve(placement_of((1, [0]), (2, [1, 2])), model_defs={"a": PlacedMortalModel(broken)})
    broken.touch()
    service.kill(service.pid_of_group(0))
    eventually(lambda: service.info["group_states"][0] == "restarting")
    service.ray.get(service.controller.delete_model.remote("c"), timeout=30)
    assert service.groups == {0: ["a"], 1: ["b"]}
    # a group of the same kind, which is not that one
    deployed.apply_placement(placement_of((1, [1]), (2, [1])))
    assert service.groups == {0: ["b"], 1: ["b"]}
    assert set(service.info["group_states"].values()) == {"up"}


class PlacedMortalModel:
    """Makes models until there is a file at its path."""

    def __init__(self, path):
        self.path = path

    def __call__(self, *placement):
        if self.path.exists():
            raise OSError("its weights are gone")
        return RecordingModel(self.path.with_name("served"))


def test_a_group_that_is_deleted_while_a_placement_is_applied_does_not_come_back(serve, placement_of):
    deployed, service = serve(placement_of((1, [0]), (1, [1])), model_defs={"c": PlacedLoadingModel(2.0)})
    applying = threading.Thread(target=deployed.apply_placement, args=[placement_of((1, [0]), (1, [1]), (2, [2]))])
    applying.start()
    time.sleep(0.5)
    deleted = service.info["group_names"][1]
    service.call("delete_mesh_group_manager", 1)
    applying.join()
    assert service.groups == {0: ["a"], 2: ["c"]}
    assert deleted not in [actor["name"] for actor in service.ray.util.list_named_actors(all_namespaces=True)]
    assert requests.post(service.url, json={"model": "b"}, timeout=30).status_code == 503


class PlacedLoadingModel:
    def __init__(self, seconds):
        self.seconds = seconds

    def __call__(self, *placement):
        time.sleep(self.seconds)
        return RecordingModel("")
