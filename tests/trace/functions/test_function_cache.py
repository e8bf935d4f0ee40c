import json
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace import load_trace
from alpa_serve.trace.functions import cache as function_cache
from alpa_serve.trace.functions.cache import FORMAT, save_trace
from alpa_serve.trace.functions.table import FunctionTable

COUNTS = FunctionTable.of_runs(["a", "ä/,\n", "none"], [[0, 5], [1439], []], [[1, 2], [3], []], 1440)
SECONDS = FunctionTable.of_runs(["a", "b"], [np.array([-1.0, 0.1, 0.1]), np.array([])], None, 20160)


@pytest.mark.parametrize("table", [COUNTS, SECONDS], ids=["counts", "seconds"])
def test_what_is_saved_is_loaded_under_exactly_the_name_given(table, tmp_path):
    path = tmp_path / "any name"
    for _ in range(2):
        assert save_trace(table, path) == path
    loaded = load_trace(path)
    assert loaded.num_minutes == table.num_minutes
    assert {name: values.tolist() for name, values in loaded.items()} == {
        name: values.tolist() for name, values in table.items()
    }
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "trace.npz"
    save_trace(COUNTS, path)
    before = path.read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(function_cache.np, "savez", fail)
    with pytest.raises(OSError, match="disk full"):
        save_trace(SECONDS, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def arrays_of(**changes):
    text = {"format": FORMAT, "names": json.dumps(["a"])}
    arrays = {name: np.frombuffer(changes.pop(name, value).encode(), dtype=np.uint8) for name, value in text.items()}
    arrays |= {"num_minutes": np.array([1440]), "offsets": np.array([0, 2])}
    arrays |= {"at": np.array([1, 2], dtype=np.int16), "counts": np.array([1, 1], dtype=np.int32)}
    return arrays | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "another"}, "of another format than"),
        ({"names": "[1]"}, "names of functions must be text"),
        ({"names": "{}"}, "names of functions must be text"),
        ({"names": "["}, "the file is damaged"),
        ({"names": '["a", "b"]'}, "2 functions need as many runs, got 1"),
        ({"num_minutes": np.array([0])}, "0 minutes"),
        ({"num_minutes": np.array([1440, 1])}, "the file is damaged"),
        ({"at": np.array([1.0, 2.0])}, "not a file that preprocess"),
        ({"at": np.array([[1, 2]], dtype=np.int16)}, "not a file that preprocess"),
        ({"more": np.array([1])}, "not a file that preprocess"),
        ({"counts": np.array([1, 0], dtype=np.int32)}, "a count that is not positive"),
        ({"counts": np.array([{}, {}])}, "the file is damaged: Object arrays cannot be loaded"),
    ],
)
def test_an_npz_file_of_something_else_is_refused(tmp_path, changes, message):
    path = tmp_path / "trace.npz"
    np.savez(path, **arrays_of())
    assert load_trace(path)["a"].sum() == 2
    np.savez(path, **arrays_of(**changes), allow_pickle=True)
    with pytest.raises(InvalidTraceError, match=message) as caught:
        load_trace(path)
    assert "trace.npz" in str(caught.value)


def test_every_truncation_is_refused(tmp_path):
    path = tmp_path / "trace.npz"
    content = save_trace(COUNTS, path).read_bytes()
    for length in range(0, len(content), 13):
        path.write_bytes(content[:length])
        with pytest.raises(InvalidTraceError, match=r"trace\.npz: "):
            load_trace(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("at.npy", b"nothing")
    with pytest.raises(InvalidTraceError, match=r"trace\.npz: "):
        load_trace(path)


@given(st.data())
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_byte_is_refused_or_changes_nothing(tmp_path, data):
    path = tmp_path / "trace.npz"
    content = bytearray(save_trace(COUNTS, path).read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        loaded = load_trace(path)
    except InvalidTraceError:
        return
    assert {name: values.tolist() for name, values in loaded.items()} == {
        name: values.tolist() for name, values in COUNTS.items()
    }


def test_threads_may_save_one_path_at_once(tmp_path):
    path = tmp_path / "trace.npz"
    with ThreadPoolExecutor(4) as pool:
        for saved in [pool.submit(save_trace, COUNTS, path) for _ in range(40)]:
            assert saved.result() == path
    assert list(load_trace(path)) == list(COUNTS)
    assert list(tmp_path.iterdir()) == [path]
