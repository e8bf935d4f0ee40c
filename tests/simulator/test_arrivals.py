import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError, InvalidWorkloadError
from alpa_serve.simulator.workload import (
    ArrivalProcess,
    DeterministicProcess,
    GammaProcess,
    ParetoProcess,
    PoissonProcess,
    UniformMMPP,
    Workload,
)

PROCESSES = {
    "deterministic": lambda p: DeterministicProcess(p["rate"]),
    "gamma": lambda p: GammaProcess(p["rate"], p["cv"]),
    "poisson": lambda p: PoissonProcess(p["rate"]),
    "uniform_mmpp": lambda p: UniformMMPP(p["state_durations"], p["state_request_rates"]),
    "pareto": lambda p: ParetoProcess(p["shape"], p["scale"]),
}
EXAMPLES = [
    DeterministicProcess(4),
    GammaProcess(20, 0.3),
    GammaProcess(5, 3),
    PoissonProcess(8),
    UniformMMPP([2, 3], [1, 12]),
    UniformMMPP([1, 2, 4], [0, 5, 20]),
    ParetoProcess(6, 1.2),
    ParetoProcess(5, 0.5, loc=0.6),
]
each_process = pytest.mark.parametrize("process", EXAMPLES, ids=str)
no_positive_number = st.one_of(
    st.floats(max_value=0),
    st.just(math.nan),
    st.just(math.inf),
    st.sampled_from(["1", None, True, [1.0]]),
)
positive = st.floats(0.01, 100)


def test_arrivals_are_alpaserves(golden):
    for case in golden("arrivals"):
        process = PROCESSES[case["process"]["kind"]](case["process"])
        arrivals = process.generate_arrivals(case["start"], case["duration"], case["seed"])
        workload = Workload.from_columns(arrivals, np.zeros(len(arrivals), int), ["m"])
        assert len(arrivals) == case["count"], case
        figures = [*arrivals[:5], arrivals[-1], arrivals.sum(), workload.rate, workload.cv]
        expected = [*case["first"], case["last"], case["sum"], case["rate"], case["cv"]]
        assert figures == pytest.approx(expected, rel=1e-9, abs=1e-9), case


@each_process
def test_a_long_sample_has_the_stated_rate_and_cv(process):
    gaps = np.diff(process.generate_arrivals(0, 200_000 / process.rate(), seed=1))
    assert 1 / gaps.mean() == pytest.approx(process.rate(), rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(process.cv(), rel=0.05, abs=1e-6)


@each_process
def test_the_seed_decides_the_arrivals(process, random_state_untouched):
    first, again, other = (process.generate_arrivals(5, 60, seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    if not isinstance(process, DeterministicProcess):
        assert first.tolist() != other.tolist()


@each_process
def test_arrivals_ascend_from_the_start(process):
    arrivals = process.generate_arrivals(7, 50)
    assert arrivals.min() >= 7
    assert np.diff(arrivals).min() >= 0


@each_process
def test_a_later_start_only_moves_the_arrivals(process):
    np.testing.assert_allclose(process.generate_arrivals(100, 30), 100 + process.generate_arrivals(0, 30))


@pytest.mark.parametrize("process", EXAMPLES[:4], ids=str)
def test_arrivals_are_before_the_end(process):
    assert process.generate_arrivals(7, 50).max() < 57


@pytest.mark.parametrize("process", EXAMPLES[4:6], ids=str)
def test_an_mmpp_gives_exactly_the_expected_number(process):
    assert len(process.generate_arrivals(0, 33)) == int(33 * process.rate())


@pytest.mark.parametrize("process", EXAMPLES[6:], ids=str)
@pytest.mark.parametrize("seed", range(5))
def test_pareto_keeps_one_arrival_past_the_end(process, seed):
    arrivals = process.generate_arrivals(2, 10, seed)
    assert np.count_nonzero(arrivals > 12) == 1


@each_process
def test_no_duration_gives_no_arrival_within_it(process):
    arrivals = process.generate_arrivals(3, 0)
    assert len(arrivals) == (1 if isinstance(process, ParetoProcess) else 0)


@each_process
def test_a_workload_has_the_arrivals_the_model_and_the_slo(process):
    workload = process.generate_workload("model", 3, 20, slo=1.5, seed=2)
    np.testing.assert_array_equal(workload.arrivals, process.generate_arrivals(3, 20, 2))
    assert {(r.model_name, r.slo) for r in workload.requests} == {("model", 1.5)}


def test_requests_have_no_slo_by_default():
    assert DeterministicProcess(2).generate_workload("model", 0, 1).requests[0].slo is None


def test_equal_gaps_are_the_reciprocal_of_the_rate():
    assert DeterministicProcess(4).generate_arrivals(1, 1.1).tolist() == [1, 1.25, 1.5, 1.75]


def test_poisson_is_gamma_with_cv_one():
    np.testing.assert_array_equal(
        PoissonProcess(3).generate_arrivals(0, 50, 7), GammaProcess(3, 1).generate_arrivals(0, 50, 7)
    )


def test_gamma_arrivals_are_the_cumulated_draws_of_a_private_generator():
    gaps = np.random.RandomState(5).gamma(1 / 4, 4 / 10, size=1000)
    times = np.cumsum(gaps)
    np.testing.assert_allclose(GammaProcess(10, 2).generate_arrivals(0, 20, 5), times[times < 20], rtol=1e-12)


def test_params_are_what_a_process_was_made_with():
    assert [process.params() for process in EXAMPLES] == [
        (4,),
        (20, 0.3),
        (5, 3),
        (8,),
        ((2, 3), (1, 12)),
        ((1, 2, 4), (0, 5, 20)),
        (6, 1.2, 0),
        (5, 0.5, 0.6),
    ]


def test_rate_and_cv_of_a_heavy_tail_are_zero_and_infinity():
    assert ParetoProcess(1, 1).rate() == 0
    assert ParetoProcess(1.5, 2).rate() == pytest.approx(1 / 5)
    assert ParetoProcess(2, 1).cv() == math.inf


def test_pareto_with_negative_gaps_is_refused_with_its_parameters():
    with pytest.raises(InvalidConfigError, match=r"shape=2, scale=0.5, loc=0.25.*-0.25 s; loc \+ scale"):
        ParetoProcess(2, 0.5, 0.25)


def test_the_base_class_cannot_be_instantiated():
    with pytest.raises(TypeError, match="abstract"):
        ArrivalProcess()


@given(no_positive_number, positive)
def test_a_rate_or_cv_that_is_no_positive_number_is_refused(bad, good):
    for make in (
        DeterministicProcess,
        PoissonProcess,
        lambda v: GammaProcess(v, good),
        lambda v: GammaProcess(good, v),
    ):
        with pytest.raises(InvalidConfigError):
            make(bad)


@given(no_positive_number, positive)
def test_pareto_parameters_out_of_range_are_refused(bad, good):
    for make in (lambda v: ParetoProcess(v, 1 + good), lambda v: ParetoProcess(good, v)):
        with pytest.raises(InvalidConfigError):
            make(bad)
    with pytest.raises(InvalidConfigError, match="loc"):
        ParetoProcess(good, good, math.nan)


@given(st.one_of(st.floats(max_value=0), st.just(math.nan), st.just(math.inf)), positive)
def test_mmpp_durations_out_of_range_are_refused(bad, good):
    with pytest.raises(InvalidConfigError, match="durations"):
        UniformMMPP([good, bad], [1, 1])


@given(st.one_of(st.floats(max_value=0, exclude_max=True), st.just(math.nan), st.just(math.inf)), positive)
def test_mmpp_rates_out_of_range_are_refused(bad, good):
    with pytest.raises(InvalidConfigError, match="rates"):
        UniformMMPP([1, 1], [good, bad])


@pytest.mark.parametrize(("durations", "rates"), [([1], [1, 2]), ([], []), ([1, 1], [0, 0])])
def test_mmpp_states_that_do_not_fit_are_refused(durations, rates):
    with pytest.raises(InvalidConfigError):
        UniformMMPP(durations, rates)


@given(st.one_of(st.floats(max_value=0, exclude_max=True), st.just(math.nan), st.just(math.inf)))
@settings(max_examples=20)
def test_a_window_out_of_range_is_refused(bad):
    for process in EXAMPLES:
        with pytest.raises(InvalidConfigError, match="start"):
            process.generate_arrivals(bad, 10)
        with pytest.raises(InvalidConfigError, match="duration"):
            process.generate_arrivals(0, bad)


@pytest.mark.parametrize("cv", [1e-200, 1e-7, 1e4, 1e200])
def test_a_cv_whose_gaps_are_no_floats_is_refused(cv):
    with pytest.raises(InvalidConfigError, match="cv of a GammaProcess"):
        GammaProcess(1, cv)


@pytest.mark.parametrize("shape", [1e10, 1e18])
def test_a_pareto_process_without_gaps_is_refused(shape):
    with pytest.raises(InvalidConfigError, match="mean gap"):
        ParetoProcess(shape, 1.0)


@pytest.mark.parametrize(
    "process", [DeterministicProcess(1e9), GammaProcess(1e9, 2), UniformMMPP([1e-8], [1]), ParetoProcess(1e8, 1.0)]
)
def test_more_requests_than_memory_holds_are_refused_before_they_are_drawn(process):
    with pytest.raises(InvalidWorkloadError, match="at most 2e"):
        process.generate_arrivals(0, 1e3)


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5])
def test_a_seed_that_the_generator_cannot_take_is_refused(seed):
    with pytest.raises(InvalidConfigError, match="seed"):
        PoissonProcess(1).generate_arrivals(0, 1, seed)
