import copy
import math
import pickle
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidWorkloadError
from alpa_serve.simulator.columns import MAX_TOKENS
from alpa_serve.simulator.problem import RequestTable
from alpa_serve.simulator.workload import PoissonProcess, Request, Workload

TOKENS = ("input_tokens", "output_tokens")


def three_requests(**tokens):
    return Workload.from_columns([0.0, 1.0, 2.0], [0, 1, 0], ["a", "b"], **tokens)


def tokens_of(workload):
    return [(request.input_tokens, request.output_tokens) for request in workload.requests]


@st.composite
def numbered(draw):
    """A workload whose SLO numbers its requests, with a token count that follows from that number, or without."""
    arrivals = sorted(draw(st.lists(st.integers(0, 20), max_size=12)))
    numbers = draw(st.permutations(range(len(arrivals))))
    tokens = {}
    if draw(st.booleans()):
        tokens["input_tokens"] = [100 + number for number in numbers]
    if draw(st.booleans()):
        tokens["output_tokens"] = [200 + number for number in numbers]
    ids = draw(st.lists(st.integers(0, 1), min_size=len(arrivals), max_size=len(arrivals)))
    return Workload.from_columns(arrivals, ids, ["a", "b"], numbers, **tokens)


def assert_tokens_are_with_their_requests(workload):
    for request in workload.requests:
        assert request.input_tokens in (None, 100 + request.slo)
        assert request.output_tokens in (None, 200 + request.slo)


@given(st.lists(numbered(), max_size=4), st.integers(1, 4), st.integers(1, 10))
def test_every_operation_keeps_tokens_with_their_requests(parts, number, interval):
    merged = Workload.merge(*parts)
    pieces = [*merged.split_round_robin(number), *merged.split_time_interval(interval), merged[1::2]]
    pieces += [merged.select_models(["b"]), copy.copy(merged), merged + merged]
    for workload in (merged, *pieces):
        assert_tokens_are_with_their_requests(workload)
    known = sum(tokens is not None for part in parts for pair in tokens_of(part) for tokens in pair)
    assert sum(tokens is not None for pair in tokens_of(merged) for tokens in pair) == known
    dealt = [pair for part in merged.split_round_robin(number) for pair in tokens_of(part)]
    assert sorted(map(repr, dealt)) == sorted(map(repr, tokens_of(merged)))


@given(st.lists(numbered(), max_size=4), st.integers(1, 4))
def test_there_is_a_column_just_where_a_request_has_tokens(parts, number):
    for workload in (*parts, *Workload.merge(*parts).split_round_robin(number)):
        for name in TOKENS:
            has_some = any(getattr(request, name) is not None for request in workload.requests)
            assert (getattr(workload, name) is not None) == has_some


def test_columns_take_tokens_for_each_request_or_one_for_all():
    workload = three_requests(input_tokens=[5, -1, 2**31 - 1], output_tokens=7)
    assert workload.input_tokens.dtype == workload.output_tokens.dtype == np.int64
    assert tokens_of(workload) == [(5, 7), (None, 7), (2**31 - 1, 7)]
    assert three_requests(input_tokens=-1).input_tokens is None
    assert three_requests(input_tokens=np.array([1.0, 2.0, 3.0])).input_tokens.tolist() == [1, 2, 3]


def test_a_workload_copies_the_tokens_it_is_given_and_a_part_those_of_the_whole():
    given_tokens = np.array([1, 2, 3])
    workload = three_requests(input_tokens=given_tokens)
    workload[:2].input_tokens[0] = 9
    given_tokens[0] = 8
    assert workload.input_tokens.tolist() == [1, 2, 3]


def test_merging_with_a_workload_without_tokens_leaves_its_requests_unknown():
    merged = three_requests(output_tokens=[1, 2, 3]) + three_requests()
    assert merged.input_tokens is None
    assert merged.output_tokens.tolist() == [1, -1, 2, -1, 3, -1]


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ([1], "3 arrivals but 1 {}"),
        ([[1, 2, 3]], "{} must have one dimension"),
        ([1, -2, -3], "the {} of request 1 are -2; must be a whole number from 0 to 2147483647, or -1"),
        ([1, 2, 0.5], "the {} of request 2 are 0.5"),
        ([1, math.nan, 2], "the {} of request 1 are nan"),
        ([1, math.inf, 2], "the {} of request 1 are inf"),
        ([1, None, 2], "the {} of request 1 are nan"),
        ([1, 2, 2**31], "the {} of request 2 are 2147483648"),
        ([1, 2, 2**70], "the {} of request 2 are 1.18"),
        ([True, False, True], "{} must be numbers"),
        (["1", "2", "3"], "{} must be numbers"),
        ([1, object(), 3], "{} must be numbers"),
        ([[1], [2, 3], []], "{} must be numbers"),
        (-2, "the {} of request 0 are -2"),
    ],
)
def test_bad_tokens_are_refused(name, bad, message):
    with pytest.raises(InvalidWorkloadError, match=message.format(name)):
        three_requests(**{name: bad})


@pytest.mark.parametrize("name", TOKENS)
def test_bad_tokens_of_a_request_object_are_refused(name):
    requests = [Request("a", None, None, 0, {}), Request("a", None, None, 1, {}, **{name: 1.5})]
    with pytest.raises(InvalidWorkloadError, match=f"the {name} of request 1 are 1.5"):
        Workload([0.0, 1.0], requests)


@pytest.mark.parametrize("name", TOKENS)
def test_tokens_set_on_a_request_are_set_in_the_workload(name):
    workload = three_requests()
    workload.cached_data = "derived"
    request = workload.requests[1]
    setattr(request, name, 11)
    assert getattr(request, name) == 11
    assert workload.cached_data is None
    assert getattr(workload, name).tolist() == [-1, 11, -1]
    setattr(request, name, None)
    assert [getattr(request, name) for request in workload.requests] == [None, None, None]


def test_setting_no_tokens_makes_no_column():
    workload = three_requests()
    workload.requests[0].input_tokens = None
    assert workload.input_tokens is None


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("bad", [-1, 1.5, "1", True, MAX_TOKENS + 1])
def test_bad_tokens_cannot_be_set(name, bad):
    workload = three_requests()
    with pytest.raises(InvalidWorkloadError, match=f"{name} of request 2 must be"):
        setattr(workload.requests[2], name, bad)
    assert getattr(workload, name) is None


def test_requests_differ_by_their_tokens_and_copies_keep_them():
    request = three_requests(input_tokens=3, output_tokens=[1, 2, 3]).requests[2]
    assert request != three_requests(input_tokens=3).requests[2]
    for alone in (copy.copy(request), pickle.loads(pickle.dumps(request))):
        assert type(alone) is Request
        assert alone == request


def test_tokens_survive_pickling_a_workload():
    workload = three_requests(input_tokens=3)
    assert tokens_of(pickle.loads(pickle.dumps(workload))) == tokens_of(workload)


def test_required_tokens_are_the_columns():
    workload = three_requests(input_tokens=3, output_tokens=[1, 2, 0])
    assert [tokens.tolist() for tokens in workload.require_tokens()] == [[3, 3, 3], [1, 2, 0]]
    assert [len(tokens) for tokens in Workload.empty().require_tokens()] == [0, 0]


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            {},
            "3 of 3 requests have no input_tokens and 3 of 3 requests have no output_tokens; .*request 0 for model 'a'",
        ),
        ({"input_tokens": 1}, "^3 of 3 requests have no output_tokens; the first is request 0 for model 'a'"),
        ({"input_tokens": [1, -1, 1], "output_tokens": 1}, "^1 of 3 requests have no input_tokens;.*1 for model 'b'"),
        ({"input_tokens": [1, 1, -1], "output_tokens": [1, -1, -1]}, "the first is request 1 for model 'b'"),
    ],
)
def test_absent_tokens_are_refused_with_the_first_request_and_the_ways_to_give_them(tokens, message):
    with pytest.raises(InvalidWorkloadError, match=message) as caught:
        three_requests(**tokens).require_tokens()
    assert "from_columns(..., input_tokens=..., output_tokens=...)" in str(caught.value)
    assert "WorkloadFromTrace" in str(caught.value)


def test_a_process_gives_every_request_the_tokens_that_are_passed():
    process = PoissonProcess(5)
    plain = process.generate_workload("a", 0, 10)
    workload = process.generate_workload("a", 0, 10, input_tokens=7, output_tokens=0)
    assert plain.input_tokens is plain.output_tokens is None
    assert set(tokens_of(workload)) == {(7, 0)}
    assert workload.arrivals.tolist() == plain.arrivals.tolist()


def test_a_request_table_has_the_tokens_that_the_workload_has():
    workload = three_requests(output_tokens=[4, -1, 6])
    table = RequestTable.of_workload(workload, ["b", "a"])
    assert (table.input_tokens.tolist(), table.output_tokens.tolist()) == ([], [4, -1, 6])
    assert table.input_tokens.dtype == table.output_tokens.dtype == np.int64
    assert not np.shares_memory(table.output_tokens, workload.output_tokens)


def test_a_kept_request_table_is_made_anew_when_tokens_are_set():
    workload = three_requests()
    workload.enable_simulator_cache = True
    assert len(RequestTable.of_workload(workload, ["a", "b"]).input_tokens) == 0
    workload.requests[0].input_tokens = 5
    assert RequestTable.of_workload(workload, ["a", "b"]).input_tokens.tolist() == [5, -1, -1]


def test_a_request_table_of_arrays_checks_tokens():
    with pytest.raises(InvalidWorkloadError, match="2 arrivals but 1 output_tokens"):
        RequestTable.of_arrays([0.0, 1.0], [0, 0], [1.0, 1.0], 1, output_tokens=[1])


def test_requests_without_tokens_take_no_memory_for_them():
    number = 50_000
    arrivals, ids = np.arange(float(number)), np.zeros(number, dtype=np.int32)
    workload = Workload.from_columns(arrivals, ids, ["a"])
    tracemalloc.start()
    parts = [workload[:], workload[:]]
    merged = Workload.merge(*parts)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    # arrival, model and SLO in each part and in the whole; a token column would add 8 B
    assert held < 2 * len(merged) * (8 + 4 + 8) + 10_000
