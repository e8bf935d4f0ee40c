"""A service on Ray, its processes, and load on it from outside."""

import asyncio
import itertools
import os
import signal
import threading
import time
from collections import Counter

import aiohttp
import pytest

from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.profiling import ParallelConfig
from alpa_serve.runtime.deploy import deploy
from alpa_serve.runtime.launching import run_controller

NAMESPACE = "alpa_serve"
ONE = ParallelConfig(1, 1, 1)
LONGEST_S = 60


class Load:
    """Requests at a steady rate from a thread of its own, whether earlier ones were answered or not.

    Attributes
    ----------
    sent : int
        Requests, which have 0, 1, ... as "idx".
    answers : list of (int, int or str, object)
        The idx, the status or the kind of error of the connection, and the answer.
    """

    def __init__(self, url, bodies, rate):
        self.sent = 0
        self.answers = []
        self._url, self._bodies, self._rate = url, bodies, rate
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stopped.set()
        self._thread.join(LONGEST_S)
        assert not self._thread.is_alive(), "requests were not answered"

    async def _main(self):
        timeout = aiohttp.ClientTimeout(total=LONGEST_S - 10)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=timeout) as session:
            tasks = []
            for body in itertools.cycle(self._bodies):
                if self._stopped.is_set():
                    break
                tasks.append(asyncio.create_task(self._ask(session, {**body, "idx": self.sent})))
                self.sent += 1
                await asyncio.sleep(1 / self._rate)
            await asyncio.gather(*tasks)

    async def _ask(self, session, body):
        try:
            async with session.post(self._url, json=body) as response:
                self.answers.append((body["idx"], response.status, await response.json()))
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            self.answers.append((body["idx"], type(error).__name__, None))

    @property
    def statuses(self):
        return Counter(status for _, status, _ in self.answers)

    def wait_for_answers(self, number):
        """Wait until there are so many more answers."""
        goal = len(self.answers) + number
        eventually(lambda: len(self.answers) >= goal)

    def check(self):
        """Check that every request was answered, once."""
        wrong = [answer for answer in self.answers if answer[1] != 200]
        assert not wrong, (self.statuses, wrong[:5])
        assert sorted(idx for idx, _, _ in self.answers) == list(range(self.sent))


def eventually(holds, seconds=LONGEST_S):
    """Wait until `holds()` is true, and return what it returns."""
    until = time.monotonic() + seconds
    while not (value := holds()):
        assert time.monotonic() < until, "it did not come to that in time"
        time.sleep(0.05)
    return value


class Service:
    """A controller as tests look at it.

    Attributes
    ----------
    controller : ActorHandle
    """

    def __init__(self, ray, controller):
        self.ray = ray
        self.controller = controller

    def call(self, method, *args, **kwargs):
        return self.ray.get(getattr(self.controller, method).remote(*args, **kwargs))

    @property
    def info(self):
        return self.call("get_info")

    @property
    def url(self):
        return self.info["url"]

    @property
    def groups(self):
        return {group_id: sorted(members) for group_id, members in self.info["groups"].items()}

    def pid_of_group(self, group_id):
        name = self.info["group_names"][group_id]
        return self.ray.get(self.ray.get_actor(name, NAMESPACE).ping.remote())

    @property
    def group_pids(self):
        return {group_id: self.pid_of_group(group_id) for group_id in self.info["groups"]}

    def pid_of_router(self):
        return self.ray.get(self.ray.get_actor(self.info["router_name"], NAMESPACE).ping.remote())

    def kill(self, *pids):
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    def wait_until_up(self, without=()):
        """Wait until all groups are up, in processes that are none of `without`."""

        def are_up():
            info = self.info
            if any(state != "up" for state in info["group_states"].values()):
                return False
            try:
                return not set(self.group_pids.values()) & set(without)
            except (ValueError, self.ray.exceptions.RayError):
                return False

        eventually(are_up)


@pytest.fixture
def start(local_ray):
    """Return start(models, replicas, **options) -> a Service; replicas are {group: names}."""
    services = []

    def run(models=None, replicas=None, name=None, **options):
        controller = run_controller("127.0.0.1", name=name or f"service {len(services)}", **options)
        service = Service(local_ray, controller)
        services.append(service)
        for model, create in (models or {}).items():
            controller.register_model.remote(model, *create)
        for group_id, members in (replicas or {}).items():
            controller.create_mesh_group_manager.remote(group_id)
            for member in members:
                controller.create_replica.remote(member, group_id)
        controller.sync()
        return service

    yield run
    for service in services:
        try:
            service.call("shutdown")
        except local_ray.exceptions.RayActorError:
            # another one has taken its name
            continue
        finally:
            local_ray.kill(service.controller)


@pytest.fixture
def serve(local_ray, profile_of):
    """Return serve(placement, ...) -> (Deployment, Service) of models a, b, c of 20 ms, on 8 devices in nodes of 8."""
    deployed = []
    profile = profile_of({(1, 1, 1): {1: [0.02]}, (1, 1, 2): {1: [0.01, 0.01]}})
    datas = [ModelData(name, 1.0, 1.0, 1.0, profile) for name in "abc"]

    def run(placement, **options):
        options.setdefault("name", f"deployment {len(deployed)}")
        found = deploy(placement, datas, options.pop("cluster", ClusterEnv(8, 100.0)), **options)
        deployed.append(found)
        return found, Service(local_ray, found.controller)

    yield run
    for one in deployed:
        one.shutdown()


@pytest.fixture
def load():
    """Return load(url, bodies, rate) -> a Load."""

    def make(url, bodies, rate=15):
        return Load(url, bodies, rate)

    return make


@pytest.fixture(name="eventually")
def _eventually():
    return eventually


@pytest.fixture
def placement_of():
    """Return placement_of((pp, models), ...) -> a ModelPlacement."""

    def make(*groups):
        return ModelPlacement([ParallelConfig(1, 1, pp) for pp, _ in groups], [list(models) for _, models in groups])

    return make


@pytest.fixture
def recorded(tmp_path):
    """Return recorded() -> how often each idx was served by a RecordingModel that writes to its file, ``.path``."""

    class Record:
        path = tmp_path / "served"

        def __call__(self):
            return Counter(map(int, self.path.read_text().split())) if self.path.exists() else Counter()

    return Record()
