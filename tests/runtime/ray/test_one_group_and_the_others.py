"""One group is busy, cannot be restarted, or leaves: what the others, and its own requests, see of it."""

import threading
import time

import pytest
import requests
from models_for_tests import BusyModel, FragileModel, RecordingModel

from alpa_serve.runtime.settings import ServerSettings

pytestmark = pytest.mark.slow

BUSY_S = 40.0


def post(url, model):
    try:
        return requests.post(url, json={"model": model}, timeout=60).status_code
    except requests.ConnectionError:
        return None


def test_models_are_deleted_though_a_group_cannot_be_restarted(start, recorded, tmp_path, eventually):
    path, obstacle = str(recorded.path), tmp_path / "obstacle"
    models = {"a": (FragileModel, [path, str(obstacle)]), "b": (RecordingModel, [path])}
    service = start(models, {0: ["a"], 1: ["b"]})
    killed = service.pid_of_group(0)
    obstacle.touch()
    service.kill(killed)
    eventually(lambda: service.info["group_states"][0] == "restarting")
    service.ray.get(service.controller.delete_model.remote("b"), timeout=30)
    assert service.info["group_states"][0] == "restarting"
    # without what kept it from being restarted, it comes up
    service.ray.get(service.controller.delete_model.remote("a"), timeout=30)
    service.wait_until_up(without=[killed])
    assert service.info["groups"] == {0: [], 1: []}


@pytest.mark.parametrize("with_controller", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_router_is_back_though_a_group_is_busy(start, recorded, eventually, with_controller):
    models = {"a": (BusyModel, [BUSY_S]), "b": (RecordingModel, [str(recorded.path)])}
    service = start(models, {0: ["a"], 1: ["b"]})
    info = service.info
    url, router = info["url"], service.pid_of_router()
    busy = threading.Thread(target=post, args=(url, "a"))
    busy.start()
    time.sleep(0.5)
    began = time.monotonic()
    service.kill(router, *([info["pid"]] if with_controller else []))
    eventually(lambda: post(url, "b") == 200)
    assert time.monotonic() - began < BUSY_S / 2
    busy.join()
    assert service.info["group_states"] == {0: "up", 1: "up"}


def test_a_group_that_leaves_answers_what_takes_longer_than_the_end_of_the_service_may(start, recorded):
    model = RecordingModel, [str(recorded.path), 3.0]
    service = start({"a": model}, {0: ["a"]}, settings=ServerSettings(drain_timeout_s=0.5))
    answers = []
    asking = threading.Thread(target=lambda url: answers.append(post(url, "a")), args=(service.url,))
    asking.start()
    time.sleep(0.5)
    service.call("delete_mesh_group_manager", 0)
    asking.join()
    assert answers == [200]
