from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.greedy import (
    fill_greedily,
    replica_placement_fast_greedy,
    replica_placement_round_robin,
)
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ServingRules
from alpa_serve.simulator.workload import Workload
from alpa_serve.util import GB

ONE, TWO = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2)
PROFILES = ("test-2GB-100ms", "test-4GB-150ms", "alpa/bert-1.3b", "test-2GB-100ms")
MODELS = [
    {"profile": profile, "rate": rate, "cv": 3.0, "slo": 0.4}
    for profile, rate in zip(PROFILES, (3.0, 2.0, 9.0, 6.0), strict=True)
]

starts = st.lists(st.sampled_from([ONE, TWO]), max_size=4).map(ModelPlacement.empty_groups)
budgets = st.floats(0.5, 10).map(lambda gib: gib * GB)


def room(placement, datas, budget):
    """What could still be added: (group, model) pairs that fit."""
    for group_id, (config, members) in enumerate(zip(placement.group_configs, placement.group_models, strict=True)):
        used = sum(datas[m].profiling_result.weight_bytes(config) for m in members)
        assert used <= budget
        for model_id, data in enumerate(datas):
            if model_id not in members and used + data.profiling_result.weight_bytes(config) <= budget:
                yield group_id, model_id


def greedy_by_the_book(start, datas, workload, budget, **how):
    """Fast greedy of AlpaServe, from its description, through get_stats only."""
    evaluator = PlacementEvaluator(datas, ClusterEnv(16, budget), workload, **how)
    placement = start.normalize()
    while True:
        _, goodputs, group_counts, _ = evaluator.get_stats([placement])[0]
        unserved = [n * (1 - goodput) for n, goodput in zip(evaluator.model_num_requests, goodputs, strict=True)]
        model_order = sorted(range(len(datas)), key=lambda m: unserved[m])[::-1]
        group_order = sorted(range(len(group_counts)), key=lambda g: group_counts[g])
        possible = set(room(placement, datas, budget))
        chosen = next(((g, m) for g in group_order for m in model_order if (g, m) in possible), None)
        if chosen is None:
            return placement
        placement = placement.add_model(*chosen).normalize()


@settings(deadline=None, max_examples=40)
@given(start=starts, budget=budgets)
def test_fast_greedy_takes_the_steps_of_its_description(datas, workload, start, budget):
    found = replica_placement_fast_greedy(start, datas, ClusterEnv(16, budget), workload)
    assert found == greedy_by_the_book(start, datas, workload, budget)


RULES = {
    "random": ServingRules(dispatch="random", seed=3),
    "exclusive": ServingRules(execution="exclusive"),
    "all admitted": ServingRules(admission="all"),
    "delays": ServingRules(dispatch_interval_s=0.01, idle_after_s=0.2, idle_penalty_s=0.05),
    "one queue": ServingRules(execution="exclusive", queueing="global_fifo", dispatch_interval_s=0.01),
}


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@settings(deadline=None, max_examples=15)
@given(start=starts, budget=budgets)
def test_under_other_rules_fast_greedy_takes_the_steps_that_whole_simulations_say(
    datas, workload, rules, start, budget
):
    cluster_env = ClusterEnv(16, budget)
    evaluator = PlacementEvaluator(datas, cluster_env, workload, rules=rules)
    found = fill_greedily(start, cluster_env, evaluator)
    assert found == greedy_by_the_book(start, datas, workload, budget, rules=rules)


def test_on_the_event_driven_simulator_fast_greedy_takes_the_steps_that_its_evaluations_say(datas, workload):
    start, cluster_env = ModelPlacement.empty_groups([ONE, TWO, ONE]), ClusterEnv(16, 5 * GB)
    evaluator = PlacementEvaluator(datas, cluster_env, workload, "simulator")
    found = fill_greedily(start, cluster_env, evaluator)
    assert found == greedy_by_the_book(start, datas, workload, 5 * GB, method="simulator")


def test_the_score_that_greedy_reports_is_that_of_an_evaluation(datas, workload):
    seen = []
    cluster_env = ClusterEnv(3, 5 * GB)
    evaluator = PlacementEvaluator(datas, cluster_env, workload)
    fill_greedily(ModelPlacement.empty_groups([ONE, TWO]), cluster_env, evaluator, seen.append)
    assert [progress.score for progress in seen] == [evaluator.evaluate(progress.placement).score for progress in seen]


def test_a_replica_whose_config_its_profile_lacks_serves_nothing_while_others_are_added(datas, workload):
    tensor = ParallelConfig(1, 2, 1)
    # the book knows the weights of profiled replicas only, and greedy sees that such a group is full
    found = replica_placement_fast_greedy(
        ModelPlacement([ONE, tensor], [[], [0]]), datas, ClusterEnv(3, 5 * GB), workload
    )
    alone = replica_placement_fast_greedy(ModelPlacement([ONE], [[]]), datas, ClusterEnv(3, 5 * GB), workload)
    assert sorted(found.group_models) == sorted([[0], *alone.group_models])


@pytest.mark.parametrize("members", [[4], [-1], [0, 0]])
def test_fast_greedy_refuses_a_start_that_cannot_be(datas, workload, members):
    with pytest.raises(InvalidPlacementError):
        replica_placement_fast_greedy(ModelPlacement([ONE], [members]), datas, ClusterEnv(1, 9 * GB), workload)


def test_two_threads_may_fill_groups_with_one_evaluator(datas, workload):
    cluster_env = ClusterEnv(8, 5 * GB)
    starts = [ModelPlacement.empty_groups([config] * number) for config in (ONE, TWO) for number in (1, 2, 4)]
    expected = [fill_greedily(start, cluster_env, PlacementEvaluator(datas, cluster_env, workload)) for start in starts]
    evaluator = PlacementEvaluator(datas, cluster_env, workload)
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(lambda start: fill_greedily(start, cluster_env, evaluator), starts)) == expected


@settings(deadline=None, max_examples=30)
@given(start=starts, budget=budgets)
def test_fast_greedy_stops_only_when_nothing_fits_and_leaves_the_start_alone(datas, workload, start, budget):
    groups = list(start.group_configs)
    filled = replica_placement_fast_greedy(start, datas, ClusterEnv(16, budget), workload)
    assert list(room(filled, datas, budget)) == []
    assert sorted(filled.group_configs) == sorted(groups)
    assert start == ModelPlacement.empty_groups(groups)


@settings(deadline=None, max_examples=30)
@given(start=starts, budget=budgets)
def test_round_robin_stops_when_the_group_whose_turn_it_is_takes_no_model(datas, start, budget):
    groups = list(start.group_configs)
    filled = replica_placement_round_robin(start, datas, ClusterEnv(16, budget))
    turn = filled.num_replicas % max(len(groups), 1)
    assert turn not in {group_id for group_id, _ in room(filled, datas, budget)}
    assert filled.group_configs == groups
    sizes = [len(members) for members in filled.group_models]
    assert sizes == sorted(sizes, reverse=True)
    assert start == ModelPlacement.empty_groups(groups)


def test_fast_greedy_keeps_what_the_groups_hold_already(datas, workload):
    start = ModelPlacement([ONE, ONE], [[1], []])
    found = replica_placement_fast_greedy(start, datas, ClusterEnv(2, 4 * GB), workload)
    assert [1] in found.group_models
    assert start.group_models == [[1], []]


def test_a_config_that_the_profile_lacks_never_fits(datas, workload):
    tensor = ModelPlacement.empty_groups([ParallelConfig(1, 2, 1)])
    for fill in (replica_placement_fast_greedy, replica_placement_round_robin):
        assert fill(tensor, datas, ClusterEnv(2, 100 * GB), workload) == tensor


def test_fast_greedy_reports_every_replica(datas, workload):
    seen = []
    found = replica_placement_fast_greedy(
        ModelPlacement.empty_groups([ONE, TWO]), datas, ClusterEnv(3, 5 * GB), workload, callback=seen.append
    )
    assert [progress.done for progress in seen] == list(range(found.num_replicas + 1))
    assert seen[-1].placement == found


def test_round_robin_gives_each_group_in_turn_the_next_model_in_the_cycle(model_datas_of):
    models = [{"profile": "test-2GB-100ms", "rate": 1.0, "cv": 1.0, "slo": 1.0}] * 3
    groups = ModelPlacement.empty_groups([ONE, ONE])
    filled = replica_placement_round_robin(groups, model_datas_of(models), ClusterEnv(2, 4 * GB))
    # groups keep their order: nothing is normalised
    assert filled.group_models == [[0, 2], [1, 0]]


def test_among_equally_unserved_models_fast_greedy_takes_the_last(datas):
    # an ascending stable sort, reversed: one answer on every machine
    found = replica_placement_fast_greedy(
        ModelPlacement.empty_groups([ONE]), datas, ClusterEnv(1, 2.1 * GB), Workload.empty()
    )
    assert found.group_models == [[3]]
