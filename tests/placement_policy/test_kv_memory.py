"""Memory for concurrent tokens counts like weights, in every search, bound and plan."""

import math
from dataclasses import replace
from functools import partial

import pytest

from alpa_serve.errors import InvalidProfileError
from alpa_serve.placement_policy import (
    ClusterEnv,
    MixedParallelismSearch,
    ModelData,
    ModelParallelismEqual,
    ModelParallelismGreedy,
    ModelParallelismILP,
    ModelParallelismRR,
    ModelParallelismSearch,
    SelectiveReplicationGreedy,
    SelectiveReplicationILP,
    SelectiveReplicationReplacement,
    SelectiveReplicationSearch,
    SelectiveReplicationUniform,
    placement_upper_bound,
    plan_capacity,
)
from alpa_serve.profiling import ProfilingResult, load_test_prof_result
from alpa_serve.simulator.workload import GammaProcess, Workload
from alpa_serve.util import GB

KV_BYTES = 2.0**20
CLUSTER = ClusterEnv(4, 6 * GB)
# GiB of KV cache per model; without them three models fit on a device
TOKENS = (1024, 3 * 1024, 0, 512)

POLICIES = [
    SelectiveReplicationILP(),
    SelectiveReplicationGreedy(),
    SelectiveReplicationGreedy(use_evo_search=True),
    SelectiveReplicationUniform(),
    SelectiveReplicationSearch(),
    SelectiveReplicationReplacement(50),
    ModelParallelismILP(),
    ModelParallelismRR(),
    ModelParallelismGreedy(),
    ModelParallelismEqual(2, 1),
    ModelParallelismSearch(),
    ModelParallelismSearch(use_separation=True),
    MixedParallelismSearch(time_budget=math.inf, max_evaluations=2000),
]


def profile_with(kv_tokens):
    """The test profile, with `kv_tokens` of KV cache added to its weights, and with the KV cache per token."""
    known = load_test_prof_result("test-2GB-100ms")
    profile = ProfilingResult(known.model_name)
    for config, data in known.para_dict.items():
        per_token = [KV_BYTES / config.pp] * config.pp
        weights = [held + kv_tokens * each for held, each in zip(data.weight_mem, per_token, strict=True)]
        profile.add_result(
            config, 1, data.latency[1], data.act_mem[1], weights, kv_bytes_per_token=[KV_BYTES / config.pp] * config.pp
        )
    return profile


@pytest.fixture(scope="module")
def workload():
    return Workload.merge(
        *(GammaProcess(4, 3).generate_workload(f"m{i}", 0, 100, slo=0.5, seed=i) for i in range(len(TOKENS)))
    )


MODELS = [
    ModelData(f"m{i}", 0.5, 4.0, 3.0, profile_with(0), concurrent_tokens=tokens) for i, tokens in enumerate(TOKENS)
]
HEAVIER = [ModelData(f"m{i}", 0.5, 4.0, 3.0, profile_with(tokens)) for i, tokens in enumerate(TOKENS)]


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_policy_places_models_as_if_their_kv_cache_were_weights(policy, workload):
    found, _ = policy.solve_placement(MODELS, CLUSTER, workload)
    expected, _ = policy.solve_placement(HEAVIER, CLUSTER, workload)
    assert found == expected


@pytest.mark.parametrize(
    "policy", [policy for policy in POLICIES if not isinstance(policy, SelectiveReplicationUniform)], ids=str
)
def test_what_a_policy_places_holds_the_kv_cache(policy, workload):
    found, _ = policy.solve_placement(MODELS, CLUSTER, workload)
    found.verify(MODELS, CLUSTER)


def test_the_upper_bound_counts_the_kv_cache(workload):
    bound = partial(placement_upper_bound, cluster_env=CLUSTER, workload=workload, time_limit=60, max_visits=100_000)
    assert bound(MODELS) == bound(HEAVIER)
    too_many = [replace(data, concurrent_tokens=100 * 1024) for data in MODELS]
    assert bound(too_many) == 0


def test_a_plan_takes_the_devices_that_the_kv_cache_needs(workload):
    plan = partial(plan_capacity, workload=workload, target=0.9, cluster_env=ClusterEnv(1, 6 * GB))
    effort = {"time_budget": math.inf, "max_evaluations": 200}
    ours, heavier = plan(MODELS, **effort), plan(HEAVIER, **effort)
    assert (ours.num_devices, ours.placement) == (heavier.num_devices, heavier.placement)


@pytest.mark.parametrize("policy", POLICIES, ids=str)
def test_a_profile_without_kv_cache_is_refused_when_tokens_ask_for_it(policy, workload):
    models = [replace(data, profiling_result=load_test_prof_result("test-2GB-100ms")) for data in MODELS]
    with pytest.raises(InvalidProfileError, match=r"model 'm0'.*no KV cache per token"):
        policy.solve_placement(models, CLUSTER, workload)
