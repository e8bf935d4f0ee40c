import statistics

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidWorkloadError
from alpa_serve.simulator.workload import DEFAULT_WARMUP, Workload

NAMES = ("a", "b", "c")
rows = st.tuples(st.integers(0, 200).map(lambda n: n / 4), st.sampled_from(NAMES), st.floats(0, 5), st.booleans())


def workload_and_figures(table):
    """A workload and start, finish and good of (arrival, model, latency, good) rows; a dropped one ends at once."""
    table = sorted(table, key=lambda row: row[0])
    arrivals = np.array([row[0] for row in table])
    good = np.array([row[3] for row in table], dtype=bool)
    finish = np.array([row[0] + row[2] * row[3] for row in table])
    workload = Workload.from_columns(arrivals, [NAMES.index(row[1]) for row in table], NAMES)
    return workload, arrivals, finish, good


def number_cut(arrivals, warmup):
    span = arrivals[-1] - arrivals[0]
    return int(warmup / span * len(arrivals)) if span else 0


@given(st.lists(rows, min_size=1, max_size=60), st.sampled_from([0, 1, 5, 20]))
@settings(deadline=None, max_examples=200)
def test_figures_are_those_of_plain_python(table, warmup):
    workload, start, finish, good = workload_and_figures(table)
    cut = number_cut(start, warmup)
    if cut and 2 * cut >= len(start):
        with pytest.raises(InvalidWorkloadError, match="leaves none"):
            workload.compute_stats(start, finish, good, warmup)
        return
    stats = workload.compute_stats(start, finish, good, warmup)

    kept = range(cut, len(start) - cut)
    names = [workload.requests[i].model_name for i in kept]
    span = start[kept[-1]] - start[kept[0]]
    assert stats.num_requests == len(kept)
    assert stats.goodput == pytest.approx(sum(good[i] for i in kept) / len(kept))
    assert stats.latency_mean == pytest.approx(sum(finish[i] - start[i] for i in kept) / len(kept))
    assert stats.request_rate == pytest.approx(len(kept) / span if span else 0)
    assert stats.group_num_requests == []
    counts = [model.num_requests for model in stats.per_model_stats]
    assert counts == sorted(counts)
    assert {model.name: model.num_requests for model in stats.per_model_stats} == {n: names.count(n) for n in names}
    for model in stats.per_model_stats:
        served = [i for i in kept if workload.requests[i].model_name == model.name and good[i]]
        latencies = sorted(finish[i] - start[i] for i in served)
        assert model.goodput == pytest.approx(len(served) / model.num_requests)
        assert model.throughput == pytest.approx(len(served) / span if span else 0)
        assert model.request_starts.tolist() == [start[i] for i in served]
        assert model.request_finishes.tolist() == [finish[i] for i in served]
        assert sorted(model.latency) == latencies
        figures = [model.latency_mean, model.latency_std, model.latency_p90, model.latency_p99]
        if served:
            num = len(served)
            mean, std = statistics.fmean(latencies), statistics.pstdev(latencies)
            assert figures == pytest.approx([mean, std, latencies[int(0.9 * num)], latencies[int(0.99 * num)]])
        else:
            assert figures == [0, 0, 0, 0]


def evenly_spaced(number, gap=1.0):
    return workload_and_figures([(gap * i, "a", 0.5, True) for i in range(number)])


def test_both_ends_are_cut_by_the_share_of_the_warmup():
    workload, start, finish, good = evenly_spaced(101)
    good[:10] = good[-10:] = False
    # int(10 s / 100 s * 101) = 10 from each end
    stats = workload.compute_stats(start, finish, good, DEFAULT_WARMUP)
    assert (stats.num_requests, stats.goodput) == (81, 1.0)
    assert stats.request_rate == pytest.approx(81 / 80)


def test_percentiles_are_elements_of_the_sorted_latencies():
    workload, start, finish, good = workload_and_figures([(i, "a", float(i * 37 % 200), True) for i in range(200)])
    (model,) = workload.compute_stats(start, finish, good, 0).per_model_stats
    assert (model.latency_p90, model.latency_p99) == (180, 198)


@pytest.mark.parametrize("number", [0, 1, 3])
def test_with_nothing_to_cut_nothing_is_cut(number):
    # arrivals that coincide have no span
    workload, start, finish, good = evenly_spaced(number, gap=0.0)
    stats = workload.compute_stats(start, finish, good, 10)
    assert (stats.num_requests, stats.request_rate) == (number, 0)
    assert stats.goodput == (1 if number else 0)


def test_a_warmup_too_short_to_cut_a_request_cuts_none():
    workload, start, finish, good = evenly_spaced(10)
    assert workload.compute_stats(start, finish, good, 0.5).num_requests == 10


def test_a_warmup_that_leaves_nothing_is_refused_with_the_span():
    workload, start, finish, good = evenly_spaced(11)
    with pytest.raises(InvalidWorkloadError, match=r"warmup of 6 s .* none of the 11 requests .* within 10 s"):
        workload.compute_stats(start, finish, good, 6)


@pytest.mark.parametrize("warmup", [-1, float("nan"), float("inf"), "10"])
def test_a_bad_warmup_is_refused(warmup):
    workload, start, finish, good = evenly_spaced(10)
    with pytest.raises(InvalidWorkloadError, match="warmup"):
        workload.compute_stats(start, finish, good, warmup)


@pytest.mark.parametrize("which", [0, 1, 2])
def test_figures_of_another_length_are_refused(which):
    workload, *figures = evenly_spaced(10)
    figures[which] = figures[which][:-1]
    with pytest.raises(InvalidWorkloadError, match="statistics of 10 requests need as many figures"):
        workload.compute_stats(*figures, 0)


def test_statistics_are_shown_on_standard_output_only_on_request(capsys):
    workload, start, finish, good = evenly_spaced(4)
    stats = workload.compute_stats(start, finish, good, 0)
    assert capsys.readouterr().out == ""
    Workload.print_stats(stats)
    shown = capsys.readouterr().out
    assert "a: 4 requests, SLO attainment 1.0000" in shown
    assert "all: 4 requests" in shown
