"""The best placements so far."""

import pytest

from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy import PlacementEvaluator
from alpa_serve.placement_policy.elite import SIZE, Elite
from alpa_serve.profiling import ParallelConfig
from alpa_serve.util import GB

MODELS = [{"profile": "test-2GB-100ms", "rate": rate, "cv": 3.0, "slo": 0.35} for rate in (3.0, 5.0, 8.0, 2.0)]
CLUSTER = ClusterEnv(4, 4.5 * GB)
ONE, TWO, FOUR = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2), ParallelConfig(1, 1, 4)


@pytest.fixture
def evaluator(datas, workload):
    return PlacementEvaluator(datas, CLUSTER, workload)


def placements():
    return [ModelPlacement([ONE], [[m]]) for m in range(4)] + [
        ModelPlacement([ONE, ONE], [[m], [n]]) for m in range(4) for n in range(4)
    ]


def test_the_best_are_kept_and_come_first(evaluator):
    elite = Elite(evaluator, False)
    for placement in placements():
        elite.add(placement)
    scores = evaluator.get_scores(elite.placements).tolist()
    best = sorted({evaluator.evaluate(p).score for p in placements()}, reverse=True)
    assert scores == sorted(scores, reverse=True)
    assert scores[0] == best[0] == elite.best.evaluation.score
    assert len(scores) == SIZE
    assert {elite.some(seed).num_replicas for seed in range(20)} <= {1, 2}


def test_the_same_in_another_order_counts_once_and_the_better_order_stays(evaluator):
    orders = [ModelPlacement([TWO, ONE], [[2], [0, 2]]), ModelPlacement([ONE, TWO], [[0, 2], [2]])]
    scores = [evaluator.evaluate(p).score for p in orders]
    assert len(set(scores)) == 2
    for order in (orders, orders[::-1]):
        elite = Elite(evaluator, False)
        for placement in order:
            elite.add(placement)
        assert len(elite.placements) == 1
        assert elite.best.evaluation.score == max(scores)


def test_more_models_are_better_where_all_are_required(evaluator):
    good, complete = ModelPlacement([FOUR], [[0, 1, 3]]), ModelPlacement([ONE, ONE], [[0, 1], [2, 3]])
    assert evaluator.evaluate(good).score > evaluator.evaluate(complete).score
    for required, best in ((False, good), (True, complete)):
        elite = Elite(evaluator, required)
        elite.add(good)
        elite.add(complete)
        assert elite.best.placement == best
