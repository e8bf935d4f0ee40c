"""Fixtures for every test: golden figures, the shared data, and cases built from golden model dicts."""

import json
import os
import pickle
import random
import signal
import time
from functools import cache, partial
from multiprocessing import resource_tracker
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from alpa_serve.placement import ModelData, ModelPlacement
from alpa_serve.placement_policy import ModelParallelismSearch, PlacementEvaluator
from alpa_serve.placement_policy.attainable import idle_latencies
from alpa_serve.placement_policy.plan_search import SearchSettings
from alpa_serve.profiling import ParallelConfig, ProfilingResult, load_test_prof_result, load_test_prof_result_v2
from alpa_serve.scheduling import ServingRules
from alpa_serve.simulator.arrivals import GammaProcess
from alpa_serve.simulator.workload import Workload
from alpa_serve.util import ServingCase, batchsize_config

# elsewhere each run looks at other cases; continuous integration must not fail by chance
settings.register_profile("ci", derandomize=True)
if "CI" in os.environ:
    settings.load_profile("ci")

# shells start background jobs with Ctrl-C ignored, which processes hand down; tests send it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED = Path(__file__).resolve().parents[2] / "shared"


def _shared_file(folder, name):
    if not (SHARED / folder).is_dir():
        pytest.skip(f"no folder {SHARED / folder} beside the checkout")
    return SHARED / folder / name


@pytest.fixture(scope="session")
def golden():
    """Return golden(name) -> the figures of ../shared/golden/NAME.json; skips where that folder is absent."""

    @cache
    def load(name):
        return json.loads(_shared_file("golden", f"{name}.json").read_text(encoding="utf-8"))

    return load


@pytest.fixture(scope="session")
def shared_data():
    """Return shared_data(name) -> the path ../shared/data/NAME; skips where that folder is absent."""
    return partial(_shared_file, "data")


@pytest.fixture(scope="session")
def model_datas_of():
    """Return model_datas_of(models) -> ModelData m0, m1, ... of dicts with profile, rate, cv and slo."""

    @cache
    def profile(name):
        is_test_profile = name.startswith(("test", "alpa/"))
        return load_test_prof_result(name) if is_test_profile else load_test_prof_result_v2(name)

    def build(models):
        return [
            ModelData(f"m{i}", model["slo"], model["rate"], model["cv"], profile(model["profile"]))
            for i, model in enumerate(models)
        ]

    return build


@pytest.fixture(scope="session")
def workload_of():
    """Return workload_of(models, duration) -> a Gamma workload for model i with seed i, named m{i}, merged."""

    def build(models, duration):
        return Workload.merge(
            *(
                GammaProcess(model["rate"], model["cv"]).generate_workload(
                    f"m{i}", 0, duration, slo=model["slo"], seed=i
                )
                for i, model in enumerate(models)
            )
        )

    return build


@pytest.fixture(scope="session")
def serving_case_of():
    """Return serving_case_of(model_datas, workload, placement) -> a ServingCase that has just these."""

    def build(model_datas, workload, placement):
        def register_models(controller):
            for model in model_datas:
                controller.register_model.remote(model.name, partial(object, model.profiling_result))

        return ServingCase(register_models, lambda: workload, lambda controller: placement)

    return build


@pytest.fixture(scope="session")
def profile_of():
    """Return profile_of(latencies) -> a profile of a dict {config: {batch size: stage latencies}}, 1 byte a stage."""

    def build(latencies, name="model"):
        profile = ProfilingResult(name)
        for config, by_batch_size in latencies.items():
            for batch_size, stages in by_batch_size.items():
                ones = [1.0] * len(stages)
                profile.add_result(ParallelConfig(*config), batch_size, stages, ones, ones)
        return profile

    return build


@pytest.fixture
def random_state_untouched():
    """Fail the test if it changed the global state of `random` or of NumPy."""

    def states():
        return pickle.dumps((random.getstate(), np.random.get_state()))

    before = states()
    yield
    assert states() == before


@pytest.fixture
def quick_plans(monkeypatch):
    """Have planners search by AlpaServe's search and bound by what each request attains alone: quick, for hand work."""

    def find(settings, model_datas, cluster_env, workload, starts, callback):
        policy = ModelParallelismSearch(
            max_pp=settings.max_pp, max_op=settings.max_op, rules=settings.rules, callback=callback
        )
        found = [*starts, policy.solve_placement(model_datas, cluster_env, workload)[0]]
        scores = PlacementEvaluator(model_datas, cluster_env, workload, rules=settings.rules).get_scores(found)
        return found[int(scores.argmax())]

    def bound(settings, model_datas, cluster_env, workload, rules):
        size = cluster_env.num_devices
        return idle_latencies(model_datas, cluster_env, workload, rules, max_pp=size, max_op=size).limit()

    monkeypatch.setattr(SearchSettings, "find", find)
    monkeypatch.setattr(SearchSettings, "bound", bound)


class SimulatorProblem(NamedTuple):
    """Arguments of the fast simulator: profiles per model, a placement, and columns of requests."""

    profiles: list
    placement: ModelPlacement
    model_ids: np.ndarray
    slos: np.ndarray
    arrivals: np.ndarray


@pytest.fixture(scope="session")
def simulator_problems(profile_of):
    """Return a hypothesis strategy of small SimulatorProblems with uneven stages and unregistered models (-1)."""
    configs = [(1, 1, 1), (1, 2, 1), (1, 1, 2), (1, 1, 3)]
    latencies = st.sampled_from([0.0, 0.03, 0.05, 0.1, 0.17, 0.4])

    @st.composite
    def profiles(draw):
        growth = draw(st.sampled_from([0.0, 0.1, 0.6]))
        return profile_of(
            {
                config: {
                    batch_size: [base * (1 + growth * (batch_size - 1)) for base in stages]
                    for batch_size in batchsize_config
                }
                for config in configs
                for stages in [draw(st.lists(latencies, min_size=config[2], max_size=config[2]))]
            }
        )

    @st.composite
    def problems(draw):
        models = draw(st.lists(profiles(), min_size=1, max_size=3))
        ids = range(len(models))
        groups = draw(
            st.lists(
                st.tuples(st.sampled_from(configs), st.lists(st.sampled_from(ids), unique=True)),
                min_size=1,
                max_size=4,
            )
        )
        gaps = st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.3])
        slos = st.sampled_from([0.05, 0.15, 0.3, 0.6, 1.5, np.inf])
        requests = draw(st.lists(st.tuples(gaps, st.sampled_from([-1, *ids]), slos), max_size=40))
        return SimulatorProblem(
            models,
            ModelPlacement([config for config, _ in groups], [members for _, members in groups]),
            np.array([model_id for _, model_id, _ in requests], dtype=np.int32),
            np.array([slo for _, _, slo in requests]),
            np.cumsum([gap for gap, _, _ in requests]),
        )

    return problems()


@pytest.fixture(scope="session")
def serving_rules():
    """Return a hypothesis strategy of ServingRules of every kind."""
    return st.builds(
        ServingRules,
        execution=st.sampled_from(["pipelined", "exclusive"]),
        queueing=st.sampled_from(["per_group", "global_fifo"]),
        dispatch=st.sampled_from(["least_loaded", "random"]),
        admission=st.sampled_from(["deadline", "all"]),
        service=st.sampled_from(["profile", "tokens"]),
        stage_penalty=st.sampled_from([0.0, 0.009]),
        fixed_overhead_s=st.sampled_from([0.0, 0.011]),
        dispatch_interval_s=st.sampled_from([0.0, 0.0, 0.007]),
        request_overhead_s=st.sampled_from([0.0, 0.02]),
        idle_after_s=st.sampled_from([0.04, 0.5]),
        idle_penalty_s=st.sampled_from([0.0, 0.0, 0.03]),
        seed=st.integers(0, 3),
    )


SECONDS_TO_END = 20
"""How long the processes of a Ray that was shut down may take to end, on a loaded machine."""


def _processes():
    """Return {pid: (parent, time of start)} of all processes that run."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent, *rest = path.read_text().rpartition(") ")[2].split()
        except OSError:
            # it has ended meanwhile
            continue
        if state != "Z":
            found[int(path.parent.name)] = int(parent), rest[17]
    return found


def _descendants():
    """Return {(pid, time of start)} of all processes that this one has started, and those that these have."""
    processes = _processes()
    found = {os.getpid()}
    size = 0
    while size < len(found):
        size = len(found)
        found |= {pid for pid, (parent, _) in processes.items() if parent in found}
    return {(pid, processes[pid][1]) for pid in found - {os.getpid()}}


class LocalRay:
    """A Ray of this process with two CPUs, started when it is first needed and again when another test has ended it."""

    namespace = "tests"
    options = MappingProxyType({})

    def __init__(self):
        # replays have multiprocessing start it, and it lives as long as this process
        resource_tracker.ensure_running()
        self._earlier = _descendants()
        self._started = set()

    def ensure(self):
        import ray

        if not ray.is_initialized():
            ray.init(
                "local",
                num_cpus=2,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
                namespace=self.namespace,
                **self.options,
            )
        self.look()
        return ray

    def look(self):
        """Take note of the processes that there are."""
        self._started |= _descendants() - self._earlier

    def left(self):
        """Return the processes of its that still run, once they had time to end."""
        until = time.monotonic() + SECONDS_TO_END
        while True:
            running = {(pid, start) for pid, (_, start) in _processes().items()}
            if not self._started & running or time.monotonic() > until:
                return self._started & running
            time.sleep(0.1)

    def end(self):
        import ray

        self.look()
        ray.shutdown()


@pytest.fixture(scope="session")
def ray_of_session():
    one = LocalRay()
    yield one
    one.end()
    assert not one.left(), "processes of Ray are left behind"


@pytest.fixture
def local_ray(ray_of_session):
    """Return the package, connected to a Ray of two CPUs on this machine; fail if a service is left on it."""
    ray = ray_of_session.ensure()
    yield ray
    ray_of_session.look()
    until = time.monotonic() + SECONDS_TO_END
    left = ["?"]
    while left and time.monotonic() < until:
        groups = [group for group in ray.util.placement_group_table().values() if group["state"] != "REMOVED"]
        left = ray.util.list_named_actors(all_namespaces=True) + groups
        time.sleep(0.02)
    if left:
        # the next test is to have a Ray without it
        ray_of_session.end()
    assert not left, "the test has left a service running"
