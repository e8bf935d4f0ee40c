import os
import pickle
import subprocess
import sys
import time
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace import load_trace

COUNTS = np.zeros(20160, dtype=np.int32)
COUNTS[[0, 7, 20159]] = 3, 1, 2**31 - 1
SECONDS = np.array([0.5, 0.5, 7.25, 1209599.0])


@pytest.fixture
def load_bytes(tmp_path):
    def load(content):
        path = tmp_path / "trace.pkl"
        path.write_bytes(content)
        return load_trace(path)

    return load


@pytest.fixture
def refused(load_bytes, tmp_path):
    def check(content, match):
        with pytest.raises(InvalidTraceError, match=match) as caught:
            load_bytes(content)
        assert "trace.pkl" in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["trace.pkl"]

    return check


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "functions",
    [
        OrderedDict(a=COUNTS, b=COUNTS * 0, c=COUNTS[::-1]),
        {"a": COUNTS.astype(np.int64)},
        {"a": COUNTS[:1440].astype(np.uint16), "b": COUNTS[:1440].astype(">i4")},
        OrderedDict(a=SECONDS, b=SECONDS[:0], c=-SECONDS[:1]),
        {"a": SECONDS.tolist(), "b": [], "c": SECONDS.astype(np.float32)},
    ],
    ids=["counts", "int64 counts", "one day of counts", "seconds", "lists of seconds"],
)
def test_alpaserves_pickles_are_read_by_any_protocol(load_bytes, functions, protocol):
    table = load_bytes(pickle.dumps(functions, protocol))
    assert list(table) == list(functions)
    for name, values in functions.items():
        assert table[name].tolist() == np.asarray(values).tolist()


def test_one_array_under_two_names_is_read(load_bytes):
    table = load_bytes(pickle.dumps({"a": COUNTS, "b": COUNTS}))
    assert table["b"].tolist() == COUNTS.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([], "expected a dict of function name to array, found a list"),
        ({}, "no function in this file"),
        ({1: COUNTS}, "name of a function must be text, found 1"),
        ({"a": COUNTS[:1439]}, "function 'a' has 1439 counts"),
        ({"a": np.zeros(0, dtype=np.int32)}, "function 'a' has 0 counts"),
        ({"a": np.zeros(21600, dtype=np.int32)}, "function 'a' has no array of seconds"),
        ({"a": COUNTS, "b": COUNTS[:1440]}, "function 'b' has 1440 counts, those before it 20160"),
        ({"a": COUNTS, "b": SECONDS}, "function 'b' has no array of whole numbers"),
        ({"a": SECONDS, "b": COUNTS}, "function 'b' has no array of seconds"),
        ({"a": -COUNTS}, "function 'a', minute 0: a count must lie between 0 and 2147483647, found -3"),
        ({"a": COUNTS.astype(np.int64) * 2}, "function 'a', minute 20159: a count .* found 4294967294"),
        ({"a": COUNTS > 0}, "function 'a' has no array of seconds"),
        ({"a": COUNTS.reshape(2, -1)}, "array of shape"),
        ({"a": SECONDS[::-1]}, "function 'a' has times that do not ascend: entry 1"),
        ({"a": SECONDS, "b": SECONDS * np.nan}, "function 'b', invocation 0: expected seconds .* found nan"),
        ({"a": SECONDS * 1000}, "function 'a', invocation 3: expected seconds up to 1296000 .* found 1209599000"),
        ({"a": [0.5, "1"]}, "function 'a' has no array of seconds"),
        ({"a": [True]}, "function 'a' has no array of seconds"),
        ({"a": None}, "function 'a' has no array of seconds"),
    ],
)
def test_what_is_no_trace_is_refused_with_the_function(refused, content, message):
    refused(pickle.dumps(content), message)


class Calls:
    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch ran",)),
        (eval, ("open('ran', 'w')",)),
        (open, ("ran", "w")),
        (subprocess.run, (["touch", "ran"],)),
        (np.fromfile, ("trace.pkl",)),
        (pickle.loads, (b"N.",)),
        (getattr, (OrderedDict, "fromkeys")),
    ],
)
def test_a_pickle_that_calls_something_is_refused_and_runs_nothing(
    refused, monkeypatch, tmp_path, function, arguments, protocol
):
    monkeypatch.chdir(tmp_path)
    call = Calls(function, *arguments)
    for content in (call, {"a": call}, OrderedDict(a=COUNTS, b=call), {"a": [call]}):
        refused(pickle.dumps(content, protocol), "which is no part of a trace")


@pytest.mark.parametrize(
    "crafted",
    [
        # states for an array that hold something else, or are none
        pickle.dumps({"a": Calls(np.ndarray, (1,), np.dtype("O"), b"A" * 8)}, 2),
        pickle.dumps({"a": np.array([{}, {}])}),
        b"}Va\ncnumpy\nndarray\n)\x81Nbs.",
        b"}Va\ncnumpy\nndarray\n)\x81s.",
        b"cnumpy\nndarray\nN(dV__doc__\nI1\ns\x86b.",
        # references to what is not there, extension registry, persistent id
        b"g7\n.",
        b"\x80\x02\x82\x01.",
        b"Pname\n.",
        # nesting that would exhaust the stack
        b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
        b"\x80\x02}Va\n" + b"]" * 100_000 + b"a" * 99_999 + b"s.",
    ],
)
def test_a_crafted_pickle_is_refused_in_a_process_that_lives_on(tmp_path, crafted):
    path = tmp_path / "trace.pkl"
    path.write_bytes(crafted)
    script = (
        "import sys\nfrom alpa_serve.errors import InvalidTraceError\nfrom alpa_serve.trace import load_trace\n"
        "try:\n    load_trace(sys.argv[1])\nexcept InvalidTraceError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


def test_a_reference_back_to_raw_bytes_is_refused(refused):
    raw = np.arange(5000, dtype=np.int32).tobytes()
    # two objects that share the bytes, as no array does
    refused(pickle.dumps({"a": raw, "b": raw}), "refers to the raw bytes of an array again")


def test_every_truncation_is_refused(refused):
    content = pickle.dumps(OrderedDict(a=SECONDS, b=SECONDS))
    for length in range(len(content)):
        refused(content[:length], "not a file of function traces")


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_byte_gives_a_valid_trace_or_a_clear_error(load_bytes, data):
    content = bytearray(pickle.dumps(OrderedDict(a=SECONDS, b=SECONDS), data.draw(st.sampled_from([2, 4, 5]))))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        table = load_bytes(bytes(content))
    except InvalidTraceError:
        return
    for values in table.values():
        assert (np.diff(values) >= 0).all()
        assert np.isfinite(values).all()


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "absent.pkl", tmp_path):
        with pytest.raises(InvalidTraceError, match=f"{path.name}: cannot be read"):
            load_trace(path)


def test_many_arrays_are_read_in_reasonable_time_and_little_memory(load_bytes):
    import tracemalloc

    num_functions = 1500
    functions = OrderedDict((f"f{i}", np.roll(COUNTS, i)) for i in range(num_functions))
    content = pickle.dumps(functions)
    start = time.perf_counter()
    table = load_bytes(content)
    # 80,000 of them in about a minute, on a busy machine
    assert time.perf_counter() - start < num_functions / 80_000 * 60 + 0.5
    assert table.num_invocations() == num_functions * int(COUNTS.sum(dtype=np.int64))
    del table
    tracemalloc.start()
    load_bytes(content)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(content) > 100e6
    assert peak < 30e6
