import io
import os
import pickle
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.safe_pickle import MAX_NESTING, NumberArray, NumberList, SafeUnpickler

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


def load(content, array_class=NumberList):
    return SafeUnpickler(io.BytesIO(content), "test", array_class).load()


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None, max_examples=80)
@given(value=plain, protocol=st.sampled_from(PROTOCOLS))
def test_plain_containers_come_back_as_they_were(value, protocol):
    assert load(pickle.dumps(value, protocol)) == value


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("dtype", ["?", "<i2", "<i4", "<u8", "<f4", "<f8", ">f8", ">i4"])
def test_arrays_of_numbers_are_kept_as_arrays_or_made_lists(protocol, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype)
    for given_array in (array, np.asfortranarray(array), array[:, ::2], array[:0]):
        content = pickle.dumps(OrderedDict(a=given_array), protocol)
        kept = load(content, NumberArray)["a"].array
        assert kept.tolist() == given_array.tolist()
        assert kept.dtype == given_array.dtype
        assert load(content) == {"a": given_array.tolist()}


@pytest.mark.parametrize("array", [np.array([{}]), np.array(["a"]), np.array([1j]), np.zeros(1, dtype="i4,i4")])
def test_arrays_of_anything_else_are_refused(array):
    for protocol in PROTOCOLS:
        with pytest.raises(pickle.UnpicklingError, match=r"NumPy|which is no part of a test"):
            load(pickle.dumps(array, protocol), NumberArray)


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("function", [os.system, eval, getattr, len, np.frombuffer, np.load, type, bytearray])
def test_whatever_is_named_is_refused_and_not_run(protocol, function, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"a": Calls(function, "touch ran")}, protocol)
    with pytest.raises(pickle.UnpicklingError, match="which is no part of a test"):
        load(content, NumberArray)
    assert not list(tmp_path.iterdir())


def nested(depth):
    value = ()
    for _ in range(depth - 1):
        value = (value,)
    return value


def test_tuples_nest_up_to_a_limit():
    for protocol in PROTOCOLS:
        assert load(pickle.dumps((None, nested(MAX_NESTING - 1)), protocol)) == (None, nested(MAX_NESTING - 1))
        with pytest.raises(pickle.UnpicklingError, match="nests tuples more deeply than any test"):
            load(pickle.dumps(nested(MAX_NESTING + 3), protocol))


def test_many_tuples_that_are_thrown_away_do_not_count_as_nested():
    # 1,000 tuples of depth 2, each popped before the next: they may all get the same id
    content = b"\x80\x02" + b")\x85\x850" * 1000 + b")\x85."
    assert load(content) == ((),)


def test_a_name_may_be_admitted():
    unpickler = SafeUnpickler(io.BytesIO(pickle.dumps(Calls(os.getcwd))), "test")
    unpickler.admit(os.getcwd.__module__, "getcwd", lambda: "here")
    assert unpickler.load() == "here"
