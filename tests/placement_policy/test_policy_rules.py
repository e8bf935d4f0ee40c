"""Every policy takes serving rules, and simulates by them what it simulates."""

import math
from dataclasses import replace

import pytest

from alpa_serve import placement_policy
from alpa_serve.errors import InvalidWorkloadError
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy import (
    ClusterEnv,
    MixedParallelismSearch,
    ModelParallelismEqual,
    ModelParallelismGreedy,
    ModelParallelismILP,
    ModelParallelismRR,
    ModelParallelismSearch,
    PlacementEvaluator,
    SelectiveReplicationGreedy,
    SelectiveReplicationILP,
    SelectiveReplicationReplacement,
    SelectiveReplicationSearch,
    SelectiveReplicationUniform,
    evaluator,
)
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.util import GB

BY_PROFILE = replace(MAVERIQ, service="profile")
CLUSTER = ClusterEnv(4, 5 * GB)
MODELS = [{"profile": "test-2GB-100ms", "rate": 4.0, "cv": 3.0, "slo": 0.5}] * 3
SIMULATING = {
    "MixedParallelismSearch": lambda **options: MixedParallelismSearch(math.inf, max_evaluations=50, **options),
    "ModelParallelismSearch": ModelParallelismSearch,
    "ModelParallelismSearch, separated": lambda **options: ModelParallelismSearch(use_separation=True, **options),
    "ModelParallelismSearch, evolved": lambda **options: ModelParallelismSearch(use_evo_search=True, **options),
    "ModelParallelismGreedy": ModelParallelismGreedy,
    "ModelParallelismEqual": lambda **options: ModelParallelismEqual(2, 1, **options),
    "SelectiveReplicationGreedy": SelectiveReplicationGreedy,
    "SelectiveReplicationSearch": SelectiveReplicationSearch,
    "SelectiveReplicationReplacement": lambda **options: SelectiveReplicationReplacement(50, **options),
}
OTHERS = [ModelParallelismRR, ModelParallelismILP, SelectiveReplicationILP, SelectiveReplicationUniform]


@pytest.fixture
def rules_simulated(monkeypatch):
    """Return the set that collects the rules of every simulation."""
    seen, simulate_counts, search_problem = set(), evaluator.simulate_counts, evaluator.search_problem

    def spy(requests, replicas, draws=None):
        seen.add(replicas.rules)
        return simulate_counts(requests, replicas, draws)

    def spy_on_problem(models, *arguments):
        seen.add(models.rules)
        return search_problem(models, *arguments)

    monkeypatch.setattr(evaluator, "simulate_counts", spy)
    monkeypatch.setattr(evaluator, "search_problem", spy_on_problem)
    return seen


@pytest.mark.parametrize("rules", [ALPASERVE, BY_PROFILE], ids=["alpaserve", "maveriq"])
@pytest.mark.parametrize("policy", SIMULATING.values(), ids=SIMULATING)
def test_a_policy_simulates_by_its_rules(policy, rules, rules_simulated, model_datas_of, workload_of):
    placement, _ = policy(rules=rules).solve_placement(model_datas_of(MODELS), CLUSTER, workload_of(MODELS, 100))
    assert rules_simulated == {rules}
    placement.verify(model_datas_of(MODELS), CLUSTER)


@pytest.mark.parametrize("policy", OTHERS)
def test_a_policy_that_simulates_nothing_gives_the_same_placement_under_all_rules(policy, model_datas_of):
    one, other = (
        policy(rules=rules).solve_placement(model_datas_of(MODELS), CLUSTER)[0] for rules in (ALPASERVE, MAVERIQ)
    )
    assert one == other


def test_there_is_no_policy_that_these_tests_forget():
    named = {name.split(",")[0] for name in SIMULATING} | {policy.__name__ for policy in OTHERS}
    policies = {
        name for name in placement_policy.__all__ if hasattr(getattr(placement_policy, name), "solve_placement")
    }
    assert policies - {"BasePlacementPolicy"} == named


def test_training_requests_have_no_tokens_and_the_error_says_so(model_datas_of):
    with pytest.raises(InvalidWorkloadError, match="requests have no input_tokens"):
        ModelParallelismSearch(rules=MAVERIQ).solve_placement(model_datas_of(MODELS), CLUSTER)


def test_one_queue_links_all_groups(model_datas_of, workload_of):
    datas, workload = model_datas_of(MODELS), workload_of(MODELS, 200)
    one = ParallelConfig(1, 1, 1)
    linked = PlacementEvaluator(datas, CLUSTER, workload, rules=BY_PROFILE)
    alone = linked.evaluate(ModelPlacement([one, one], [[0], []])).model_num_good[0]
    together = linked.evaluate(ModelPlacement([one, one], [[0], [1]])).model_num_good[0]
    # requests for model 1 hold up those for model 0, though its group shares nothing with theirs
    assert together < alone
    apart = PlacementEvaluator(datas, CLUSTER, workload, rules=replace(BY_PROFILE, queueing="per_group"))
    assert (
        apart.evaluate(ModelPlacement([one, one], [[0], [1]])).model_num_good[0]
        == apart.evaluate(ModelPlacement([one, one], [[0], []])).model_num_good[0]
    )
