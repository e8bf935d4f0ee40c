import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ModelPlacement
from alpa_serve.simulator.controller import approximate_one_case, approximate_one_case_one_placement
from alpa_serve.simulator.fast import simulate_counts
from alpa_serve.simulator.problem import ModelTable, ReplicaTable, RequestTable


def simulate(problem, **options):
    names = [f"m{i}" for i in range(len(problem.profiles))]
    return approximate_one_case_one_placement(
        problem.placement,
        names,
        problem.profiles,
        problem.model_ids,
        problem.slos,
        problem.arrivals,
        **options,
    )


def oracle(problem):
    """Serve one request after the other, as semantics.md says; (group or None, finish, good) of each."""
    configs, members = problem.placement.group_configs, problem.placement.group_models
    clocks = [[0.0] * config.pp for config in configs]
    outcomes = []
    for model, slo, arrival in zip(problem.model_ids, problem.slos, problem.arrivals, strict=True):
        holding = [group for group in range(len(configs)) if model in members[group]]
        if not holding:
            outcomes.append((None, arrival, False))
            continue
        group = min(holding, key=lambda group: clocks[group][-1])
        config, t, ends = configs[group], arrival, []
        for clock, latency in zip(clocks[group], problem.profiles[model].para_dict[config].latency[1], strict=True):
            t = max(t, clock) + latency * (1 + 0.009 * config.pp)
            ends.append(t)
        good = t + 0.011 - arrival <= slo
        if good:
            clocks[group] = ends
        outcomes.append((group, t + 0.011 if good else arrival, good))
    return outcomes


def check_counts(run, problem, outcomes):
    """Check that every request ends once and is counted where it was served."""
    num_models, num_groups = len(problem.profiles), len(problem.placement.group_configs)
    models = problem.model_ids.tolist()
    good = [good for _, _, good in outcomes]
    groups = [group for group, _, _ in outcomes]
    assert len(run.start) == len(run.finish) == len(run.good) == len(models)
    assert run.model_num_requests.tolist() == [models.count(m) for m in range(num_models)]
    assert run.model_num_good_requests.tolist() == [
        sum(model == m and ok for model, ok in zip(models, good, strict=True)) for m in range(num_models)
    ]
    assert run.group_num_requests.tolist() == [groups.count(g) for g in range(num_groups)]
    assert run.group_num_good_requests.tolist() == [
        sum(group == g and ok for group, ok in zip(groups, good, strict=True)) for g in range(num_groups)
    ]


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_every_request_fares_as_the_oracle_says(simulator_problems, data):
    problem = data.draw(simulator_problems)
    outcomes = oracle(problem)
    run = simulate(problem)
    assert run.good.tolist() == [good for _, _, good in outcomes]
    np.testing.assert_allclose(run.finish, [finish for _, finish, _ in outcomes], rtol=1e-12, atol=0)
    np.testing.assert_array_equal(run.start, problem.arrivals)
    check_counts(run, problem, outcomes)


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_counting_alone_gives_the_counts_of_the_full_simulation(simulator_problems, data):
    problem = data.draw(simulator_problems)
    names = [f"m{i}" for i in range(len(problem.profiles))]
    models = ModelTable(names, problem.profiles)
    requests = RequestTable.of_arrays(problem.arrivals, problem.model_ids, problem.slos, len(models))
    counts = simulate_counts(requests, ReplicaTable.of_placement(models, problem.placement))
    run = simulate(problem)
    assert counts.model_num_good.tolist() == run.model_num_good_requests.tolist()
    assert counts.group_num_requests.tolist() == run.group_num_requests.tolist()
    latency = run.finish - run.start
    expected = [latency[problem.model_ids == m].sum() for m in range(len(models))]
    # rounded to 2^-24 s each
    np.testing.assert_allclose(counts.model_latency, expected, rtol=0, atol=len(latency) * 2**-25 + 1e-12)


@given(data=st.data())
@settings(deadline=None, max_examples=50)
def test_the_mixed_argument_is_without_effect(simulator_problems, data):
    problem = data.draw(simulator_problems)
    for one, other in zip(simulate(problem, mixed=True), simulate(problem, mixed=False), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def two_stage_run(profile_of):
    """Run one model of stages 0.1 s and 0.2 s on one pipeline; requests at the given arrivals."""

    def run(arrivals, slos):
        profile = profile_of({(1, 1, 2): {1: [0.1, 0.2]}})
        placement = ModelPlacement([(1, 1, 2)], [[0]])
        return approximate_one_case_one_placement(
            placement, ["m0"], [profile], np.zeros(len(arrivals), np.int32), np.array(slos), np.array(arrivals)
        )

    return run


def test_stages_overlap_and_take_the_penalty_and_the_overhead(two_stage_run):
    run = two_stage_run([0.0, 0.0], [9.0, 9.0])
    # stages take 0.1018 s and 0.2036 s; the second request waits for the second stage
    assert run.finish == pytest.approx([0.1018 + 0.2036 + 0.011, 0.1018 + 2 * 0.2036 + 0.011], abs=1e-12)
    assert run.good.all()


def test_a_dropped_request_takes_no_time_but_counts_for_its_group(two_stage_run):
    run = two_stage_run([0.0, 0.0, 0.0], [9.0, 0.4, 9.0])
    assert run.good.tolist() == [True, False, True]
    assert run.finish == pytest.approx([0.3164, 0.0, 0.52], abs=1e-12)
    assert run.group_num_requests.tolist() == [3]
    assert run.group_num_good_requests.tolist() == [2]


def test_the_first_of_equally_free_groups_is_taken(profile_of):
    profile = profile_of({(1, 1, 1): {1: [1.0]}})
    placement = ModelPlacement([(1, 1, 1)] * 3, [[], [0], [0]])
    ids, slos, arrivals = np.zeros(3, np.int32), np.full(3, np.inf), np.array([0.0, 0.1, 0.2])
    run = approximate_one_case_one_placement(placement, ["m0"], [profile], ids, slos, arrivals)
    assert run.group_num_requests.tolist() == [0, 2, 1]
    assert run.finish == pytest.approx([1.02, 1.12, 2.029], abs=1e-12)


def check_against_golden(stats, expected, per_model):
    assert stats.goodput == pytest.approx(expected["goodput"], abs=1e-4)
    assert stats.latency_mean == pytest.approx(expected["latency_mean"], rel=1e-3)
    assert {model.name for model in stats.per_model_stats} == set(per_model)


def test_the_golden_simulations_are_reproduced(golden, model_datas_of, workload_of, serving_case_of):
    cases = golden("simulations")
    assert len(cases) >= 40
    for case in cases:
        expected = case["expect"]
        workload = workload_of(case["models"], case["duration"])
        assert len(workload) == expected["num_requests_simulated"]
        placement = ModelPlacement(case["placement"]["group_configs"], case["placement"]["group_models"])
        serving = serving_case_of(model_datas_of(case["models"]), workload, placement)

        stats, _ = approximate_one_case(serving, fast_stats=True)
        overall = {"goodput": expected["goodput_all"], "latency_mean": expected["latency_mean_all"]}
        check_against_golden(stats, overall, expected["per_model_goodput"])
        assert stats.group_num_requests == expected["group_num_requests"]
        goodputs = {model.name: model.goodput for model in stats.per_model_stats}
        assert goodputs == pytest.approx(expected["per_model_goodput"], abs=1e-4)

        after = expected["after_warmup"]
        stats, _ = approximate_one_case(serving)
        check_against_golden(stats, after, after["per_model"])
        assert stats.num_requests == after["num_requests"]
        assert stats.request_rate == pytest.approx(after["request_rate"], rel=1e-3)
        # the golden dict lists the models in AlpaServe's order
        counts = [model.num_requests for model in stats.per_model_stats]
        assert counts == [figures["n"] for figures in after["per_model"].values()]
        for model in stats.per_model_stats:
            figures = after["per_model"][model.name]
            assert (model.num_requests, model.goodput) == (figures["n"], pytest.approx(figures["goodput"], abs=1e-4))
            for name in ("latency_mean", "latency_p90", "latency_p99"):
                assert getattr(model, name) == pytest.approx(figures[name], rel=1e-3), (model.name, name)
