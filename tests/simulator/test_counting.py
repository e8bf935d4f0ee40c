"""Counting good requests of whole islands: as the evaluator counts, and only as long as it can be of use."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.placement_policy.evaluator import PlacementEvaluator, linked_groups
from alpa_serve.profiling import ParallelConfig
from alpa_serve.simulator.counting import count_good, islands_of_change, turns_of_models
from alpa_serve.simulator.groups import add_replica, clear_group, make_groups, remove_replica, set_node
from alpa_serve.simulator.workload import Workload


def arrays_of(case, rules):
    """Return evaluator, problem and groups of a case."""
    evaluator = PlacementEvaluator(case.models, ClusterEnv(64, 64.0), case.workload, rules=rules)
    configs = sorted(set(case.placement.group_configs))
    ids = [configs.index(config) for config in case.placement.group_configs]
    number = len(ids)
    groups = make_groups(number, len(case.models), ids, case.placement.group_models)
    return evaluator, evaluator.search_problem(configs), groups


def count(problem, groups, chosen=None, value=None, least=-1.0):
    """Return whether the count was finished, good requests per model (-1: none looked at) and seconds."""
    chosen = np.ones(len(groups.num_replicas), np.bool_) if chosen is None else chosen
    turns = turns_of_models(problem, chosen, int(np.diff(problem.first_request)[chosen].sum()))
    good, latency = np.full(len(chosen), -1), np.zeros(len(chosen))
    value = np.ones(len(chosen)) if value is None else value
    return count_good(problem, groups, turns, value, least, good, latency), good, latency


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_count_of_all_is_the_evaluation(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    evaluator, problem, groups = arrays_of(case, rules)
    finished, good, latency = count(problem, groups)
    evaluation = evaluator.evaluate(case.placement)
    assert finished
    requests = np.diff(problem.first_request)
    assert good.tolist() == np.where(requests, evaluation.model_num_good, -1).tolist()
    assert (
        float(latency.sum()) == evaluation.latency_mean * max(len(case.workload), 1)
        or float(latency.sum()) / len(case.workload) == evaluation.latency_mean
    )


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_change_is_counted_where_it_can_matter(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    _, problem, groups = arrays_of(case, rules)
    _, before, seconds = count(problem, groups)
    for _ in range(data.draw(st.integers(1, 3))):
        slot = data.draw(st.integers(0, len(groups.config) - 1))
        model = data.draw(st.integers(0, len(case.models) - 1))
        if data.draw(st.booleans()):
            clear_group(groups, slot)
        (remove_replica if groups.holds[slot, model] else add_replica)(groups, slot, model)
    touched = np.zeros(len(case.models), np.bool_)
    number = islands_of_change(problem, groups, touched)
    assert number == np.diff(problem.first_request)[touched].sum()
    _, good, latency = count(problem, groups, touched)
    _, expected, expected_latency = count(problem, groups)
    assert np.where(touched, good, before).tolist() == expected.tolist()
    assert np.where(touched, latency, seconds).tolist() == expected_latency.tolist()
    if rules.queueing == "per_group":
        # whole islands, and no model of any other
        for island in linked_groups([np.flatnonzero(members).tolist() for members in groups.holds]):
            members = groups.holds[island].any(axis=0)
            assert not members.any() or touched[members].all() or not touched[members].any()
    else:
        assert touched.all()


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_a_count_ends_early_if_and_only_if_it_would_be_too_low(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    _, problem, groups = arrays_of(case, rules)
    value = np.array([data.draw(st.integers(0, 2**22)) / 2**20 for _ in case.models])
    _, good, _ = count(problem, groups, value=value)
    total = float((np.maximum(good, 0) * value).sum())
    for least in (total, np.nextafter(total, np.inf), total - 0.25, total + 0.25):
        assert count(problem, groups, value=value, least=least)[0] == (total >= least)


def test_a_group_on_another_node_touches_its_island_only(profile_of):
    groups = make_groups(4, 3, [0, 0], [[0], [1]])
    set_node(groups, 1, 1)
    problem = two_islands(profile_of)
    touched = np.zeros(3, np.bool_)
    assert islands_of_change(problem, groups, touched) == 4
    assert touched.tolist() == [False, True, False]


def two_islands(profile_of):
    profile = profile_of({(1, 1, 1): {1: [0.1]}})
    models = [ModelData(f"m{i}", 1.0, 1.0, 1.0, profile) for i in range(3)]
    workload = Workload.from_columns(np.arange(10.0), [0, 1, 1, 2, 0, 1, 0, 1, 2, 2], ["m0", "m1", "m2"], [1.0] * 10)
    return PlacementEvaluator(models, ClusterEnv(2, 5.0), workload).search_problem([ParallelConfig(1, 1, 1)])


@pytest.mark.parametrize("chosen", [[True, False, True], [False] * 3, [True] * 3])
def test_turns_ascend_whether_they_are_picked_or_merged(profile_of, chosen):
    problem = two_islands(profile_of)
    models = np.array(chosen)
    number = int(np.diff(problem.first_request)[models].sum())
    turns = turns_of_models(problem, models, number).tolist()
    assert all(one < other for one, other in pairwise(turns))
    assert turns == [turn for turn, model in enumerate(problem.model_by_turn) if models[model]]
