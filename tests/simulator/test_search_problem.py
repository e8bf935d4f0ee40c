import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ServingRules
from alpa_serve.scheduling.scheduler import dispatch_draws
from alpa_serve.simulator.problem import ModelTable, RequestTable
from alpa_serve.simulator.search_problem import search_problem, with_configs

ONE, TWO = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2)


@given(data=st.data())
@settings(deadline=None)
def test_requests_of_a_model_lie_together_in_the_order_of_arrival(engine_cases, data):
    case = data.draw(engine_cases)
    problem, requests = case.problem, case.requests
    registered = np.flatnonzero(requests.model_ids >= 0)
    assert len(problem.turn) == len(registered)
    for model in range(len(case.models)):
        mine = np.arange(problem.first_request[model], problem.first_request[model + 1])
        assert len(mine) == requests.model_num_requests[model]
        assert np.all(np.diff(problem.turn[mine]) > 0)
        assert np.all(problem.model_by_turn[problem.turn[mine]] == model)
        np.testing.assert_array_equal(problem.by_turn[problem.turn[mine]], mine)
    np.testing.assert_array_equal(problem.arrivals[problem.by_turn], requests.arrivals[registered])
    np.testing.assert_array_equal(problem.slos[problem.by_turn], requests.slos[registered])
    np.testing.assert_array_equal(problem.input_tokens[problem.by_turn], requests.input_tokens[registered])
    np.testing.assert_array_equal(problem.output_tokens[problem.by_turn], requests.output_tokens[registered])


@given(data=st.data())
@settings(deadline=None)
def test_a_request_keeps_the_draw_of_its_place_in_the_whole_workload(engine_cases, data):
    case = data.draw(engine_cases)
    rules = case.models.rules
    expected = dispatch_draws(rules, len(case.requests))[case.requests.model_ids >= 0]
    if rules.dispatch == "random":
        np.testing.assert_array_equal(case.problem.draws[case.problem.by_turn], expected)
    else:
        assert len(case.problem.draws) == 0


@pytest.fixture
def models_of(profile_of):
    """Return models_of(latencies, ...) -> a table of models with these stage latencies per config."""

    def build(*latencies, rules=None):
        profiles = [
            profile_of({config: {1: stages} for config, stages in by_config.items()}) for by_config in latencies
        ]
        names = [f"m{i}" for i in range(len(profiles))]
        return ModelTable(names, profiles, rules=rules or ServingRules(stage_penalty=0.0))

    return build


NO_REQUESTS = RequestTable.of_arrays(np.empty(0), np.empty(0, np.int32), np.empty(0), 2)


def test_costs_are_those_of_the_profiles_and_zero_where_there_is_none(models_of):
    models = models_of({ONE: [0.5], TWO: [0.2, 0.4]}, {ONE: [0.7]})
    weights = np.array([[1.0, 1.0], [np.inf, 1.0]])
    problem = search_problem(models, NO_REQUESTS, [TWO, ONE], weights)
    assert problem.latency.tolist() == [[[0.2, 0.4], [0.5, 0.0]], [[0.0, 0.0], [0.7, 0.0]]]
    assert problem.num_stages.tolist() == [2, 1]
    assert problem.num_devices.tolist() == [2, 1]
    np.testing.assert_array_equal(problem.weights, weights)


def test_other_configs_change_the_costs_and_nothing_else(models_of):
    models = models_of({ONE: [0.5], TWO: [0.2, 0.4]}, {ONE: [0.7]})
    problem = search_problem(models, NO_REQUESTS, [ONE], np.ones((2, 1)))
    unknown = ParallelConfig(1, 4, 1)
    weights = np.full((2, 2), np.inf)
    other = with_configs(problem, models, [TWO, unknown], weights)
    fresh = search_problem(models, NO_REQUESTS, [TWO, unknown], weights)
    for ours, theirs in zip(other, fresh, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_profile_without_the_figures_that_service_needs_is_reported(models_of):
    models = models_of({ONE: [0.5]}, {ONE: [0.7]}, rules=ServingRules(service="tokens"))
    with pytest.raises(InvalidProfileError):
        search_problem(models, NO_REQUESTS, [ONE], np.ones((2, 1)))
    # nothing is needed where nothing can be placed
    search_problem(models, NO_REQUESTS, [ONE], np.full((2, 1), np.inf))


def test_there_may_be_no_model_no_config_and_no_request(models_of):
    requests = RequestTable.of_arrays(np.empty(0), np.empty(0, np.int32), np.empty(0), 0)
    problem = search_problem(models_of(), requests, [], np.empty((0, 0)))
    assert problem.latency.shape == (0, 0, 1)
    assert problem.first_request.tolist() == [0]
