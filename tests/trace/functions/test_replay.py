import logging

import numpy as np
import pandas as pd
import pytest

from alpa_serve.errors import InvalidConfigError, InvalidWorkloadError
from alpa_serve.simulator.workload import WorkloadFromTrace
from alpa_serve.trace import TraceReplay


def replay_of(arrivals, **changes):
    fields = {"start_time": "0.1.0", "end_time": "0.2.0", "start_seconds": 3600, "end_seconds": 7200} | changes
    return TraceReplay("m0", np.array(arrivals, dtype=np.float64), "azure_v2", **fields)


def test_rate_and_cv_follow_from_count_and_gaps():
    replay = replay_of([3600, 3601, 3605, 3606])
    assert replay.rate() == 4 / 3600
    assert replay.cv() == pytest.approx(np.sqrt(2) / (2 + 1e-5))
    assert (replay_of([3700]).cv(), replay_of([]).rate()) == (0, 0)
    assert replay_of([3700], time_scale_factor=7.0).rate() == 1 / (3600 // 7)


def test_a_workload_is_in_the_order_of_time_even_where_the_arrivals_are_not():
    workload = replay_of([3650, 9000, 3700]).to_workload(None)
    assert workload.arrivals.tolist() == [3650, 3700, 9000]
    assert np.isinf(workload.slos).all()


def test_a_frame_has_dates_that_a_workload_from_a_trace_counts_by_the_minute():
    frame = replay_of([3661.25, 3600, 3785]).to_frame()
    assert frame["TIMESTAMP"].tolist() == [
        pd.Timestamp("1970-01-01 01:00:00"),
        pd.Timestamp("1970-01-01 01:01:01.25"),
        pd.Timestamp("1970-01-01 01:03:05"),
    ]
    assert WorkloadFromTrace(1, frame).minute_counts.tolist() == [1, 1, 0, 1]
    assert replay_of([]).to_frame()["TIMESTAMP"].dtype.kind == "M"


def test_a_request_beyond_all_dates_is_refused():
    with pytest.raises(
        InvalidWorkloadError, match=r"'m0': a request 1e\+20 s after 1970-01-01.* no date.* shorter tail than pareto"
    ):
        replay_of([3600, 1e20], arrival_distribution="pareto").to_frame()


def test_stats_are_returned_and_logged(caplog):
    with caplog.at_level(logging.INFO, logger="alpa_serve"):
        stats = replay_of([3600, 3601, 3605, 3606]).report_stats()
    assert (stats["model"], stats["num_requests"], stats["duration"]) == ("m0", 4, 3600)
    assert (stats["gap_p50"], stats["gap_max"]) == (1, 4)
    assert "num_requests 4" in caplog.text
    assert np.isnan(replay_of([3600]).report_stats()["gap_p50"])


def test_a_figure_shows_the_requests_per_second_of_equal_parts():
    pytest.importorskip("matplotlib")
    replay = replay_of([3600, 3610, 7199, 8000])
    assert replay.interval_counts(4).tolist() == [2, 0, 0, 1]
    (axes,) = replay.visualize(4).axes
    (steps,) = axes.patches
    assert steps.get_data().values.tolist() == [2 / 900, 0, 0, 1 / 900]
    assert steps.get_data().edges.tolist() == [3600, 4500, 5400, 6300, 7200]
    assert axes.get_xlabel() == "time (s)"
    for n_interval in (0, 1.5):
        with pytest.raises(InvalidConfigError, match="n_interval must be a whole number >= 1"):
            replay.visualize(n_interval)
