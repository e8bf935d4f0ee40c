import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ModelPlacement
from alpa_serve.simulator.fast import simulate_counts
from alpa_serve.simulator.placement_simulation import PlacementSimulation
from alpa_serve.simulator.problem import ReplicaTable


def normalised_start(draw, case):
    num_models, num_configs = case.sizes
    members = st.lists(st.integers(0, num_models - 1), unique=True)
    groups = draw(st.lists(st.tuples(st.sampled_from(range(num_configs)), members), max_size=5))
    return ModelPlacement([case.configs[config] for config, _ in groups], [models for _, models in groups]).normalize()


def counts(case, placement):
    return simulate_counts(
        case.requests, ReplicaTable.of_groups(case.models, placement.group_configs, placement.group_models)
    )


def check(case, simulation, placement):
    """Check that the simulation is of this normalised placement, and finds what a full one finds."""
    expected = counts(case, placement)
    order = simulation.order
    assert [case.configs[simulation.groups.config[slot]] for slot in order] == placement.group_configs
    assert simulation.group_models() == placement.group_models
    np.testing.assert_array_equal(simulation.model_num_good, expected.model_num_good)
    np.testing.assert_array_equal(simulation.group_num_requests[order], expected.group_num_requests)
    assert simulation.latency_sum == expected.model_latency.sum()


@pytest.mark.parametrize("follows", [True, False], ids=["followed", "simulated anew"])
@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_replicas_added_one_by_one_attain_what_a_full_simulation_finds(engine_cases, follows, data):
    case = data.draw(engine_cases)
    placement = normalised_start(data.draw, case)

    def resimulate(config_ids, models):
        found = counts(case, ModelPlacement([case.configs[config] for config in config_ids], models))
        return found.model_num_good, found.model_latency.sum(), found.group_num_requests

    configs = [case.configs.index(config) for config in placement.group_configs]
    simulation = PlacementSimulation(case.problem, configs, placement.group_models, None if follows else resimulate)
    check(case, simulation, placement)
    pairs = [(slot, model) for slot in range(len(configs)) for model in range(len(case.models))]
    for slot, model in data.draw(st.permutations(pairs)):
        if not simulation.groups.holds[slot, model]:
            group_id = simulation.order.tolist().index(slot)
            simulation.add_replica(slot, model)
            placement = placement.add_model(group_id, model).normalize()
            check(case, simulation, placement)
