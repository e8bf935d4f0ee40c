import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.simulator.arrivals import MIN_CV
from alpa_serve.trace.functions.fits import (
    estimate_exponential,
    estimate_gamma,
    estimate_pareto,
    fit_gamma_shapes,
    fit_pareto_shapes,
    fit_rates,
    interval_gaps,
)


def arrivals_of(seed, cv, count=3000):
    random = np.random.RandomState(seed)
    return np.cumsum(random.gamma(1 / cv**2, cv**2, count))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1000), cv=st.sampled_from([0.05, 0.3, 1, 2, 5]), width=st.sampled_from([17, 100, 900]))
def test_fits_of_all_intervals_equal_those_of_scipy(seed, cv, width):
    arrivals = arrivals_of(seed, cv)
    arrivals = arrivals[arrivals < 2400]
    edges = np.arange(0, 2400 + width, width, dtype=float)
    gaps = interval_gaps(arrivals, edges)
    rates, shapes, paretos = fit_rates(gaps, width), fit_gamma_shapes(gaps), fit_pareto_shapes(gaps)
    # scipy is slow: every seventh interval
    for i in range(0, len(edges) - 1, 7):
        inside = arrivals[(arrivals >= edges[i]) & (arrivals < edges[i + 1])]
        own = np.diff(inside) + 1e-6
        assert (gaps.num_arrivals[i], gaps.num_gaps[i]) == (len(inside), len(own))
        if not len(own):
            assert np.isnan(rates[i])
            assert np.isnan(paretos[i])
            continue
        _, scale = scipy.stats.expon.fit(own, floc=0)
        rate = len(inside) / width if 1 / scale > 5 * len(inside) / width else 1 / scale
        assert rates[i] == pytest.approx(rate, rel=1e-12)
        assert paretos[i] == pytest.approx(scipy.stats.pareto.fit(own + 1, floc=0, fscale=1)[0], rel=1e-11)
        if len(own) < 2:
            assert np.isnan(shapes[i])
        # scipy fails on gaps that are all equal, and its last digits mean nothing where they nearly are
        elif np.log(own.mean()) - np.log(own).mean() > 1e-6:
            shape, _, _ = scipy.stats.gamma.fit(own, floc=0)
            assert shapes[i] == pytest.approx(shape, rel=1e-8)


def test_equal_gaps_have_the_smallest_cv_there_is():
    gaps = interval_gaps(np.arange(10.0), np.array([0.0, 10.0]))
    assert fit_gamma_shapes(gaps).tolist() == pytest.approx([MIN_CV**-2])


def test_a_rate_from_a_few_close_arrivals_is_replaced_by_the_count():
    gaps = interval_gaps(np.array([5.0, 5.001, 605.0, 725.0, 1205.0]), np.array([0.0, 600, 1200, 1800]))
    rates = fit_rates(gaps, 600)
    assert rates[:2] == pytest.approx([2 / 600, 1 / 120.000001])
    assert np.isnan(rates[2])


def test_whole_sequences_are_estimated():
    arrivals = arrivals_of(1, 2.0, 50_000)
    assert estimate_exponential(arrivals) == pytest.approx(1, rel=0.03)
    assert estimate_gamma(arrivals[::-1]) == pytest.approx((1, 2), rel=0.03)
    pareto = np.cumsum(np.random.RandomState(2).pareto(1.5, 50_000))
    assert estimate_pareto(pareto) == pytest.approx((1.5, 1, 0), rel=0.03)
    assert np.isnan(estimate_exponential([3.0]))
    assert np.isnan(estimate_gamma([3.0, 4.0])[1])
    assert np.isnan(estimate_pareto([])[0])
