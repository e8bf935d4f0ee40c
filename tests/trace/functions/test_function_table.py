import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError
from alpa_serve.trace.functions.table import FunctionTable


def table_of_counts(dense):
    minutes = [np.flatnonzero(counts) for counts in dense.values()]
    counts = [np.asarray(row)[at] for row, at in zip(dense.values(), minutes, strict=True)]
    return FunctionTable.of_runs(list(dense), minutes, counts, len(next(iter(dense.values()))))


dense_tables = st.integers(1, 40).flatmap(
    lambda length: st.lists(st.lists(st.integers(0, 3), min_size=length, max_size=length), min_size=1, max_size=5)
)


@given(rows=dense_tables, data=st.data())
def test_a_window_of_counts_is_the_slice_of_each_function_that_has_any(rows, data):
    dense = {f"f{i}": np.array(row, dtype=np.int32) for i, row in enumerate(rows)}
    length = len(rows[0])
    start = data.draw(st.integers(0, length - 1))
    end = data.draw(st.integers(start + 1, length))
    part = table_of_counts(dense).window(start, end)
    expected = {name: row[start:end].tolist() for name, row in dense.items() if row[start:end].any()}
    assert {name: counts.tolist() for name, counts in part.items()} == expected
    assert part.num_invocations() == sum(map(sum, expected.values()))
    assert part.invocations_by_function().tolist() == [sum(counts) for counts in expected.values()]
    # a window of a window is one too
    again = part.window(0, max(1, (end - start) // 2))
    assert {name: counts.tolist() for name, counts in again.items()} == {
        name: counts[: max(1, (end - start) // 2)]
        for name, counts in expected.items()
        if any(counts[: max(1, (end - start) // 2)])
    }


@given(rows=dense_tables, data=st.data())
def test_binned_counts_add_up_groups_and_minutes(rows, data):
    dense = {f"f{i}": np.array(row, dtype=np.int32) for i, row in enumerate(rows)}
    groups = np.array(data.draw(st.lists(st.integers(0, 2), min_size=len(rows), max_size=len(rows))))
    width = data.draw(st.integers(1, 7))
    binned = table_of_counts(dense).binned(groups, 3, width)
    for group in range(3):
        total = sum(row for row, of in zip(dense.values(), groups, strict=True) if of == group)
        total = np.zeros(len(rows[0])) + total
        assert binned[group].tolist() == [total[i : i + width].sum() for i in range(0, len(total), width)]


@given(runs=st.lists(st.lists(st.floats(-100, 600), max_size=8).map(sorted), min_size=1, max_size=4), data=st.data())
def test_a_window_of_seconds_keeps_the_times_within(runs, data):
    table = FunctionTable.of_runs([f"f{i}" for i in range(len(runs))], list(map(np.array, runs)), None, 10)
    start = data.draw(st.integers(0, 8))
    end = data.draw(st.integers(start + 1, 10))
    part = table.window(start, end)
    kept = [[t for t in run if start * 60 <= t < end * 60] for run in runs]
    assert [times.tolist() for times in part.values()] == [run for run in kept if run]
    counts = part.binned(np.zeros(len(part), dtype=np.int64), 1, 1)[0]
    merged = sorted(t for run in kept for t in run)
    assert counts.tolist() == [sum(60 * m <= t < 60 * m + 60 for t in merged) for m in range(start, end)]
    assert [times.tolist() for times in part.merged(np.zeros(len(part), dtype=np.int64), 2)] == [merged, []]


@pytest.mark.parametrize(
    ("names", "offsets", "at", "counts", "message"),
    [
        (["a", "a"], [0, 1, 2], [1, 2], [1, 1], "same name"),
        (["a"], [0, 1, 2], [1, 2], [1, 1], "1 functions need as many runs, got 2"),
        (["a", "b"], [0, 2, 1], [1, 2], [1, 1], "do not cover"),
        (["a", "b"], [0, 1, 1], [1, 2], [1, 1], "do not cover"),
        (["a"], [0, 2], [1, 2], [1], "2 minutes but 1 counts"),
        (["a", "b"], [0, 1, 2], [1, 60], [1, 1], "function 'b' has a minute outside 0 to 60"),
        (["a", "b"], [0, 1, 2], [1, 2], [1, 0], "function 'b' has a count that is not positive: entry 1 .value 0."),
        (["a"], [0, 2], [2, 2], [1, 1], "function 'a' has times that do not ascend"),
        (["a", "b"], [0, 0, 2], [2.5, 2.0], None, "function 'b' has times that do not ascend"),
        (["a"], [0, 2], [2.5, np.inf], None, "function 'a' has a time that is not finite"),
    ],
)
def test_columns_that_do_not_fit_are_refused(names, offsets, at, counts, message):
    with pytest.raises(InvalidTraceError, match=message):
        FunctionTable(
            names,
            np.array(offsets),
            np.array(at, dtype=np.float64 if counts is None else np.int16),
            None if counts is None else np.array(counts, dtype=np.int32),
            60,
        )
