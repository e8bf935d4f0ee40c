import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace.llm import load_llm_trace
from alpa_serve.trace.llm.servegen import weibull_shape


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = tmp_path_factory.mktemp("chunks") / "chunk-0-trace.csv"

    def write_and_load(content, **arguments):
        path.write_text(content, encoding="utf-8")
        return load_llm_trace(path, **arguments)

    return write_and_load


@pytest.mark.parametrize(
    ("distribution", "cv"), [("Gamma", 2.0), ("Gamma", 0.3), ("Weibull", 1.7), ("Weibull", 0.4), ("Exponential", 1.0)]
)
def test_arrivals_have_the_stated_rate_and_cv(distribution, cv, read):
    trace = read(f"0,20,{cv},{distribution},0.5,0.1\n3000,0,,,,\n", seed=1)
    gaps = np.diff(trace.arrival_s)
    assert len(trace) == pytest.approx(60_000, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)
    assert trace.arrival_s[-1] < 3000
    assert trace.input_tokens is None


@pytest.mark.parametrize(("distribution", "cv"), [("Gamma", 3.0), ("Weibull", 2.5), ("Poisson", 1.0), ("Gamma", 0.1)])
def test_short_windows_have_the_stated_number_in_expectation(distribution, cv, read):
    windows = "".join(f"{2 * i},1.5,{cv},{distribution},1,1\n" for i in range(20_000))
    number = len(read(windows))
    assert number == pytest.approx(60_000, rel=0.02 * max(cv, 1))


def test_windows_last_until_the_next_and_the_last_as_long_as_the_one_before(read):
    trace = read("100,5,1,Gamma,1,0.2\n400,0,nan,,nan,nan\n600,50,1,Poisson,,\n")
    counts = np.histogram(trace.arrival_s, [100, 400, 600, 800])[0]
    assert counts.sum() == len(trace)
    assert counts == pytest.approx([1500, 0, 10_000], rel=0.1)
    shuffled = read("600,50,1,Poisson,,\n100,5,1,Gamma,1,0.2\n\n400,0,nan,,nan,nan\n")
    assert shuffled.arrival_s.tolist() == trace.arrival_s.tolist()
    part = read("100,5,1,Gamma,1,0.2\n400,0,nan,,nan,nan\n600,50,1,Poisson,,\n", start=200, end=700, max_rows=30)
    assert part.arrival_s.tolist() == trace.slice(200, 700).arrival_s[:30].tolist()


def test_the_seed_decides_the_arrivals(read, random_state_untouched):
    content = "0,5,1.5,Gamma,1,0.2\n60,5,1.5,Weibull,1,0.2\n"
    first, same, other = (read(content, seed=seed).arrival_s.tolist() for seed in (1, 1, 2))
    assert first == same != other


@given(cv=st.floats(0.01, 1000))
def test_the_shape_of_a_weibull_distribution_gives_its_cv_back(cv):
    from scipy.special import gammaln

    power = 1 / weibull_shape(cv)
    assert np.sqrt(np.expm1(gammaln(1 + 2 * power) - 2 * gammaln(1 + power))) == pytest.approx(cv, rel=1e-6)


GOOD = "0,5,1,Gamma,1,0.2\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD, "1 windows; two or more"),
        (GOOD + GOOD, "line 2, column start_s: another window begins at the same time"),
        (GOOD + "60,5,1,Gamma,1\n", "line 2: 5 cells; start_s, rate, cv, distribution"),
        (GOOD + "x,5,1,Gamma,1,0.2\n", "line 2, column start_s: not a number from 0 to 3.1.*: 'x'"),
        (GOOD + "1700158624,5,1,Gamma,1,0.2\n", "line 2, column start_s.*it looks like Unix time in s$"),
        (GOOD + "60,-5,1,Gamma,1,0.2\n", "line 2, column rate: not a number from 0 to 100000: '-5'"),
        (GOOD + "60,5,nan,Gamma,1,0.2\n", "line 2, column cv"),
        (GOOD + "60,5,0,Gamma,1,0.2\n", "line 2, column cv: must be at least 0.01"),
        (GOOD + "60,5,1,Normal,1,0.2\n", "line 2, column distribution: 'Normal'; known: gamma, weibull"),
        (GOOD + "60,5,1,Gamma,a,0.2\n", "line 2, column parameter 1: not a number"),
        (GOOD + "60,5,1,Gamma,1,\n", "line 2, column parameter 2: not a number"),
        ("0,0,,,,\n60,0,,,,\n", "no request in this file"),
        ("0,1e5,1,Gamma,1,1\n3e8,0,,,,\n", "at most 2e.08 are generated"),
    ],
)
def test_a_bad_chunk_is_refused_with_file_line_and_column(content, message, read):
    with pytest.raises(InvalidTraceError, match=message) as caught:
        read(content)
    assert "chunk-0-trace.csv" in str(caught.value)


WRONG = ["", "nan", "-1", "1e9", "inf", "x", "Gamma", "0", "7", "\n", '"']
CHUNK = "0,0.5,1.2,Gamma,0.7,2.9\n60,0,,,,\n120,0.3,0.8,Weibull,1.2,3.5\n"


@settings(deadline=None, max_examples=150)
@given(
    place=st.integers(0, 17), cell=st.sampled_from(["", "nan", "-1", "1e9", "inf", "x", "Gamma", "0", "7", "\n", '"'])
)
def test_a_wrong_cell_is_refused_or_read_as_arrivals_in_the_windows(place, cell, read):
    begin, end = [match.span() for match in re.finditer(r"[^,\n]*(?=[,\n])", CHUNK)][place]
    try:
        trace = read(CHUNK[:begin] + cell + CHUNK[end:], format="servegen")
    except InvalidTraceError as error:
        refusal = str(error)
    else:
        assert len(trace)
        assert (np.diff(trace.arrival_s) >= 0).all()
        return
    assert "chunk-0-trace.csv" in refusal
