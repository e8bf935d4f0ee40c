import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.simulator.fast import simulate_requests
from alpa_serve.simulator.problem import ReplicaTable
from alpa_serve.simulator.recorded import ADMITTED, MET, make_record, record_all, reserve_entries


def recorded(case, groups):
    num_models, num_slots = len(case.models), len(groups.config)
    record = make_record(len(case.problem.turn), num_slots, num_models, case.problem.latency.shape[2])
    record_all(case.problem, groups, record)
    return record


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_what_is_on_record_is_what_the_fast_simulator_finds(engine_cases, drawn_groups, counts_anew, data):
    case = data.draw(engine_cases)
    groups = drawn_groups(data.draw, *case.sizes)
    record = recorded(case, groups)
    num_good, latency, num_requests = counts_anew(case, groups)
    np.testing.assert_array_equal(record.model_num_good, num_good)
    np.testing.assert_array_equal(record.model_latency, latency)
    np.testing.assert_array_equal(record.group_num_requests, num_requests)


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_every_request_has_its_group_its_flags_and_its_begin_on_record(engine_cases, drawn_groups, data):
    case = data.draw(engine_cases)
    groups = drawn_groups(data.draw, *case.sizes)
    record = recorded(case, groups)
    # groups that there are come first, ranked by slot
    there = [(case.configs[config], row[:n].tolist()) for config, row, n in groups_of(groups)]
    replicas = ReplicaTable.of_groups(case.models, [config for config, _ in there], [models for _, models in there])
    outcomes, _ = simulate_requests(case.requests, replicas, detailed=True)
    registered = np.flatnonzero(case.requests.model_ids >= 0)
    of_request = case.problem.by_turn
    admitted = (record.flags[of_request] & ADMITTED) > 0
    np.testing.assert_array_equal(record.group[of_request], outcomes.group[registered])
    np.testing.assert_array_equal((record.flags[of_request] & MET) > 0, outcomes.good[registered])
    np.testing.assert_array_equal(admitted, outcomes.served[registered])
    np.testing.assert_array_equal(record.state[of_request, -1][admitted], outcomes.start[registered][admitted])


def groups_of(groups):
    return [row for row in zip(groups.config, groups.models, groups.num_models, strict=True) if row[0] >= 0]


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_the_log_has_the_admitted_requests_of_each_group_in_the_order_of_their_arrivals(
    engine_cases, drawn_groups, data
):
    case = data.draw(engine_cases)
    groups = drawn_groups(data.draw, *case.sizes)
    record = recorded(case, groups)
    for slot in range(len(groups.config)):
        turns, busy = entries(record, slot)
        mine = np.flatnonzero((record.group == slot) & ((record.flags & ADMITTED) > 0))
        assert turns.tolist() == sorted(case.problem.turn[mine].tolist())
        last_stage = case.problem.num_stages[groups.config[slot]] - 1
        np.testing.assert_array_equal(busy, record.state[case.problem.by_turn[turns], last_stage])


def entries(record, slot):
    part = slice(record.first_entry[slot], record.first_entry[slot] + record.num_entries[slot])
    return record.log_turn[part], record.log_busy[part]


@pytest.fixture
def two_groups_on_record():
    """Return a record of 4 requests, 3 of which two groups admitted; its log has room for 16 entries."""
    record = make_record(4, 2, 1, 1)
    record.first_entry[:] = [0, 3]
    record.num_entries[:] = [2, 1]
    record.room[:] = [3, 1]
    record.log_turn[:4] = [0, 3, 9, 1]
    record.log_busy[:4] = [0.5, 3.5, 9.5, 1.5]
    record.log_end[0] = 4
    return record


def test_room_in_the_log_is_given_from_its_end(two_groups_on_record):
    record = two_groups_on_record
    assert reserve_entries(record, 0, 4) == 4
    assert reserve_entries(record, 1, 8) == 8
    assert record.log_end[0] == len(record.log_turn)
    assert record.room.tolist() == [4, 8]


def test_what_no_group_refers_to_is_reclaimed_when_the_log_is_full(two_groups_on_record):
    record = two_groups_on_record
    start = reserve_entries(record, 0, 12)
    record.log_turn[start : start + 2] = [2, 3]
    record.log_busy[start : start + 2] = [2.5, 3.5]
    record.first_entry[0] = start
    assert reserve_entries(record, 1, 5) == 3
    assert record.room.tolist() == [2, 5]
    assert [part.tolist() for part in entries(record, 0)] == [[2, 3], [2.5, 3.5]]
    assert [part.tolist() for part in entries(record, 1)] == [[1], [1.5]]
    assert record.log_end[0] == 8
