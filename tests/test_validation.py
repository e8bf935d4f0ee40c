import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve import errors
from alpa_serve.errors import AlpaServeError, InvalidConfigError, InvalidTraceError, UnknownNameError
from alpa_serve.validation import check_int, check_known, check_real


@given(st.floats(min_value=0, allow_nan=False, allow_infinity=False))
def test_a_number_in_range_comes_back_as_a_float(number):
    assert check_real(number, "x", minimum=0) == number
    assert isinstance(check_real(np.float64(number), "x", minimum=0), float)


@pytest.mark.parametrize("bad", [-1e-9, math.nan, math.inf, "1", None, True, 1j, [1]])
def test_what_is_no_finite_number_of_the_minimum_is_refused_by_name(bad):
    with pytest.raises(InvalidConfigError, match=r"rate of m0 must be a finite number >= 0, got "):
        check_real(bad, "rate of m0", minimum=0)


def test_an_exclusive_minimum_is_refused():
    assert check_real(1e-300, "x", minimum=0, exclusive=True) > 0
    with pytest.raises(InvalidConfigError, match="> 0"):
        check_real(0, "x", minimum=0, exclusive=True)


def test_infinity_is_allowed_on_request_but_never_nan():
    assert check_real(math.inf, "slo", finite=False) == math.inf
    with pytest.raises(InvalidConfigError, match="got nan"):
        check_real(math.nan, "slo", finite=False)


@pytest.mark.parametrize("bad", [0, -3, 1.0, True, "2", None])
def test_what_is_no_whole_number_of_the_minimum_is_refused(bad):
    with pytest.raises(InvalidConfigError, match="devices must be a whole number >= 1"):
        check_int(bad, "devices", minimum=1)


def test_numpy_integers_are_whole_numbers():
    assert check_int(np.int32(4), "devices", minimum=1) == 4


def test_the_error_class_is_the_callers():
    with pytest.raises(InvalidTraceError):
        check_int(-1, "x", minimum=0, error=InvalidTraceError)
    with pytest.raises(InvalidTraceError):
        check_real(-1, "x", minimum=0, error=InvalidTraceError)


def test_an_unknown_name_lists_the_known_ones():
    assert check_known("b", ["a", "b"], "trace") == "b"
    with pytest.raises(UnknownNameError, match="unknown trace 'c'; known: a, b"):
        check_known("c", ["a", "b"], "trace")


@pytest.mark.parametrize("name", [name for name in dir(errors) if name.endswith("Error")])
def test_every_error_is_an_alpa_serve_error(name):
    assert issubclass(getattr(errors, name), AlpaServeError)
