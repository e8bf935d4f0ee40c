"""AlpaServe's controller with plain models: registration, groups, replicas, and requests over HTTP and over Ray.

Runs by pytest, and by itself: ``python tests/serve/test_controller.py``.
"""

import asyncio
import os
import time
import unittest

import httpx
import numpy as np
import pytest
import ray
import requests

from alpa_serve.controller import CONTROLLER_NAME, EmulatedModel, run_controller
from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, ModelNotFoundError, ServingError
from alpa_serve.profiling import ParallelConfig, load_test_prof_result
from alpa_serve.simulator.workload import Request

pytestmark = pytest.mark.usefixtures("local_ray")


class Echo:
    async def handle_request(self, request):
        return request


class AddOne:
    """Adds to arrays, which go over HTTP as lists."""

    def __init__(self, amount=1, *, scale=1):
        self.amount, self.scale = amount, scale

    async def handle_request(self, request):
        fields = await request.json()
        return (np.array(fields["x"]) * self.scale + self.amount).tolist()


class Keyed:
    """Takes the request as the dict that it is."""

    async def handle_request(self, request):
        if not isinstance(request, dict):
            raise TypeError("a request is a dict")
        return {"y": request["x"] + 1, "of": sorted(request)}


class WhoAmI:
    async def handle_request(self, request):
        await asyncio.sleep(0.05)
        return os.getpid()


class Timed:
    """Has stages, so that it is scheduled by how long they take."""

    def __init__(self, seconds):
        self.seconds = seconds
        self.served = 0

    def get_latency_dict(self):
        return {1: [self.seconds / 2, self.seconds / 2]}

    async def handle_request(self, request):
        self.served += 1
        await asyncio.sleep(self.seconds)
        return {"rejected": False, "served": self.served}


class Failing:
    async def handle_request(self, request):
        raise ZeroDivisionError("secret")


class ControllerTest(unittest.TestCase):
    def setUp(self):
        self.controller = run_controller("localhost")
        self.url = ray.get(self.controller.get_info.remote())["url"]

    def tearDown(self):
        ray.get(self.controller.shutdown.remote())
        ray.kill(self.controller)

    def place(self, replicas, **models):
        """Register models, and create groups with replicas: {group: names}."""
        for name, (model_def, *create) in models.items():
            self.controller.register_model.remote(name, model_def, *create)
        for group_id, names in replicas.items():
            self.controller.create_mesh_group_manager.remote(group_id)
            for name in names:
                self.controller.create_replica.remote(name, group_id)
        self.controller.sync()

    def post(self, model, **fields):
        response = requests.post(self.url, json={"model": model, **fields}, timeout=30)
        self.assertEqual(response.status_code, 200, response.text)
        return response.json()

    def ask(self, model, **fields):
        return ray.get(self.controller.handle_request.remote({"model": model, **fields}))

    def test_requests_over_http_and_over_ray_have_the_same_answers(self):
        self.place({0: ["echo", "add"], 1: ["keyed"]}, echo=(Echo,), add=(AddOne,), keyed=(Keyed,))
        for ask in self.post, self.ask:
            self.assertEqual(ask("echo", x=[1, {"y": None}]), {"model": "echo", "x": [1, {"y": None}]})
            self.assertEqual(ask("add", x=[[1, 2], [3.5, -1]]), [[2, 3], [4.5, 0]])
            self.assertEqual(ask("keyed", x=1), {"y": 2, "of": ["model", "x"]})
        with httpx.Client(base_url=self.url, timeout=30) as client:
            # the model in the query goes before the one in the body
            self.assertEqual(client.post("/?model=add", json={"x": [1]}).json(), [2])
            self.assertEqual(client.post("/?model=add", json={"model": "echo", "x": [1]}).json(), [2])
        # requests of the simulator's kind are taken over Ray
        simulated = Request("echo", "payload", 5.0, 7, {})
        answer = ray.get(self.controller.handle_request.remote(simulated))
        self.assertEqual(answer, {"model": "echo", "input": "payload", "slo": 5.0, "idx": 7})

    def test_arguments_of_the_replica_are_appended_to_those_of_the_registration(self):
        self.controller.register_model.remote("add", AddOne, [10], {"scale": 2})
        self.controller.register_model.remote("add later", AddOne)
        self.controller.create_mesh_group_manager.remote(0, (1, 2))
        self.controller.create_replica.remote("add", 0)
        self.controller.create_replica.remote("add later", 0, [100], {"scale": 3})
        self.controller.sync()
        self.assertEqual(self.post("add", x=[1]), [12])
        self.assertEqual(self.post("add later", x=[1]), [103])

    def test_a_name_is_registered_twice_only_with_override(self):
        self.place({0: ["model"]}, model=(Echo,))
        with self.assertRaisesRegex(InvalidConfigError, "'model' is registered already"):
            self.controller.register_model.remote("model", AddOne)
            self.controller.sync()
        self.assertEqual(self.post("model", x=1), {"model": "model", "x": 1})
        self.controller.register_model.remote("model", AddOne, override=True)
        self.controller.sync()
        self.assertEqual(ray.get(self.controller.get_info.remote())["models"], {"model": []})
        self.controller.create_replica.remote("model", 0)
        self.controller.sync()
        self.assertEqual(self.post("model", x=[1]), [2])

    def test_calls_that_make_no_sense_are_refused(self):
        self.place({0: ["echo"]}, echo=(Echo,))
        controller = self.controller
        for call, error, message in (
            (controller.register_model.remote("", Echo), InvalidConfigError, "not empty"),
            (controller.register_model.remote("new", "no class"), InvalidConfigError, "must be callable"),
            (controller.create_mesh_group_manager.remote(0), InvalidPlacementError, "exists already"),
            (controller.create_mesh_group_manager.remote(-1), InvalidPlacementError, "group_id"),
            (controller.create_mesh_group_manager.remote(1, (0, 1)), InvalidPlacementError, "mesh"),
            (controller.create_replica.remote("echo", 0), InvalidPlacementError, "already"),
            (controller.create_replica.remote("echo", 5), InvalidPlacementError, "no group 5"),
            (controller.create_replica.remote("new", 0), InvalidPlacementError, "not registered"),
            (controller.delete_replica.remote("echo", 5), InvalidPlacementError, "no group 5"),
            (controller.delete_mesh_group_manager.remote(5), InvalidPlacementError, "no group 5"),
            (controller.handle_request.remote({"model": "new"}), ModelNotFoundError, "new"),
            (controller.handle_request.remote("text"), ServingError, "object"),
        ):
            with self.subTest(message=message), self.assertRaisesRegex(error, message):
                ray.get(call)
        # what `sync` waits for raises there
        with self.assertRaises((InvalidConfigError, InvalidPlacementError)):
            controller.sync()
        info = ray.get(controller.get_info.remote())
        self.assertEqual((info["models"], info["groups"]), ({"echo": [0]}, {0: ["echo"]}))
        self.assertEqual(requests.post(self.url, json={"model": "new"}, timeout=30).status_code, 404)
        self.assertEqual(requests.post(self.url, json={}, timeout=30).status_code, 400)

    def test_replicas_share_the_load(self):
        self.place({0: ["who"], 1: ["who"]}, who=(WhoAmI,))
        answers = ray.get([self.controller.handle_request.remote({"model": "who"}) for _ in range(40)])
        counts = [answers.count(pid) for pid in set(answers)]
        self.assertEqual(len(counts), 2)
        self.assertGreaterEqual(min(counts), 10)

    def test_a_request_that_would_be_late_is_rejected(self):
        self.place({0: ["timed"]}, timed=(Timed, [0.4]))
        self.assertEqual(self.post("timed", slo=0.2), {"rejected": True})
        self.assertEqual(self.ask("timed", slo=0.2), {"rejected": True})
        self.assertEqual(self.post("timed", slo=20.0, submit_time=time.time() - 30), {"rejected": True})
        self.assertEqual(self.post("timed", slo=20.0, submit_time=time.time()), {"rejected": False, "served": 1})
        self.assertEqual(self.post("timed"), {"rejected": False, "served": 2})

    def test_the_error_of_a_model_is_told_but_not_what_it_says(self):
        self.place({0: ["failing", "echo"]}, failing=(Failing,), echo=(Echo,))
        response = requests.post(self.url, json={"model": "failing"}, timeout=30)
        self.assertEqual(response.status_code, 500)
        self.assertIn("ZeroDivisionError", response.text)
        self.assertNotIn("secret", response.text)
        with self.assertRaisesRegex(ServingError, "'failing' failed with ZeroDivisionError"):
            self.ask("failing")
        self.assertEqual(self.post("echo"), {"model": "echo"})

    def test_a_warm_up_measures_the_models_that_have_a_profile(self):
        profile = load_test_prof_result("alpa/bert-1.3b")
        self.place({0: ["bert", "echo"]}, bert=(EmulatedModel, [profile, ParallelConfig(1, 1, 2)]), echo=(Echo,))
        scales = ray.get(self.controller.warmup.remote())
        self.assertEqual(list(scales), ["bert", "echo"])
        self.assertAlmostEqual(scales["bert"][0], 1.0)
        self.assertEqual(scales["echo"], {0: 1.0})

    def test_the_service_ends_with_its_shutdown(self):
        self.place({0: ["echo"]}, echo=(Echo,))
        self.assertEqual(ray.get_actor(CONTROLLER_NAME), self.controller)
        ray.get(self.controller.shutdown.remote())
        with self.assertRaises(requests.ConnectionError):
            requests.post(self.url, json={"model": "echo"}, timeout=30)
        with self.assertRaisesRegex(ServingError, "was shut down"):
            self.ask("echo")


if __name__ == "__main__":
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    unittest.main()
