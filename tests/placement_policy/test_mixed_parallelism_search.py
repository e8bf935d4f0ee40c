"""The search over groups of mixed shapes: what it promises about its result, its budget and its end."""

import math
import os
import signal
import threading
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import (
    InfeasiblePlacementError,
    InvalidConfigError,
    InvalidPlacementError,
    InvalidWorkloadError,
    SearchInterrupted,
)
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy import MixedParallelismSearch, ModelParallelismSearch, PlacementEvaluator
from alpa_serve.placement_policy import mixed_parallelism_search as search_module
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.scheduling import MAVERIQ
from alpa_serve.simulator.workload import Workload
from alpa_serve.util import GB

MODELS = [
    {"profile": profile, "rate": rate, "cv": cv, "slo": slo}
    for profile, rate, cv, slo in [
        ("test-2GB-100ms", 9.0, 3.0, 0.3),
        ("test-4GB-150ms", 4.0, 4.0, 0.4),
        ("alpa/bert-1.3b", 6.0, 2.0, 0.2),
        ("alpa/bert-2.6b", 5.0, 4.0, 0.9),
    ]
]
CLUSTER = ClusterEnv(8, 3 * GB, 4)
ONE, TWO, THREE = (ParallelConfig(1, 1, pp) for pp in (1, 2, 3))


def search(**options):
    return MixedParallelismSearch(**{"max_evaluations": 400, **options})


@pytest.fixture
def problem(datas, workload):
    return datas, CLUSTER, workload


def model(name, **weights):
    """Return a model with weights (bytes a device) on pipelines of so many stages: p1, p2, ..."""
    profile = ProfilingResult("model")
    for key, weight in weights.items():
        stages = int(key[1:])
        profile.add_result(ParallelConfig(1, 1, stages), 1, [0.1 / stages] * stages, [0.0] * stages, [weight] * stages)
    return ModelData(name, 1.0, 1.0, 1.0, profile)


def requests_for(*names, count=20):
    return Workload.from_columns(
        [0.1 * i for i in range(count)], [i % len(names) for i in range(count)], list(names), [0.5] * count
    )


@pytest.mark.usefixtures("random_state_untouched")
def test_the_result_is_possible_better_and_what_it_is_said_to_attain(problem):
    placement, info = search(max_evaluations=4000).solve_placement(*problem)
    placement.verify(*problem[:2])
    evaluation = PlacementEvaluator(*problem).evaluate(placement)
    assert (info["attainment"], info["score"]) == (evaluation.goodput, evaluation.score)
    assert info["attainment"] > info["start_attainment"] + 0.01
    assert info["num_evaluations"] == 4000
    assert info["num_rounds"] >= 1


@given(data=st.data())
@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_it_is_never_worse_than_the_classic_search_or_a_start(mixed_cases, serving_rules, data):
    case, rules = data.draw(mixed_cases), data.draw(serving_rules)
    evaluator = PlacementEvaluator(*case, rules=rules)
    others = []
    for policy in (ModelParallelismSearch(max_op=8, rules=rules), search(max_evaluations=30, seed=5, rules=rules)):
        try:
            others.append(policy.solve_placement(*case)[0])
        except InfeasiblePlacementError:
            assert isinstance(policy, ModelParallelismSearch)
    others += [ModelPlacement(p.group_configs[::-1], p.group_models[::-1]) for p in others]
    placement, info = search(max_evaluations=data.draw(st.sampled_from([0, 1, 50])), rules=rules).solve_placement(
        *case, starts=others
    )
    placement.verify(*case[:2])
    assert info["score"] == evaluator.evaluate(placement).score >= max(evaluator.get_scores(others))


@pytest.mark.parametrize("options", [{"time_budget": 0}, {"max_evaluations": 0}], ids=["time", "evaluations"])
def test_without_a_budget_the_best_start_is_returned(problem, options):
    evaluator = PlacementEvaluator(*problem)
    for start in ([], [ModelPlacement([TWO] * 4, [[0], [1], [2, 0], [3]])]):
        placement, info = MixedParallelismSearch(**options).solve_placement(*problem, starts=start)
        classic, _ = ModelParallelismSearch(max_op=8).solve_placement(*problem)
        assert info["score"] == max(evaluator.get_scores([classic, *start]))
        assert info["num_evaluations"] == info["num_rounds"] == 0
        assert evaluator.evaluate(placement).goodput == info["attainment"] == info["start_attainment"]


def test_equal_seeds_and_evaluations_give_equal_results_on_one_thread_and_two(problem, monkeypatch):
    def found():
        return search(seed=1, max_evaluations=3000).solve_placement(*problem)

    (one, info), (again, again_info) = found(), found()
    assert one == again
    assert info["num_evaluations"] == again_info["num_evaluations"] == 3000
    monkeypatch.setattr(search_module, "NUM_THREADS", 1)
    alone, alone_info = found()
    assert alone == one
    assert alone_info["score"] == info["score"]


@pytest.mark.slow
def test_worker_processes_find_what_threads_find(problem, no_ray):
    expected, info = search(max_evaluations=3000).solve_placement(*problem)
    placement, by_workers = search(max_evaluations=3000, num_workers=2).solve_placement(*problem)
    assert placement == expected
    assert {**by_workers, "seconds": 0} == {**info, "seconds": 0}


@pytest.mark.slow
def test_worker_processes_keep_to_the_time(problem, no_ray):
    placement, info = MixedParallelismSearch(1.0, num_workers=2).solve_placement(*problem)
    placement.verify(*problem[:2])
    assert info["attainment"] > info["start_attainment"]
    assert 0.9 < info["seconds"] < 2.5


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.5])
def test_it_keeps_to_its_time(problem, seconds):
    search(max_evaluations=1).solve_placement(*problem)
    began = time.monotonic()
    _, info = MixedParallelismSearch(seconds).solve_placement(*problem)
    assert time.monotonic() - began < seconds + 1.0
    assert info["seconds"] < seconds + 1.0
    assert info["num_evaluations"] > 0


def test_every_round_is_reported_and_what_the_callback_raises_ends_the_search(problem):
    seen = []
    _, info = search(max_evaluations=50_000, callback=seen.append).solve_placement(*problem)
    assert len(seen) == 1 + info["num_rounds"] > 2
    assert seen.pop(0).placement is None
    assert [progress.done for progress in seen][-1] == info["num_evaluations"] == seen[0].total
    scores = [progress.score for progress in seen]
    assert scores == sorted(scores)
    assert scores[-1] == info["score"]

    class StopError(Exception):
        pass

    def stop(progress):
        raise StopError(progress.done)

    with pytest.raises(StopError):
        search(max_evaluations=50_000, callback=stop).solve_placement(*problem)
    assert [t.name for t in threading.enumerate() if t.name.startswith("alpa_serve")] == []


@pytest.mark.parametrize("first_round", [True, False], ids=["in the first round", "later"])
def test_ctrl_c_leaves_the_best_placement_and_no_thread(problem, first_round):
    datas, cluster, workload = problem
    rounds = []

    def interrupt_soon(_progress=None):
        rounds.append(threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)))
        rounds[-1].start()

    search(max_evaluations=1).solve_placement(*problem)
    if first_round:
        interrupt_soon()
    policy = MixedParallelismSearch(60.0, callback=None if first_round else lambda p: rounds or interrupt_soon())
    began = time.monotonic()
    with pytest.raises(SearchInterrupted) as caught:
        policy.solve_placement(*problem)
    assert time.monotonic() - began < 15
    placement, evaluation = caught.value.placement, caught.value.evaluation
    placement.verify(datas, cluster)
    evaluator = PlacementEvaluator(datas, cluster, workload)
    assert evaluator.evaluate(placement).score == evaluation.score
    start, _ = MixedParallelismSearch(0).solve_placement(*problem)
    assert evaluation.score >= evaluator.evaluate(start).score
    rounds[0].join()
    assert [t.name for t in threading.enumerate() if t.name.startswith("alpa_serve")] == []


def test_ctrl_c_while_the_start_is_made_leaves_what_there_is(problem, monkeypatch):
    def interrupted(self, *args):
        self.callback(search_module.SearchProgress("shapes of groups", 1, 9, 0.5, ModelPlacement([ONE], [[2]])))
        raise KeyboardInterrupt

    monkeypatch.setattr(ModelParallelismSearch, "placements_by_shape", interrupted)
    with pytest.raises(SearchInterrupted) as caught:
        search().solve_placement(*problem)
    assert caught.value.placement == ModelPlacement([ONE], [[2]])
    start = ModelPlacement([TWO] * 4, [[0], [1], [2, 0], [3]])
    with pytest.raises(SearchInterrupted) as caught:
        search().solve_placement(*problem, starts=[start])
    assert caught.value.placement == start

    def at_once(rules):
        raise KeyboardInterrupt

    monkeypatch.setattr(search_module, "compile_kernels", at_once)
    with pytest.raises(SearchInterrupted, match="no placement was found yet"):
        search().solve_placement(*problem)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"time_budget": -1}, "time_budget"),
        ({"time_budget": math.nan}, "time_budget"),
        ({"time_budget": math.inf}, "infinite time_budget"),
        ({"max_evaluations": -1}, "max_evaluations"),
        ({"max_evaluations": 1.5}, "max_evaluations"),
        ({"seed": -1}, "seed"),
        ({"max_pp": 0}, "max_pp"),
        ({"max_op": 0}, "max_op"),
        ({"num_workers": 0}, "num_workers"),
        ({"rules": "ALPASERVE"}, "ServingRules"),
    ],
)
def test_wrong_arguments_are_named(options, named):
    with pytest.raises(InvalidConfigError, match=named):
        MixedParallelismSearch(**options)


def test_problems_without_a_placement_are_refused(problem):
    datas, cluster, workload = problem
    with pytest.raises(InvalidWorkloadError, match="no request"):
        search().solve_placement(datas, cluster, Workload.empty())
    with pytest.raises(InvalidConfigError, match="no model to place"):
        search().solve_placement([], cluster, workload)
    with pytest.raises(InfeasiblePlacementError, match=r"smallest that would do is 0\.32"):
        search().solve_placement(datas, replace(cluster, mem_budget=0.1 * GB, num_devices_per_node=8), workload)
    with pytest.raises(InfeasiblePlacementError, match="max_pp=2 and max_op=1"):
        search(max_pp=2, max_op=1).solve_placement([model("m0", p3=1.0)], ClusterEnv(4, 2.0), requests_for("m0"))
    with pytest.raises(InvalidPlacementError, match="group 0"):
        search().solve_placement(*problem, starts=[ModelPlacement([ONE], [[0, 1, 2, 3]])])
    with pytest.raises(InvalidWorkloadError, match="input_tokens"):
        search(rules=MAVERIQ).solve_placement(*problem)


def test_a_start_may_be_what_the_limits_forbid_and_nothing_else_is(problem):
    start = ModelPlacement([TWO, TWO], [[0, 1], [3]])
    placement, info = search(max_pp=1, max_op=1, max_evaluations=2000).solve_placement(*problem, starts=[start])
    assert placement.group_configs.count(TWO) <= 2
    assert set(placement.group_configs) <= {ONE, TWO}
    assert info["score"] >= PlacementEvaluator(*problem).evaluate(start).score


def test_configs_that_no_classic_shape_has_are_used():
    datas = [model("m0", p3=1.0), model("m1", p3=1.0)]
    workload = requests_for("m0", "m1")
    for budget in (0, 200):
        placement, info = search(max_evaluations=budget).solve_placement(datas, ClusterEnv(7, 1.5), workload)
        assert placement.group_configs == [THREE, THREE]
        assert info["attainment"] == 1.0


MIXED_ONLY = [model("m0", p1=2.0), model("m1", p3=2.0), model("m2", p2=2.0)]
"""On six devices of 2 bytes, each needs a group of its own, and no two groups are alike."""


def test_all_models_are_held_where_only_mixed_shapes_hold_them():
    cluster, workload = ClusterEnv(6, 2.0, 6), requests_for("m0", "m1", count=60)
    with pytest.raises(InfeasiblePlacementError):
        ModelParallelismSearch(require_all_models=True).solve_placement(MIXED_ONLY, cluster, workload)
    placement, _ = search(require_all_models=True, max_evaluations=2000).solve_placement(MIXED_ONLY, cluster, workload)
    assert placement.placed_models() == {0, 1, 2}


def test_all_models_are_held_where_a_better_placement_lacks_some():
    datas = [model("m0", p1=2.0), model("m1", p1=2.0), model("m2", p1=2.0)]
    workload, cluster = requests_for("m0", count=200), ClusterEnv(3, 2.0)
    placement, _ = search(require_all_models=True).solve_placement(datas, cluster, workload)
    assert placement.placed_models() == {0, 1, 2}


@pytest.mark.parametrize(
    ("datas", "cluster", "named"),
    [
        ([model("m0", p1=1.0), model("m1", p3=1.0)], ClusterEnv(2, 2.0), "'m1' is not profiled"),
        ([model("m0", p1=1.0), model("m1", p1=3.0)], ClusterEnv(2, 2.0), "'m1' needs"),
        ([model(f"m{i}", p1=1.5, p2=1.0) for i in range(4)], ClusterEnv(2, 2.0), "the 4 models need"),
    ],
    ids=["not profiled", "too large", "too many"],
)
def test_models_that_cannot_all_fit_are_refused_at_once(datas, cluster, named):
    began = time.monotonic()
    with pytest.raises(InfeasiblePlacementError, match=named):
        MixedParallelismSearch(60.0, require_all_models=True).solve_placement(datas, cluster, requests_for("m0"))
    assert time.monotonic() - began < 1


def test_a_search_that_does_not_find_room_for_all_models_says_so():
    # together they take no more than there is, but no two fit on one device
    datas = [model(f"m{i}", p1=1.2) for i in range(3)]
    with pytest.raises(InfeasiblePlacementError, match="found no placement that holds all 3 models"):
        search(require_all_models=True).solve_placement(datas, ClusterEnv(2, 2.0), requests_for("m0"))


def test_small_and_odd_problems_are_solved():
    one = [model("m0", p1=1.0)]
    assert search().solve_placement(one, ClusterEnv(1, 1.0), requests_for("m0"))[0] == ModelPlacement([ONE], [[0]])
    # nobody asks for m1; nobody serves "unknown"
    two = [model("m0", p1=1.0, p2=0.5), model("m1", p1=1.0)]
    placement, info = search().solve_placement(two, ClusterEnv(2, 1.0), requests_for("m0", "unknown"))
    assert 0 in placement.placed_models()
    assert info["attainment"] == 0.5
    _, info = search().solve_placement(two, ClusterEnv(2, 1.0), requests_for("unknown"))
    assert info["attainment"] == 0.0
    endless = Workload.from_columns([0.0, 0.0], [0, 0], ["m0"], [math.inf, math.inf])
    assert search().solve_placement(two, ClusterEnv(2, 1.0), endless)[1]["attainment"] == 1.0
    for per_node in (1, 2, 3):
        cluster = ClusterEnv(7, 1.0, per_node)
        placement, _ = search(time_budget=5).solve_placement(two, cluster, requests_for("m0", "m1"))
        placement.verify(two, cluster)


@pytest.mark.parametrize("queueing", ["global_fifo", "per_group"])
def test_it_searches_under_the_rules_of_maveriq(problem, queueing):
    rules = replace(MAVERIQ, service="profile", queueing=queueing)
    placement, info = search(rules=rules, max_evaluations=2000).solve_placement(*problem)
    assert PlacementEvaluator(*problem, rules=rules).evaluate(placement).score == info["score"]
    assert info["attainment"] > info["start_attainment"]
