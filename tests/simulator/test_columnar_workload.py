import copy
import itertools
import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import AlpaServeError, InvalidWorkloadError
from alpa_serve.simulator.workload import Request, Workload

NAMES = ("a", "b", "c")
slo_values = st.one_of(st.none(), st.floats(0, 100))
token_counts = st.one_of(st.none(), st.integers(0, 2**31 - 1))


@st.composite
def workloads(draw, max_size=15):
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 40).map(float),
                st.sampled_from(NAMES),
                slo_values,
                st.one_of(st.none(), st.text()),
                token_counts,
                token_counts,
            ),
            max_size=max_size,
        )
    )
    rows.sort(key=lambda row: row[0])
    with_tokens = draw(st.booleans())
    requests = [
        Request(name, data, slo, i, time, input_tokens=prompt, output_tokens=answer)
        if with_tokens
        else Request(name, data, slo, i, time)
        for i, (time, name, slo, data, prompt, answer) in enumerate(rows)
    ]
    return Workload([row[0] for row in rows], requests)


def content(workload):
    requests = zip(workload.arrivals.tolist(), workload.requests, strict=True)
    return [(arrival, r.model_name, r.slo, r.data, r.input_tokens, r.output_tokens) for arrival, r in requests]


def two_requests():
    return Workload([1.0, 2.0], [Request("a", None, 1.0, 0, {}), Request("b", None, None, 1, 2.0)])


@given(workloads())
def test_requests_come_back_as_they_were_given(workload):
    again = Workload(workload.arrivals, list(workload.requests))
    assert list(again.requests) == list(workload.requests)
    assert [r.idx for r in again.requests] == list(range(len(again)))
    assert again.arrivals.tolist() == workload.arrivals.tolist()


@given(workloads())
def test_columns_and_requests_make_the_same_workload(workload):
    columns = Workload.from_columns(
        workload.arrivals,
        workload.model_ids,
        workload.model_names,
        workload.slos,
        workload.data,
        input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens,
    )
    assert list(columns.requests) == list(workload.requests)


def test_columns_take_one_slo_for_all_or_none():
    assert [r.slo for r in Workload.from_columns([0, 1], [0, 0], ["a"], 2.5).requests] == [2.5, 2.5]
    assert [r.slo for r in Workload.from_columns([0, 1], [0, 0], ["a"]).requests] == [None, None]


def test_requests_and_models_are_numbered_in_their_order():
    workload = two_requests()
    assert workload.model_names == ("a", "b")
    assert workload.model_ids.tolist() == [0, 1]
    assert workload.slos.tolist() == [1.0, math.inf]
    assert workload.num_model_requests("b") == 1
    assert workload.num_model_requests("absent") == 0


def test_structured_data_stays_one_object_per_request():
    data = [[1, 2], [3, 4]]
    workload = Workload([0.0, 1.0], [Request("a", item, None, i, float(i)) for i, item in enumerate(data)])
    assert [request.data for request in workload.requests] == data


def test_a_workload_copies_the_arrivals_it_is_given():
    arrivals = np.array([1.0, 2.0])
    workload = Workload.from_columns(arrivals, [0, 0], ["a"])
    arrivals[0] = 5
    assert workload.arrivals.tolist() == [1, 2]


@given(workloads(), st.slices(15))
def test_slicing_is_list_slicing(workload, key):
    if key.step is not None and key.step < 0:
        with pytest.raises(InvalidWorkloadError, match="cannot be reversed"):
            workload[key]
    else:
        assert content(workload[key]) == content(workload)[key]


def test_slices_of_the_requests_are_lists_of_requests():
    workload = two_requests()
    assert workload.requests[1:] == [workload.requests[1]]
    assert workload.requests[-1].model_name == "b"
    with pytest.raises(IndexError):
        workload.requests[2]


def test_a_workload_has_no_single_items():
    with pytest.raises(TypeError, match="slices only"):
        two_requests()[0]


@given(st.lists(workloads(max_size=8), max_size=4))
def test_merging_is_a_stable_sort_by_arrival(parts):
    expected = sorted((row for part in parts for row in content(part)), key=lambda row: row[0])
    assert content(Workload.merge(*parts)) == expected


@given(workloads(), workloads())
def test_adding_is_merging(left, right):
    assert content(left + right) == content(Workload.merge(left, right))


def test_adding_something_else_is_a_type_error():
    with pytest.raises(TypeError):
        two_requests() + [1]  # noqa: RUF005 (it must fail)


@given(workloads(), st.integers(1, 5))
def test_dealing_in_turn_loses_nothing(workload, number):
    parts = workload.split_round_robin(number)
    assert [content(part) for part in parts] == [content(workload)[i::number] for i in range(number)]
    # ties may change places, as the parts are merged one after the other
    assert sorted(map(repr, content(Workload.merge(*parts)))) == sorted(map(repr, content(workload)))


@given(workloads(), st.one_of(st.integers(1, 20), st.floats(0.5, 50)))
def test_cutting_in_time_and_merging_gives_the_workload_back(workload, interval):
    segments = workload.split_time_interval(interval)
    assert content(Workload.merge(*segments)) == content(workload)
    for segment in segments:
        assert segment.arrivals[-1] <= segment.arrivals[0] + interval
    for segment, following in itertools.pairwise(segments):
        assert following.arrivals[0] > segment.arrivals[0] + interval


@given(workloads(), st.sets(st.sampled_from([*NAMES, "absent"])))
def test_selecting_models_keeps_just_their_requests(workload, wanted):
    assert content(workload.select_models(wanted)) == [row for row in content(workload) if row[1] in wanted]


def test_rate_and_cv_are_those_of_the_gaps():
    workload = Workload.from_columns([0, 1, 2, 5], [0] * 4, ["a"])
    gaps = [1, 1, 3]
    assert workload.rate == pytest.approx(1 / (np.mean(gaps) + 1e-6), rel=1e-12)
    assert workload.cv == pytest.approx(np.std(gaps) / (np.mean(gaps) + 1e-6), rel=1e-12)


@pytest.mark.parametrize("length", [0, 1])
def test_without_gaps_rate_and_cv_are_zero(length):
    workload = two_requests()[:length]
    assert (len(workload), workload.rate, workload.cv) == (length, 0, 0)


def test_the_empty_workload_is_neutral():
    empty = Workload.empty()
    assert (len(empty), list(empty.requests), content(empty + two_requests())) == (0, [], content(two_requests()))
    assert len(Workload.merge()) == 0
    assert empty.split_time_interval(1) == []


def test_what_is_set_on_a_request_is_set_in_the_workload():
    workload = two_requests()
    request = workload.requests[0]
    request.slo, request.data, request.submit_time = 7.0, "prompt", 1.25
    assert (request.slo, request.data, request.submit_time) == (7.0, "prompt", 1.25)
    again = workload.requests[0]
    assert (again.slo, again.data, again.submit_time) == (7.0, "prompt", 1.25)
    assert workload.slos[0] == 7.0
    assert (workload.requests[1].slo, workload.requests[1].data, workload.requests[1].submit_time) == (None,) * 3
    request.slo = request.submit_time = None
    assert (workload.requests[0].slo, workload.requests[0].submit_time) == (None, None)


def test_setting_a_field_drops_what_the_simulator_kept():
    workload = two_requests()
    workload.cached_data = "derived"
    workload.requests[1].slo = 3.0
    assert workload.cached_data is None


@pytest.mark.parametrize(("field", "value"), [("model_name", "b"), ("idx", 1), ("other", 1)])
def test_fields_that_order_the_workload_cannot_be_set(field, value):
    workload = two_requests()
    with pytest.raises(InvalidWorkloadError, match=f"{field} of a request in a workload is fixed"):
        setattr(workload.requests[0], field, value)
    assert content(workload) == content(two_requests())


@pytest.mark.parametrize("bad", [-1, math.nan, "1", True])
def test_a_bad_slo_cannot_be_set(bad):
    workload = two_requests()
    with pytest.raises(InvalidWorkloadError, match="SLO of request 0"):
        workload.requests[0].slo = bad
    assert workload.requests[0].slo == 1.0


def test_submit_times_given_with_the_requests_are_kept_in_slices():
    workload = Workload([0, 1], [Request("a", None, None, 0, 0.0, 5.0), Request("a", None, None, 1, 1.0)])
    assert [r.submit_time for r in workload.requests] == [5.0, None]
    assert [r.submit_time for r in workload[::2].requests] == [5.0]


def test_submit_times_survive_a_merge():
    workload = Workload([0], [Request("a", None, None, 0, 0.0, 5.0)])
    assert [r.submit_time for r in (workload + two_requests()).requests] == [5.0, None, None]


def test_requests_are_equal_by_their_fields_and_unhashable():
    request = Request("a", None, 1.0, 0, {})
    assert request == two_requests().requests[0]
    assert request != two_requests().requests[1]
    assert request != "a"
    with pytest.raises(TypeError, match="unhashable"):
        hash(request)


GOOD = {"arrivals": [0.0, 1.0], "model_ids": [0, 1], "model_names": ["a", "b"], "slos": [1.0, 1.0], "data": None}


@pytest.mark.parametrize(
    ("column", "bad", "message"),
    [
        ("arrivals", [0.0], "1 arrivals but 2 requests"),
        ("arrivals", [0.0, math.nan], "arrival 1 is nan"),
        ("arrivals", [0.0, math.inf], "arrival 1 is inf"),
        ("arrivals", [-1.0, 1.0], "arrival 0 is -1"),
        ("arrivals", [1.0, 0.5], r"arrival 1 \(0.5 s\) is before arrival 0 \(1.0 s\)"),
        ("arrivals", ["x", "y"], "arrivals must be numbers"),
        ("arrivals", [[0.0, 1.0]], "arrivals must have one dimension"),
        ("arrivals", 3.0, "arrivals must have one dimension"),
        ("model_ids", [0], "2 arrivals but 1 requests"),
        ("model_ids", [0, 2], "model ids must be 0 to 1"),
        ("model_ids", [-1, 0], "model ids must be 0 to 1"),
        ("model_ids", [None, 0], "model ids must be numbers"),
        ("slos", [1.0], "2 arrivals but 1 SLOs"),
        ("slos", [1.0, -0.5], "SLO of request 1 is -0.5"),
        ("slos", [math.nan, 1.0], "SLO of request 0 is nan"),
        ("slos", -1.0, "SLO of request 0 is -1"),
        ("data", ["prompt"], "2 arrivals but 1 data"),
    ],
)
def test_bad_columns_are_refused(column, bad, message):
    with pytest.raises(InvalidWorkloadError, match=message):
        Workload.from_columns(**{**GOOD, column: bad})


def test_more_or_fewer_requests_than_arrivals_are_refused():
    requests = list(two_requests().requests)
    for arrivals in ([1.0], [1.0, 2.0, 3.0]):
        with pytest.raises(InvalidWorkloadError, match=f"{len(arrivals)} arrivals but 2 requests"):
            Workload(arrivals, requests)


@pytest.mark.parametrize("bad", [0, -1, 1.5])
def test_a_split_into_no_whole_number_of_parts_is_refused(bad):
    with pytest.raises(AlpaServeError, match="number must be a whole number >= 1"):
        two_requests().split_round_robin(bad)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_a_split_at_a_bad_interval_is_refused(bad):
    with pytest.raises(InvalidWorkloadError, match="interval"):
        two_requests().split_time_interval(bad)


def test_what_is_set_on_a_part_does_not_reach_the_whole():
    whole = two_requests()
    part = whole[:1].requests[0]
    part.slo, part.data, part.submit_time = 7.0, "x", 3.0
    first = whole.requests[0]
    assert (first.slo, first.data, first.submit_time) == (1.0, None, None)


def test_a_copied_or_pickled_request_stands_alone():
    workload = two_requests()
    for alone in (copy.copy(workload.requests[0]), pickle.loads(pickle.dumps(workload.requests[0]))):
        assert type(alone) is Request
        assert alone == workload.requests[0]
        alone.slo = 9.0
        assert workload.requests[0].slo == 1.0


@pytest.mark.parametrize("ids", [[2**32, 0], [0.7, 0], [-1, 0], [2**70, 0]])
def test_model_ids_that_are_no_index_are_refused(ids):
    with pytest.raises(InvalidWorkloadError, match="model ids"):
        Workload.from_columns([0.0, 1.0], ids, ["a"])


def test_model_names_must_differ():
    with pytest.raises(InvalidWorkloadError, match="must differ"):
        Workload.from_columns([0.0, 1.0], [0, 1], ["a", "a"])


def test_the_requests_of_equal_workloads_are_equal_and_a_copy_stands_alone():
    workload = two_requests()
    twin = copy.copy(workload)
    assert workload.requests == workload.requests
    assert twin.requests == list(workload.requests)
    twin.requests[0].slo = 9.0
    assert twin.requests != workload.requests
    assert workload.requests[0].slo == 1.0
