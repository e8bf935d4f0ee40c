"""The event-driven simulator as a whole, beside the fast one."""

import gc
import logging
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidPlacementError, InvalidWorkloadError
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement, ModelPlacementWithReplacement
from alpa_serve.placement_policy import ModelParallelismGreedy
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig, load_test_prof_result, load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator import simulate
from alpa_serve.simulator.client import Client
from alpa_serve.simulator.controller import Controller, approximate_one_case, run_workload, simulate_one_case
from alpa_serve.simulator.event_loop import clock, current_loop, run_event_loop, sleep
from alpa_serve.simulator.executable import Executable
from alpa_serve.simulator.workload import GammaProcess, Workload
from alpa_serve.util import GB, ServingCase

PROFILE = load_test_prof_result("test-2GB-100ms")
ONE, PIPELINE = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 4)
SHIPPED = ("llama-2-7b", "llama-2-13b", "gptj-6b")
CONFIGS = [ParallelConfig(1, op, pp) for op, pp in ((1, 1), (1, 2), (2, 1), (2, 2), (1, 4))]


def executable_case(models, workload, placement):
    """Return the case whose models are executables; the placement is made by whoever simulates."""

    def register_models(controller):
        for model in models:
            controller.register_model.remote(model.name, partial(Executable, model.profiling_result))

    return ServingCase(register_models, lambda: workload, lambda controller: placement)


def run_events(models, workload, placement, rules):
    """Run the event-driven simulator; the client's result."""
    controller = Controller(rules)
    for model in models:
        controller.register_model(model.name, partial(Executable, model.profiling_result))
    for group_id, (config, members) in enumerate(zip(placement.group_configs, placement.group_models, strict=True)):
        controller.create_mesh_group_manager(group_id, (1, config.num_devices))
        for model_id in members:
            controller.create_replica(models[model_id].name, group_id, [config, (1, config.num_devices)])
    client = Client(controller)

    async def main():
        client.submit_workload(workload)
        await client.wait_all()

    run_event_loop(main())
    return client.result(workload)


@st.composite
def realistic_cases(draw):
    """Two to four shipped models with SLOs from 1.5 times their latency, bursty or not, on one to three groups."""
    num_models = draw(st.integers(2, 4))
    configs = draw(st.lists(st.sampled_from(CONFIGS), min_size=1, max_size=3))
    factor = draw(st.floats(1.5, 10))
    rate = draw(st.floats(2, 12))
    cv = draw(st.floats(0.5, 4))
    models = []
    for i, name in enumerate(draw(st.lists(st.sampled_from(SHIPPED), min_size=num_models, max_size=num_models))):
        profile = load_test_prof_result_v2(name)
        # the slowest config that it may run on, with the overheads of both simulators
        alone = max(sum(profile.stage_latency(config)) * (1 + 0.009 * config.pp) for config in CONFIGS) + 0.015
        models.append(ModelData(f"m{i}", factor * alone, rate, cv, profile))
    members = [draw(st.lists(st.sampled_from(range(num_models)), min_size=1, unique=True)) for _ in configs]
    seed = draw(st.integers(0, 1000))
    duration = 2500 / (rate * num_models)
    workload = Workload.merge(
        *(
            GammaProcess(rate, cv).generate_workload(model.name, 0, duration, slo=model.slo, seed=seed + i)
            for i, model in enumerate(models)
        )
    )
    return models, workload, ModelPlacement(configs, members)


@given(realistic_cases())
@settings(deadline=None, max_examples=100, derandomize=True)
def test_both_simulators_agree_within_a_point_of_goodput(case):
    models, workload, placement = case
    serving = executable_case(models, workload, placement)
    events, _ = simulate_one_case(serving, warmup=0)
    fast, _ = approximate_one_case(serving, warmup=0)
    assert abs(events.goodput - fast.goodput) <= 0.01
    assert events.num_requests == fast.num_requests == len(workload)


@given(data=st.data(), rules=st.data())
@settings(deadline=None, max_examples=200)
def test_without_jitter_both_simulators_agree_request_by_request(simulation_cases, serving_rules, data, rules):
    placement, models, workload = data.draw(simulation_cases)
    drawn = replace(rules.draw(serving_rules), overhead_jitter=0.0)
    fast = simulate(placement, models, workload, drawn)
    events = run_events(models, workload, placement, drawn)
    assert events.group.tolist() == fast.group.tolist()
    assert events.good.tolist() == fast.good.tolist()
    assert events.finish.tolist() == fast.finish.tolist()


def test_both_simulators_agree_request_by_request_on_a_long_run_with_tokens():
    models = [ModelData(f"m{i}", 5.0, 1.0, 3.0, maveriq.load(name)) for i, name in enumerate(SHIPPED)]
    parts = [
        GammaProcess(1.2, 3).generate_workload(f"m{i}", 0, 2000, slo=5.0, seed=i, input_tokens=100, output_tokens=20)
        for i in range(3)
    ]
    workload = Workload.merge(*parts)
    placement = ModelPlacement([ParallelConfig(1, 2, 2), ParallelConfig(1, 4, 1)], [[0, 1, 2], [0, 1]])
    fast = simulate(placement, models, workload, MAVERIQ)
    events = run_events(models, workload, placement, MAVERIQ)
    assert events.group.tolist() == fast.group.tolist()
    assert events.finish.tolist() == fast.finish.tolist()
    assert events.good.tolist() == fast.good.tolist()
    assert 0.05 < fast.goodput < 0.99


class Occupied:
    """Notes which devices work when."""

    def __init__(self):
        self.intervals = {}

    def watch(self, monkeypatch):
        from alpa_serve.simulator.event_loop import EventLoop

        reserve = EventLoop.reserve

        def noting(loop, names, seconds, begin=None):
            end = reserve(loop, names, seconds, begin)
            for name in names:
                self.intervals.setdefault(name, []).append((end - seconds, end))
            return end

        monkeypatch.setattr(EventLoop, "reserve", noting)


@pytest.mark.parametrize("execution", ["pipelined", "exclusive"])
@pytest.mark.parametrize("queueing", ["per_group", "global_fifo"])
def test_no_device_ever_does_two_things_at_once(monkeypatch, execution, queueing):
    models = [ModelData(f"m{i}", 1.0, 1.0, 1.0, PROFILE) for i in range(3)]
    parts = [GammaProcess(4, 4).generate_workload(f"m{i}", 0, 100, slo=0.8, seed=i) for i in range(3)]
    occupied = Occupied()
    occupied.watch(monkeypatch)
    rules = replace(ALPASERVE, execution=execution, queueing=queueing)
    result = run_events(models, Workload.merge(*parts), ModelPlacement([PIPELINE, ONE], [[0, 1], [1, 2]]), rules)
    assert len(occupied.intervals) == 5
    for intervals in occupied.intervals.values():
        for (_, end), (begin, _) in pairwise(intervals):
            assert begin >= end - 1e-9
    assert 0 < result.good.mean() <= 1


@given(data=st.data(), rules=st.data())
@settings(deadline=None, max_examples=50)
def test_every_request_ends_exactly_once_also_with_jitter(simulation_cases, serving_rules, data, rules):
    placement, models, workload = data.draw(simulation_cases)
    drawn = replace(rules.draw(serving_rules), fixed_overhead_s=0.011)
    result = run_events(models, workload, placement, drawn)
    held = {f"m{model_id}" for members in placement.group_models for model_id in members}
    placed = np.array([request.model_name in held for request in workload.requests], dtype=bool)
    assert ((result.group >= 0) == placed).all()
    served = result.finish > workload.arrivals
    assert not (result.good & ~served).any()
    if drawn.admission == "all":
        assert (served == placed).all()


def gamma_case(placement, models=None):
    models = models or [ModelData(f"m{i}", 0.5, 5.0, 2.0, PROFILE) for i in range(2)]
    parts = [GammaProcess(5, 2).generate_workload(f"m{i}", 0, 100, slo=0.5, seed=i) for i in range(2)]
    return executable_case(models, Workload.merge(*parts), placement)


SHARED = ModelPlacement([ONE, PIPELINE], [[0, 1], [1]])


def test_equal_seeds_give_equal_runs():
    case = gamma_case(SHARED)
    one, same, other = (
        simulate_one_case(case, rules=replace(ALPASERVE, seed=seed))[0].per_model_stats[0].latency.tolist()
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_placement_is_returned_and_the_warm_up_cut():
    case = gamma_case(SHARED)
    stats, placement = simulate_one_case(case)
    assert placement is SHARED
    whole, _ = simulate_one_case(case, warmup=0)
    assert stats.num_requests < whole.num_requests == len(case.generate_workload())
    fast, _ = approximate_one_case(case)
    assert stats.num_requests == fast.num_requests
    assert [model.name for model in stats.per_model_stats] == [model.name for model in fast.per_model_stats]
    assert sum(stats.group_num_requests) == sum(fast.group_num_requests)


def test_a_policy_may_place_on_the_controller_itself():
    models = [ModelData(f"m{i}", 0.5, 5.0, 2.0, PROFILE) for i in range(2)]
    policy, cluster = ModelParallelismGreedy(group_size=2), ClusterEnv(4, 3 * GB)
    case = gamma_case(None, models)._replace(
        placement_policy=lambda controller: policy.place_models(controller, cluster, models)
    )
    stats, placement = simulate_one_case(case)
    assert placement.group_configs == [ParallelConfig(1, 1, 2)] * 2
    fast, _ = approximate_one_case(case)
    assert stats.goodput == pytest.approx(fast.goodput, abs=0.01)


def test_placements_that_take_over_from_one_another_start_fresh_and_add_up():
    rules = replace(ALPASERVE, overhead_jitter=0.0, dispatch="random")
    other = ModelPlacement([ONE, ONE, ONE], [[0], [1], [0, 1]])
    case = gamma_case(ModelPlacementWithReplacement([0.0, 40.0], [SHARED, other]))
    events, _ = simulate_one_case(case, rules=rules)
    fast, _ = approximate_one_case(case, rules=rules)
    assert events.group_num_requests == fast.group_num_requests
    assert events.goodput == fast.goodput
    assert events.latency_mean == pytest.approx(fast.latency_mean, rel=1e-9)


def test_a_placement_before_the_first_arrival_serves_nothing():
    models = [ModelData(f"m{i}", 0.5, 5.0, 2.0, PROFILE) for i in range(2)]
    workload = Workload.from_columns([6.0, 7.0], [1, 1], ["m0", "m1"], 0.5)
    switching = ModelPlacementWithReplacement([0.0, 5.0], [ModelPlacement([ONE], [[0]]), ModelPlacement([ONE], [[1]])])
    case = executable_case(models, workload, switching)
    assert simulate_one_case(case, warmup=0)[0].goodput == approximate_one_case(case, warmup=0)[0].goodput == 1.0


def test_admission_keeps_a_reserve_for_the_jitter():
    models = [ModelData("m0", 9.0, 1.0, 1.0, PROFILE)]
    alone = 0.1 * 1.009 + 0.011

    def goodput(slack):
        workload = Workload.from_columns(np.arange(500.0), np.zeros(500, int), ["m0"], alone + slack)
        return simulate_one_case(executable_case(models, workload, ModelPlacement([ONE], [[0]])), warmup=0)[0].goodput

    # two deviations of 0.5 ms; three delays deviate by 0.87 ms together
    assert goodput(0.0009) == 0.0
    assert 0.8 < goodput(0.0011) < 0.97
    assert goodput(0.004) == 1.0


def test_the_garbage_collector_is_as_it_was_after_a_run():
    for was_enabled in (True, False):
        (gc.enable if was_enabled else gc.disable)()
        try:
            simulate_one_case(gamma_case(SHARED))
            assert gc.isenabled() == was_enabled
        finally:
            gc.enable()


def test_waiting_goes_on_for_what_is_submitted_meanwhile():
    controller = Controller(replace(ALPASERVE, fixed_overhead_s=0.0, stage_penalty=0.0))
    controller.register_model("m0", partial(Executable, PROFILE))
    controller.create_mesh_group_manager(0, (1, 1))
    controller.create_replica("m0", 0, [ONE, (1, 1)])
    client = Client(controller)

    async def wait():
        await client.wait_all()
        return clock()

    async def main():
        client.submit_workload(Workload.from_columns([1.0], [0], ["m0"]))
        waiting = current_loop().spawn(wait())
        await sleep(0.5)
        client.submit_workload(Workload.from_columns([2.0], [0], ["m0"]))
        return await waiting

    assert run_event_loop(main()) == pytest.approx(2.1)


def test_a_client_tells_what_was_not_submitted_and_keeps_each_result():
    controller = Controller(replace(ALPASERVE, fixed_overhead_s=0.0, stage_penalty=0.0))
    controller.register_model("m0", partial(Executable, PROFILE))
    controller.create_mesh_group_manager(0, (1, 1))
    controller.create_replica("m0", 0, [ONE, (1, 1)])
    client = Client(controller)
    workload = Workload.from_columns([0.0], [0], ["m0"])
    with pytest.raises(InvalidWorkloadError, match="was not submitted to this client"):
        client.result(workload)

    async def main():
        results = [client.submit_workload(workload) for _ in range(2)]
        await client.wait_all()
        return [result.finish.tolist() for result in results]

    assert run_event_loop(main()) == [[0.1], [0.2]]


def test_requests_that_nobody_can_serve_are_bad():
    models = [ModelData(f"m{i}", 0.5, 5.0, 2.0, PROFILE) for i in range(2)]
    workload = Workload.from_columns([0.0, 1.0, 2.0], [0, 1, 2], ["m0", "m1", "unknown"], 0.5)
    case = executable_case(models, workload, ModelPlacement([ONE], [[0]]))
    stats, _ = simulate_one_case(case, warmup=0)
    assert (stats.num_requests, stats.goodput) == (3, pytest.approx(1 / 3))
    assert stats.group_num_requests == [1]


def test_requests_for_unregistered_models_are_counted_in_a_warning(caplog):
    workload = Workload.from_columns([0.0, 1.0, 2.0], [0, 1, 1], ["m0", "unknown"], 0.5)
    models = [ModelData("m0", 0.5, 5.0, 2.0, PROFILE)]
    with caplog.at_level(logging.WARNING):
        simulate_one_case(executable_case(models, workload, ModelPlacement([ONE], [[0]])), warmup=0)
    assert "2 of 3 requests name a model that is not registered and will not be served ('unknown': 2)" in caplog.text


def test_an_empty_workload_gives_empty_statistics():
    stats, _ = simulate_one_case(gamma_case(SHARED)._replace(generate_workload=Workload.empty))
    assert (stats.num_requests, stats.goodput, stats.group_num_requests) == (0, 0.0, [0, 0])


def test_tokens_that_are_needed_but_absent_are_named():
    with pytest.raises(InvalidWorkloadError, match="requests have no input_tokens"):
        simulate_one_case(gamma_case(SHARED), rules=MAVERIQ)


def test_a_placement_of_models_that_are_not_there_is_refused():
    with pytest.raises(InvalidPlacementError, match="group 0: no model 7; models are 0 to 1"):
        simulate_one_case(gamma_case(ModelPlacement([ONE], [[7]])))


def test_a_debug_run_notes_the_stations_of_each_request(caplog):
    models = [ModelData("m0", 9.0, 1.0, 1.0, PROFILE)]
    workload = Workload.from_columns([1.0, 1.0], [0, 0], ["m0"], 9.0)
    rules = replace(ALPASERVE, overhead_jitter=0.0)
    with caplog.at_level(logging.DEBUG, logger="alpa_serve.simulator.client"):
        simulate_one_case(executable_case(models, workload, ModelPlacement([ONE], [[0]])), 0, True, rules=rules)
    assert "placement: ModelPlacement" in caplog.text
    assert "request 1: {'sent': 1.0, 'received': 1.0025" in caplog.text


def test_a_client_runs_several_workloads_one_after_the_other_and_at_once():
    controller = Controller(replace(ALPASERVE, fixed_overhead_s=0.0, stage_penalty=0.0))
    controller.register_model("m0", partial(Executable, PROFILE))
    controller.create_mesh_group_manager(0, (1, 1))
    controller.create_replica("m0", 0, [ONE, (1, 1)])
    client = Client(controller)
    first, second, third = (Workload.from_columns([start], [0], ["m0"]) for start in (0.0, 1.0, 1.05))

    async def main():
        stats = await run_workload(client, first, warmup=0)
        client.submit_workload(second)
        client.submit_workload(third)
        await client.wait_all()
        return stats

    assert run_event_loop(main()).latency_mean == pytest.approx(0.1)
    assert client.result(second).finish.tolist() == pytest.approx([1.1])
    assert client.compute_stats(third, warmup=0).latency_mean == pytest.approx(0.15)
