from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.greedy import replica_placement_fast_greedy, replica_placement_round_robin
from alpa_serve.profiling import ParallelConfig
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


def greedy_by_the_book(start, datas, workload, budget):
    """Fast greedy of AlpaServe, from its description, through get_stats only."""
    evaluator = PlacementEvaluator(datas, ClusterEnv(16, budget), workload)
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
