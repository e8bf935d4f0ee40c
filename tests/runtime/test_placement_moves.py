from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.profiling import ParallelConfig
from alpa_serve.runtime.placement_moves import GroupSpec, kept_groups

KINDS = [((1, 1, 1), (1, 1)), ((1, 1, 2), (1, 2)), ((1, 1, 2), (2, 1)), ((1, 2, 1), (1, 2))]

member_lists = st.lists(st.sampled_from("abcd"), unique=True, max_size=4).map(tuple)
specs = st.builds(lambda kind, members: GroupSpec(*kind, members), st.sampled_from(KINDS), member_lists)
placements = st.lists(specs, max_size=6)
# create_mesh_group_manager makes groups without a config
kinds_of_running = st.sampled_from([*KINDS, (None, None), (None, (1, 2))])
running_groups = st.dictionaries(st.integers(0, 9), st.tuples(kinds_of_running, member_lists), max_size=6).map(
    lambda groups: {group_id: (*kind, set(members)) for group_id, (kind, members) in groups.items()}
)

# the time that an example takes says nothing on a machine that does other work too
untimed = settings(deadline=None)


def kind_of(group):
    return group[0], group[1]


def running_as(placement):
    return {g: (spec.config, spec.shape, dict.fromkeys(spec.members)) for g, spec in enumerate(placement)}


@untimed
@given(running_groups, placements)
def test_no_group_is_kept_twice_and_none_becomes_another_kind(running, wanted):
    kept = kept_groups(running, wanted)
    assert len(set(kept.values())) == len(kept)
    for position, group_id in kept.items():
        assert kind_of(running[group_id]) == kind_of(wanted[position])


@untimed
@given(running_groups, placements)
def test_as_many_groups_as_possible_are_kept(running, wanted):
    kept = kept_groups(running, wanted)
    there, needed = Counter(map(kind_of, running.values())), Counter(map(kind_of, wanted))
    assert Counter(kind_of(wanted[position]) for position in kept) == there & needed


@untimed
@given(running_groups, placements)
def test_a_group_goes_where_most_of_its_models_are_wanted(running, wanted):
    kept = kept_groups(running, wanted)
    taken_by = {group_id: position for position, group_id in kept.items()}

    def common(position, group_id):
        return len(set(wanted[position].members) & running[group_id][2])

    for position, spec in enumerate(wanted):
        for group_id, group in running.items():
            if kind_of(group) != kind_of(spec):
                continue
            with_mine = common(position, kept[position]) if position in kept else -1
            with_its = common(taken_by[group_id], group_id) if group_id in taken_by else -1
            # no two would rather have one another
            assert common(position, group_id) <= max(with_mine, with_its)


@untimed
@given(placements)
def test_all_stays_in_place_where_nothing_changes(placement):
    assert kept_groups(running_as(placement), placement) == {g: g for g in range(len(placement))}


@untimed
@given(placements, st.randoms(use_true_random=False))
def test_a_placement_in_another_order_needs_no_change_of_any_replica(placement, random):
    shuffled = random.sample(placement, len(placement))
    kept = kept_groups(running_as(placement), shuffled)
    assert len(kept) == len(placement)
    assert all(
        set(shuffled[position].members) == set(placement[group_id].members) for position, group_id in kept.items()
    )


def test_of_equal_groups_the_one_with_the_number_is_kept():
    running = {0: ((1, 1, 1), (1, 1), {"a"}), 1: ((1, 1, 1), (1, 1), {"a"})}
    assert kept_groups(running, [GroupSpec((1, 1, 2), (1, 2), ()), GroupSpec((1, 1, 1), (1, 1), ("a",))]) == {1: 1}


def test_a_group_that_need_not_give_up_models_is_preferred():
    running = {0: ((1, 1, 1), (1, 1), {"a", "b"}), 1: ((1, 1, 1), (1, 1), {"a"})}
    assert kept_groups(running, [GroupSpec((1, 1, 1), (1, 1), ("a",))]) == {0: 1}


def test_configs_and_shapes_may_be_of_any_type_of_sequence():
    running = {3: (ParallelConfig(1, 1, 2), (1, 2), ["a"])}
    assert kept_groups(running, [GroupSpec([1, 1, 2], [1, 2], ("a",))]) == {0: 3}


def test_a_spec_tells_its_devices():
    assert GroupSpec((1, 2, 4), (2, 4), ()).num_devices == 8
