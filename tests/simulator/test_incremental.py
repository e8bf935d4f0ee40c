import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ServingRules
from alpa_serve.simulator.difference import make_difference, put_on_record
from alpa_serve.simulator.groups import FREE, add_replica, clear_group, make_groups, remove_replica, set_config, undo
from alpa_serve.simulator.incremental import (
    find_difference,
    forget,
    note_changes,
    note_rank,
)
from alpa_serve.simulator.problem import ModelTable, RequestTable
from alpa_serve.simulator.recorded import ADMITTED, make_record, record_all
from alpa_serve.simulator.search_problem import search_problem

NO_LIMIT = 2**62


class Engine:
    """A record of groups, and the difference that changes make."""

    def __init__(self, problem, groups):
        self.problem, self.groups = problem, groups
        num_models, _, max_stages = problem.latency.shape
        self.sizes = len(problem.turn), len(groups.config), num_models, max_stages
        self.record = make_record(*self.sizes)
        self.difference = make_difference(*self.sizes)
        record_all(problem, groups, self.record)

    def find(self, most=NO_LIMIT):
        note_changes(self.groups, self.difference)
        return find_difference(self.problem, self.groups, self.record, self.difference, most)

    def keep(self):
        put_on_record(self.problem, self.groups, self.record, self.difference)
        forget(self.groups, self.difference)

    def take_back(self):
        undo(self.groups)
        forget(self.groups, self.difference)

    def use_up_log(self):
        """Leave no room in the log, as many steps before would have."""
        self.record.room[:] = self.record.num_entries
        self.record.log_end[0] = len(self.record.log_turn)

    @property
    def totals(self):
        return self.record.model_num_good.sum(), self.record.model_latency.sum()

    def check(self):
        """Check that the record is a fresh one, to the bit, and that nothing is left of a difference."""
        fresh = make_record(*self.sizes)
        record_all(self.problem, self.groups, fresh)
        record = self.record
        for name in ("group", "flags", "num_entries", "model_num_good", "model_latency", "group_num_requests"):
            np.testing.assert_array_equal(getattr(record, name), getattr(fresh, name), err_msg=name)
        admitted = (fresh.flags & ADMITTED) > 0
        np.testing.assert_array_equal(record.state[admitted], fresh.state[admitted])
        for name in ("log_turn", "log_busy"):
            for slot, number in enumerate(fresh.num_entries):
                ours, theirs = (
                    getattr(one, name)[one.first_entry[slot] : one.first_entry[slot] + number]
                    for one in (record, fresh)
                )
                np.testing.assert_array_equal(ours, theirs, err_msg=name)
        clean = make_difference(*self.sizes)
        for name in ("change", "differs", "num_reasons", "watched"):
            np.testing.assert_array_equal(getattr(self.difference, name), getattr(clean, name), err_msg=name)


def start(case, drawn_groups, draw):
    return Engine(case.problem, drawn_groups(draw, *case.sizes))


def some_changes(engine, case, group_changes):
    return st.lists(group_changes(len(engine.groups.config), *case.sizes), min_size=1, max_size=3)


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_after_any_changes_the_score_and_the_record_are_those_of_a_full_simulation(
    engine_cases, drawn_groups, group_changes, counts_anew, data
):
    case = data.draw(engine_cases)
    engine = start(case, drawn_groups, data.draw)
    for changes in data.draw(st.lists(some_changes(engine, case, group_changes), min_size=1, max_size=8)):
        for change in changes:
            change(engine.groups)
        if data.draw(st.booleans()):
            engine.use_up_log()
        good_before, latency_before = engine.totals
        looked_at, more_good, more_latency = engine.find()
        assert 0 <= looked_at <= len(case.problem.turn)
        engine.keep()
        assert engine.totals == (good_before + more_good, latency_before + more_latency)
        num_good, latency, num_requests = counts_anew(case, engine.groups)
        np.testing.assert_array_equal(engine.record.model_num_good, num_good)
        np.testing.assert_array_equal(engine.record.model_latency, latency)
        np.testing.assert_array_equal(engine.record.group_num_requests, num_requests)
        engine.check()


@given(data=st.data())
@settings(deadline=None, max_examples=150)
def test_a_change_that_is_taken_back_leaves_the_record_as_it_was(engine_cases, drawn_groups, group_changes, data):
    case = data.draw(engine_cases)
    engine = start(case, drawn_groups, data.draw)
    changes = some_changes(engine, case, group_changes)
    for _ in range(data.draw(st.integers(1, 4))):
        for change in data.draw(changes):
            change(engine.groups)
        if data.draw(st.booleans()):
            engine.find(data.draw(st.sampled_from([0, 3, NO_LIMIT])))
        else:
            # a step may turn out not to fit before it is simulated
            note_changes(engine.groups, engine.difference)
        engine.take_back()
        engine.check()
        # and what comes next is not disturbed
        for change in data.draw(changes):
            change(engine.groups)
        engine.find()
        engine.keep()
        engine.check()


@given(data=st.data())
@settings(deadline=None, max_examples=200)
def test_other_ranks_change_what_ties_decide(engine_cases, drawn_groups, group_changes, counts_anew, data):
    case = data.draw(engine_cases)
    engine = start(case, drawn_groups, data.draw)
    groups = engine.groups
    num_slots = len(groups.config)
    for _ in range(data.draw(st.integers(1, 3))):
        if data.draw(st.booleans()):
            for change in data.draw(some_changes(engine, case, group_changes)):
                change(groups)
        note_changes(groups, engine.difference)
        groups.rank[:] = data.draw(st.permutations(range(num_slots)))
        for slot in range(num_slots):
            note_rank(groups, engine.difference, slot)
        find_difference(case.problem, groups, engine.record, engine.difference, NO_LIMIT)
        engine.keep()
        engine.check()
        np.testing.assert_array_equal(engine.record.model_num_good, counts_anew(case, groups)[0])


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_a_limit_on_what_is_looked_at_is_kept_and_nothing_is_said_beyond_it(
    engine_cases, drawn_groups, group_changes, data
):
    case = data.draw(engine_cases)
    engine = start(case, drawn_groups, data.draw)
    for change in data.draw(some_changes(engine, case, group_changes)):
        change(engine.groups)
    looked_at, *found = engine.find()
    forget_only_the_difference(engine)
    assert engine.find(looked_at) == (looked_at, *found)
    assume(looked_at > 0)
    forget_only_the_difference(engine)
    assert engine.find(looked_at - 1) == (-1, 0, 0.0)


def forget_only_the_difference(engine):
    length = engine.groups.log_length[0]
    forget(engine.groups, engine.difference)
    engine.groups.log_length[0] = length


@pytest.fixture
def crowd(profile_of):
    """Return crowd(rules) -> an Engine of 3 models and 300 requests on two groups, all of which share model 0."""

    def build(rules):
        profile = profile_of({(1, 1, 1): {1: [0.1]}})
        models = ModelTable(["m0", "m1", "m2"], [profile] * 3, rules=rules)
        rng = np.random.default_rng(0)
        requests = RequestTable.of_arrays(
            np.cumsum(rng.exponential(0.1, 300)), rng.integers(0, 3, 300).astype(np.int32), np.full(300, 0.4), 3
        )
        problem = search_problem(models, requests, [ParallelConfig(1, 1, 1)], np.ones((3, 1)))
        return Engine(problem, make_groups(3, 3, [0, 0], [[0, 1], [0]]))

    return build


def test_the_log_is_reclaimed_when_it_is_full(crowd):
    engine = crowd(ServingRules())
    for _ in range(3):
        for slot in (0, 1):
            engine.use_up_log()
            flip(engine.groups, slot, 2)
            engine.find()
            engine.keep()
            engine.check()
    assert engine.record.log_end[0] < len(engine.record.log_turn)


def flip(groups, slot, model):
    """Take a model out of a group, or put it in."""
    (remove_replica if groups.holds[slot, model] else add_replica)(groups, slot, model)


def test_a_group_that_nothing_is_linked_to_is_not_looked_at(crowd):
    engine = crowd(ServingRules())
    set_config(engine.groups, 2, 0)
    add_replica(engine.groups, 2, 2)
    looked_at, more_good, _ = engine.find()
    # the requests of model 2 alone, which nobody served before
    assert looked_at == np.sum(engine.problem.model_by_turn == 2)
    assert more_good > 0


def test_a_replica_that_changes_little_is_not_followed_to_the_end(crowd):
    engine = crowd(ServingRules())
    engine.problem.slos[engine.problem.first_request[2] + 1 : engine.problem.first_request[3]] = 0.0
    add_replica(engine.groups, 0, 2)
    looked_at, *_ = engine.find()
    # one request of model 2 is admitted; the queue that it lengthens drains again
    assert looked_at < 200
    engine.keep()
    engine.check()


def test_freeing_every_group_leaves_nothing_served(crowd):
    engine = crowd(ServingRules(admission="all"))
    for slot in (0, 1):
        clear_group(engine.groups, slot)
        set_config(engine.groups, slot, FREE)
    engine.find()
    engine.keep()
    engine.check()
    assert engine.totals == (0, 0.0)
    assert engine.record.num_entries.tolist() == [0, 0, 0]
