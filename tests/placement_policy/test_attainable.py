import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy.attainable import idle_latencies
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator import simulate
from alpa_serve.simulator.workload import DeterministicProcess, Workload
from alpa_serve.util import GB

CLUSTER = ClusterEnv(8, 2.0)
BY_PROFILE = replace(MAVERIQ, service="profile")


@pytest.fixture
def problem(profile_of):
    """Return problem(slos) -> a model of 1 s on one device and 0.6 s on two, with a request every 100 s."""

    def build(slos):
        profile = profile_of({(1, 1, 1): {1: [1.0]}, (1, 2, 1): {1: [0.6]}, (1, 1, 4): {1: [0.1, 0.2, 0.1, 0.1]}})
        arrivals = 100.0 * np.arange(len(slos))
        return [ModelData("m", 1.0, 0.01, 0.0, profile)], Workload.from_columns(arrivals, [0] * len(slos), ["m"], slos)

    return build


def fastest(problem, **limits):
    datas, workload = problem([1.0])
    chosen = {"max_pp": 8, "max_op": 8, "cluster_env": CLUSTER, "rules": ALPASERVE, **limits}
    return idle_latencies(datas, chosen.pop("cluster_env"), workload, chosen.pop("rules"), **chosen).latency[0]


def test_the_fastest_config_that_a_group_may_have_counts(problem):
    assert fastest(problem) == pytest.approx(0.5 * (1 + 4 * 0.009) + 0.011)
    assert fastest(problem, max_pp=1) == pytest.approx(0.6 * 1.009 + 0.011)
    assert fastest(problem, max_pp=1, max_op=1) == pytest.approx(1.009 + 0.011)
    assert fastest(problem, cluster_env=ClusterEnv(1, 2.0)) == pytest.approx(1.02)
    assert fastest(problem, cluster_env=ClusterEnv(8, 2.0, 3)) == pytest.approx(0.6 * 1.009 + 0.011)
    assert fastest(problem, cluster_env=ClusterEnv(8, 0.5)) == math.inf
    assert fastest(problem, rules=BY_PROFILE) == pytest.approx(0.5 + 0.021 + 0.007)


def test_requests_take_the_time_of_their_own_tokens():
    datas = [ModelData("m", 5.0, 1.0, 1.0, maveriq.load("llama-2-7b"))]
    workload = Workload.from_columns([0.0, 100.0], [0, 0], ["m"], 5.0, input_tokens=[100, 100], output_tokens=[20, 200])
    idle = idle_latencies(datas, ClusterEnv(8, 48 * GB), workload, MAVERIQ, max_pp=8, max_op=8)
    assert idle.latency[1] > 5 * idle.latency[0]
    configs = [c for c in map(ParallelConfig._make, datas[0].profiling_result.para_dict) if c.num_devices <= 8]
    rules = replace(MAVERIQ, idle_after_s=math.inf, idle_penalty_s=0.0)
    simulated = np.min(
        [simulate(ModelPlacement([config], [[0]]), datas, workload, rules).latency for config in configs], axis=0
    )
    np.testing.assert_allclose(idle.latency, simulated)


def test_the_limit_is_the_share_that_can_meet_its_slo(problem):
    datas, workload = problem([0.4, 0.52, 0.53, 1.0, math.inf])
    idle = idle_latencies(datas, CLUSTER, workload, max_pp=8, max_op=8)
    assert idle.attainable().tolist() == [False, False, True, True, True]
    assert idle.limit() == 0.6


@given(
    slos=st.lists(st.sampled_from([0.0, 0.1, 0.5290001, 1.0, 7.0, math.inf]), min_size=1, max_size=12),
    target=st.sampled_from([0.01, 0.3, 0.5, 2 / 3, 0.99, 1.0]),
)
def test_below_the_tightest_scale_too_few_requests_can_meet_their_slo(slos, target, profile_of):
    datas = [ModelData("m", 1.0, 0.01, 0.0, profile_of({(1, 1, 1): {1: [1.0]}}))]
    workload = Workload.from_columns(100.0 * np.arange(len(slos)), [0] * len(slos), ["m"], slos)
    idle = idle_latencies(datas, CLUSTER, workload, max_pp=8, max_op=8)
    scale = idle.tightest_slo_scale(target)
    if math.isinf(scale):
        assert np.mean(np.array(slos) > 0) < target
    elif scale > 0:
        assert idle.limit(scale * (1 + 1e-9)) >= target - 1e-9
        assert idle.limit(scale * (1 - 1e-4)) < target
    else:
        assert idle.limit(1e-9) >= target - 1e-9


def test_no_placement_exceeds_the_bound(problem):
    datas, workload = problem([0.5, 0.56, 0.62, 1.02, 2.0] * 4)
    bound = idle_latencies(datas, CLUSTER, workload, max_pp=8, max_op=8).limit()
    for configs in ([(1, 1, 1)] * 8, [(1, 2, 1)] * 4, [(1, 1, 4)] * 2):
        placement = ModelPlacement(configs, [[0]] * len(configs))
        assert simulate(placement, datas, workload).goodput <= bound
    assert simulate(ModelPlacement([(1, 1, 4)], [[0]]), datas, workload).goodput == bound == 0.8


def test_deterministic_requests_at_exactly_their_slo_are_not_ruled_out(profile_of):
    # sums of floating-point numbers decide here; the bound must not be the smaller one
    datas = [ModelData("m", 1.02, 0.1, 0.0, profile_of({(1, 1, 1): {1: [1.0]}}))]
    workload = DeterministicProcess(0.1).generate_workload("m", 0, 10000, slo=1.0 * 1.009 + 0.011)
    limit = idle_latencies(datas, CLUSTER, workload, max_pp=8, max_op=8).limit()
    assert limit >= simulate(ModelPlacement([(1, 1, 1)], [[0]]), datas, workload).goodput
