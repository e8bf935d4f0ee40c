import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv
from alpa_serve.placement_policy.group_partition import (
    all_configs,
    configs_of_size,
    even_shapes,
    pipelines,
    uneven_shapes,
)
from alpa_serve.profiling import ParallelConfig

clusters = st.builds(ClusterEnv, st.integers(1, 40), st.just(1.0), st.integers(1, 8))
limits = st.integers(1, 8)


@given(st.integers(1, 64), limits, limits)
def test_configs_of_a_size_are_all_factorings_within_the_limits(size, max_pp, max_op):
    expected = {(1, op, pp) for op in range(1, max_op + 1) for pp in range(1, max_pp + 1) if op * pp == size}
    found = configs_of_size(size, max_pp, max_op)
    assert set(found) == expected
    assert len(found) == len(expected)
    assert [config.pp for config in found] == sorted(config.pp for config in found)


@pytest.mark.parametrize("shapes_of", [even_shapes, uneven_shapes])
@given(cluster=clusters, max_pp=limits, max_op=limits)
def test_every_shape_uses_each_device_once_and_no_shape_occurs_twice(shapes_of, cluster, max_pp, max_op):
    shapes = shapes_of(cluster, max_pp, max_op)
    assert shapes, "single devices are always possible"
    for shape in shapes:
        assert sum(config.num_devices for config in shape) == cluster.num_devices
    assert len(set(map(tuple, shapes))) == len(shapes)


@given(cluster=clusters, max_pp=limits, max_op=limits)
def test_even_groups_all_have_one_config_that_nodes_allow(cluster, max_pp, max_op):
    for shape in even_shapes(cluster, max_pp, max_op):
        (config,) = set(shape)
        per_node = cluster.num_devices_per_node
        assert config.num_devices <= per_node or config.num_devices % per_node == 0
        assert config.op <= max_op
        assert config.pp <= max_pp


@given(cluster=clusters, max_pp=limits, max_op=limits)
def test_uneven_shapes_leave_over_less_than_a_group_as_pipelines_of_powers_of_two(cluster, max_pp, max_op):
    for shape in uneven_shapes(cluster, max_pp, max_op):
        size = shape[0].num_devices
        assert size & (size - 1) == 0
        regular = cluster.num_devices // size
        assert set(shape[:regular]) == {shape[0]}
        rest = shape[regular:]
        assert all((config.dp, config.op) == (1, 1) and config.pp & (config.pp - 1) == 0 for config in rest)
        assert sum(config.pp for config in rest) < size


def test_twelve_devices_give_the_shapes_of_the_published_search():
    shapes = uneven_shapes(ClusterEnv(12, 1.0, 8), max_pp=8, max_op=2)
    eights_and_rest = [shape for shape in shapes if shape[0].num_devices == 8]
    rest = [ParallelConfig(1, 1, 4)]
    assert eights_and_rest == [[ParallelConfig(1, 2, 4), *rest], [ParallelConfig(1, 1, 8), *rest]]


@given(clusters, st.integers(1, 8))
def test_pipelines_use_all_devices_with_the_remainder_and_only_equal_ones_without(cluster, num_stages):
    with_rest = pipelines(cluster, num_stages, remainder=True)
    without = pipelines(cluster, num_stages, remainder=False)
    assert sum(config.num_devices for config in with_rest) == cluster.num_devices
    assert without == [ParallelConfig(1, 1, num_stages)] * (cluster.num_devices // num_stages)
    assert with_rest[: len(without)] == without


def test_all_configs_lists_each_config_once():
    one, two = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2)
    assert all_configs([[one, one], [two, one], []]) == {one, two}
