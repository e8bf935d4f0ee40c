from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidProfileError, InvalidWorkloadError
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy import PlacementEvaluator, placement_upper_bound
from alpa_serve.placement_policy.capacity_bound import capacity_bound
from alpa_serve.placement_policy.group_jobs import BoundProblem
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator.arrivals import DeterministicProcess
from alpa_serve.simulator.columnar_workload import Workload

RULES = {
    "alpaserve": ALPASERVE,
    "no overheads": replace(ALPASERVE, stage_penalty=0.0, fixed_overhead_s=0.0),
    "maveriq": MAVERIQ,
    "maveriq without delays": replace(
        MAVERIQ, dispatch_interval_s=0.0, request_overhead_s=0.0, idle_after_s=np.inf, idle_penalty_s=0.0
    ),
    "exclusive": replace(ALPASERVE, execution="exclusive", dispatch_interval_s=0.02),
    "one queue": replace(ALPASERVE, queueing="global_fifo"),
    "random": replace(ALPASERVE, dispatch="random", dispatch_interval_s=0.01),
    "all": replace(ALPASERVE, admission="all"),
    "tokens, pipelined": replace(ALPASERVE, service="tokens"),
    "idle": replace(ALPASERVE, idle_after_s=0.1, idle_penalty_s=0.05),
}
ONE = ParallelConfig(1, 1, 1)


def profile(figures):
    """Return the profile of figures {config: (stage latencies, weight bytes)}."""
    result = ProfilingResult("model")
    for config, (stages, weight) in figures.items():
        result.add_result(
            ParallelConfig(*config),
            1,
            stages,
            [0.0] * len(stages),
            [weight] * len(stages),
            prefill_decode=PrefillDecode(sum(stages) / 2, sum(stages) / 20, 4),
        )
    return result


def model(name, figures):
    return ModelData(name, 1.0, 1.0, 1.0, profile(figures))


@st.composite
def problems(draw, max_models, max_devices, max_requests):
    """Models of uneven stages and different configs, a cluster whose memory and nodes bind, and bursts."""
    latencies = st.sampled_from([0.0, 0.03, 0.05, 0.1, 0.17, 0.4])
    datas = []
    for m in range(draw(st.integers(1, max_models))):
        configs = draw(
            st.lists(st.sampled_from([(1, 1, 1), (1, 1, 2), (1, 2, 1), (1, 1, 3), (2, 1, 1)]), min_size=1, unique=True)
        )
        figures = {}
        for config in configs:
            stages = draw(st.lists(latencies, min_size=config[2], max_size=config[2]))
            figures[config] = stages, draw(st.sampled_from([0.0, 1.0, 1.5, 2.0, 3.1]))
        datas.append(model(f"m{m}", figures))
    cluster = ClusterEnv(
        draw(st.integers(1, max_devices)), draw(st.sampled_from([1.0, 3.0, 3.1, 4.5])), draw(st.sampled_from([1, 2, 8]))
    )
    gaps = st.sampled_from([0.0, 0.0, 0.01, 0.05, 0.3])
    slos = st.sampled_from([0.0, 0.06, 0.15, 0.3, 0.6, 1.5, np.inf])
    tokens = st.integers(0, 40)
    names = [*(data.name for data in datas), "unknown"]
    requests = draw(
        st.lists(
            st.tuples(gaps, st.sampled_from([*range(len(names)), *range(len(datas))]), slos, tokens, tokens),
            max_size=max_requests,
        )
    )
    columns = list(zip(*requests, strict=True)) or [[]] * 5
    workload = Workload.from_columns(
        np.cumsum(columns[0]), columns[1], names, columns[2], input_tokens=columns[3], output_tokens=columns[4]
    )
    return datas, cluster, workload


def shapes(configs, devices):
    """List the multisets of configs of at most so many devices."""
    if not configs:
        return [[]]
    first, *others = configs
    most = devices // first.num_devices
    return [
        [first] * count + rest
        for count in range(most + 1)
        for rest in shapes(others, devices - count * first.num_devices)
    ]


def all_placements(datas, cluster):
    """Yield the valid placements, up to the order of groups of different configs."""
    configs = sorted({config for data in datas for config in data.profiling_result.para_dict})
    sets = [[m for m in range(len(datas)) if chosen >> m & 1] for chosen in range(1 << len(datas))]

    def fitting(config):
        return [
            members
            for members in sets
            if all(config in datas[m].profiling_result.para_dict for m in members)
            and sum(datas[m].profiling_result.weight_bytes(config) for m in members) <= cluster.mem_budget
        ]

    for shape in shapes(configs, cluster.num_devices):
        if cluster.can_hold([config.num_devices for config in shape]):
            for members in product(*map(fitting, shape)):
                yield ModelPlacement(shape, list(members))


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@settings(deadline=None, max_examples=30)
@given(problem=problems(max_models=2, max_devices=3, max_requests=25))
def test_no_placement_attains_more(problem, rules):
    datas, cluster, workload = problem
    evaluator = PlacementEvaluator(datas, cluster, workload, rules=rules)
    best = max(evaluator.evaluate(placement).goodput for placement in all_placements(datas, cluster))
    assert placement_upper_bound(datas, cluster, workload, rules) >= best


@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
@settings(deadline=None, max_examples=10)
@given(problem=problems(max_models=5, max_devices=8, max_requests=120), data=st.data())
def test_no_placement_drawn_at_random_attains_more(problem, data, rules):
    datas, cluster, workload = problem
    bound = placement_upper_bound(datas, cluster, workload, rules, time_limit=2.0)
    evaluator = PlacementEvaluator(datas, cluster, workload, rules=rules)
    configs = sorted({config for model_data in datas for config in model_data.profiling_result.para_dict})
    for _ in range(20):
        shape = []
        while True:
            config = data.draw(st.sampled_from(configs))
            if not cluster.can_hold([other.num_devices for other in [*shape, config]]):
                break
            shape.append(config)
        placement = ModelPlacement.empty_groups(shape)
        for group, config in enumerate(shape):
            used = 0.0
            for m in data.draw(st.permutations(range(len(datas)))):
                weight = evaluator.weights(config)[m]
                if used + weight <= cluster.mem_budget:
                    placement = placement.add_model(group, m)
                    used += weight
        placement.verify(datas, cluster)
        assert evaluator.evaluate(placement).goodput <= bound


@settings(deadline=None, max_examples=50)
@given(problem=problems(max_models=2, max_devices=3, max_requests=25), rules=st.sampled_from(list(RULES.values())))
def test_the_coarse_bound_and_one_without_any_time_hold_too(problem, rules):
    datas, cluster, workload = problem
    evaluator = PlacementEvaluator(datas, cluster, workload, rules=rules)
    best = max(evaluator.evaluate(placement).goodput for placement in all_placements(datas, cluster))
    assert best <= placement_upper_bound(datas, cluster, workload, rules, time_limit=0.0) <= 1.0
    assert best * len(workload) <= capacity_bound(BoundProblem(datas, cluster, workload, rules), 5.0)


EXACT = RULES["no overheads"]


def requests(name, arrivals, slo):
    return Workload.from_columns(arrivals, [0] * len(arrivals), [name], slo)


@pytest.mark.parametrize(("slo", "served"), [(0.101, 0.5), (0.26, 0.5)])
def test_twice_the_requests_that_a_device_can_serve(slo, served):
    datas = [model("m", {ONE: ([0.1], 1.0)})]
    workload = DeterministicProcess(20).generate_workload("m", 0, 5, slo=slo)
    bound = placement_upper_bound(datas, ClusterEnv(1, 2.0), workload, EXACT)
    attained = PlacementEvaluator(datas, ClusterEnv(1, 2.0), workload, rules=EXACT).evaluate(
        ModelPlacement([ONE], [[0]])
    )
    assert bound == attained.goodput == pytest.approx(served, abs=0.025)


def test_memory_that_holds_one_of_two_models():
    datas = [model("a", {ONE: ([0.1], 3.0)}), model("b", {ONE: ([0.1], 3.0)})]
    workload = requests("a", np.arange(6.0), 1.0) + requests("b", 10 + np.arange(4.0), 1.0)
    assert placement_upper_bound(datas, ClusterEnv(1, 5.9), workload, EXACT) == 0.6
    assert placement_upper_bound(datas, ClusterEnv(1, 6.0), workload, EXACT) == 1.0
    assert placement_upper_bound(datas, ClusterEnv(1, 2.9), workload, EXACT) == 0.0


def test_an_slo_below_the_fastest_latency_leaves_nothing_and_none_leaves_all():
    datas = [model("m", {ONE: ([0.1], 1.0), (1, 1, 2): ([0.04, 0.05], 1.0)})]
    arrivals = np.linspace(0, 1, 50)
    assert placement_upper_bound(datas, ClusterEnv(2, 1.0), requests("m", arrivals, 0.0899), EXACT) == 0.0
    assert placement_upper_bound(datas, ClusterEnv(2, 1.0), requests("m", arrivals, np.inf), EXACT) == 1.0
    # the fast config is too large for one device
    assert placement_upper_bound(datas, ClusterEnv(1, 1.0), requests("m", arrivals, 0.095), EXACT) == 0.0


def test_each_device_adds_what_it_can_serve_of_a_burst():
    datas = [model("m", {ONE: ([0.1], 1.0)})]
    workload = requests("m", np.repeat(np.arange(4.0), 3), 0.1)
    bounds = [placement_upper_bound(datas, ClusterEnv(devices, 1.0), workload, EXACT) for devices in (1, 2, 3, 4)]
    assert bounds == [4 / 12, 8 / 12, 1.0, 1.0]


def test_a_group_lies_within_a_node_or_takes_whole_nodes():
    datas = [model("m", {(1, 1, 3): ([0.1] * 3, 1.0), (1, 1, 4): ([0.1] * 4, 1.0)})]
    workload = requests("m", np.arange(9.0), 1.0)
    assert placement_upper_bound(datas, ClusterEnv(3, 1.0, 2), workload, EXACT) == 0.0
    assert placement_upper_bound(datas, ClusterEnv(3, 1.0, 3), workload, EXACT) == 1.0
    assert placement_upper_bound(datas, ClusterEnv(4, 1.0, 2), workload, EXACT) == 1.0


def test_a_request_that_all_must_serve_delays_the_others():
    # both fit, but whoever holds the slow model has to serve its request before the burst of the others
    datas = [model("slow", {ONE: ([1.0], 1.0)}), model("fast", {ONE: ([0.1], 1.0)})]
    workload = requests("slow", [0.0], 0.5) + requests("fast", 0.1 + 0.1 * np.arange(8), 0.1)
    rules = replace(EXACT, admission="all")
    assert placement_upper_bound(datas, ClusterEnv(1, 2.0), workload, rules) == 8 / 9


def test_without_requests_the_bound_is_0_as_is_the_goodput():
    datas = [model("m", {ONE: ([0.1], 1.0)})]
    assert placement_upper_bound(datas, ClusterEnv(1, 2.0), Workload.empty()) == 0.0
    assert placement_upper_bound([], ClusterEnv(1, 2.0), requests("m", [0.0], 1.0)) == 0.0


def test_requests_for_unregistered_models_are_not_good():
    datas = [model("m", {ONE: ([0.1], 1.0)})]
    workload = requests("m", [0.0], 1.0) + requests("other", [1.0, 2.0, 3.0], 1.0)
    assert placement_upper_bound(datas, ClusterEnv(1, 2.0), workload) == 0.25


def test_bad_input_gets_the_evaluators_errors():
    datas = [model("m", {ONE: ([0.1], 1.0)})]
    cluster, workload = ClusterEnv(1, 2.0), requests("m", [0.0], 1.0)
    with pytest.raises(InvalidConfigError, match=r"names must differ.*'m', 'm'"):
        placement_upper_bound(datas * 2, cluster, workload)
    with pytest.raises(InvalidConfigError, match="rules must be ServingRules"):
        placement_upper_bound(datas, cluster, workload, None)
    with pytest.raises(InvalidWorkloadError, match="requests have no input_tokens"):
        placement_upper_bound(datas, cluster, workload, MAVERIQ)
    with pytest.raises(InvalidConfigError, match=r"time_limit \(s\) must be a finite number >= 0, got -1"):
        placement_upper_bound(datas, cluster, workload, time_limit=-1)
    datas[0].profiling_result.para_dict[ONE].weight_mem = []
    with pytest.raises(InvalidProfileError, match=r"model 'm'.*weight memory"):
        placement_upper_bound(datas, cluster, workload)
