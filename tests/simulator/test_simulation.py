"""The plain way in: what it takes, what it gives, and what it refuses."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import pytest

from alpa_serve.errors import (
    InvalidConfigError,
    InvalidPlacementError,
    InvalidProfileError,
    InvalidWorkloadError,
)
from alpa_serve.placement import ModelData, ModelPlacement, ModelPlacementWithReplacement
from alpa_serve.placement_policy import ClusterEnv, PlacementEvaluator
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig, load_test_prof_result, load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator import simulate
from alpa_serve.simulator.controller import approximate_one_case, approximate_one_case_one_placement
from alpa_serve.simulator.fast import RuleKind, _kernel
from alpa_serve.simulator.workload import GammaProcess, Workload
from alpa_serve.util import GB


class SimulationCase(NamedTuple):
    """Arguments of simulate()."""

    placement: ModelPlacement
    models: list
    workload: Workload


PROFILE = load_test_prof_result("test-2GB-100ms")
ONE = ParallelConfig(1, 1, 1)


def gamma_case(num_models=2, **options):
    names = [f"m{i}" for i in range(num_models)]
    models = [ModelData(name, 0.5, 5.0, 2.0, PROFILE) for name in names]
    parts = [GammaProcess(5, 2).generate_workload(name, 0, 50, slo=0.5, seed=i) for i, name in enumerate(names)]
    placement = ModelPlacement([ONE, ONE], [[0, 1], [1]])
    return SimulationCase(placement, models, Workload.merge(*parts))


def test_alpaserve_is_what_is_simulated_if_no_rules_are_given():
    case = gamma_case()
    np.testing.assert_array_equal(simulate(*case).finish, simulate(*case, ALPASERVE).finish)


def test_equal_seeds_dispatch_alike_and_others_do_not():
    case = gamma_case()
    one, same, other = (
        simulate(*case, replace(ALPASERVE, dispatch="random", seed=seed)).group.tolist() for seed in (1, 1, 2)
    )
    assert one == same != other


def test_a_replacement_starts_each_segment_with_fresh_clocks_and_keeps_the_draws(profile_of):
    case = gamma_case()
    rules = replace(MAVERIQ, service="profile", idle_penalty_s=0.0)
    switching = ModelPlacementWithReplacement([0.0, 20.0], [case.placement, case.placement])
    result = simulate(switching, *case[1:], rules)
    past = int(np.searchsorted(case.workload.arrivals, 20.0))
    whole = simulate(*case, rules)
    np.testing.assert_array_equal(result.group, whole.group)
    np.testing.assert_array_equal(result.finish[:past], whole.finish[:past])
    assert result.start[past] == case.workload.arrivals[past] + rules.dispatch_interval_s
    assert result.num_groups == 2


def test_nothing_starts_during_a_stall():
    case = gamma_case()
    result = simulate(*case, MAVERIQ_BY_PROFILE, stalls=[(5.0, 8.0), (20.0, 21.5)])
    assert not ((result.start >= 5.0) & (result.start < 8.0)).any()
    assert (result.start == 8.0).any()
    assert not ((result.start >= 20.0) & (result.start < 21.5)).any()


MAVERIQ_BY_PROFILE = replace(MAVERIQ, service="profile")


def test_stalls_hold_up_requests_also_under_rules_without_delays():
    result = simulate(*gamma_case(), stalls=[(5.0, 8.0)])
    assert not ((result.start >= 5.0) & (result.start < 8.0) & result.served).any()
    assert result.goodput < simulate(*gamma_case()).goodput


def test_a_group_is_idle_after_more_than_the_time_given(profile_of):
    models = [ModelData("m0", 9.0, 1.0, 1.0, profile_of({(1, 1, 1): {1: [1.0]}}))]
    rules = replace(ALPASERVE, stage_penalty=0.0, fixed_overhead_s=0.0, idle_after_s=2.0, idle_penalty_s=0.5)
    workload = Workload.from_columns([2.0, 5.0, 8.0625], [0, 0, 0], ["m0"])
    # idle for 2, 2 and 2.0625 s
    assert simulate(ModelPlacement([ONE], [[0]]), models, workload, rules).finish.tolist() == [3.0, 6.0, 9.5625]


def test_groups_of_a_later_placement_are_idle_from_its_start(profile_of):
    models = [ModelData("m0", 9.0, 1.0, 1.0, profile_of({(1, 1, 1): {1: [1.0]}}))]
    rules = replace(ALPASERVE, stage_penalty=0.0, fixed_overhead_s=0.0, idle_after_s=2.0, idle_penalty_s=0.5)
    placement = ModelPlacement([ONE], [[0]])
    workload = Workload.from_columns([100.0, 105.0], [0, 0], ["m0"])
    result = simulate(ModelPlacementWithReplacement([0.0, 104.0], [placement, placement]), models, workload, rules)
    assert result.finish.tolist() == [101.5, 106.0]


def test_a_request_at_the_moment_of_a_switch_is_for_the_later_placement():
    case = gamma_case()
    workload = Workload.from_columns([1.0, 5.0, 6.0], [0, 0, 0], ["m0"])
    switching = ModelPlacementWithReplacement(
        [0.0, 5.0], [ModelPlacement([ONE, ONE], [[0], []]), ModelPlacement([ONE, ONE], [[], [0]])]
    )
    assert simulate(switching, case.models, workload).group.tolist() == [0, 1, 1]


def test_every_kind_of_rules_has_machine_code_of_its_own_name():
    kinds = [None, *(RuleKind.of(rules) for rules in (ALPASERVE, MAVERIQ))]
    names = {_kernel(kind).py_func.__qualname__ for kind in kinds}
    assert len(names) == 3


@pytest.mark.parametrize("wrong", [None, "maveriq", MAVERIQ.execution])
def test_what_is_no_rules_placement_or_workload_is_refused(wrong):
    case = gamma_case()
    with pytest.raises(InvalidConfigError, match="rules must be ServingRules"):
        simulate(*case, wrong)
    with pytest.raises(InvalidPlacementError, match="placement must be"):
        simulate(wrong, *case[1:])
    with pytest.raises(InvalidWorkloadError, match="workload must be a Workload"):
        simulate(*case[:2], wrong)


@pytest.mark.parametrize(
    ("stalls", "message"),
    [
        ([1.0, 2.0], "pairs"),
        ("abc", "pairs"),
        ([(1.0, 2.0), (3.0,)], "pairs"),
        ([(1.0, 2.0, 3.0)], "pairs"),
        ([(2.0, 1.0)], "ascending"),
        ([(1.0, 3.0), (2.0, 4.0)], "ascending"),
        ([(1.0, math.inf)], "finite"),
    ],
)
def test_stalls_that_make_no_sense_are_refused(stalls, message):
    with pytest.raises(InvalidWorkloadError, match=message):
        simulate(*gamma_case(), stalls=stalls)


def test_the_frame_has_a_row_per_request():
    case = gamma_case()
    result = simulate(*case)
    frame = result.to_frame()
    assert len(frame) == len(case.workload)
    assert list(frame.columns) == [
        "model", "arrival_s", "start_s", "finish_s", "latency_s", "work_s", "slo_s", "served", "good", "group",
    ]  # fmt: skip
    assert frame["model"].astype(str).tolist() == [request.model_name for request in case.workload.requests]
    assert frame["latency_s"].tolist() == (result.finish - case.workload.arrivals).tolist()


def test_statistics_cut_the_warm_up():
    result = simulate(*gamma_case())
    assert result.stats().num_requests == len(result)
    assert result.stats(warmup=5).num_requests < len(result)


def test_an_empty_workload_gives_an_empty_result():
    case = gamma_case()
    result = simulate(case.placement, case.models, Workload.empty(), MAVERIQ_BY_PROFILE)
    assert len(result) == 0
    assert (result.goodput, result.group_num_requests.tolist(), len(result.to_frame())) == (0.0, [0, 0], 0)


def test_the_result_keeps_its_figures_when_the_workload_changes():
    case = gamma_case()
    result = simulate(*case)
    slos = result.slos.copy()
    case.workload.requests[0].slo = 77.0
    np.testing.assert_array_equal(result.slos, slos)


def test_changing_a_result_changes_neither_the_workload_nor_what_the_simulator_keeps():
    case = gamma_case()
    case.workload.enable_simulator_cache = True
    result = simulate(*case)
    goodput = result.goodput
    result.arrivals[:] = 0
    result.slos[:] = 0
    assert simulate(*case).goodput == goodput


def test_a_config_that_the_profile_lacks_is_named():
    case = gamma_case()
    placement = ModelPlacement([ONE, ParallelConfig(1, 8, 1)], [[0], [1]])
    with pytest.raises(InvalidPlacementError, match=r"group 1 \(1, 8, 1\): model 'm1' is not profiled on it; profiled"):
        simulate(placement, *case[1:])


def test_a_model_that_is_not_there_is_named():
    case = gamma_case()
    with pytest.raises(InvalidPlacementError, match=r"group 1 .*no model 2; models are 0 to 1"):
        simulate(ModelPlacement([ONE, ONE], [[0], [2]]), *case[1:])


def test_two_models_of_one_name_are_refused():
    case = gamma_case()
    with pytest.raises(InvalidConfigError, match="model names must differ"):
        simulate(case.placement, [case.models[0]] * 2, case.workload)


def test_tokens_that_are_needed_but_absent_are_named(serving_case_of):
    case = gamma_case()
    with pytest.raises(InvalidWorkloadError, match=r"requests have no input_tokens.*request 0"):
        simulate(*case, MAVERIQ)
    with pytest.raises(InvalidWorkloadError, match="requests have no input_tokens"):
        PlacementEvaluator(case.models, ClusterEnv(2, 24 * GB), case.workload, rules=MAVERIQ)
    with pytest.raises(InvalidWorkloadError, match="requests have no input_tokens"):
        approximate_one_case(serving_case_of(case.models, case.workload, case.placement), rules=MAVERIQ)
    names, profiles = [model.name for model in case.models], [model.profiling_result for model in case.models]
    columns = case.workload.model_ids, case.workload.slos, case.workload.arrivals
    with pytest.raises(InvalidWorkloadError, match="request 0 has no input_tokens"):
        approximate_one_case_one_placement(case.placement, names, profiles, *columns, rules=MAVERIQ)
    some = np.where(np.arange(len(case.workload)) == 3, -1, 7)
    with pytest.raises(InvalidWorkloadError, match="request 3 has no output_tokens"):
        approximate_one_case_one_placement(
            case.placement, names, profiles, *columns, rules=MAVERIQ, input_tokens=0, output_tokens=some
        )


def test_a_profile_without_prefill_and_decode_times_is_named():
    placement = ModelPlacement([ParallelConfig(1, 4, 2)], [[0]])
    models = [ModelData("m0", 5.0, 1.0, 1.0, load_test_prof_result_v2("falcon-40b"))]
    workload = Workload.from_columns([0.0], [0], ["m0"], input_tokens=0, output_tokens=20)
    with pytest.raises(InvalidProfileError, match=r"'falcon-40b'.*prefill and decode"):
        simulate(placement, models, workload, MAVERIQ)


def test_a_single_request_takes_its_decode_steps_under_maveriqs_rules():
    profile = maveriq.load("falcon-40b")
    config = ParallelConfig(1, 4, 2)
    models = [ModelData("m0", 5.0, 1.0, 1.0, profile)]
    workload = Workload.from_columns([1.0], [0], ["m0"], 5.0, input_tokens=0, output_tokens=20)
    result = simulate(ModelPlacement([config], [[0]]), models, workload, MAVERIQ)
    decode = profile.prefill_decode(config).decode_s_per_token
    expected = MAVERIQ.dispatch_interval_s + MAVERIQ.request_overhead_s + 19 * decode
    assert result.latency[0] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {"execution": "exclusive"},
        {"queueing": "global_fifo"},
        {"dispatch": "random"},
        {"admission": "all"},
        {"service": "tokens"},
        {"dispatch_interval_s": 0.01},
        {"request_overhead_s": 0.01},
        {"idle_after_s": 1.0, "idle_penalty_s": 0.01},
    ],
)
def test_batching_refuses_rules_that_it_does_not_know(serving_case_of, change):
    case = gamma_case()
    workload = Workload.from_columns(
        case.workload.arrivals, case.workload.model_ids, case.workload.model_names, input_tokens=1, output_tokens=1
    )
    name = list(change)[-1]
    with pytest.raises(InvalidConfigError, match=f"batching is simulated with {name}="):
        approximate_one_case(
            serving_case_of(case.models, workload, case.placement),
            enable_batching=True,
            rules=replace(ALPASERVE, **change),
        )
