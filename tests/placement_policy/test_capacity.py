import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import (
    InfeasiblePlacementError,
    InvalidConfigError,
    InvalidPlacementError,
    InvalidWorkloadError,
    PlanInterrupted,
    SearchInterrupted,
    SolverStoppedError,
)
from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy import CapacityPlan, ModelParallelismSearch, plan_capacity
from alpa_serve.placement_policy.plans import SizeTried
from alpa_serve.placement_policy.resizing import devices_needed
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import MAVERIQ
from alpa_serve.simulator import simulate
from alpa_serve.simulator.workload import DeterministicProcess, GammaProcess, Workload
from alpa_serve.util import GB

pytestmark = pytest.mark.usefixtures("quick_plans")

ONE = ParallelConfig(1, 1, 1)
# profiles of the fixture weigh one byte a stage: a device holds one model
CLUSTER = ClusterEnv(num_devices=2, mem_budget=1.0)


@pytest.fixture(scope="module")
def identical(profile_of):
    """Return identical(n, rate) -> n models that take a second (1.02 s with overheads) of an SLO of 1.1 s, workload."""

    def build(num_models, rate=0.5, slo=1.1, duration=40.0):
        profile = profile_of({ONE: {1: [1.0]}})
        datas = [ModelData(f"m{i}", slo, rate, 0.0, profile) for i in range(num_models)]
        arrivals = [DeterministicProcess(rate).generate_workload(d.name, 0, duration, slo=slo) for d in datas]
        return datas, Workload.merge(*arrivals)

    return build


@pytest.fixture
def classic():
    """A search that counts its calls by the number of devices, and keeps what it was given to start from."""

    class Classic:
        def __init__(self):
            self.calls = Counter()
            self.starts = {}

        def __call__(self, model_datas, cluster_env, workload, starts, callback):
            self.calls[cluster_env.num_devices] += 1
            self.starts[cluster_env.num_devices] = list(starts)
            return ModelParallelismSearch(callback=callback).solve_placement(model_datas, cluster_env, workload)[0]

    return Classic()


@pytest.mark.parametrize("num_models", [1, 2, 3, 5])
@pytest.mark.parametrize("first", [1, 2, 8])
def test_models_that_need_a_device_each_get_just_that(num_models, first, identical):
    plan = plan_capacity(*identical(num_models), 1.0, replace(CLUSTER, num_devices=first))
    assert (plan.num_devices, plan.attainment, plan.target) == (num_models, 1.0, 1.0)
    assert sorted(plan.placement.group_models) == [[m] for m in range(num_models)]


def test_a_lower_target_needs_fewer_devices(identical):
    # one of four models may go unserved
    plan = plan_capacity(*identical(4), 0.75, CLUSTER)
    assert (plan.num_devices, plan.attainment) == (3, 0.75)


def test_models_that_overload_a_device_get_two_each(identical):
    # a request every 0.67 s, each taking 1.009 s of a device
    datas, workload = identical(2, rate=1.5)
    plan = plan_capacity(datas, workload, 1.0, CLUSTER)
    assert plan.num_devices == 4
    assert sorted(plan.placement.group_models) == [[0], [0], [1], [1]]


def test_two_devices_of_a_pipeline_are_found_where_a_model_needs_both(profile_of):
    # two bytes on one device are too many; one a stage fits
    profile = profile_of({(1, 1, 2): {1: [0.5, 0.5]}})
    workload = DeterministicProcess(0.5).generate_workload("m", 0, 20, slo=1.2)
    plan = plan_capacity([ModelData("m", 1.2, 0.5, 0.0, profile)], workload, 1.0, ClusterEnv(1, 1.0))
    assert (plan.num_devices, plan.placement) == (2, ModelPlacement([(1, 1, 2)], [[0]]))


def test_a_plan_says_all_that_was_tried_in_words(identical):
    plan = plan_capacity(*identical(3), 1.0, CLUSTER)
    lines = str(plan).splitlines()
    assert lines[0] == "3 devices attain 1.0000 (target 1); fewer are not ruled out"
    assert re.search(r"^ +2 +0\.6667 +1\.0000$", str(plan), re.MULTILINE)
    assert re.search(r"^ +3 +1\.0000 +1\.0000 +reached$", str(plan), re.MULTILINE)
    assert lines[-1] == str(plan.placement)


def test_the_bound_rules_out_sizes_without_a_search_and_gives_the_proven_minimum(identical, classic):
    datas, workload = identical(6)

    def bound(model_datas, cluster_env, requests, rules):
        assert requests is workload
        return min(1.0, cluster_env.num_devices / 6)

    plan = plan_capacity(datas, workload, 1.0, replace(CLUSTER, num_devices=1), find=classic, upper_bound=bound)
    assert (plan.num_devices, plan.proven_minimum) == (6, 6)
    assert set(classic.calls) == {6}
    assert "fewer cannot reach it" in str(plan)
    assert "impossible" in str(plan)
    tried = {size.num_devices: size for size in plan.tried}
    assert tried[6] == SizeTried(6, 1.0, 1.0)
    assert tried[1].bound == pytest.approx(1 / 6)
    assert tried[1].attainment is None


def test_a_bound_is_asked_for_once_a_size_and_only_where_others_do_not_answer(identical):
    asked = Counter()

    def bound(model_datas, cluster_env, requests, rules):
        asked[cluster_env.num_devices] += 1
        return min(1.0, cluster_env.num_devices / 3)

    plan = plan_capacity(*identical(5), 1.0, replace(CLUSTER, num_devices=8), upper_bound=bound)
    assert (plan.num_devices, plan.proven_minimum) == (5, 3)
    # not of the sizes between the proven minimum and the first, which are searched
    assert asked == {8: 1, 4: 1, 2: 1, 3: 1}


def test_a_bound_that_rules_out_all_is_an_error_with_its_figure(identical):
    with pytest.raises(InfeasiblePlacementError, match=r"on up to 16 devices .*at most 0\.5000 is possible"):
        plan_capacity(*identical(2), 1.0, CLUSTER, max_devices=16, upper_bound=lambda *_: 0.5)


def test_no_size_is_searched_twice_for_the_same_and_found_placements_are_started_from(identical, classic):
    plan = plan_capacity(*identical(5), 1.0, replace(CLUSTER, num_devices=1), find=classic)
    assert plan.num_devices == 5
    # 1, 2 and 4 fail, 8 succeeds and shrinks to 5; 4 is tried again with what was found for more, shrunk
    assert classic.calls == {1: 1, 2: 1, 4: 2, 8: 1}
    for size, starts in classic.starts.items():
        assert all(devices_needed(start, CLUSTER) <= size for start in starts)
    assert [len(start.group_configs) for start in classic.starts[8]] == [4, 8]


def test_a_start_that_reaches_the_target_makes_the_search_unnecessary(identical, classic):
    # twice the devices with twice the groups is enough: the search at 4 is not needed
    plan = plan_capacity(*identical(1, rate=3.0), 1.0, replace(CLUSTER, num_devices=1), find=classic)
    assert plan.num_devices == 4
    assert 4 not in classic.calls


def test_a_search_ends_when_it_has_reached_the_target(identical):
    datas, workload = identical(1)
    ended = []

    def find(model_datas, cluster_env, requests, starts, callback):
        try:
            return ModelParallelismSearch(callback=callback).solve_placement(model_datas, cluster_env, requests)[0]
        except Exception:
            ended.append(cluster_env.num_devices)
            raise

    assert plan_capacity(datas, workload, 1.0, CLUSTER, find=find).num_devices == 1
    assert ended == [2]


def test_a_search_that_returns_what_does_not_fit_is_an_error(identical):
    too_large = ModelPlacement([ONE] * 3, [[0], [0], [0]])
    with pytest.raises(InvalidPlacementError, match="need 3 devices, the cluster has 2"):
        plan_capacity(*identical(1), 1.0, CLUSTER, find=lambda *_: too_large)


def test_without_resizing_every_placement_is_one_that_was_searched(identical, classic):
    plan = plan_capacity(*identical(5), 1.0, replace(CLUSTER, num_devices=1), find=classic, resize=False)
    assert plan.num_devices == 5
    assert plan.placement.group_configs == [ONE] * 5
    assert {5, 8} <= set(classic.calls)


@settings(max_examples=15, deadline=None)
@given(
    num_models=st.integers(1, 4),
    rate=st.sampled_from([0.3, 1.0, 2.5]),
    slo=st.sampled_from([1.05, 1.5, 4.0]),
    target=st.sampled_from([0.5, 0.8, 0.95, 1.0]),
    first=st.integers(1, 9),
    seed=st.integers(0, 5),
)
def test_plans_hold_what_they_say(num_models, rate, slo, target, first, seed, profile_of):
    profile = profile_of({ONE: {1: [1.0]}, (1, 1, 2): {1: [0.5, 0.55]}, (1, 2, 1): {1: [0.6]}})
    datas = [ModelData(f"m{i}", slo, rate, 2.0, profile) for i in range(num_models)]
    workload = Workload.merge(
        *(GammaProcess(rate, 2.0).generate_workload(d.name, 0, 60, slo, seed + i) for i, d in enumerate(datas))
    )
    if not len(workload):
        return
    cluster = ClusterEnv(first, 2.0, 4)
    plan = plan_capacity(datas, workload, target, cluster)
    plan.placement.verify(datas, replace(cluster, num_devices=plan.num_devices))
    assert devices_needed(plan.placement, cluster) == plan.num_devices
    assert simulate(plan.placement, datas, workload).goodput == pytest.approx(plan.attainment, abs=1e-12)
    assert plan.attainment >= target - 1e-9
    assert 1 <= plan.proven_minimum <= plan.num_devices
    sizes = [size.num_devices for size in plan.tried]
    attained = [size.attainment for size in plan.tried if size.attainment is not None]
    assert sizes == sorted(set(sizes))
    assert plan.num_devices in sizes
    assert attained == sorted(attained)
    assert np.all(np.diff([size.bound for size in plan.tried]) >= 0)
    reached = [size.num_devices for size in plan.tried if size.attainment is not None and size.attainment >= target]
    assert min(reached) == plan.num_devices
    assert plan_capacity(datas, workload, target, cluster) == plan


def test_rules_decide_how_many_devices_it_takes(identical):
    # one queue holds up all behind a request whose device is busy; nothing is dropped
    rules = replace(MAVERIQ, service="profile")
    datas, workload = identical(3)
    plan = plan_capacity(datas, workload, 1.0, CLUSTER, rules)
    assert plan.num_devices == 3
    assert simulate(plan.placement, datas, workload, rules).goodput == 1.0
    hurried = [(arrivals, requests) for arrivals, requests in [identical(1, rate=1.2)]]
    # under AlpaServe's rules two replicas share a load of 1.2; by lot, one of them gets two in a row and is late
    assert plan_capacity(*hurried[0], 1.0, CLUSTER).num_devices == 2
    with pytest.raises(SolverStoppedError):
        plan_capacity(*hurried[0], 1.0, CLUSTER, rules, max_devices=8)


def test_service_by_tokens_is_planned_by_each_requests_own_tokens():
    datas = [ModelData("m", 5.0, 0.2, 1.0, maveriq.load("llama-2-13b"))]
    process = DeterministicProcess(0.2)
    short = process.generate_workload("m", 0, 100, slo=3.0, input_tokens=100, output_tokens=20)
    plan = plan_capacity(datas, short, 1.0, ClusterEnv(8, 48 * GB), MAVERIQ)
    assert simulate(plan.placement, datas, short, MAVERIQ).goodput == 1.0
    long = process.generate_workload("m", 0, 100, slo=3.0, input_tokens=100, output_tokens=2000)
    with pytest.raises(InfeasiblePlacementError, match=r"'m' \(100\.0% .*SLO of 20 of its 20 requests.*is 3 s"):
        plan_capacity(datas, long, 1.0, ClusterEnv(8, 48 * GB), MAVERIQ)


# ---- bad input --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [0, -0.5, 1.01, 99, float("nan"), float("inf"), "0.9", None, True])
def test_a_target_that_is_no_attainment_is_refused(target, identical):
    with pytest.raises(InvalidConfigError, match="target"):
        plan_capacity(*identical(1), target, CLUSTER)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cluster_env": None}, "cluster_env must be a ClusterEnv"),
        ({"cluster_env": 8}, "cluster_env must be a ClusterEnv.*got 8"),
        ({"max_devices": 0}, "max_devices"),
        ({"max_devices": 2.5}, "max_devices"),
        ({"time_budget": -1}, "time_budget"),
        ({"time_budget": float("nan")}, "time_budget"),
        ({"max_evaluations": -1}, "max_evaluations"),
        ({"time_budget": float("inf")}, "needs max_evaluations"),
        ({"seed": -1}, "seed"),
        ({"max_pp": 0}, "max_pp"),
        ({"max_op": 0}, "max_op"),
        ({"num_workers": 0}, "num_workers"),
        ({"rules": "alpaserve"}, "rules"),
    ],
)
def test_an_argument_out_of_range_is_named(arguments, message, identical):
    with pytest.raises(InvalidConfigError, match=message):
        plan_capacity(*identical(1), **{"cluster_env": CLUSTER, **arguments})


def test_an_empty_workload_or_no_model_is_refused(identical):
    datas, workload = identical(1)
    with pytest.raises(InvalidWorkloadError, match="no request"):
        plan_capacity(datas, Workload.empty(), 0.9, CLUSTER)
    with pytest.raises(InvalidConfigError, match="no model"):
        plan_capacity([], workload, 0.9, CLUSTER)


def test_models_and_requests_that_have_nothing_to_do_with_each_other_are_named(identical):
    datas, workload = identical(2)
    strangers = [replace(data, name=f"other{i}") for i, data in enumerate(datas)]
    with pytest.raises(InvalidWorkloadError, match=r"'m0', 'm1'.*'other0', 'other1'"):
        plan_capacity(strangers, workload, 0.9, CLUSTER)
    with pytest.raises(InfeasiblePlacementError, match=r"at most 0\.5000.*20 of 40 requests name no model \('m1'\)"):
        plan_capacity(datas[:1], workload, 0.9, CLUSTER)
    assert plan_capacity(datas[:1], workload, 0.5, CLUSTER).num_devices == 1


def test_a_model_that_fits_no_group_is_named_with_its_memory_before_any_search(identical, profile_of, classic):
    datas, workload = identical(4)
    huge = profile_of({ONE: {1: [1.0]}})
    huge.para_dict[ONE].weight_mem = [64.0 * GB]
    datas[2] = replace(datas[2], profiling_result=huge)
    cluster = ClusterEnv(2, 48 * GB)
    with pytest.raises(InfeasiblePlacementError) as raised:
        plan_capacity(datas, workload, 0.99, cluster, find=classic)
    message = str(raised.value)
    assert "an SLO attainment of 0.99 cannot be reached: on any number of devices at most 0.7500" in message
    assert "model 'm2' (25.0% of the requests) fits no group" in message
    assert "at least 64.000 GiB a device, mem_budget is 48.000 GiB" in message
    assert "'m0'" not in message
    assert not classic.calls
    assert plan_capacity(datas, workload, 0.75, cluster).attainment == 0.75


def test_an_slo_that_no_group_can_meet_is_named_with_its_latency_before_any_search(identical, classic):
    datas, workload = identical(2)
    hasty = workload.select_models(["m1"])
    mixed = Workload.merge(
        workload.select_models(["m0"]), Workload.from_columns(hasty.arrivals, hasty.model_ids, hasty.model_names, 0.5)
    )
    with pytest.raises(InfeasiblePlacementError) as raised:
        plan_capacity(datas, mixed, 0.9, CLUSTER, find=classic)
    assert "at most 0.5000" in str(raised.value)
    assert re.search(r"'m1' \(50\.0% .*20 of its 20 requests.* 1\.02 s at least, its SLO is 0\.5 s", str(raised.value))
    assert not classic.calls


def test_a_model_that_no_allowed_degree_serves_is_named(identical, profile_of):
    _, workload = identical(1)
    datas = [ModelData("m0", 1.1, 0.5, 0.0, profile_of({(1, 1, 4): {1: [0.1] * 4}}))]
    assert plan_capacity(datas, workload, 1.0, CLUSTER).num_devices == 4
    for limits in ({"max_pp": 2}, {"max_devices": 3}):
        with pytest.raises(InfeasiblePlacementError, match=r"'m0'.*profiled on no config that a group can have"):
            plan_capacity(datas, workload, 1.0, CLUSTER, **limits)
    assert plan_capacity(datas, workload, 1.0, ClusterEnv(4, 1.0, 2)).num_devices == 4
    with pytest.raises(InfeasiblePlacementError, match="'m0'"):
        plan_capacity(datas, workload, 1.0, ClusterEnv(4, 1.0, 3))


def test_a_target_not_reached_up_to_max_devices_says_what_was(identical):
    with pytest.raises(SolverStoppedError, match=r"up to 4 devices.*best attains 0\.8000; more is not proven"):
        plan_capacity(*identical(5), 1.0, CLUSTER, max_devices=4)


# ---- stopping ---------------------------------------------------------------------------------------------------


def stopping_at(size, raised):
    """A search that raises instead of searching on `size` devices."""

    def find(model_datas, cluster_env, workload, starts, callback):
        if cluster_env.num_devices == size:
            raise raised
        return ModelParallelismSearch(callback=callback).solve_placement(model_datas, cluster_env, workload)[0]

    return find


def test_an_interrupt_carries_the_plan_of_what_was_reached(identical):
    datas, workload = identical(3, rate=0.4)
    with pytest.raises(PlanInterrupted) as raised:
        plan_capacity(datas, workload, 1.0, replace(CLUSTER, num_devices=8), find=stopping_at(2, KeyboardInterrupt()))
    plan = raised.value.plan
    assert isinstance(plan, CapacityPlan)
    assert plan.num_devices == 3
    assert (raised.value.placement, raised.value.evaluation.goodput) == (plan.placement, 1.0)


def test_an_interrupt_before_the_target_is_reached_carries_the_best_placement(identical):
    better = ModelPlacement([ONE] * 4, [[0], [1], [2], [3]])
    datas, workload = identical(5)
    with pytest.raises(PlanInterrupted) as raised:
        plan_capacity(datas, workload, 1.0, CLUSTER, find=stopping_at(4, SearchInterrupted(placement=better)))
    assert raised.value.plan is None
    assert raised.value.evaluation.goodput == 0.8
    with pytest.raises(PlanInterrupted) as raised:
        plan_capacity(datas, workload, 1.0, CLUSTER, find=stopping_at(2, KeyboardInterrupt()))
    assert (raised.value.plan, raised.value.placement, raised.value.evaluation) == (None, None, None)


def test_a_callback_sees_the_sizes_and_ends_the_search_by_raising(identical):
    seen = []
    plan_capacity(*identical(3), 1.0, CLUSTER, callback=seen.append)
    stages = [progress.stage for progress in seen]
    assert "2 devices: shapes of groups" in stages
    assert "2 devices do not reach 1" in stages
    assert "4 devices reach 1" in stages

    class EnoughError(Exception):
        pass

    def stop(progress):
        if progress.stage.startswith("4 devices"):
            raise EnoughError

    with pytest.raises(EnoughError):
        plan_capacity(*identical(3), 1.0, CLUSTER, callback=stop)
