from itertools import product

from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv
from alpa_serve.placement_policy.group_shapes import Shapes


@st.composite
def cases(draw):
    cluster = ClusterEnv(draw(st.integers(1, 9)), 1.0, draw(st.integers(1, 4)))
    allowed = [size for size in range(1, cluster.num_devices + 1) if cluster.allows_group_of(size)]
    sizes = draw(st.lists(st.sampled_from(allowed), min_size=1, max_size=3))
    return cluster, sizes, draw(st.lists(st.integers(0, 9), min_size=len(sizes), max_size=len(sizes)))


def every_shape(cluster, sizes):
    return {
        counts
        for counts in product(*(range(cluster.num_devices // size + 1) for size in sizes))
        if cluster.can_hold([size for size, count in zip(sizes, counts, strict=True) for _ in range(count)])
    }


def value_of(values, counts):
    return sum(value * count for value, count in zip(values, counts, strict=True))


@settings(deadline=None)
@given(cases())
def test_the_best_shape_is_that_of_trying_all(case):
    cluster, sizes, values = case
    total, counts = Shapes(tuple(sizes), cluster.num_devices, cluster.num_devices_per_node).best(values)
    possible = every_shape(cluster, sizes)
    assert total == value_of(values, counts) == max(value_of(values, other) for other in possible)
    assert counts in possible


@settings(deadline=None)
@given(cases())
def test_shapes_come_in_the_order_of_their_value_and_contain_every_other(case):
    cluster, sizes, values = case
    listed = list(Shapes(tuple(sizes), cluster.num_devices, cluster.num_devices_per_node).descending(values))
    assert [value for value, _ in listed] == sorted((value for value, _ in listed), reverse=True)
    assert all(value == value_of(values, counts) for value, counts in listed)
    possible = every_shape(cluster, sizes)
    assert {counts for _, counts in listed} <= possible
    assert all(any(all(map(int.__le__, other, counts)) for _, counts in listed) for other in possible)


def test_too_many_shapes_are_not_listed_at_all():
    sizes = tuple(range(1, 17))
    assert list(Shapes(sizes, 512, 512).descending([1.0] * len(sizes))) == []
