from itertools import chain, combinations, product

import pytest

from alpa_serve.errors import InfeasiblePlacementError, InvalidConfigError
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy import ModelParallelismILP, SelectiveReplicationILP
from alpa_serve.placement_policy.ilp import (
    pack_all_models,
    requests_within_slo,
    solve_model_parallel,
    solve_replication,
)
from alpa_serve.profiling import ParallelConfig
from alpa_serve.util import GB

ONE, TWO, FOUR = (ParallelConfig(1, 1, num_stages) for num_stages in (1, 2, 4))
POLICIES = {"SelectiveReplicationILP": SelectiveReplicationILP, "ModelParallelismILP": ModelParallelismILP}


def capacity_of_a_replica(policy, data, config):
    profile = data.profiling_result
    if config not in profile.para_dict:
        return 0.0
    stages = profile.stage_latency(config)
    if policy == "SelectiveReplicationILP":
        return 1 / max(stages)
    count = 0
    # the requests enter the pipeline one slowest stage apart; 1e-9 for the rounding of the sum
    while sum(stages) + count * max(stages) <= data.slo + 1e-9:
        count += 1
    return 0.99**config.pp * count


def objective(policy, placement, datas):
    """min tolerance + 1e-4 * sum of tolerances, from semantics.md."""
    tolerances = [
        sum(
            capacity_of_a_replica(policy, data, config)
            for config, members in zip(placement.group_configs, placement.group_models, strict=True)
            if model_id in members
        )
        / data.rate
        for model_id, data in enumerate(datas)
    ]
    return min(tolerances) + 1e-4 * sum(tolerances)


@pytest.mark.parametrize("policy", POLICIES)
def test_the_objective_is_at_least_that_of_alpaserves_placement(policy, golden, model_datas_of):
    cases = [case for case in golden("policies") if case["policy"]["policy"] == policy]
    assert cases
    for case in cases:
        datas = model_datas_of(case["models"])
        cluster = ClusterEnv(case["num_devices"], case["mem_budget_gb"] * GB, case["num_devices_per_node"])
        placement, _ = POLICIES[policy]().solve_placement(datas, cluster)
        placement.verify(datas, cluster)
        reference = ModelPlacement(**case["placement"])
        assert objective(policy, placement, datas) >= objective(policy, reference, datas) - 1e-6


def members_within(config, datas, budget):
    subsets = chain.from_iterable(combinations(range(len(datas)), size) for size in range(len(datas) + 1))
    weights = [data.profiling_result.weight_bytes(config) for data in datas]
    return [subset for subset in subsets if sum(weights[m] for m in subset) <= budget]


SMALL = [
    {"profile": "test-2GB-100ms", "rate": 1.0, "cv": 1.0, "slo": 0.55},
    {"profile": "test-4GB-150ms", "rate": 2.5, "cv": 1.0, "slo": 0.7},
    {"profile": "test-2GB-100ms", "rate": 0.7, "cv": 1.0, "slo": 0.17},
]


@pytest.mark.parametrize("gib", [2.5, 4.0, 6.5, 9.0])
@pytest.mark.parametrize("policy", POLICIES)
def test_small_programs_reach_the_best_of_all_placements(policy, gib, model_datas_of):
    datas = model_datas_of(SMALL)
    cluster = ClusterEnv(4, gib * GB)
    shapes = [[ONE] * 4]
    if policy == "ModelParallelismILP":
        shapes += [[ONE, ONE, TWO], [TWO, TWO], [FOUR]]
    best = max(
        objective(policy, ModelPlacement(shape, members), datas)
        for shape in shapes
        for members in product(*(members_within(config, datas, cluster.mem_budget) for config in shape))
    )
    placement, _ = POLICIES[policy]().solve_placement(datas, cluster)
    placement.verify(datas, cluster)
    assert sum(config.num_devices for config in placement.group_configs) == 4
    assert objective(policy, placement, datas) == pytest.approx(best, rel=1e-4)


def test_requests_within_slo_counts_whole_requests_and_discounts_stages(model_datas_of):
    short, longer, none = model_datas_of(
        [{"profile": "test-2GB-100ms", "rate": 1.0, "cv": 1.0, "slo": slo} for slo in (0.16, 0.35, 0.05)]
    )
    assert requests_within_slo(short, ONE) == pytest.approx(0.99)
    # 0.102 s for the first, 0.051 s for each that follows
    assert requests_within_slo(short, TWO) == pytest.approx(2 * 0.99**2)
    assert requests_within_slo(longer, ONE) == pytest.approx(3 * 0.99)
    assert requests_within_slo(none, ONE) == 0.0
    assert requests_within_slo(short, ParallelConfig(1, 2, 1)) == 0.0


@pytest.mark.parametrize("policy", POLICIES.values())
def test_a_budget_below_every_model_is_infeasible(policy, model_datas_of):
    with pytest.raises(InfeasiblePlacementError, match="smallest that would do"):
        policy().solve_placement(model_datas_of(SMALL), ClusterEnv(2, 0.25 * GB))


def test_devices_that_no_groups_add_up_to_are_infeasible(model_datas_of):
    # pipelines of two need whole nodes of two, three devices leave one over
    with pytest.raises(InfeasiblePlacementError, match="infeasible"):
        solve_model_parallel(model_datas_of(SMALL), ClusterEnv(3, 8 * GB), configs=[TWO])


@pytest.mark.parametrize("solve", [solve_replication, solve_model_parallel])
def test_without_a_rate_there_is_nothing_to_maximise(solve, model_datas_of):
    idle = [{**model, "rate": 0.0} for model in SMALL]
    with pytest.raises(InvalidConfigError, match="rate"):
        solve(model_datas_of(idle), ClusterEnv(2, 8 * GB))


def test_a_model_without_finite_slo_is_refused_where_capacity_depends_on_it(model_datas_of):
    endless = [{**SMALL[0], "slo": float("inf")}]
    with pytest.raises(InvalidConfigError, match="'m0' needs a finite slo"):
        ModelParallelismILP().solve_placement(model_datas_of(endless), ClusterEnv(2, 8 * GB))
    placement, _ = SelectiveReplicationILP().solve_placement(model_datas_of(endless), ClusterEnv(2, 8 * GB))
    assert placement.group_models == [[0], [0]]


@pytest.mark.parametrize("policy", POLICIES.values())
def test_a_time_limit_ends_the_search_with_a_placement_or_a_clear_error(policy, model_datas_of):
    models = [{**SMALL[i % 3], "rate": 0.3 + 0.37 * i} for i in range(24)]
    datas, cluster = model_datas_of(models), ClusterEnv(16, 9 * GB)
    try:
        placement, _ = policy(time_limit=0.2).solve_placement(datas, cluster)
    except InfeasiblePlacementError as error:
        message = str(error)
    else:
        placement.verify(datas, cluster)
        return
    assert "limit 0.2 s" in message or "within 0.2 s" in message


@pytest.mark.parametrize("policy", POLICIES.values())
@pytest.mark.parametrize("time_limit", [0, -1, float("nan"), "60"])
def test_a_time_limit_must_be_a_positive_number(policy, time_limit):
    with pytest.raises(InvalidConfigError, match="time_limit"):
        policy(time_limit=time_limit)


def test_packing_places_every_model_once_or_says_that_it_cannot(model_datas_of):
    datas = model_datas_of(SMALL)
    packed = pack_all_models(datas, ClusterEnv(2, 4 * GB), [ONE, ONE])
    assert sorted(m for members in packed.group_models for m in members) == [0, 1, 2]
    packed.verify(datas, ClusterEnv(2, 4 * GB))
    assert pack_all_models(datas, ClusterEnv(2, 3.9 * GB), [ONE, ONE]) is None
    assert pack_all_models(datas, ClusterEnv(2, 100 * GB), [ParallelConfig(1, 2, 1)]) is None
