"""How a service ends: by a shutdown, or with the program that started it."""

import signal
import subprocess
import sys
import threading
import time

import pytest
import requests
from models_for_tests import RecordingModel

pytestmark = pytest.mark.slow

DRIVER = """
import sys, ray
from alpa_serve.controller import run_controller

class Echo:
    async def handle_request(self, request):
        return request

ray.init(sys.argv[1], namespace=sys.argv[2], log_to_driver=False, logging_level="ERROR")
controller = run_controller("127.0.0.1", name="driven")
controller.register_model.remote("echo", Echo)
controller.create_mesh_group_manager.remote(0)
controller.create_replica.remote("echo", 0)
controller.sync()
print(ray.get(controller.get_info.remote())["url"], flush=True)
sys.stdin.read()
"""


@pytest.fixture
def driver(local_ray):
    """Return driver() -> (process, url) of a program that serves the model echo on the same Ray."""
    programs = []

    def run():
        runtime = local_ray.get_runtime_context()
        program = subprocess.Popen(
            [sys.executable, "-c", DRIVER, runtime.gcs_address, runtime.namespace],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        programs.append(program)
        return program, program.stdout.readline().strip()

    yield run
    for program in programs:
        program.kill()
        program.communicate()


def names_of_services(ray):
    return {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}


def test_all_processes_end_with_the_program_that_is_killed(driver, local_ray, eventually):
    program, url = driver()
    # a class of its main module is served
    assert requests.post(url, json={"model": "echo", "x": [1]}, timeout=30).json() == {"model": "echo", "x": [1]}
    assert len(names_of_services(local_ray)) == 3
    program.send_signal(signal.SIGKILL)
    eventually(lambda: not names_of_services(local_ray), 30)
    eventually(lambda: all(g["state"] == "REMOVED" for g in local_ray.util.placement_group_table().values()))
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}healthz", timeout=30)


def test_processes_do_not_take_a_later_controller_of_the_same_name_for_theirs(driver, local_ray, eventually):
    program, url = driver()
    earlier = {name for name in names_of_services(local_ray) if name != "driven"}
    program.send_signal(signal.SIGKILL)
    eventually(lambda: "driven" not in names_of_services(local_ray))
    _, later = driver()
    eventually(lambda: not earlier & names_of_services(local_ray), 30)
    assert requests.post(later, json={"model": "echo"}, timeout=30).json() == {"model": "echo"}
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{url}healthz", timeout=30)


def test_a_shutdown_waits_for_the_requests_that_are_being_answered(start, recorded):
    service = start({"a": (RecordingModel, [str(recorded.path), 1.5])}, {0: ["a"]})
    url = service.url
    over_http = []

    def ask():
        over_http.append(requests.post(url, json={"model": "a", "idx": 1}, timeout=30).json()["idx"])

    thread = threading.Thread(target=ask)
    thread.start()
    over_ray = service.controller.handle_request.remote({"model": "a", "idx": 2})
    time.sleep(0.7)
    service.call("shutdown")
    assert service.ray.get(over_ray, timeout=30)["idx"] == 2
    thread.join()
    assert over_http == [1]
    names = names_of_services(service.ray)
    assert not {name for name in names if ":" in name}


def test_the_devices_are_given_back_at_the_end(serve, placement_of, local_ray):
    deployed, _ = serve(placement_of((1, [0]), (2, [1])))

    def names():
        return [g["name"] for g in local_ray.util.placement_group_table().values() if g["state"] != "REMOVED"]

    assert len(names()) == 2
    deployed.shutdown()
    assert not names()


def test_a_shutdown_ends_everything_while_the_controller_is_being_restarted(serve, placement_of, local_ray):
    deployed, service = serve(placement_of((1, [0]), (2, [1])))
    assert len({name for name in names_of_services(local_ray) if ":" in name}) == 3
    service.kill(service.info["pid"])
    deployed.shutdown()
    assert not {name for name in names_of_services(local_ray) if ":" in name}
    assert all(g["state"] == "REMOVED" for g in local_ray.util.placement_group_table().values())
    with pytest.raises(requests.ConnectionError):
        requests.get(f"{deployed.url}healthz", timeout=30)


def test_whoever_shuts_down_again_waits_for_the_end(start, recorded):
    service = start({"a": (RecordingModel, [str(recorded.path), 1.5])}, {0: ["a"]})
    answer = service.controller.handle_request.remote({"model": "a", "idx": 1})
    time.sleep(0.5)
    first = service.controller.shutdown.remote()
    time.sleep(0.2)
    service.call("shutdown")
    assert recorded() == {1: 1}
    assert not {name for name in names_of_services(service.ray) if ":" in name}
    service.ray.get([first, answer], timeout=30)
