from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ModelPlacement
from alpa_serve.simulator.controller import approximate_one_case_one_placement

BATCH_SIZES = (1, 2, 4, 8, 16)
OVERHEAD = 0.011


class Oracle:
    """The batching simulator, written for reading: events one by one, queues as deques of request numbers."""

    def __init__(self, problem):
        self.problem = problem
        self.configs, self.members = problem.placement.group_configs, problem.placement.group_models
        self.clocks = [[0.0] * config.pp for config in self.configs]
        self.queues = [deque() for _ in problem.profiles]
        self.outcomes = [(None, arrival, False) for arrival in problem.arrivals]
        self.idle_events = []

    def run(self):
        for request, (arrival, model) in enumerate(zip(self.problem.arrivals, self.problem.model_ids, strict=True)):
            self.handle_idle_events(until=arrival)
            holding = [group for group in range(len(self.configs)) if model in self.members[group]]
            if holding:
                self.queues[model].append(request)
                group = min(holding, key=lambda group: self.clocks[group][-1])
                if self.clocks[group][0] <= arrival and not self.take(group, model, arrival):
                    self.take_oldest(group, arrival)
        self.handle_idle_events(until=np.inf)
        return self.outcomes

    def handle_idle_events(self, until):
        while self.idle_events and min(self.idle_events)[0] <= until:
            time, group = min(self.idle_events)
            self.idle_events.remove((time, group))
            if self.clocks[group][0] <= time:
                self.take_oldest(group, time)

    def take_oldest(self, group, now):
        while waiting := [model for model in self.members[group] if self.queues[model]]:
            if self.take(group, min(waiting, key=lambda model: self.queues[model][0]), now):
                break

    def ends(self, group, model, batch_size, now):
        config, t, ends = self.configs[group], now + OVERHEAD, []
        stages = self.problem.profiles[model].para_dict[config].latency[batch_size]
        for clock, latency in zip(self.clocks[group], stages, strict=True):
            t = max(t, clock) + latency * (1 + 0.009 * config.pp)
            ends.append(t)
        return ends

    def meets(self, request, end):
        return end - self.problem.arrivals[request] <= self.problem.slos[request]

    def take(self, group, model, now):
        """Let an idle group take a batch of the model; False if nothing was left to take after the drops."""
        queue = self.queues[model]
        while queue and not self.meets(queue[0], self.ends(group, model, 1, now)[-1]):
            dropped = queue.popleft()
            self.outcomes[dropped] = (group, self.problem.arrivals[dropped], False)
        if not queue:
            return False
        batch_size = max(
            size
            for size in BATCH_SIZES
            if size <= len(queue) and self.meets(queue[0], self.ends(group, model, size, now)[-1])
        )
        self.clocks[group] = self.ends(group, model, batch_size, now)
        end = self.clocks[group][-1]
        for _ in range(batch_size):
            request = queue.popleft()
            self.outcomes[request] = (group, end, self.meets(request, end))
        self.idle_events.append((self.clocks[group][0], group))
        return True


def simulate(profiles, placement, model_ids, slos, arrivals):
    names = [f"m{i}" for i in range(len(profiles))]
    return approximate_one_case_one_placement(
        placement, names, profiles, np.array(model_ids), np.array(slos), np.array(arrivals), enable_batching=True
    )


@given(data=st.data())
@settings(deadline=None, max_examples=300)
def test_every_request_fares_as_the_oracle_says(simulator_problems, data):
    problem = data.draw(simulator_problems)
    outcomes = Oracle(problem).run()
    run = simulate(*problem)
    groups = [group for group, _, _ in outcomes]
    good_groups = [group for group, _, good in outcomes if good]
    num_groups = len(problem.placement.group_configs)
    assert run.good.tolist() == [good for _, _, good in outcomes]
    np.testing.assert_allclose(run.finish, [finish for _, finish, _ in outcomes], rtol=1e-12, atol=0)
    assert run.group_num_requests.tolist() == [groups.count(group) for group in range(num_groups)]
    assert run.group_num_good_requests.tolist() == [good_groups.count(group) for group in range(num_groups)]


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_every_request_for_a_placed_model_ends_once_in_one_group(simulator_problems, data):
    problem = data.draw(simulator_problems)
    run = simulate(*problem)
    placed = [model_id in problem.placement.placed_models() for model_id in problem.model_ids]
    assert run.group_num_requests.sum() == sum(placed)
    assert run.model_num_good_requests.sum() == run.group_num_good_requests.sum() == run.good.sum()
    assert not run.good[~np.array(placed, dtype=bool)].any()
    assert (run.finish >= run.start).all()


@pytest.fixture
def one_stage(profile_of):
    """A model that takes 0.1 s plus 0.01 s for each further request of its batch, before the 0.9 % penalty."""
    return profile_of({(1, 1, 1): {size: [0.1 + 0.01 * (size - 1)] for size in BATCH_SIZES}})


def at_every_batch_size(stages):
    return {size: list(stages) for size in BATCH_SIZES}


SINGLE_GROUP = ModelPlacement([(1, 1, 1)], [[0]])


def seconds(batch_size):
    return (0.1 + 0.01 * (batch_size - 1)) * 1.009


def test_requests_that_wait_are_served_in_one_batch(one_stage):
    run = simulate([one_stage], SINGLE_GROUP, [0] * 5, [9.0] * 5, [0.0, 0.01, 0.02, 0.03, 0.04])
    # the first goes alone at once; when the stage is idle at 0.1119 s, four wait and go together
    first = OVERHEAD + seconds(1)
    second = first + OVERHEAD + seconds(4)
    assert run.finish == pytest.approx([first] + [second] * 4, abs=1e-12)


def test_the_largest_batch_that_the_queue_fills_is_taken(one_stage):
    run = simulate([one_stage], SINGLE_GROUP, [0] * 4, [9.0] * 4, [0.0, 0.01, 0.02, 0.03])
    first = OVERHEAD + seconds(1)
    second = first + OVERHEAD + seconds(2)
    third = second + OVERHEAD + seconds(1)
    assert run.finish == pytest.approx([first, second, second, third], abs=1e-12)


def test_the_batch_is_no_larger_than_the_deadline_of_its_head_allows(one_stage):
    # at 0.1119 s four wait; the head can stay until 0.235 s: alone 0.2238 s, two 0.2339 s, four 0.2541 s
    run = simulate([one_stage], SINGLE_GROUP, [0] * 5, [9.0, 0.225, 9.0, 9.0, 9.0], [0.0, 0.01, 0.02, 0.03, 0.04])
    first = OVERHEAD + seconds(1)
    second = first + OVERHEAD + seconds(2)
    third = second + OVERHEAD + seconds(2)
    assert run.finish == pytest.approx([first, second, second, third, third], abs=1e-12)
    assert run.good.all()


def test_a_later_request_of_a_batch_may_miss_its_deadline_but_is_served(one_stage):
    run = simulate([one_stage], SINGLE_GROUP, [0] * 3, [9.0, 9.0, 0.215], [0.0, 0.01, 0.015])
    end = 2 * OVERHEAD + seconds(1) + seconds(2)
    assert run.finish == pytest.approx([OVERHEAD + seconds(1), end, end], abs=1e-12)
    assert run.good.tolist() == [True, True, False]
    assert run.group_num_good_requests.tolist() == [2]


def test_a_head_that_is_too_late_is_dropped_when_the_group_is_idle(one_stage):
    run = simulate([one_stage], SINGLE_GROUP, [0] * 3, [9.0, 0.2, 9.0], [0.0, 0.01, 0.02])
    # alone, the second would end at 0.2238 s, after 0.21 s
    assert run.good.tolist() == [True, False, True]
    assert run.finish == pytest.approx([0.1119, 0.01, 0.2238], abs=1e-12)
    assert run.group_num_requests.tolist() == [3]


def test_the_model_whose_oldest_request_is_oldest_goes_first(one_stage):
    placement = ModelPlacement([(1, 1, 1)], [[0, 1]])
    run = simulate([one_stage, one_stage], placement, [0, 1, 0], [9.0] * 3, [0.0, 0.02, 0.01 + 0.02])
    first = OVERHEAD + seconds(1)
    assert run.finish == pytest.approx([first, 2 * first, 3 * first], abs=1e-12)


def test_an_idle_event_goes_before_an_arrival_at_the_same_time(profile_of):
    # without latency the stage is idle again when the overhead is over, just as the third request arrives
    profile = profile_of({(1, 1, 1): at_every_batch_size([0.0])})
    run = simulate([profile], SINGLE_GROUP, [0, 0, 0], [9.0] * 3, [0.0, 0.0, OVERHEAD])
    assert run.finish == pytest.approx([OVERHEAD, 2 * OVERHEAD, 3 * OVERHEAD], abs=1e-12)


def test_a_second_batch_enters_the_first_stage_while_the_first_is_in_the_second(profile_of):
    profile = profile_of({(1, 1, 2): at_every_batch_size([0.1, 0.2])})
    run = simulate([profile], ModelPlacement([(1, 1, 2)], [[0]]), [0, 0, 0], [9.0] * 3, [0.0, 0.01, 0.02])
    first, second = 0.1 * 1.018, 0.2 * 1.018
    ends = OVERHEAD + first + second, OVERHEAD + first + 2 * second
    assert run.finish == pytest.approx([ends[0], ends[1], ends[1]], abs=1e-12)


def test_an_arrival_makes_its_group_take_the_arriving_model_before_an_older_request_of_another(profile_of):
    profile = profile_of({(1, 1, 1): at_every_batch_size([0.5]), (1, 1, 2): at_every_batch_size([0.1, 1.0])})
    placement = ModelPlacement([(1, 1, 2), (1, 1, 1)], [[0, 1], [1]])
    run = simulate([profile] * 2, placement, [0, 1, 1, 0], [9.0] * 4, [0.0, 0.01, 0.2, 0.3])
    # the third waits for the second group, whose last stage is free first; the first group is idle when the fourth
    # comes, takes it, and the third only at its next idle time, 0.4128 s
    assert run.finish == pytest.approx([1.1308, 0.5255, 3.1668, 2.1488], abs=1e-9)
    assert run.group_num_requests.tolist() == [3, 1]


def test_an_idle_group_goes_on_to_the_oldest_other_request_when_the_arriving_one_is_dropped(profile_of):
    profile = profile_of({(1, 1, 1): at_every_batch_size([0.5]), (1, 1, 2): at_every_batch_size([0.1, 1.0])})
    placement = ModelPlacement([(1, 1, 2), (1, 1, 1)], [[0, 1], [1]])
    run = simulate([profile] * 2, placement, [0, 1, 1, 0], [9.0, 9.0, 9.0, 0.5], [0.0, 0.01, 0.2, 0.3])
    assert run.finish == pytest.approx([1.1308, 0.5255, 2.1488, 0.3], abs=1e-9)
    assert run.group_num_requests.tolist() == [3, 1]
    assert run.group_num_good_requests.tolist() == [2, 1]
