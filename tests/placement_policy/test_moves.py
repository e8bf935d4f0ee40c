"""Every move keeps to the cluster, and can be undone."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement
from alpa_serve.placement_policy.cluster_arrays import free_devices, make_cluster
from alpa_serve.placement_policy.group_moves import take_node
from alpa_serve.placement_policy.moves import log_size, propose
from alpa_serve.placement_policy.replica_moves import CHANGED, NOTHING, SAME
from alpa_serve.placement_policy.search_parts import MixedProblem, PreparedProblem
from alpa_serve.profiling import ParallelConfig, ProfilingResult
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.groups import FREE, undo
from alpa_serve.simulator.workload import Workload


def contents(groups):
    """Return all that the arrays say: what lies beyond their ends does not count."""
    return (
        groups.config.tolist(),
        groups.node.tolist(),
        [models[:number].tolist() for models, number in zip(groups.models, groups.num_models, strict=True)],
        groups.holds.tolist(),
        [slots[:number].tolist() for slots, number in zip(groups.slots, groups.num_replicas, strict=True)],
    )


def assert_consistent(prepared, groups):
    for slot, members in enumerate(groups.holds):
        assert groups.models[slot, : groups.num_models[slot]].tolist() == np.flatnonzero(members).tolist()
    for model, members in enumerate(groups.holds.T):
        assert groups.slots[model, : groups.num_replicas[model]].tolist() == np.flatnonzero(members).tolist()
    assert not groups.num_models[groups.config == FREE].any()


def assert_possible(case, prepared, groups):
    """Check the placement, and that every group lies on the nodes that it is said to lie on."""
    used = np.flatnonzero(groups.config != FREE)
    configs = [prepared.configs[config] for config in groups.config[used]]
    placement = ModelPlacement(configs, [np.flatnonzero(groups.holds[slot]).tolist() for slot in used])
    placement.verify(case.models, case.cluster)
    per_node = case.cluster.num_devices_per_node
    free = [min(per_node, case.cluster.num_devices - first) for first in range(0, case.cluster.num_devices, per_node)]
    for config, node in zip(configs, groups.node[used], strict=True):
        for step in range(max(config.num_devices // per_node, 1)):
            free[node + step] -= min(config.num_devices, per_node)
    assert min(free) >= 0
    for node, devices in enumerate(free):
        assert free_devices(prepared.arrays, prepared.cluster, groups, node) == devices


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_moves_keep_memory_nodes_and_profiles_and_are_undone(mixed_cases, prepared_of, data):
    case = data.draw(mixed_cases)
    prepared = prepared_of(case)
    groups = prepared.groups_of(ModelPlacement([], []))
    random = np.array([data.draw(st.integers(0, 2**64 - 1))], np.uint64)
    unserved = np.diff(prepared.arrays.first_request).astype(np.float64)
    for step in range(120):
        before = contents(groups)
        outcome = propose(prepared.arrays, prepared.cluster, groups, unserved, random)
        assert groups.log_length[0] <= log_size(len(case.models), prepared.cluster)
        assert_consistent(prepared, groups)
        assert outcome in (NOTHING, CHANGED, SAME)
        if outcome == SAME:
            assert (contents(groups)[0], *contents(groups)[2:]) == (before[0], *before[2:])
        if outcome != NOTHING:
            assert_possible(case, prepared, groups)
        if outcome == NOTHING or step % 3 == 0:
            undo(groups)
            assert contents(groups) == before
        groups.log_length[0] = 0


def test_taking_a_large_node_from_many_small_groups_stays_within_the_log():
    one, all_of_it = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 64)
    profile = ProfilingResult("tiny")
    for config in (one, all_of_it):
        profile.add_result(config, 1, [0.1] * config.pp, [0.0] * config.pp, [1.0] * config.pp)
    models = [ModelData(f"m{i}", 1.0, 1.0, 1.0, profile) for i in range(4)]
    cluster = ClusterEnv(64, 10.0, 64)
    workload = Workload.from_columns([0.0], [0], ["m0"], [1.0])
    prepared = PreparedProblem(MixedProblem(models, cluster, workload, ALPASERVE, (one, all_of_it), (), False))
    groups = prepared.groups_of(ModelPlacement([one] * 64, [[0, 1, 2, 3]] * 64))
    before, random = contents(groups), np.array([0], np.uint64)
    taken = False
    for _ in range(20):
        outcome = take_node(prepared.arrays, prepared.cluster, groups, np.ones(4), random)
        assert groups.log_length[0] <= len(groups.log) == log_size(4, prepared.cluster)
        taken |= outcome == CHANGED and 1 in groups.config
        undo(groups)
        assert contents(groups) == before
    assert taken


def test_groups_become_what_they_may_be_and_nothing_else(prepared_of):
    one, two, other = ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2), ParallelConfig(1, 2, 1)
    profile = ProfilingResult("model")
    for config in (one, two, other):
        profile.add_result(config, 1, [0.1] * config.pp, [0.0] * config.pp, [1.0] * config.pp)
    models = [ModelData(f"m{i}", 1.0, 1.0, 1.0, profile) for i in range(3)]
    workload = Workload.from_columns([0.0], [0], ["m0"], [1.0])
    problem = MixedProblem(models, ClusterEnv(4, 2.0, 4), workload, ALPASERVE, (one, two), (other,), False)
    prepared = PreparedProblem(problem)
    groups = prepared.groups_of(ModelPlacement([other, other], [[0, 1], [2]]))
    random, seen = np.array([0], np.uint64), set()
    for _ in range(2000):
        before = (groups.config == 2).sum()
        propose(prepared.arrays, prepared.cluster, groups, np.ones(3), random)
        # a config of the start stays as long as nothing takes its place
        assert (groups.config == 2).sum() <= before
        seen |= set(groups.config.tolist())
        groups.log_length[0] = 0
    assert {0, 1} <= seen


def test_the_cluster_lists_configs_by_size():
    configs = [ParallelConfig(1, 1, 1), ParallelConfig(1, 1, 2), ParallelConfig(1, 2, 1)]
    cluster = make_cluster(ClusterEnv(3, 5.0, 8), configs)
    assert cluster.per_node == cluster.num_devices == 3
    assert cluster.num_configs.tolist() == [0, 1, 2, 0]
    assert cluster.configs[2].tolist() == [1, 2]
    nothing = make_cluster(ClusterEnv(3, 5.0, 8), [])
    assert not nothing.num_configs.any()
