import dataclasses
from itertools import chain, combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy.beam import replica_placement_beam_search, replica_placement_on_last_group
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.profiling import ParallelConfig
from alpa_serve.util import GB

ONE, TWO = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2)
MODELS = [{"profile": "test-2GB-100ms", "rate": rate, "cv": 3.0, "slo": 0.3} for rate in (4.0, 7.0, 5.0)]
EVERYTHING = 10_000


def subsets(num_models):
    return chain.from_iterable(combinations(range(num_models), size) for size in range(num_models + 1))


def all_within_budget(configs, datas, budget):
    """Every placement in these groups that uses strictly less than the budget on each device."""
    for members in product(list(subsets(len(datas))), repeat=len(configs)):
        used = [
            sum(datas[m].profiling_result.weight_bytes(config) for m in group)
            for config, group in zip(configs, members, strict=True)
        ]
        if max(used) < budget:
            yield ModelPlacement(configs, members)


@settings(deadline=None, max_examples=12)
@given(configs=st.lists(st.sampled_from([ONE, TWO]), min_size=1, max_size=2), gib=st.sampled_from([1.5, 2.1, 4.0, 4.5]))
def test_a_beam_that_holds_everything_finds_the_best_placement_there_is(datas, workload, configs, gib):
    cluster = ClusterEnv(8, gib * GB)
    evaluator = PlacementEvaluator(datas, cluster, workload)
    start = ModelPlacement.empty_groups(configs)
    found = replica_placement_beam_search(start, datas, cluster, None, evaluator, EVERYTHING)
    possible = [placement.normalize() for placement in all_within_budget(configs, datas, gib * GB)]
    assert evaluator.evaluate(found).score == max(evaluator.get_scores(possible))
    assert found in possible
    assert start == ModelPlacement.empty_groups(configs)


@settings(deadline=None, max_examples=12)
@given(held=st.lists(st.integers(0, 2), unique=True, max_size=1), gib=st.sampled_from([2.1, 4.5]))
def test_on_the_last_group_a_full_beam_is_at_least_as_good_as_every_filling(datas, workload, held, gib):
    cluster = ClusterEnv(8, gib * GB)
    evaluator = PlacementEvaluator(datas, cluster, workload)
    start = ModelPlacement([ONE, TWO], [held, []])
    found = replica_placement_on_last_group(start, datas, cluster, None, evaluator, EVERYTHING)
    # a swap changes which model the first group holds, never how many
    reachable = [
        placement
        for placement in all_within_budget([ONE, TWO], datas, gib * GB)
        if len(placement.group_models[0]) == len(held)
        and (placement.group_models[0] == held or placement.group_models[1])
        and set(held) <= set(placement.group_models[0]) | set(placement.group_models[1])
    ]
    fillings = [placement for placement in reachable if placement.group_models[0] == held]
    assert found in reachable
    assert evaluator.evaluate(found).score >= max(evaluator.get_scores(fillings))
    assert start == ModelPlacement([ONE, TWO], [held, []])


def test_memory_must_stay_below_the_budget_not_only_within(datas, workload):
    exact = ClusterEnv(1, 2 * GB)
    found = replica_placement_beam_search(ModelPlacement.empty_groups([ONE]), datas, exact, workload)
    assert found.num_replicas == 0
    last = replica_placement_on_last_group(ModelPlacement.empty_groups([ONE]), datas, exact, workload)
    assert last.num_replicas == 0


def test_a_wider_beam_evaluates_a_superset_and_is_never_worse(datas, workload):
    cluster = ClusterEnv(3, 4.5 * GB)
    evaluator = PlacementEvaluator(datas, cluster, workload)
    start = ModelPlacement.empty_groups([ONE, ONE, ONE])
    scores = [
        evaluator.evaluate(replica_placement_beam_search(start, datas, cluster, None, evaluator, size)).score
        for size in (1, EVERYTHING)
    ]
    assert scores[0] <= scores[1]
    assert scores[0] > evaluator.evaluate(start).score


def test_without_groups_there_is_nothing_to_fill(datas, workload):
    nothing = ModelPlacement([], [])
    assert replica_placement_beam_search(nothing, datas, ClusterEnv(1, GB), workload) == nothing
    assert replica_placement_on_last_group(nothing, datas, ClusterEnv(1, GB), workload) == nothing


def test_every_level_is_reported_with_the_best_score_so_far(datas, workload):
    seen = []
    replica_placement_beam_search(
        ModelPlacement.empty_groups([ONE, ONE]), datas, ClusterEnv(2, 4.5 * GB), workload, callback=seen.append
    )
    assert [progress.done for progress in seen] == list(range(1, len(seen) + 1))
    scores = [progress.score for progress in seen]
    assert scores == sorted(scores)
    # two groups of two models each, and the level that finds no extension
    assert len(seen) == 5


def test_on_the_last_group_the_search_ends_where_many_swaps_are_possible(datas, workload):
    many = [dataclasses.replace(datas[i % 3], name=f"m{i}") for i in range(8)]
    cluster = ClusterEnv(8, 6.5 * GB)
    evaluator = PlacementEvaluator(many, cluster, workload)
    start = ModelPlacement([ONE] * 8, [[i, (i + 1) % 8, (i + 2) % 8] for i in range(7)] + [[]])
    found = replica_placement_on_last_group(start, many, cluster, None, evaluator)
    assert evaluator.evaluate(found).score >= evaluator.evaluate(start).score


@pytest.mark.parametrize("beam_size", [0, -1, 2.5])
def test_a_beam_size_that_is_no_positive_number_is_refused(datas, workload, beam_size):
    empty = ModelPlacement.empty_groups([ONE])
    with pytest.raises(InvalidConfigError, match="beam_size"):
        replica_placement_beam_search(empty, datas, ClusterEnv(1, 5 * GB), workload, None, beam_size)
