import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.scheduling.batching import largest_batch

SIZES = [1, 2, 4]
LATENCY = [[1.0, 2.0], [1.5, 2.5], [3.0, 4.0]]


def choose(begin=0.0, clocks=(0.0, 0.0), waiting=9, sent=0.0, slo=math.inf):
    return largest_batch(begin, list(clocks), LATENCY, 2, SIZES, waiting, sent, slo)


@pytest.mark.parametrize(("waiting", "size"), [(1, 1), (2, 2), (3, 2), (4, 4), (100, 4)])
def test_the_largest_size_that_the_queue_fills_is_taken(waiting, size):
    assert SIZES[choose(waiting=waiting)] == size


@pytest.mark.parametrize(("slo", "batch"), [(7.0, 2), (6.9, 1), (4.0, 1), (3.9, 0), (3.0, 0), (2.9, -1)])
def test_the_head_must_meet_its_deadline_and_is_dropped_if_it_cannot_even_alone(slo, batch):
    assert choose(slo=slo) == batch
    assert choose(begin=5.0, sent=5.0, slo=slo) == batch


def test_busy_stages_count():
    assert choose(clocks=(0.0, 5.0), slo=7.4) == 0
    assert choose(clocks=(0.0, 5.0), slo=7.5) == 1


def test_a_size_that_is_slower_than_a_larger_one_is_passed_over():
    assert largest_batch(0.0, [0.0], [[1.0], [9.0], [2.0]], 1, SIZES, 4, 0.0, 3.0) == 2


@given(
    st.lists(st.floats(0, 10), min_size=2, max_size=2),
    st.lists(st.lists(st.floats(0, 10), min_size=2, max_size=2), min_size=3, max_size=3),
    st.integers(1, 6),
    st.floats(0, 40),
)
def test_the_choice_is_that_of_its_definition(clocks, latency, waiting, slo):
    def meets(stages):
        first = max(1.0, clocks[0]) + stages[0]
        return max(first, clocks[1]) + stages[1] - 0.5 <= slo

    fitting = [batch for batch in range(3) if SIZES[batch] <= waiting and meets(latency[batch])]
    expected = max(fitting) if meets(latency[0]) else -1
    assert largest_batch(1.0, clocks, latency, 2, SIZES, waiting, 0.5, slo) == expected
