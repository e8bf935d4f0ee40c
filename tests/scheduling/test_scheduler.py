from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidPlacementError
from alpa_serve.scheduling import ALPASERVE, ReplicaTiming, Scheduler
from alpa_serve.scheduling.scheduler import dispatch_draws
from alpa_serve.scheduling.stage_clocks import after_stalls

PLAIN = replace(ALPASERVE, fixed_overhead_s=0.0)


def scheduler_of(rules, *groups):
    """Return a scheduler with a replica of "a" of the given stage latencies in group 0, 1, ..."""
    scheduler = Scheduler(rules)
    for group_id, latency in enumerate(groups):
        scheduler.add_group(group_id)
        scheduler.add_replica("a", group_id, ReplicaTiming(tuple(latency)))
    return scheduler


def test_stages_overlap_under_pipelined_execution():
    scheduler = scheduler_of(PLAIN, [1.0, 2.0])
    assert [scheduler.place("a", 0.0, np.inf)[2:4] for _ in range(2)] == [(0.0, 3.0), (1.0, 5.0)]


def test_a_request_holds_its_group_to_the_end_under_exclusive_execution():
    scheduler = scheduler_of(replace(PLAIN, execution="exclusive"), [1.0, 2.0])
    assert [scheduler.place("a", 0.0, np.inf)[2:4] for _ in range(2)] == [(0.0, 3.0), (3.0, 6.0)]


def test_the_group_that_is_free_first_is_chosen_and_on_a_tie_the_lowest():
    scheduler = scheduler_of(PLAIN, [2.0], [1.0])
    assert [scheduler.place("a", 0.0, np.inf).group_id for _ in range(4)] == [0, 1, 1, 0]


def test_ties_go_to_the_lowest_group_whatever_the_order_of_registration():
    scheduler = Scheduler(PLAIN)
    for group_id in (7, 3):
        scheduler.add_group(group_id)
        scheduler.add_replica("a", group_id, ReplicaTiming((1.0,)))
    assert scheduler.groups_of("a") == [3, 7]
    assert [scheduler.place("a", 0.0, np.inf).group_id for _ in range(2)] == [3, 7]


def test_a_request_that_would_be_late_is_dropped_and_takes_no_time():
    scheduler = scheduler_of(replace(PLAIN, fixed_overhead_s=0.5), [1.0])
    assert scheduler.place("a", 0.0, 1.5).end == 1.0
    late = scheduler.place("a", 0.0, 2.4)
    assert (late.admitted, late.group_id) == (False, 0)
    in_time = scheduler.place("a", 0.0, 2.5)
    assert (in_time.admitted, in_time.begin) == (True, 1.0)


def test_everything_is_served_without_a_deadline():
    scheduler = scheduler_of(replace(PLAIN, admission="all"), [1.0])
    assert [scheduler.place("a", 0.0, 0.1).end for _ in range(3)] == [1.0, 2.0, 3.0]


def test_one_queue_holds_up_requests_whose_own_group_is_idle():
    scheduler = Scheduler(replace(PLAIN, execution="exclusive", queueing="global_fifo"))
    for group_id, model in enumerate("ab"):
        scheduler.add_group(group_id)
        scheduler.add_replica(model, group_id, ReplicaTiming((5.0,)))
    begins = [scheduler.place(model, arrival, np.inf).begin for model, arrival in zip("aab", [0, 1, 2], strict=True)]
    assert begins == [0.0, 5.0, 5.0]


def test_the_dispatch_interval_delays_each_start_and_parts_those_of_a_queue():
    rules = replace(PLAIN, dispatch_interval_s=0.25)
    apart = scheduler_of(rules, [0.0], [10.0])
    assert [apart.place("a", 0.0, np.inf).begin for _ in range(3)] == [0.25, 0.25, 0.5]
    together = scheduler_of(replace(rules, queueing="global_fifo"), [1.0], [10.0])
    assert [together.place("a", 0.0, np.inf).begin for _ in range(2)] == [0.25, 0.5]


def test_a_group_that_was_idle_takes_longer_on_every_stage():
    scheduler = scheduler_of(replace(PLAIN, idle_after_s=10, idle_penalty_s=0.5), [1.0, 1.0])
    ends = [scheduler.place("a", arrival, np.inf).end for arrival in (10.0, 22.0, 33.0)]
    # 10 s of idling are not more than 10 s
    assert ends == [12.0, 24.0, 35.0]
    assert scheduler.place("a", 45.1, np.inf).stage_latency == (1.5, 1.5)


def test_tokens_take_time_on_every_stage():
    scheduler = Scheduler(replace(PLAIN, service="tokens"))
    scheduler.add_group(0)
    scheduler.add_replica("a", 0, ReplicaTiming((1.0, 2.0), input_rate=0.125, further_rate=0.5))
    assert scheduler.place("a", 0.0, np.inf, 8, 3).stage_latency == (3.0, 4.0)
    assert scheduler.place("a", 0.0, np.inf, 0, 0).stage_latency == (1.0, 2.0)


def test_a_model_without_replica_is_not_served():
    assert scheduler_of(PLAIN, [1.0]).place("b", 0.0, np.inf) is None


def test_replicas_that_do_not_fit_are_refused():
    scheduler = scheduler_of(PLAIN, [1.0])
    with pytest.raises(InvalidPlacementError, match="group 0 exists"):
        scheduler.add_group(0)
    with pytest.raises(InvalidPlacementError, match=r"replica of 'b': no group 4; groups: \[0\]"):
        scheduler.add_replica("b", 4, ReplicaTiming((1.0,)))
    with pytest.raises(InvalidPlacementError, match="group 0 has a replica of 'a' already"):
        scheduler.add_replica("a", 0, ReplicaTiming((1.0,)))


def test_replicas_of_a_group_may_have_different_numbers_of_stages():
    scheduler = scheduler_of(PLAIN, [1.0, 2.0])
    scheduler.add_replica("b", 0, ReplicaTiming((0.5,)))
    ends = [scheduler.place(model, 0.0, np.inf).end for model in "abab"]
    assert ends == [3.0, 1.5, 5.0, 3.0]


@given(st.integers(0, 2**32), st.integers(1, 3000))
def test_random_dispatch_takes_the_draws_of_the_compiled_simulator(seed, count):
    rules = replace(PLAIN, dispatch="random", seed=seed)
    scheduler = scheduler_of(rules, [0.0], [0.0], [0.0])
    chosen = [scheduler.place("a", 0.0, np.inf).group_id for _ in range(count)]
    assert chosen == (3 * dispatch_draws(rules, count)).astype(int).tolist()


def test_a_scheduler_goes_on_with_the_draws_where_another_left_off():
    rules = replace(PLAIN, dispatch="random")
    draws = []
    for num_earlier, count in ((0, 1500), (1500, 500)):
        scheduler = Scheduler(rules, num_earlier)
        for group_id in range(100):
            scheduler.add_group(group_id)
            scheduler.add_replica("a", group_id, ReplicaTiming((0.0,)))
        draws += [scheduler.place("a", 0.0, np.inf).group_id for _ in range(count)]
    assert draws == (100 * dispatch_draws(rules, 2000)).astype(int).tolist()


def test_random_dispatch_is_uniform_and_follows_the_seed():
    rules = replace(PLAIN, dispatch="random", seed=5)
    chosen = [scheduler_of(rules, [0.0], [0.0]).place("a", 0.0, np.inf).group_id for _ in range(3)]
    assert len(set(chosen)) == 1
    draws = dispatch_draws(rules, 100_000)
    assert abs(draws.mean() - 0.5) < 0.01
    assert 0 <= draws.min() <= draws.max() < 1


def test_nothing_begins_during_a_stall():
    starts, ends = [1.0, 2.0], [2.0, 3.0]
    assert [after_stalls(t, starts, ends) for t in (0.9, 1.0, 1.5, 2.0, 3.0)] == [0.9, 3.0, 3.0, 3.0, 3.0]


def test_a_short_replica_does_not_make_its_group_seem_free():
    scheduler = scheduler_of(PLAIN, [1.0, 5.0], [3.0])
    scheduler.add_replica("short", 0, ReplicaTiming((0.5,)))
    assert scheduler.place("a", 0.0, np.inf).group_id == 0
    assert scheduler.place("short", 0.0, np.inf).end == 1.5
    # group 0 still works until 6 s, whatever "short" did
    assert scheduler.place("a", 0.0, np.inf).group_id == 1


def test_the_slo_counts_from_when_a_request_was_sent_and_service_from_now():
    scheduler = scheduler_of(PLAIN, [1.0])
    late = scheduler.place("a", 50.0, 5.0, sent=0.0)
    assert (late.admitted, late.begin) == (False, 50.0)
    assert scheduler.place("a", 50.0, 5.0, sent=46.5).admitted


def test_groups_are_idle_from_when_they_are_there():
    rules = replace(PLAIN, idle_after_s=10, idle_penalty_s=0.5)
    for since, end in ((0.0, 101.5), (95.0, 101.0)):
        scheduler = Scheduler(rules, since=since)
        scheduler.add_group(0)
        scheduler.add_replica("a", 0, ReplicaTiming((1.0,)))
        assert scheduler.place("a", 100.0, np.inf).end == end


def test_a_group_that_came_later_is_idle_from_then_on():
    rules = replace(PLAIN, idle_after_s=10, idle_penalty_s=0.5)
    for group_since, end in ((85.0, 101.5), (95.0, 101.0), (None, 101.5)):
        scheduler = Scheduler(rules, since=20.0)
        scheduler.add_group(0, since=group_since)
        scheduler.add_replica("a", 0, ReplicaTiming((1.0,)))
        assert scheduler.place("a", 100.0, np.inf).end == end


def test_a_request_does_not_go_to_excluded_groups():
    scheduler = scheduler_of(PLAIN, [1.0], [2.0], [3.0])
    assert scheduler.place("a", 0.0, np.inf, excluded=[0]).group_id == 1
    assert scheduler.place("a", 0.0, np.inf, excluded={0, 1}).group_id == 2
    # what was excluded did no work
    assert scheduler.place("a", 0.0, np.inf, excluded=[7])[:4] == (0, True, 0.0, 1.0)
    assert scheduler.place("a", 0.0, np.inf, excluded=[2]).group_id == 0
    # nor is it chosen where the others are too late
    assert not scheduler.place("a", 0.0, 3.5, excluded=[0]).admitted


def test_a_model_whose_groups_are_all_excluded_is_not_served_for_now():
    scheduler = scheduler_of(PLAIN, [1.0], [1.0])
    assert scheduler.place("a", 0.0, np.inf, excluded=[1, 0]) is None
    assert scheduler.place("a", 0.0, np.inf)[:4] == (0, True, 0.0, 1.0)


@given(st.integers(0, 2**32), st.sets(st.integers(0, 4), max_size=5))
def test_random_dispatch_chooses_among_those_that_are_not_excluded(seed, excluded):
    rules = replace(PLAIN, dispatch="random", seed=seed)
    scheduler = scheduler_of(rules, *[[0.0]] * 5)
    allowed = [group for group in range(5) if group not in excluded]
    draws = dispatch_draws(rules, 20)
    for draw in draws:
        assignment = scheduler.place("a", 0.0, np.inf, excluded=excluded)
        # each request takes its draw, whether it has a choice or not
        assert (None if assignment is None else assignment.group_id) == (
            allowed[int(draw * len(allowed))] if allowed else None
        )


def test_a_model_without_its_replica_is_served_by_the_others_or_not_at_all():
    scheduler = scheduler_of(PLAIN, [1.0], [1.0])
    scheduler.remove_replica("a", 0)
    assert scheduler.groups_of("a") == [1]
    assert [scheduler.place("a", 0.0, np.inf).group_id for _ in range(2)] == [1, 1]
    scheduler.remove_replica("a", 1)
    assert scheduler.groups_of("a") == ()
    assert scheduler.place("a", 0.0, np.inf) is None


def test_work_of_a_replica_that_went_keeps_its_group_busy():
    scheduler = scheduler_of(PLAIN, [1.0, 2.0], [4.0])
    scheduler.place("a", 0.0, np.inf)
    scheduler.remove_replica("a", 0)
    for model in "ab":
        scheduler.add_replica(model, 0, ReplicaTiming((1.0, 2.0)))
    assert scheduler.place("b", 0.0, np.inf)[2:4] == (1.0, 5.0)
    # group 1 is idle, group 0 is not
    assert scheduler.place("a", 0.0, np.inf).group_id == 1


def test_a_group_goes_with_its_replicas_and_may_come_back_idle():
    scheduler = scheduler_of(replace(PLAIN, dispatch_interval_s=0.5), [1.0], [1.0])
    scheduler.add_replica("b", 0, ReplicaTiming((1.0,)))
    scheduler.place("a", 10.0, np.inf)
    scheduler.remove_group(0)
    assert (scheduler.groups_of("a"), scheduler.groups_of("b")) == ([1], ())
    scheduler.add_group(0)
    scheduler.add_replica("b", 0, ReplicaTiming((1.0,)))
    assert scheduler.place("b", 5.0, np.inf)[2:4] == (5.5, 6.5)


def test_the_queue_of_all_groups_outlives_each_of_them():
    rules = replace(PLAIN, queueing="global_fifo")
    for removed in (0, 1):
        scheduler = scheduler_of(rules, [1.0], [1.0])
        assert [scheduler.place("a", 5.0, np.inf).begin for _ in range(3)] == [5.0, 5.0, 6.0]
        scheduler.remove_group(removed)
        scheduler.add_group(removed)
        scheduler.add_replica("b", removed, ReplicaTiming((1.0,)))
        assert scheduler.place("b", 0.0, np.inf).begin == 6.0


def test_what_is_not_there_cannot_be_removed():
    scheduler = scheduler_of(PLAIN, [1.0])
    with pytest.raises(InvalidPlacementError, match="group 0 has no replica of 'b'"):
        scheduler.remove_replica("b", 0)
    with pytest.raises(InvalidPlacementError, match="group 7 has no replica of 'a'"):
        scheduler.remove_replica("a", 7)
    with pytest.raises(InvalidPlacementError, match=r"no group 7; groups: \[0\]"):
        scheduler.remove_group(7)


@pytest.mark.parametrize(("execution", "third"), [("pipelined", (1.0, 5.0)), ("exclusive", (3.0, 6.0))])
def test_what_failed_gives_its_time_back_to_what_comes_next(execution, third):
    scheduler = scheduler_of(replace(PLAIN, execution=execution), [1.0, 2.0])
    _, failed = scheduler.place("a", 0.0, np.inf), scheduler.place("a", 0.0, np.inf)
    scheduler.give_back(failed, 0.0)
    assert scheduler.place("a", 0.0, np.inf)[2:4] == third == failed[2:4]


def test_time_that_has_passed_is_not_given_back():
    scheduler = scheduler_of(PLAIN, [1.0, 2.0])
    scheduler.give_back(scheduler.place("a", 0.0, np.inf), 2.5)
    assert scheduler.place("a", 2.5, np.inf)[2:4] == (2.5, 5.5)


def test_a_group_that_has_nothing_to_do_is_free_whatever_it_was_to_do():
    scheduler = scheduler_of(PLAIN, [1.0, 2.0], [4.0])
    for _ in range(5):
        scheduler.place("a", 0.0, np.inf)
    scheduler.set_idle(0, 1.5)
    assert scheduler.place("a", 1.5, np.inf)[:4] == (0, True, 1.5, 4.5)


def test_a_group_that_is_gone_takes_nothing_back():
    scheduler = scheduler_of(PLAIN, [1.0])
    placed = scheduler.place("a", 0.0, np.inf)
    scheduler.remove_group(0)
    scheduler.give_back(placed, 0.0)
    scheduler.set_idle(0, 0.0)
    assert scheduler.place("a", 0.0, np.inf) is None
