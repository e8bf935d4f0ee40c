"""Chains of annealing as parts of a search."""

import math
import pickle
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy.part_runner import never_stopped
from alpa_serve.placement_policy.search_parts import (
    UNLIMITED,
    MixedProblem,
    Part,
    PreparedProblem,
    _noisy_values,
    possible_configs,
    run_part,
)
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.workload import Workload

MODELS = [{"profile": "test-2GB-100ms", "rate": rate, "cv": 3.0, "slo": 0.4} for rate in (3.0, 5.0, 8.0)]
NOWHERE = ModelPlacement([], [])


def part_of(start=NOWHERE, seed=0, noise=0.0, num_evaluations=100, seconds=math.inf):
    return Part(start, seed, 0.05, 0.001, noise, num_evaluations, seconds)


def profile_on(*configs):
    profile = ProfilingResult("model")
    for config in configs:
        profile.add_result(config, 1, [0.1] * config.pp, [0.0] * config.pp, [1.0] * config.pp)
    return profile


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_part_depends_on_nothing_but_itself_and_keeps_to_its_evaluations(
    mixed_cases, serving_rules, prepared_of, data
):
    case, rules = data.draw(mixed_cases), data.draw(serving_rules)
    part = part_of(
        seed=data.draw(st.integers(0, 2**64 - 1)),
        noise=data.draw(st.sampled_from([0.0, 1.0])),
        num_evaluations=data.draw(st.integers(0, 90)),
    )
    one, other = (run_part(prepared_of(case, rules), part, never_stopped) for _ in range(2))
    assert one.placement == other.placement
    assert one.num_evaluations == other.num_evaluations == part.num_evaluations
    one.placement.verify(case.models, case.cluster)
    assert all(one.placement.group_models)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_a_chain_without_noise_is_not_worse_than_its_start(mixed_cases, serving_rules, prepared_of, data):
    case, rules = data.draw(mixed_cases), data.draw(serving_rules)
    prepared = prepared_of(case, rules)
    start = run_part(prepared, part_of(seed=1, num_evaluations=20), never_stopped).placement
    found = run_part(prepared, part_of(start, 2), never_stopped).placement
    assert prepared.evaluator.evaluate(found).score >= prepared.evaluator.evaluate(start).score


def test_chains_of_different_seeds_differ(datas, workload):
    cluster = ClusterEnv(8, 5e9)
    configs = tuple(possible_configs(datas, cluster, 8, 8))
    prepared = PreparedProblem(MixedProblem(datas, cluster, workload, ALPASERVE, configs, (), False))
    assert len({str(run_part(prepared, part_of(seed=seed), never_stopped).placement) for seed in range(4)}) == 4


def test_a_chain_of_seconds_takes_these_and_cools_down_in_them(datas, workload):
    cluster = ClusterEnv(8, 5e9)
    configs = tuple(possible_configs(datas, cluster, 8, 8))
    prepared = PreparedProblem(MixedProblem(datas, cluster, workload, ALPASERVE, configs, (), False))
    for noise in (0.0, 1.0):
        began = time.monotonic()
        result = run_part(prepared, part_of(noise=noise, num_evaluations=UNLIMITED, seconds=0.3), never_stopped)
        assert 0.3 <= time.monotonic() - began < 1.0
        assert 0.3 <= result.seconds < 1.0
        assert result.num_evaluations > 100
    began = time.monotonic()
    result = run_part(
        prepared, part_of(num_evaluations=UNLIMITED, seconds=60.0), lambda: time.monotonic() > began + 0.2
    )
    assert time.monotonic() - began < 1.0
    result.placement.verify(datas, cluster)


def test_a_chain_that_can_change_nothing_ends_by_itself():
    config = ParallelConfig(1, 1, 1)
    models = [ModelData("m0", 1.0, 1.0, 1.0, profile_on(config))]
    workload = Workload.from_columns([0.0], [0], ["m0"], [1.0])
    prepared = PreparedProblem(MixedProblem(models, ClusterEnv(2, 2.0), workload, ALPASERVE, (), (config,), False))
    result = run_part(prepared, part_of(num_evaluations=UNLIMITED), never_stopped)
    assert (result.placement, result.num_evaluations) == (NOWHERE, 0)


def test_noise_weighs_models_and_keeps_the_whole(prepared_of, datas, workload):
    cluster = ClusterEnv(8, 5e9)
    configs = tuple(possible_configs(datas, cluster, 8, 8))
    prepared = PreparedProblem(MixedProblem(datas, cluster, workload, ALPASERVE, configs, (), False))
    values = _noisy_values(prepared, part_of(noise=1.0, seed=3))
    requests = np.diff(prepared.arrays.first_request)
    assert len(set(values.tolist())) == len(datas)
    assert (values * requests).sum() == pytest.approx(requests.sum(), rel=1e-3)
    # whole in binary fractions
    assert (values * 2**20 == np.round(values * 2**20)).all()


def test_configs_are_those_profiled_within_the_limits_and_the_nodes():
    configs = [
        ParallelConfig(*c) for c in [(1, 1, 1), (1, 2, 3), (1, 1, 8), (1, 4, 1), (2, 1, 1), (1, 2, 4), (1, 5, 2)]
    ]
    models = [ModelData(f"m{i}", 1.0, 1.0, 1.0, profile_on(c)) for i, c in enumerate(configs)]
    # 6 lies within no node of 4, and is not whole nodes
    assert possible_configs(models, ClusterEnv(12, 2.0, 4), 8, 8) == [(1, 1, 1), (1, 1, 8), (1, 2, 4), (1, 4, 1)]
    assert possible_configs(models, ClusterEnv(12, 2.0, 4), 4, 2) == [(1, 1, 1), (1, 2, 4)]
    assert possible_configs(models, ClusterEnv(7, 2.0, 4), 8, 8) == [(1, 1, 1), (1, 4, 1)]
    assert possible_configs(models, ClusterEnv(12, 2.0, 6), 8, 8) == [(1, 1, 1), (1, 2, 3), (1, 4, 1)]


def test_parts_and_problem_travel(datas, workload):
    problem = MixedProblem(datas, ClusterEnv(8, 5e9), workload, ALPASERVE, (ParallelConfig(1, 1, 1),), (), False)
    part = part_of()
    assert pickle.loads(pickle.dumps(part)) == part
    copy = PreparedProblem(pickle.loads(pickle.dumps(problem)))
    assert (
        run_part(copy, part, never_stopped).placement
        == run_part(PreparedProblem(problem), part, never_stopped).placement
    )
