import pytest

from alpa_serve import placement_policy
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.simulator.controller import approximate_one_case
from alpa_serve.util import GB

NUM_CASES = 36
SEGMENTED = "SelectiveReplicationReplacement"
# AlpaServe's unstable argsort (AVX-512) broke a tie between equally loaded groups: (models, segment)
TIES_BROKEN_OTHERWISE = {(16, 1)}


@pytest.fixture
def case(request, golden):
    return golden("policies")[request.param]


@pytest.fixture
def problem(case, model_datas_of, workload_of):
    cluster = ClusterEnv(case["num_devices"], case["mem_budget_gb"] * GB, case["num_devices_per_node"])
    return model_datas_of(case["models"]), cluster, workload_of(case["models"], case["duration"])


@pytest.fixture
def solution(case, problem):
    arguments = dict(case["policy"])
    policy = getattr(placement_policy, arguments.pop("policy"))(**arguments)
    return policy.solve_placement(*problem)[0]


@pytest.fixture
def goodput_of(serving_case_of):
    def simulate(datas, workload, placement):
        stats, _ = approximate_one_case(serving_case_of(datas, workload, placement), fast_stats=True)
        return stats.goodput

    return simulate


def test_every_golden_case_is_tested(golden):
    assert len(golden("policies")) == NUM_CASES


@pytest.mark.parametrize("case", range(NUM_CASES), indirect=True)
def test_placement_is_alpaserves_or_attains_the_same(case, problem, solution, goodput_of):
    datas, _, workload = problem
    name = case["policy"]["policy"]
    if name.endswith("ILP"):
        pytest.skip("other optimal placements are fine: test_ilp.py compares the objective")
    if name == SEGMENTED:
        assert solution.start_times == pytest.approx(case["placement"]["start_times"], rel=1e-9, abs=1e-12)
        pairs = zip(solution.placements, case["placement"]["placements"], workload.split_time_interval(60), strict=True)
    else:
        pairs = [(solution, case["placement"], workload)]
    for number, (ours, theirs, segment) in enumerate(pairs):
        reference = ModelPlacement(**theirs)
        if ours != reference:
            within = 1e-4
            if name == SEGMENTED and (len(datas), number) in TIES_BROKEN_OTHERWISE:
                # one request: where AlpaServe's order of ties depends on the processor, so does what comes after it
                within = 1 / len(segment) + 1e-9
            assert goodput_of(datas, segment, ours) == pytest.approx(goodput_of(datas, segment, reference), abs=within)


@pytest.mark.parametrize("case", range(NUM_CASES), indirect=True)
def test_golden_placement_attains_the_golden_goodput(case, problem, goodput_of):
    datas, _, workload = problem
    if "goodput" not in case:
        pytest.skip("there is no golden goodput over placements that take over from one another")
    reference = ModelPlacement(**case["placement"])
    assert goodput_of(datas, workload, reference) == pytest.approx(case["goodput"], abs=1e-4)
