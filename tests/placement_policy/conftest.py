"""The problem that a module states in MODELS (dicts of profile, rate, cv, slo), and others at random; and Ray."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import assume
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.placement_policy.search_parts import MixedProblem, PreparedProblem, possible_configs
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.workload import Workload


@pytest.fixture(scope="module")
def datas(request, model_datas_of):
    return model_datas_of(request.module.MODELS)


@pytest.fixture(scope="module")
def workload(request, workload_of):
    return workload_of(request.module.MODELS, 40)


@pytest.fixture(scope="module")
def ray():
    """Return the package; a Ray that is initialised is shut down after the module."""
    ray = pytest.importorskip("ray")
    yield ray
    ray.shutdown()


@pytest.fixture
def no_ray(ray):
    """Return the package, with no Ray initialised."""
    ray.shutdown()
    yield ray
    assert not ray.is_initialized(), "the runner has left its own Ray running"


class MixedCase(NamedTuple):
    """A placement problem for groups of mixed shapes."""

    models: list
    cluster: ClusterEnv
    workload: Workload


@pytest.fixture(scope="session")
def mixed_cases():
    """Return a hypothesis strategy of small MixedCases on which something fits.

    Nodes of any size, the last one perhaps partly there; models that are profiled on few configs, uneven ones among
    them, and use up memory exactly or but for rounding; requests for models that are not registered.
    """
    shapes = st.sampled_from(
        [(op, pp) for op in (1, 2, 3, 4) for pp in (1, 2, 3, 4, 6)] + [(1, 1)] * 6 + [(1, 2), (2, 1), (1, 3)] * 2
    )
    seconds = st.sampled_from([0.0, 0.02, 0.05, 0.11, 0.3])

    @st.composite
    def models(draw, number):
        profile = ProfilingResult("model")
        for op, pp in sorted(draw(st.sets(shapes, min_size=1, max_size=6))):
            stages = draw(st.lists(seconds, min_size=pp, max_size=pp))
            weight = draw(st.sampled_from([0.0, 0.1, 0.1, 0.2, 0.3, 0.4, 0.7, 1.0]))
            times = PrefillDecode(sum(stages) / 4, sum(stages) / 8, draw(st.sampled_from([None, 100])))
            profile.add_result(ParallelConfig(1, op, pp), 1, stages, [0.0] * pp, [weight] * pp, prefill_decode=times)
        return ModelData(f"m{number}", 1.0, 1.0, 1.0, profile)

    @st.composite
    def draw_case(draw):
        datas = [draw(models(number)) for number in range(draw(st.integers(1, 5)))]
        per_node = draw(st.sampled_from([1, 2, 3, 4, 8]))
        cluster = ClusterEnv(draw(st.integers(1, 14)), draw(st.sampled_from([0.3, 0.6, 0.7, 1.0, 2.2])), per_node)
        gap, slo = st.sampled_from([0.0, 0.01, 0.05, 0.3]), st.sampled_from([0.05, 0.2, 0.6, 1.5, math.inf])
        token = st.sampled_from([0, 1, 2, 9])
        number = len(datas)
        columns = st.tuples(gap, st.integers(0, number), slo, token, token)
        requests = draw(st.lists(columns, min_size=1, max_size=60))
        gaps, model_ids, slos, inputs, outputs = zip(*requests, strict=True)
        names = [*(data.name for data in datas), "unknown"]
        workload = Workload.from_columns(
            np.cumsum(gaps), model_ids, names, slos, input_tokens=inputs, output_tokens=outputs
        )
        fits = any(
            data.profiling_result.weight_bytes(config) <= cluster.mem_budget
            for config in possible_configs(datas, cluster, 8, 8)
            for data in datas
            if config in data.profiling_result.para_dict
        )
        assume(fits)
        return MixedCase(datas, cluster, workload)

    return draw_case()


@pytest.fixture(scope="session")
def prepared_of():
    """Return prepared_of(case, rules, require_all) -> the problem as chains of annealing take it."""

    def prepare(case, rules=ALPASERVE, require_all=False):
        configs = tuple(possible_configs(case.models, case.cluster, 8, 8))
        return PreparedProblem(MixedProblem(case.models, case.cluster, case.workload, rules, configs, (), require_all))

    return prepare
