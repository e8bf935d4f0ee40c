import math
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from alpa_serve.errors import (
    InfeasiblePlacementError,
    InvalidConfigError,
    InvalidWorkloadError,
    PlanInterrupted,
    SolverStoppedError,
)
from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.placement_policy import ModelParallelismSearch, ScalePlan, highest_rate_scale, tightest_slo_scale
from alpa_serve.placement_policy.scale_search import scaled_workload
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import MAVERIQ
from alpa_serve.simulator import simulate
from alpa_serve.simulator.workload import DeterministicProcess, GammaProcess, Workload
from alpa_serve.util import GB

pytestmark = pytest.mark.usefixtures("quick_plans")

ONE = ParallelConfig(1, 1, 1)
CLUSTER = ClusterEnv(num_devices=2, mem_budget=1.0)
PLANNERS = [highest_rate_scale, tightest_slo_scale]
# one of the models in MODELS, at a fixed size that is neither plenty nor hopeless
MODELS = [{"profile": "test-2GB-100ms", "rate": 8.0, "cv": 3.0, "slo": 0.4}] * 4


@pytest.fixture(scope="module")
def regular(profile_of):
    """Return regular(n, slo) -> n models that take a second (1.02 s with overheads), a request every 2 s for each."""

    def build(num_models, slo=1.1, num_requests=50):
        profile = profile_of({ONE: {1: [1.0]}})
        datas = [ModelData(f"m{i}", slo, 0.5, 0.0, profile) for i in range(num_models)]
        arrivals = [DeterministicProcess(0.5).generate_workload(d.name, 0, 2 * num_requests, slo=slo) for d in datas]
        return datas, Workload.merge(*arrivals)

    return build


@pytest.fixture
def classic():
    """A search that counts its calls."""

    class Classic:
        def __init__(self):
            self.calls = 0

        def __call__(self, model_datas, cluster_env, workload, starts, callback):
            self.calls += 1
            return ModelParallelismSearch(callback=callback).solve_placement(model_datas, cluster_env, workload)[0]

    return Classic()


@pytest.mark.parametrize("tolerance", [0.1, 0.01, 0.001])
def test_the_highest_rate_is_where_a_device_can_no_longer_keep_up(tolerance, regular):
    plan = highest_rate_scale(*regular(2), 1.0, CLUSTER, tolerance=tolerance)
    # 49 gaps may each be shorter than the 1.009 s of service by a 49th of the 0.08 s that the SLO leaves
    limit = 2 / (1.009 - 0.08 / 49)
    assert limit / (1 + tolerance) <= plan.scale <= limit + 1e-9
    assert (plan.axis, plan.attainment) == ("rate", 1.0)


@pytest.mark.parametrize("tolerance", [0.1, 0.01])
def test_the_tightest_slo_is_the_latency_on_an_idle_device(tolerance, regular):
    plan = tightest_slo_scale(*regular(2, slo=2.04), 1.0, CLUSTER, tolerance=tolerance)
    assert 0.5 - 1e-6 <= plan.scale <= 0.5 * (1 + tolerance)
    # which no placement can better
    assert plan.ruled_out == pytest.approx(0.5, rel=1e-5)


def test_slos_that_are_too_tight_are_loosened(regular):
    plan = tightest_slo_scale(*regular(2, slo=0.102), 1.0, CLUSTER)
    assert 10 - 1e-4 <= plan.scale <= 10.1


def test_a_rate_that_is_too_high_is_lowered(regular):
    datas, workload = regular(2)
    plan = highest_rate_scale(datas, scaled_workload(workload, rate_scale=20), 1.0, CLUSTER)
    assert 0.098 < plan.scale < 0.1


def test_more_devices_take_a_higher_rate_and_tighter_slos(model_datas_of, workload_of):
    datas, workload = model_datas_of(MODELS), workload_of(MODELS, 40)
    clusters = [ClusterEnv(size, 5 * GB) for size in (4, 8)]
    rates = [highest_rate_scale(datas, workload, 0.95, cluster).scale for cluster in clusters]
    slos = [tightest_slo_scale(datas, workload, 0.95, cluster).scale for cluster in clusters]
    assert rates[0] < rates[1]
    assert slos[0] > slos[1]


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize("rules", [None, replace(MAVERIQ, service="profile")], ids=["alpaserve", "maveriq"])
def test_plans_hold_what_they_say(planner, rules, model_datas_of, workload_of):
    datas, workload = model_datas_of(MODELS), workload_of(MODELS, 40)
    chosen = {} if rules is None else {"rules": rules}
    cluster = ClusterEnv(6, 5 * GB)
    plan = planner(datas, workload, 0.9, cluster, **chosen)
    plan.placement.verify(datas, cluster)
    axis = {"rate": "rate_scale", "slo": "slo_scale"}[plan.axis]
    result = simulate(plan.placement, datas, scaled_workload(workload, **{axis: plan.scale}), *chosen.values())
    assert result.goodput == plan.attainment >= 0.9
    scales = [point.scale for point in plan.tried]
    assert scales == sorted(set(scales))
    (point,) = [point for point in plan.tried if point.scale == plan.scale]
    assert point.attainment == plan.attainment
    reached = [p.scale for p in plan.tried if p.attainment is not None and p.attainment >= 0.9]
    assert plan.scale == (max(reached) if plan.axis == "rate" else min(reached))
    # the first harder one that was searched is within the tolerance
    failed = [p.scale for p in plan.tried if p.attainment is not None and p.attainment < 0.9]
    nearest = min(failed) / plan.scale if plan.axis == "rate" else plan.scale / max(failed)
    assert nearest <= 1.01 + 1e-9
    assert planner(datas, workload, 0.9, cluster, **chosen) == plan
    assert f"{plan.axis} scale {plan.scale:.4g} attains {plan.attainment:.4f} (target 0.9)" in str(plan)
    assert str(plan).splitlines()[-1] == str(plan.placement)


@pytest.mark.parametrize("planner", PLANNERS)
def test_known_placements_spare_searches(planner, regular, classic):
    planner(*regular(2, slo=1.5), 1.0, CLUSTER, find=classic, tolerance=0.001)
    # what is found at scale 1 holds as far as any placement does: one search there, one just beyond the last
    assert classic.calls <= 2


def test_the_bound_rules_out_scales_without_a_search(regular, classic):
    seen = Counter()

    def bound(model_datas, cluster_env, workload, rules):
        scale = 2 / float(np.diff(workload.arrivals).max())
        seen[round(scale, 9)] += 1
        assert model_datas[0].rate == pytest.approx(0.5 * scale)
        return 1.0 if scale <= 2.2 else 0.9

    plan = highest_rate_scale(*regular(1), 1.0, CLUSTER, find=classic, upper_bound=bound)
    # two devices share the only model
    assert 2.2 / 1.05 <= plan.scale <= plan.ruled_out <= 2.2 * 1.05
    assert set(seen.values()) == {1}
    assert classic.calls == 1
    assert re.search(r"^ +4 +0\.9000 +impossible$", str(plan), re.MULTILINE)
    assert all(point.bound is None or point.attainment is None or point.bound == 1 for point in plan.tried)


def test_a_load_that_nothing_limits_ends_at_the_largest_scale(regular):
    datas, workload = regular(1, slo=math.inf)
    plan = highest_rate_scale(datas, workload, 1.0, CLUSTER)
    assert plan.scale == 2**20
    assert tightest_slo_scale(datas, workload, 1.0, CLUSTER).scale == 2.0**-20
    assert plan.ruled_out is None
    assert "no scale is ruled out" in str(plan)


def test_scaling_a_workload_keeps_all_but_arrivals_and_slos():
    workload = Workload.merge(
        GammaProcess(3, 2).generate_workload("a", 5, 20, slo=2.0, seed=1, input_tokens=7, output_tokens=3),
        GammaProcess(3, 2).generate_workload("b", 5, 20, seed=2, input_tokens=8, output_tokens=4),
    )
    faster = scaled_workload(workload, rate_scale=2.0)
    np.testing.assert_array_equal(faster.arrivals, workload.arrivals / 2)
    tighter = scaled_workload(workload, slo_scale=0.5)
    np.testing.assert_array_equal(tighter.slos, workload.slos / 2)
    for scaled in (faster, tighter):
        assert scaled.model_names == workload.model_names
        for column in ("model_ids", "input_tokens", "output_tokens"):
            np.testing.assert_array_equal(getattr(scaled, column), getattr(workload, column))
    assert set(workload.slos) == {2.0, math.inf}


# ---- bad input and stopping -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("planner", PLANNERS)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tolerance": 0}, "tolerance"),
        ({"tolerance": -0.1}, "tolerance"),
        ({"tolerance": float("nan")}, "tolerance"),
        ({"target": 0}, "target"),
        ({"target": 1.2}, "target"),
        ({"cluster_env": None}, "cluster_env"),
        ({"time_budget": -1}, "time_budget"),
    ],
)
def test_an_argument_out_of_range_is_named(planner, arguments, message, regular):
    with pytest.raises(InvalidConfigError, match=message):
        planner(*regular(1), **{"cluster_env": CLUSTER, **arguments})


@pytest.mark.parametrize("planner", PLANNERS)
def test_an_empty_workload_is_refused(planner, regular):
    with pytest.raises(InvalidWorkloadError, match="no request"):
        planner(regular(1)[0], Workload.empty(), 0.9, CLUSTER)


def test_an_slo_that_no_rate_helps_to_meet_is_named_before_any_search(regular, classic):
    with pytest.raises(InfeasiblePlacementError, match=r"at any rate at most 0\.0000.*'m0'.*1\.02 s.*SLO is 0\.5 s"):
        highest_rate_scale(*regular(1, slo=0.5), 0.9, CLUSTER, find=classic)
    assert not classic.calls


def test_a_model_that_fits_no_group_and_an_slo_of_zero_limit_every_slo_scale(regular, profile_of, classic):
    datas, workload = regular(2)
    large = profile_of({ONE: {1: [1.0]}})
    large.para_dict[ONE].weight_mem = [2.0 * GB]
    with pytest.raises(InfeasiblePlacementError, match=r"whatever the SLOs.*0\.5000.*'m1'.*fits no group.*2\.000 GiB"):
        tightest_slo_scale([datas[0], replace(datas[1], profiling_result=large)], workload, 0.9, CLUSTER, find=classic)
    with pytest.raises(InfeasiblePlacementError, match=r"'m0'.*its SLO is 0 s"):
        tightest_slo_scale(*regular(1, slo=0.0), 0.9, CLUSTER, find=classic)
    assert not classic.calls


@pytest.mark.parametrize("planner", PLANNERS)
def test_models_that_do_not_fit_together_say_what_was_reached(planner, regular):
    # two devices hold two models of three, at any rate and SLO
    with pytest.raises(SolverStoppedError, match=r"reaches an SLO attainment of 0\.9 .*best attains 0\.6667"):
        planner(*regular(3), 0.9, CLUSTER)
    with pytest.raises(InfeasiblePlacementError, match=r"at any (rate|slo) scale.*at most 0\.6667 is possible"):
        planner(*regular(3), 0.9, CLUSTER, upper_bound=lambda *_: 2 / 3)


@pytest.mark.parametrize("planner", PLANNERS)
def test_an_interrupt_carries_the_plan_so_far(planner, regular):
    def find(model_datas, cluster_env, workload, starts, callback):
        if starts:
            raise KeyboardInterrupt
        return ModelParallelismSearch(callback=callback).solve_placement(model_datas, cluster_env, workload)[0]

    with pytest.raises(PlanInterrupted) as raised:
        planner(*regular(2, slo=1.5), 1.0, CLUSTER, find=find, upper_bound=lambda *_: 1.0)
    plan = raised.value.plan
    assert isinstance(plan, ScalePlan)
    assert plan.attainment == raised.value.evaluation.goodput == 1.0
    assert plan.placement == raised.value.placement


@pytest.mark.parametrize("planner", PLANNERS)
def test_a_callback_sees_the_scales_and_ends_the_search_by_raising(planner, regular):
    seen = []
    plan = planner(*regular(2), 1.0, CLUSTER, callback=seen.append)
    assert any(progress.stage == f"{plan.axis} scale 1 reaches 1" for progress in seen)

    class EnoughError(Exception):
        pass

    def stop(progress):
        raise EnoughError

    with pytest.raises(EnoughError):
        planner(*regular(2), 1.0, CLUSTER, callback=stop)
