"""Every rule against an oracle, and the laws that hold whatever the rules."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy import ClusterEnv, PlacementEvaluator
from alpa_serve.simulator import simulate
from alpa_serve.simulator.controller import approximate_one_case, approximate_one_case_one_placement
from alpa_serve.util import GB


def stage_seconds(profile, config, rules, inputs, outputs):
    """Return what each stage takes, the idle penalty apart."""
    slower = 1 + rules.stage_penalty * config.pp
    if rules.service == "tokens":
        stages = [profile.prefill_decode(config).service_s(inputs, outputs) / config.pp] * config.pp
    else:
        stages = profile.para_dict[config].latency[1]
    return [stage * slower + rules.request_overhead_s / config.pp for stage in stages]


def oracle(case, rules):
    """Serve the requests one by one, as the rules' docstrings say: (group, start, finish, good, work) of each."""
    configs = case.placement.group_configs
    names = {model.name: i for i, model in enumerate(case.models)}
    stage_free = [[0.0] * config.pp for config in configs]
    last_start, outcomes = {}, []
    draws = np.random.default_rng(rules.seed).random(len(case.workload))
    for request, draw in zip(case.workload.requests, draws, strict=True):
        arrival = float(case.workload.arrivals[request.idx])
        model = names.get(request.model_name)
        holding = [g for g, members in enumerate(case.placement.group_models) if model in members]
        if not holding:
            outcomes.append((-1, arrival, arrival, False, 0.0))
            continue
        if rules.dispatch == "random":
            group = holding[int(draw * len(holding))]
        else:
            group = min(holding, key=lambda g: max(stage_free[g]))
        config, free = configs[group], stage_free[group]
        queue = "all" if rules.queueing == "global_fifo" else group
        ready = max(free) if rules.execution == "exclusive" else free[0]
        start = max(arrival, ready, last_start.get(queue, 0.0)) + rules.dispatch_interval_s
        seconds = stage_seconds(
            case.models[model].profiling_result, config, rules, request.input_tokens, request.output_tokens
        )
        if start - max(free) > rules.idle_after_s:
            seconds = [stage + rules.idle_penalty_s for stage in seconds]
        t, ends = start, []
        for stage, until in zip(seconds, free, strict=True):
            t = max(t, until) + stage
            ends.append(t)
        finish = t + rules.fixed_overhead_s
        slo = math.inf if request.slo is None else request.slo
        good = finish - arrival <= slo
        if good or rules.admission == "all":
            stage_free[group] = [t] * config.pp if rules.execution == "exclusive" else ends
            last_start[queue] = start
            outcomes.append((group, start, finish, good, sum(seconds)))
        else:
            outcomes.append((group, arrival, arrival, False, 0.0))
    return outcomes


def nearly_on_time(case, outcomes):
    """Whether some request is so close to its SLO that rounding decides."""
    slack = [
        finish - arrival - slo
        for (_, _, finish, _, _), arrival, slo in zip(outcomes, case.workload.arrivals, case.workload.slos, strict=True)
    ]
    return any(abs(seconds) < 1e-9 for seconds in slack)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_every_request_fares_as_the_oracle_says_under_all_rules(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    outcomes = oracle(case, rules)
    result = simulate(*case, rules)
    assume(not nearly_on_time(case, outcomes))
    assert result.group.tolist() == [group for group, *_ in outcomes]
    assert result.good.tolist() == [good for _, _, _, good, _ in outcomes]
    for name, column in (("start", 1), ("finish", 2), ("work", 4)):
        expected = [outcome[column] for outcome in outcomes]
        np.testing.assert_allclose(getattr(result, name), expected, rtol=1e-9, atol=1e-12, err_msg=name)


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_every_request_ends_exactly_once(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    result = simulate(*case, rules)
    n = len(case.workload)
    assert len(result) == len(result.served) == len(result.finish) == n
    placed = result.group >= 0
    assert not (result.good & ~result.served).any()
    assert not (result.served & ~placed).any()
    np.testing.assert_array_equal(result.served, placed if rules.admission == "all" else result.good)
    np.testing.assert_array_equal(result.finish[~result.served], result.arrivals[~result.served])
    assert (result.start >= result.arrivals).all()
    assert (result.finish >= result.start).all()
    assert result.group_num_requests.sum() == placed.sum()
    assert (result.good == (result.served & (result.latency <= result.slos))).all()


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_no_device_serves_two_requests_at_once_under_exclusive_execution(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), replace(data.draw(serving_rules), execution="exclusive")
    result = simulate(*case, rules)
    for group in range(result.num_groups):
        mine = result.served & (result.group == group)
        start, end = result.start[mine], result.finish[mine] - rules.fixed_overhead_s
        assert (start[1:] >= end[:-1] - 1e-12).all()


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_requests_start_in_the_order_of_arrival_under_one_queue(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    result = simulate(*case, replace(rules, queueing="global_fifo"))
    assert (np.diff(result.start[result.served]) >= 0).all()


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_the_total_busy_time_is_the_sum_of_the_served_work(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    rules = replace(rules, idle_penalty_s=0.0)
    result = simulate(*case, rules)
    expected = np.zeros(result.num_groups)
    for request, group, served in zip(case.workload.requests, result.group, result.served, strict=True):
        if served:
            profile = case.models[int(request.model_name[1:])].profiling_result
            config = case.placement.group_configs[group]
            expected[group] += sum(stage_seconds(profile, config, rules, request.input_tokens, request.output_tokens))
    np.testing.assert_allclose(result.group_work, expected, rtol=1e-9, atol=1e-12)
    if rules.execution == "exclusive":
        busy = np.where(result.served, result.finish - rules.fixed_overhead_s - result.start, 0.0)
        np.testing.assert_allclose(busy, result.work, rtol=1e-9, atol=1e-12)


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_adding_capacity_never_changes_the_past(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    model = data.draw(st.sampled_from(range(len(case.models))))
    config = data.draw(st.sampled_from(sorted(case.models[model].profiling_result.para_dict)))
    more = ModelPlacement([*case.placement.group_configs, config], [*case.placement.group_models, [model]])
    first = next((r.idx for r in case.workload.requests if r.model_name == f"m{model}"), len(case.workload))
    before, after = simulate(*case, rules), simulate(more, *case[1:], rules)
    for name in ("start", "finish", "good", "group", "served", "work"):
        np.testing.assert_array_equal(getattr(before, name)[:first], getattr(after, name)[:first])


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_later_requests_never_change_the_past(simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    cut = data.draw(st.integers(0, len(case.workload)))
    whole, part = simulate(*case, rules), simulate(*case[:2], case.workload[:cut], rules)
    for name in ("start", "finish", "good", "group", "served", "work"):
        np.testing.assert_array_equal(getattr(whole, name)[:cut], getattr(part, name))


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_every_way_in_gives_the_same_figures(serving_case_of, simulation_cases, serving_rules, data):
    case, rules = data.draw(simulation_cases), data.draw(serving_rules)
    result = simulate(*case, rules)
    stats, _ = approximate_one_case(serving_case_of(case.models, case.workload, case.placement), warmup=0, rules=rules)
    ours = result.stats()
    for name in ("goodput", "latency_mean", "num_requests", "request_rate", "group_num_requests"):
        assert getattr(ours, name) == getattr(stats, name), name
    for one, other in zip(ours.per_model_stats, stats.per_model_stats, strict=True):
        assert (one.name, one.goodput, one.latency.tolist()) == (other.name, other.goodput, other.latency.tolist())
    evaluation = PlacementEvaluator(case.models, ClusterEnv(64, 64 * GB), case.workload, rules=rules).evaluate(
        case.placement
    )
    assert evaluation.goodput == result.goodput
    assert evaluation.group_num_requests.tolist() == result.group_num_requests.tolist()
    n = max(len(case.workload), 1)
    # summed in steps of 2^-24 s
    assert evaluation.latency_mean == pytest.approx(result.latency.sum() / n, rel=1e-9, abs=2**-25)
    run = approximate_one_case_one_placement(
        case.placement,
        [model.name for model in case.models],
        [model.profiling_result for model in case.models],
        np.where(case.workload.model_ids == len(case.models), -1, case.workload.model_ids),
        case.workload.slos,
        case.workload.arrivals,
        rules=rules,
        input_tokens=case.workload.input_tokens,
        output_tokens=case.workload.output_tokens,
    )
    np.testing.assert_array_equal(run.finish, result.finish)
