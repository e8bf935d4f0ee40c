from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError
from alpa_serve.placement import (
    ClusterEnv,
    ModelData,
    ModelPlacement,
    ModelPlacementWithReplacement,
    ReplicaDeployment,
)
from alpa_serve.profiling import ParallelConfig, ProfilingResult, load_test_prof_result
from alpa_serve.util import GB

ONE = ParallelConfig(1, 1, 1)
TWO = ParallelConfig(1, 1, 2)
TENSOR_FOUR = ParallelConfig(1, 4, 1)


def models(count):
    return [ModelData(f"m{i}", 0.5, 1.0, 1.0, load_test_prof_result("test-2GB-100ms")) for i in range(count)]


def groups_of(sizes):
    return ModelPlacement.empty_groups([ParallelConfig(1, size, 1) for size in sizes])


def test_verify_accepts_a_placement_that_fills_memory_and_devices_exactly():
    placement = ModelPlacement([ONE, TWO], [[0], [0, 1]])
    placement.verify(models(2), ClusterEnv(3, 2 * GB))


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (ModelPlacement([ONE, ONE], [[0], [1, 1]]), r"group 1 \(1, 1, 1\) holds a model twice: \[1, 1\]"),
        (ModelPlacement([ONE], [[2]]), r"group 0 \(1, 1, 1\): no model 2; models are 0 to 1"),
        (ModelPlacement([TENSOR_FOUR], [[0]]), r"group 0 \(1, 4, 1\): .*test-2GB-100ms.*not profiled"),
        (ModelPlacement([TWO, ONE], [[0], [0, 1]]), r"group 1 .*\[0, 1\] need 4\.00 GiB a device, mem_budget is 3\.00"),
        (groups_of([4, 4, 1]), r"the groups need 9 devices, the cluster has 8"),
        (groups_of([5]), r"group 0 of 5 devices is neither within a node of 4 nor whole nodes"),
        (groups_of([3, 3, 2]), r"groups of \[3, 3, 2\] devices cannot lie within nodes of 4"),
    ],
)
def test_verify_names_the_group_and_what_is_wrong(placement, message):
    with pytest.raises(InvalidPlacementError, match=message):
        placement.verify(models(2), ClusterEnv(8, 3 * GB, num_devices_per_node=4))


def test_as_many_group_models_as_group_configs_are_needed():
    with pytest.raises(InvalidPlacementError, match="got 1 and 2"):
        ModelPlacement([ONE, TWO], [[0]])


def test_configs_and_ids_of_other_types_give_an_equal_placement():
    assert ModelPlacement([(1, 1, 2)], [(np.int64(0), np.int32(1))]) == ModelPlacement([TWO], [[0, 1]])


def test_add_model_normalize_and_copy_leave_the_original_as_it_was():
    placement = ModelPlacement([TWO, ONE], [[3, 1], [0]])
    grown = placement.add_model(1, 2)
    normal = placement.normalize()
    copied = placement.copy()
    copied.group_models[0].append(9)
    copied.group_configs[0] = ONE
    assert placement == ModelPlacement([TWO, ONE], [[3, 1], [0]])
    assert grown == ModelPlacement([TWO, ONE], [[3, 1], [0, 2]])
    assert normal == ModelPlacement([ONE, TWO], [[0], [1, 3]])


placements = st.lists(
    st.tuples(st.sampled_from([ONE, TWO, TENSOR_FOUR]), st.lists(st.integers(0, 5), unique=True)), max_size=5
).map(lambda groups: ModelPlacement([config for config, _ in groups], [members for _, members in groups]))


@given(placements)
def test_normalize_keeps_every_group_and_is_its_own_fixed_point(placement):
    normal = placement.normalize()

    def content(one):
        return sorted(zip(one.group_configs, map(sorted, one.group_models), strict=True))

    assert content(normal) == content(placement)
    assert normal.group_models == sorted(map(sorted, placement.group_models))
    assert normal.normalize() == normal
    assert normal.num_replicas == sum(map(len, placement.group_models))


def can_be_packed(sizes, num_devices, per_node):
    """Whether some choice of nodes holds all groups: every choice is tried."""
    spaces = [min(per_node, num_devices - first) for first in range(0, num_devices, per_node)]
    small = [size for size in sizes if size <= per_node]
    whole_nodes = sum(size // per_node for size in sizes if size > per_node)
    for nodes in product(range(len(spaces)), repeat=len(small)):
        left = list(spaces)
        for size, node in zip(small, nodes, strict=True):
            left[node] -= size
        if min(left) >= 0 and left.count(per_node) >= whole_nodes:
            return True
    return False


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_assign_devices_finds_an_assignment_exactly_when_there_is_one(data):
    per_node = data.draw(st.integers(1, 4), "devices per node")
    num_devices = data.draw(st.integers(1, 3 * per_node + 1), "devices")
    sizes = data.draw(st.lists(st.sampled_from([1, 2, 3, per_node, 2 * per_node]), max_size=5), "sizes")
    sizes = [size for size in sizes if size <= per_node or size % per_node == 0]
    cluster = ClusterEnv(num_devices, GB, per_node)
    if not can_be_packed(sizes, num_devices, per_node):
        with pytest.raises(InvalidPlacementError):
            groups_of(sizes).assign_devices(cluster)
        return
    devices = groups_of(sizes).assign_devices(cluster)
    assert [len(group) for group in devices] == sizes
    taken = [device for group in devices for device in group]
    assert len(set(taken)) == len(taken)
    assert set(taken) <= set(range(num_devices))
    for group in devices:
        assert group == sorted(group)
        nodes = {device // per_node for device in group}
        # within one node, or all devices of each of its nodes
        assert len(nodes) == 1 or len(group) == len(nodes) * per_node


def test_groups_take_devices_in_their_order_where_that_tears_no_node():
    assert groups_of([1, 2, 1, 4]).assign_devices(ClusterEnv(8, GB, 4)) == [[0], [1, 2], [3], [4, 5, 6, 7]]


def test_groups_take_devices_in_another_order_where_theirs_would_tear_a_node():
    first, second, third = groups_of([1, 4, 3]).assign_devices(ClusterEnv(8, GB, 4))
    assert {device // 4 for device in second} != {device // 4 for device in first + third}
    assert len({device // 4 for device in second}) == len({device // 4 for device in first + third}) == 1


def test_deployment_lists_every_replica_by_model_and_the_models_without_one():
    placement = ModelPlacement([TWO, TENSOR_FOUR], [[2, 0], [0]])
    assert placement.deployment(["a", "b", "a"], ClusterEnv(8, GB)) == [
        ReplicaDeployment(1, "a", (0, 1), 1, 2),
        ReplicaDeployment(2, "a", (2, 3, 4, 5), 4, 1),
        ReplicaDeployment(3, "b", (), None, None),
        ReplicaDeployment(4, "a", (0, 1), 1, 2),
    ]


@pytest.mark.parametrize(
    ("start_times", "count"),
    [([0.0], 2), ([0.0, 1.0], 1), ([], 0), ([2.0, 1.0], 2), ([float("nan")], 1), (["0"], 1)],
)
def test_replacement_refuses_start_times_that_do_not_fit(start_times, count):
    with pytest.raises(InvalidPlacementError):
        ModelPlacementWithReplacement(start_times, [ModelPlacement([ONE], [[0]])] * count)


def test_replacement_verifies_each_of_its_placements():
    good, bad = ModelPlacement([ONE], [[0]]), ModelPlacement([ONE], [[0, 1]])
    cluster = ClusterEnv(1, 2 * GB)
    ModelPlacementWithReplacement([0, 5], [good, good]).verify(models(2), cluster)
    with pytest.raises(InvalidPlacementError, match=r"need 4\.00 GiB"):
        ModelPlacementWithReplacement([0, 5], [good, bad]).verify(models(2), cluster)


@pytest.mark.parametrize(
    ("configs", "models", "message"),
    [
        ([ONE], [[-1]], "group 0: model id must be a whole number >= 0, got -1"),
        ([ONE], [[0.9]], "model id must be a whole number"),
        ([(1, 1, 0)], [[]], "group 0: pp"),
        ([(1, 1)], [[]], r"a parallel config is \(dp, op, pp\)"),
        (["abc"], [[]], r"a parallel config is \(dp, op, pp\)"),
        ([ONE], [], "as many group_models as group_configs"),
    ],
)
def test_a_placement_of_impossible_parts_is_refused_when_it_is_made(configs, models, message):
    with pytest.raises(InvalidPlacementError, match=message):
        ModelPlacement(configs, models)


@pytest.mark.parametrize("group_id", [-1, 1])
def test_a_model_is_added_to_groups_that_exist_only(group_id):
    with pytest.raises(InvalidPlacementError, match="no group"):
        ModelPlacement([ONE], [[]]).add_model(group_id, 0)


def test_verify_counts_the_kv_cache_of_concurrent_tokens():
    profile = ProfilingResult("model")
    profile.add_result(ONE, 1, [1.0], [0.0], [2.0 * GB], kv_bytes_per_token=[2.0**20])
    placement, cluster = ModelPlacement([ONE], [[0]]), ClusterEnv(1, 4 * GB)
    placement.verify([ModelData("m", 1, 1, 1, profile, concurrent_tokens=2048)], cluster)
    with pytest.raises(InvalidPlacementError, match=r"need 4\.00 GiB a device"):
        placement.verify([ModelData("m", 1, 1, 1, profile, concurrent_tokens=2049)], cluster)
    with pytest.raises(InvalidConfigError, match="concurrent_tokens of model 'm' must be a whole number >= 0"):
        ModelData("m", 1, 1, 1, profile, concurrent_tokens=-1)


def test_concurrent_tokens_of_a_model_without_known_kv_cache_are_refused():
    profile = load_test_prof_result("test-2GB-100ms")
    models = [ModelData("m", 1, 1, 1, profile, concurrent_tokens=1)]
    with pytest.raises(InvalidPlacementError, match=r"'test-2GB-100ms'.*no KV cache per token"):
        ModelPlacement([ONE], [[0]]).verify(models, ClusterEnv(1, 4 * GB))
