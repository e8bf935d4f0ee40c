"""Processes are killed under load; what a client can see of it, and that everything is there again."""

import threading
import time

import pytest
import requests
from models_for_tests import RecordingModel

pytestmark = pytest.mark.slow


@pytest.fixture
def counting(start, recorded):
    """Return counting(replicas, seconds) -> a Service with replicas of a counting model, a."""

    def run(replicas, seconds=0.02):
        return start({"a": (RecordingModel, [str(recorded.path), seconds])}, replicas)

    return run


def is_served(url):
    try:
        return requests.post(url, json={"model": "a"}, timeout=30).status_code == 200
    except requests.ConnectionError:
        return False


def test_another_replica_answers_for_a_group_that_is_killed(counting, load, recorded):
    service = counting({0: ["a"], 1: ["a"]}, 0.1)
    killed = service.pid_of_group(0)
    with load(service.url, [{"model": "a"}]) as requests_sent:
        requests_sent.wait_for_answers(15)
        service.kill(killed)
        requests_sent.wait_for_answers(15)
        service.wait_until_up(without=[killed])
        back = service.pid_of_group(0)
        requests_sent.wait_for_answers(15)
    requests_sent.check()
    assert set(recorded()) == set(range(requests_sent.sent))
    assert back in {answer["pid"] for _, _, answer in requests_sent.answers}
    assert service.info["models"] == {"a": [0, 1]}


def test_requests_wait_for_the_only_group_to_be_restarted(counting, load):
    service = counting({0: ["a"]})
    killed = service.pid_of_group(0)
    with load(service.url, [{"model": "a"}]) as requests_sent:
        requests_sent.wait_for_answers(15)
        service.kill(killed)
        service.wait_until_up(without=[killed])
        requests_sent.wait_for_answers(15)
    requests_sent.check()


def test_http_is_answered_while_the_controller_is_dead_and_its_successor_knows_everything(counting, load, recorded):
    service = counting({0: ["a"], 1: []})
    before, pids = service.info, service.group_pids
    with load(service.url, [{"model": "a"}]) as requests_sent:
        requests_sent.wait_for_answers(15)
        service.kill(before["pid"])
        requests_sent.wait_for_answers(15)
        # waits for the restart
        after = service.info
        requests_sent.wait_for_answers(15)
    requests_sent.check()
    assert recorded() == dict.fromkeys(range(requests_sent.sent), 1)
    assert after.pop("pid") != before.pop("pid")
    assert after == before
    assert service.group_pids == pids
    service.call("create_replica", "a", 1)
    service.call("register_model", "b", RecordingModel, [str(recorded.path)])
    service.call("create_mesh_group_manager", 2)
    service.call("create_replica", "b", 2)
    assert service.info["models"] == {"a": [0, 1], "b": [2]}
    assert requests.post(service.url, json={"model": "b"}, timeout=30).status_code == 200


def test_a_request_over_ray_is_answered_though_the_controller_is_killed(counting):
    service = counting({0: ["a"]}, 1.0)
    answers = [service.controller.handle_request.remote({"model": "a", "idx": idx}) for idx in range(5)]
    time.sleep(0.3)
    service.kill(service.info["pid"])
    assert [answer["idx"] for answer in service.ray.get(answers, timeout=60)] == list(range(5))


def test_the_service_is_back_on_its_port_when_the_router_is_killed(counting, eventually):
    service = counting({0: ["a"]})
    before, pids = service.info, service.group_pids
    service.kill(service.pid_of_router())
    eventually(lambda: is_served(before["url"]))
    after = service.info
    assert after.pop("router_name") != before.pop("router_name")
    assert after == before
    assert service.group_pids == pids


def test_controller_and_group_are_killed_together(counting, load):
    service = counting({0: ["a"], 1: ["a"]})
    killed = service.pid_of_group(0)
    with load(service.url, [{"model": "a"}]) as requests_sent:
        requests_sent.wait_for_answers(15)
        service.kill(service.info["pid"], killed)
        requests_sent.wait_for_answers(15)
        service.wait_until_up(without=[killed])
    requests_sent.check()
    assert service.info["models"] == {"a": [0, 1]}


def test_a_controller_that_is_killed_while_it_restarts_a_group(counting, eventually):
    service = counting({0: ["a"]})
    killed = service.pid_of_group(0)
    controller = service.info["pid"]
    service.kill(killed)
    eventually(lambda: service.info["group_states"][0] == "restarting")
    # by now a process that the snapshots do not know is on its way
    time.sleep(0.3)
    service.kill(controller)
    service.wait_until_up(without=[killed])
    assert is_served(service.url)
    names = [actor["name"] for actor in service.ray.util.list_named_actors(all_namespaces=True)]
    assert sum(":group-" in name for name in names) == 1


def test_controller_and_router_are_killed_together(counting, eventually):
    service = counting({0: ["a"]})
    before, pids = service.info, service.group_pids
    service.kill(before["pid"], service.pid_of_router())
    eventually(lambda: is_served(before["url"]))
    after = service.info
    assert after["port"] == before["port"]
    assert after["groups"] == {0: ["a"]}
    assert service.group_pids == pids


def test_everything_is_killed_but_one_group(counting, eventually):
    service = counting({0: ["a"], 1: ["a"]})
    url, killed = service.url, service.pid_of_group(0)
    for _ in range(2):
        service.kill(service.info["pid"], service.pid_of_router(), killed)
        service.wait_until_up(without=[killed])
        eventually(lambda: is_served(url))
        killed = service.pid_of_group(0)
    assert service.info["models"] == {"a": [0, 1]}


def test_a_model_is_registered_and_has_a_replica_while_a_group_is_restarted(counting, recorded):
    service = counting({0: ["a"], 1: []})
    killed = service.pid_of_group(0)
    service.kill(killed)
    service.controller.register_model.remote("b", RecordingModel, [str(recorded.path)])
    on_other = service.controller.create_replica.remote("b", 1)
    service.ray.get(on_other)
    service.wait_until_up(without=[killed])
    service.call("create_replica", "b", 0)
    assert service.info["models"] == {"a": [0], "b": [0, 1]}
    for model in "ab":
        assert requests.post(service.url, json={"model": model}, timeout=60).status_code == 200


def test_a_change_of_placement_is_finished_though_the_controller_is_killed(serve, placement_of, load):
    deployed, service = serve(placement_of((1, [0, 1]), (1, [0, 2])))
    controller = service.info["pid"]
    with load(deployed.url, [{"model": name} for name in "abc"]) as requests_sent:
        requests_sent.wait_for_answers(10)
        threading.Timer(0.4, service.kill, [controller]).start()
        deployed.apply_placement(placement_of((2, [0, 1, 2])))
        requests_sent.wait_for_answers(10)
    requests_sent.check()
    assert service.info["groups"] == {0: ["a", "b", "c"]}
    names = [actor["name"] for actor in service.ray.util.list_named_actors(all_namespaces=True)]
    assert sum(":group-" in name for name in names) == 1
