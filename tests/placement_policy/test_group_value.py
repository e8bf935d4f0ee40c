"""Both kernels against trying every selection of requests."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement_policy.dispatch_value import best_dispatch
from alpa_serve.placement_policy.group_value import best_selection

MANY = 4096
SECONDS = st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0])
ROUNDING = 2.0**-40


@st.composite
def jobs(draw, num_stages):
    """Arrivals, work, SLOs, model ids and prices of a few requests, the times exact in binary."""
    rows = draw(
        st.lists(
            st.tuples(
                st.sampled_from([0.0, 0.125, 0.5]),
                st.lists(SECONDS, min_size=num_stages, max_size=num_stages),
                st.sampled_from([0.25, 0.5, 1.0, 2.0, np.inf]),
                st.integers(0, 2),
                st.sampled_from([-1.5, -0.5, 0.0, 0.25, 0.75, 1.0]),
            ),
            min_size=1,
            max_size=7,
        )
    )
    gaps, work, slos, model_ids, prices = zip(*rows, strict=True)
    arrivals = np.cumsum(gaps)
    return arrivals, np.array(work), arrivals + slos, np.array(model_ids, np.int32), np.array(prices)


HELD = np.array([True, True, False])


def highest(num_requests, model_ids, value):
    """Return the highest value(chosen) over the selections of requests for held models."""
    options = [(False, True) if HELD[m] else (False,) for m in model_ids]
    return max(value(chosen) for chosen in product(*options))


@pytest.mark.parametrize("serves_late", [False, True])
@settings(deadline=None, max_examples=200)
@given(case=jobs(num_stages=1), max_states=st.sampled_from([1, 2, MANY]))
def test_the_value_of_a_machine_is_that_of_its_best_selection(case, serves_late, max_states):
    arrivals, work, latest, model_ids, prices = case
    if not serves_late:
        prices = np.abs(prices)

    def value(chosen):
        clock, total = 0.0, 0.0
        for i in np.flatnonzero(chosen):
            end = max(clock, arrivals[i]) + work[i, 0]
            in_time = end <= latest[i]
            if in_time or serves_late:
                clock = end
                total += in_time - prices[i]
        return total

    selected = np.zeros(len(arrivals), dtype=bool)
    found = best_selection(
        arrivals, arrivals, work[:, 0].copy(), latest, prices, model_ids, HELD, serves_late, max_states, selected
    )
    best = highest(len(arrivals), model_ids, value)
    assert found >= best
    if max_states == MANY:
        assert found == best == value(selected)


@pytest.mark.parametrize("num_stages", [1, 2, 3])
@settings(deadline=None, max_examples=200)
@given(data=st.data(), max_states=st.sampled_from([1, 2, MANY]))
def test_the_value_of_a_group_is_that_of_the_best_requests_to_send_it(data, num_stages, max_states):
    # deadlines that no sum of times meets exactly: rounding decides nothing
    arrivals, work, latest, model_ids, prices = data.draw(jobs(num_stages))
    latest = latest + 0.0625

    def value(chosen):
        clocks, total = [0.0] * num_stages, 0.0
        for i in np.flatnonzero(chosen):
            end, ends = arrivals[i], []
            for clock, seconds in zip(clocks, work[i], strict=True):
                end = max(end, clock) + seconds
                ends.append(end)
            in_time = end <= latest[i]
            total += in_time - prices[i]
            if in_time:
                clocks = ends
        return total

    entered = (np.cumsum(work, axis=1) - work).min(axis=0) - ROUNDING
    selected = np.zeros(len(arrivals), dtype=bool)
    found = best_dispatch(arrivals, entered, work, latest, ROUNDING, prices, model_ids, HELD, max_states, selected)
    best = highest(len(arrivals), model_ids, value)
    assert found >= best
    if max_states == MANY:
        assert found == best
