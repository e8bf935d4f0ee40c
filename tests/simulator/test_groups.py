import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.placement import ModelPlacement
from alpa_serve.simulator.groups import (
    FREE,
    add_replica,
    clear_group,
    make_groups,
    move_rank,
    remove_replica,
    resort_slots,
    set_config,
    set_node,
    undo,
    used_bytes,
)

NUM_MODELS, NUM_CONFIGS = 4, 3


def content(groups):
    """Everything but what lies behind the ends of the lists."""
    return {
        "config": groups.config.tolist(),
        "node": groups.node.tolist(),
        "rank": groups.rank.tolist(),
        "models": [row[:n].tolist() for row, n in zip(groups.models, groups.num_models, strict=True)],
        "holds": groups.holds.tolist(),
        "slots": [row[:n].tolist() for row, n in zip(groups.slots, groups.num_replicas, strict=True)],
    }


def check_lists(groups):
    """Check that the two lists and the matrix say the same, each in its order."""
    for slot in range(len(groups.config)):
        assert groups.models[slot, : groups.num_models[slot]].tolist() == np.flatnonzero(groups.holds[slot]).tolist()
    for model in range(groups.holds.shape[1]):
        slots = groups.slots[model, : groups.num_replicas[model]].tolist()
        assert sorted(slots) == np.flatnonzero(groups.holds[:, model]).tolist()
        assert slots == sorted(slots, key=lambda slot: groups.rank[slot])


@given(data=st.data())
@settings(deadline=None)
def test_all_lists_agree_after_any_changes_and_undoing_them_restores_the_groups(drawn_groups, group_changes, data):
    groups = drawn_groups(data.draw, NUM_MODELS, NUM_CONFIGS)
    check_lists(groups)
    before = content(groups)
    changes = group_changes(len(groups.config), NUM_MODELS, NUM_CONFIGS)
    for change in data.draw(st.lists(changes, max_size=8)):
        change(groups)
        check_lists(groups)
    undo(groups)
    assert content(groups) == before
    assert groups.log_length[0] == 0


@given(data=st.data())
@settings(deadline=None)
def test_ranks_follow_the_order_of_a_normalised_placement(data):
    members = st.lists(st.integers(0, NUM_MODELS - 1), unique=True)
    num_groups = data.draw(st.integers(1, 5))
    models = data.draw(st.lists(members, min_size=num_groups, max_size=num_groups))
    # the size of a group says which it is
    placement = ModelPlacement([(1, 1, 1 + k) for k in range(num_groups)], models).normalize()
    configs = [config.pp for config in placement.group_configs]
    groups = make_groups(num_groups, NUM_MODELS, configs, placement.group_models)
    order = np.arange(num_groups)
    absent = [(slot, model) for slot in range(num_groups) for model in range(NUM_MODELS)]
    for slot, model in data.draw(st.permutations(absent)):
        if groups.holds[slot, model]:
            continue
        placement = placement.add_model([config.pp for config in placement.group_configs].index(configs[slot]), model)
        placement = placement.normalize()
        add_replica(groups, slot, model)
        move_rank(groups, slot, order)
        for member in groups.models[slot, : groups.num_models[slot]].tolist():
            resort_slots(groups, member)
        assert [configs[s] for s in order] == [config.pp for config in placement.group_configs]
        assert groups.rank[order].tolist() == list(range(num_groups))
        check_lists(groups)


def test_sorting_the_groups_of_a_model_again_tells_whether_their_order_changed():
    groups = make_groups(3, 1, [0, 0, 0], [[0], [0], [0]])
    assert not resort_slots(groups, 0)
    groups.rank[:] = [2, 0, 1]
    assert resort_slots(groups, 0)
    assert groups.slots[0].tolist() == [1, 2, 0]
    assert not resort_slots(groups, 0)


def test_a_cleared_group_holds_nothing_and_its_slot_can_be_freed():
    groups = make_groups(2, 3, [1, 0], [[0, 2], [2]], nodes=[0, 4])
    clear_group(groups, 0)
    set_config(groups, 0, FREE)
    set_node(groups, 1, 3)
    assert content(groups)["models"] == [[], [2]]
    assert groups.config.tolist() == [FREE, 0]
    assert groups.node.tolist() == [0, 3]
    assert groups.num_replicas.tolist() == [0, 0, 1]
    undo(groups)
    assert groups.node.tolist() == [0, 4]
    assert content(groups)["models"] == [[0, 2], [2]]


def test_the_bytes_of_a_group_are_those_of_its_models_under_a_config():
    groups = make_groups(1, 3, [0], [[0, 2]])
    weights = np.array([[1.0, 10.0], [2.0, 20.0], [4.0, np.inf]])
    assert used_bytes(groups, weights, 0, 0) == 5.0
    assert used_bytes(groups, weights, 0, 1) == np.inf


def test_more_changes_than_the_log_has_room_for_are_refused_and_can_still_be_undone():
    groups = make_groups(1, 1, [0], [[]])
    before = content(groups)
    for _ in range(len(groups.log) // 2):
        add_replica(groups, 0, 0)
        remove_replica(groups, 0, 0)
    with pytest.raises(OverflowError, match="log"):
        add_replica(groups, 0, 0)
    undo(groups)
    assert content(groups) == before


@pytest.mark.parametrize(
    ("configs", "models", "said"),
    [
        ([0], [[3]], "no model 3"),
        ([0], [[-1]], "no model -1"),
        ([0, 0], [[0], [1, 1]], "group 1 holds a model twice"),
        ([0, 0, 0], [[], [], []], "3 groups"),
        ([0], [[], []], "1 configs but models of 2 groups"),
    ],
)
def test_groups_that_cannot_be_are_refused(configs, models, said):
    # arrays of compiled code have no bounds
    with pytest.raises(InvalidPlacementError, match=said):
        make_groups(2, 3, configs, models)
