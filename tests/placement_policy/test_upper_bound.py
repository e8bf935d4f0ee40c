from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidProfileError, InvalidWorkloadError
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy import PlacementEvaluator, placement_upper_bound
from alpa_serve.profiles.result import PrefillDecode
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
