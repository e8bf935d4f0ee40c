from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, UnknownNameError
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy import evaluator as evaluator_module
from alpa_serve.placement_policy.evaluator import PlacementEvaluator, linked_groups
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE, ServingRules
from alpa_serve.simulator.controller import approximate_one_case
from alpa_serve.util import GB

CLUSTER = ClusterEnv(16, 100 * GB)
PROFILES = ("test-2GB-100ms", "test-4GB-150ms", "alpa/bert-1.3b", "alpa/bert-2.6b", "test-2GB-100ms")
MODELS = [
    {"profile": profile, "rate": rate, "cv": cv, "slo": slo}
    for profile, rate, cv, slo in zip(
        PROFILES, (9, 4, 0.5, 7, 12), (1, 4, 2, 3, 6), (0.5, 0.2, 1, 0.4, 0.3), strict=True
    )
]
# bert-2.6b has no profile on four devices, so a placement may name replicas that serve nothing
CONFIGS = [ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2), ParallelConfig(1, 1, 4)]

placements = st.lists(
    st.tuples(st.sampled_from(CONFIGS), st.lists(st.integers(0, len(MODELS) - 1), unique=True)), min_size=1, max_size=6
).map(lambda groups: ModelPlacement([config for config, _ in groups], [members for _, members in groups]))


@pytest.fixture(scope="module")
def evaluator(datas, workload):
    return PlacementEvaluator(datas, CLUSTER, workload)


@settings(deadline=None, max_examples=100)
@given(placement=placements)
def test_evaluation_by_islands_equals_one_simulation_of_the_whole(
    evaluator, datas, workload, serving_case_of, placement
):
    stats, _ = approximate_one_case(serving_case_of(datas, workload, placement), fast_stats=True)
    evaluation = evaluator.evaluate(placement)
    assert evaluation.goodput == stats.goodput
    # summed in steps of 2^-24 s
    assert evaluation.latency_mean == pytest.approx(stats.latency_mean, rel=1e-9, abs=2**-25)
    assert evaluation.group_num_requests.tolist() == stats.group_num_requests
    assert evaluation.model_goodput.tolist() == [model.goodput for model in stats.per_model_stats]
    assert evaluator.model_num_requests.tolist() == [model.num_requests for model in stats.per_model_stats]


@pytest.mark.parametrize(
    "rules",
    [
        ServingRules(),
        ServingRules(dispatch="random", seed=5),
        ServingRules(admission="all", dispatch_interval_s=0.01, idle_after_s=0.2, idle_penalty_s=0.02),
        ServingRules(execution="exclusive", queueing="global_fifo", dispatch_interval_s=0.01),
    ],
    ids=["default", "random", "delays", "one queue"],
)
@settings(deadline=None, max_examples=40)
@given(placement=placements)
def test_picking_out_the_requests_of_an_island_changes_nothing(datas, workload, rules, placement):
    found = []
    for share in (0.0, 1.0):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(evaluator_module, "_FEW_REQUESTS", share)
            found.append(PlacementEvaluator(datas, CLUSTER, workload, rules=rules).evaluate(placement))
    one, other = found
    assert (one.goodput, one.latency_mean) == (other.goodput, other.latency_mean)
    assert one.model_num_good.tolist() == other.model_num_good.tolist()
    assert one.group_num_requests.tolist() == other.group_num_requests.tolist()


@settings(deadline=None, max_examples=50)
@given(solutions=st.lists(placements, min_size=1, max_size=5))
def test_scores_and_stats_follow_from_the_evaluations_in_their_order(evaluator, solutions):
    scores = evaluator.get_scores(solutions)
    stats = evaluator.get_stats(solutions)
    assert len(scores) == len(stats) == len(solutions)
    for placement, score, (goodput, model_goodputs, group_counts, result) in zip(solutions, scores, stats, strict=True):
        evaluation = evaluator.evaluate(placement)
        replicas = sum(map(len, placement.group_models))
        assert score == pytest.approx(goodput - evaluation.latency_mean / 10000 + replicas / 1e6, abs=1e-12)
        assert goodput == result.goodput == evaluation.goodput
        assert model_goodputs == [model.goodput for model in result.per_model_stats]
        assert group_counts == result.group_num_requests == evaluation.group_num_requests.tolist()
        assert result.latency_mean == evaluation.latency_mean


@settings(deadline=None, max_examples=20)
@given(solutions=st.lists(placements, max_size=8))
def test_evaluating_in_parallel_gives_the_same_scores_in_the_same_order(datas, workload, solutions):
    parallel = PlacementEvaluator(datas, CLUSTER, workload, parallel=True)
    one_by_one = PlacementEvaluator(datas, CLUSTER, workload)
    assert parallel.get_scores(solutions).tolist() == one_by_one.get_scores(solutions).tolist()


def test_a_group_counts_the_requests_that_it_was_given_and_dropped(evaluator):
    evaluation = evaluator.evaluate(ModelPlacement([ParallelConfig(1, 1, 1)], [[4]]))
    assert evaluation.group_num_requests.tolist() == [evaluator.model_num_requests[4]]
    assert 0 < evaluation.model_num_good[4] < evaluator.model_num_requests[4]


def test_weights_are_infinite_where_a_model_is_not_profiled(evaluator):
    expected = [0.5 * GB, 1.0 * GB, 0.65 * GB, float("inf"), 0.5 * GB]
    assert evaluator.weights(ParallelConfig(1, 1, 4)).tolist() == pytest.approx(expected)


def test_groups_are_linked_by_the_models_that_they_share():
    assert linked_groups([[0, 1], [2], [], [3, 1], [4, 3], [2]]) == [[0, 3, 4], [1, 5], [2]]
    assert linked_groups([]) == []


@given(st.lists(st.lists(st.integers(0, 8), unique=True, max_size=3), max_size=8))
def test_islands_are_the_connected_components_of_shared_models(group_models):
    islands = linked_groups(group_models)
    assert sorted(group for island in islands for group in island) == list(range(len(group_models)))
    assert islands == sorted(map(sorted, islands))
    held = [{model for group in island for model in group_models[group]} for island in islands]
    # no model in two islands
    assert sum(map(len, held)) == len(set().union(*held))
    for island in islands:
        reached = {island[0]}
        for _ in island:
            models = {model for group in reached for model in group_models[group]}
            reached |= {group for group in island if models & set(group_models[group])}
        assert reached == set(island)


def test_two_models_of_one_name_are_refused(datas, workload):
    with pytest.raises(InvalidConfigError, match=r"names must differ.*'m0', 'm0'"):
        PlacementEvaluator([datas[0], datas[0]], CLUSTER, workload)


def test_the_event_driven_simulator_evaluates_nearly_alike_and_without_jitter_alike(datas, workload, evaluator):
    placement = ModelPlacement([ParallelConfig(1, 1, 2), ParallelConfig(1, 1, 1)], [[0, 1, 2], [3, 0]])
    fast = evaluator.evaluate(placement)
    events = PlacementEvaluator(datas, CLUSTER, workload, "simulator").evaluate(placement)
    assert events.goodput == pytest.approx(fast.goodput, abs=0.01)
    steady = replace(ALPASERVE, overhead_jitter=0.0)
    exact = PlacementEvaluator(datas, CLUSTER, workload, "simulator", rules=steady).evaluate(placement)
    assert exact.model_num_good.tolist() == fast.model_num_good.tolist()
    assert exact.group_num_requests.tolist() == fast.group_num_requests.tolist()
    assert exact.score == pytest.approx(fast.score, abs=1e-9)


def test_an_unknown_method_is_refused_with_the_known_ones(datas, workload):
    with pytest.raises(UnknownNameError, match=r"'crystal ball'.*fast_simulator"):
        PlacementEvaluator(datas, CLUSTER, workload, method="crystal ball")


def test_an_evaluator_does_not_see_later_changes_of_its_workload(datas, workload):
    own = workload[:]
    placement = ModelPlacement([ParallelConfig(1, 1, 1)], [[0]])
    evaluator = PlacementEvaluator(datas, ClusterEnv(1, 9 * GB), own)
    own.slos[:] = 0.0
    assert evaluator.evaluate(placement).goodput > 0
    assert PlacementEvaluator(datas, ClusterEnv(1, 9 * GB), own).evaluate(placement).goodput == 0
