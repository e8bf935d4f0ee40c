import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy import PlacementEvaluator
from alpa_serve.placement_policy.resizing import copied, devices_needed, shrunk
from alpa_serve.profiling import ParallelConfig
from alpa_serve.simulator.workload import DeterministicProcess, Workload

ONE, PIPE, TENSOR, SQUARE = (ParallelConfig(1, op, pp) for op, pp in ((1, 1), (1, 2), (2, 1), (2, 2)))
CONFIGS = {ONE: [1.0], PIPE: [0.5, 0.5], TENSOR: [0.6], SQUARE: [0.3, 0.3]}


@pytest.fixture(scope="module")
def evaluator_of(profile_of):
    """Return evaluator_of(rates, mem_budget) -> an evaluator of models with a request every 1 / rate seconds."""

    def build(rates, mem_budget=10.0):
        profile = profile_of({config: {1: stages} for config, stages in CONFIGS.items()})
        datas = [ModelData(f"m{i}", 3.0, rate, 0.0, profile) for i, rate in enumerate(rates)]
        arrivals = [DeterministicProcess(data.rate).generate_workload(data.name, 0, 60, slo=3.0) for data in datas]
        return PlacementEvaluator(datas, ClusterEnv(8, mem_budget, 4), Workload.merge(*arrivals))

    return build


def size(placement):
    return sum(config.num_devices for config in placement.group_configs)


@pytest.mark.parametrize(
    ("configs", "per_node", "needed"),
    [
        ([ONE], 8, 1),
        ([SQUARE, PIPE], 8, 6),
        ([ParallelConfig(1, 3, 1)] * 3, 8, 11),  # two fit a node of eight, the third starts the next
        ([ParallelConfig(1, 8, 2), ONE], 8, 17),
        ([], 8, 1),
    ],
)
def test_devices_needed_are_those_that_tear_no_node(configs, per_node, needed):
    placement = ModelPlacement.empty_groups(configs)
    assert devices_needed(placement, ClusterEnv(1, 1.0, per_node)) == needed
    assert ClusterEnv(needed, 1.0, per_node).can_hold([config.num_devices for config in configs])


def test_groups_that_hold_nothing_go_first(evaluator_of):
    steps = shrunk(ModelPlacement([ONE, PIPE, ONE], [[], [0], []]), evaluator_of([0.5]))
    assert next(steps) == ModelPlacement([PIPE], [[0]])


def test_the_group_that_is_missed_least_is_dropped(evaluator_of):
    # model 1 has next to no requests
    evaluator = evaluator_of([0.9, 0.1])
    steps = list(shrunk(ModelPlacement([ONE, ONE], [[0], [1]]), evaluator))
    assert steps == [ModelPlacement([ONE], [[0]])]


def test_a_group_is_shrunk_where_dropping_it_would_cost_requests(evaluator_of):
    first, *_ = shrunk(ModelPlacement([SQUARE], [[0]]), evaluator_of([0.5]))
    assert size(first) == 2
    assert first.group_models == [[0]]


def test_a_shrunk_group_keeps_what_fits_with_the_busiest_models_first(evaluator_of):
    # a byte a model on every device: two of three fit
    evaluator = evaluator_of([0.1, 0.3, 0.2], mem_budget=2.0)
    assert any(
        placement.group_models == [[1, 2]] for placement in shrunk(ModelPlacement([SQUARE], [[0, 1, 2]]), evaluator)
    )


def test_copies_fill_the_cluster_and_leave_no_group_torn(evaluator_of):
    placement = ModelPlacement([PIPE, ONE, ONE], [[0], [1], []])
    assert copied(placement, ClusterEnv(7, 1.0)) == ModelPlacement(
        [PIPE, ONE, PIPE, ONE, ONE], [[0], [1], [0], [1], [1]]
    )
    assert copied(placement, ClusterEnv(3, 1.0)) == ModelPlacement([PIPE, ONE], [[0], [1]])
    threes = ModelPlacement([ParallelConfig(1, 3, 1)], [[0]])
    # three devices of each node of four
    assert len(copied(threes, ClusterEnv(12, 1.0, 4)).group_configs) == 3
    assert len(copied(threes, ClusterEnv(11, 1.0, 4)).group_configs) == 3
    assert len(copied(threes, ClusterEnv(10, 1.0, 4)).group_configs) == 2


@given(
    groups=st.lists(
        st.tuples(st.sampled_from(sorted(CONFIGS)), st.lists(st.integers(0, 2), unique=True, max_size=3)),
        min_size=1,
        max_size=4,
    ),
    num_devices=st.integers(1, 20),
)
def test_what_is_resized_stays_possible(groups, num_devices, evaluator_of):
    evaluator = evaluator_of([0.3, 0.5, 0.8], mem_budget=3.0)
    placement = ModelPlacement([config for config, _ in groups], [models for _, models in groups])
    nodes = ClusterEnv(1, 3.0, 4)
    sizes = [size(placement)]
    for smaller in shrunk(placement, evaluator):
        sizes.append(size(smaller))
        smaller.verify(evaluator.model_datas, ClusterEnv(devices_needed(smaller, nodes), 3.0, 4))
    assert sizes == sorted(set(sizes), reverse=True)
    copies = copied(placement, ClusterEnv(num_devices, 3.0, 4))
    copies.verify(evaluator.model_datas, ClusterEnv(num_devices, 3.0, 4))
