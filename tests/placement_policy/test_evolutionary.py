import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy.evaluator import PlacementEvaluator
from alpa_serve.placement_policy.evolutionary import evolutionary_search
from alpa_serve.profiling import ParallelConfig
from alpa_serve.util import GB

ONE = ParallelConfig(1, 1, 1)
MODELS = [{"profile": "test-2GB-100ms", "rate": rate, "cv": 3.0, "slo": 0.3} for rate in (4.0, 9.0, 1.0, 5.0)]
CLUSTER = ClusterEnv(3, 4.5 * GB)


@pytest.fixture(scope="module")
def evaluator(datas, workload):
    return PlacementEvaluator(datas, CLUSTER, workload)


members = st.lists(st.integers(0, 3), unique=True, max_size=2)
placements = st.tuples(members, members, members).map(lambda groups: ModelPlacement([ONE] * 3, groups))


@settings(deadline=None, max_examples=25)
@given(starts=st.lists(placements, min_size=1, max_size=3), seed=st.integers(0, 1000))
def test_the_result_is_possible_and_never_worse_than_the_best_start(datas, evaluator, starts, seed):
    before = [start.copy() for start in starts]
    found = evolutionary_search(starts, datas, CLUSTER, evaluator, 5, seed=seed)
    assert evaluator.evaluate(found).score >= max(evaluator.get_scores([start.normalize() for start in starts]))
    found.verify(datas, CLUSTER)
    assert found == found.normalize()
    assert starts == before


def test_equal_seeds_give_equal_results(datas, evaluator, random_state_untouched):
    start = ModelPlacement.empty_groups([ONE] * 3)
    runs = [evolutionary_search([start], datas, CLUSTER, evaluator, 4, seed=7) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_bad_start_is_improved(datas, evaluator):
    start = ModelPlacement([ONE] * 3, [[2], [2], [2]])
    found = evolutionary_search([start], datas, CLUSTER, evaluator, 10)
    assert evaluator.evaluate(found).goodput > evaluator.evaluate(start).goodput + 0.1


def test_no_generation_gives_the_best_start(datas, evaluator):
    starts = [ModelPlacement([ONE] * 3, groups) for groups in ([[2], [], []], [[1], [0], [3]], [[0], [], []])]
    assert evolutionary_search(starts, datas, CLUSTER, evaluator, 0) == starts[1].normalize()


def test_every_generation_is_reported(datas, evaluator):
    seen = []
    start = ModelPlacement.empty_groups([ONE])
    evolutionary_search([start], datas, CLUSTER, evaluator, 3, callback=seen.append)
    assert [(progress.done, progress.total) for progress in seen] == [(1, 3), (2, 3), (3, 3)]


def test_a_start_and_a_number_of_generations_are_needed(datas, evaluator):
    with pytest.raises(InvalidConfigError, match="at least one placement"):
        evolutionary_search([], datas, CLUSTER, evaluator, 1)
    with pytest.raises(InvalidConfigError, match=r"num_iter.*-1"):
        evolutionary_search([ModelPlacement.empty_groups([ONE])], datas, CLUSTER, evaluator, -1)
