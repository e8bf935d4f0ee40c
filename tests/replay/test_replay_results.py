import pickle

import numpy as np
import pytest

from alpa_serve.errors import ReplayInterrupted
from alpa_serve.replay import Lateness, ReplayProgress, ReplayResult, Status


def result_of(**changes):
    """Six requests, one of each status: of two models, late by 0.1 s, the served one with a latency of 1 s."""
    arrivals = np.arange(6.0)
    columns = {
        "arrivals": arrivals,
        "sent": np.where(arrivals == 5, np.nan, arrivals + 0.1),
        "finish": np.where(arrivals == 5, np.nan, arrivals + 1.1),
        "status": np.array([2, 3, 4, 5, 1, 0], dtype=np.int8),
        "http_status": np.array([200, 200, 503, 500, 0, 0], dtype=np.int16),
        "retries": np.array([0, 0, 0, 1, 2, 0], dtype=np.int16),
        "slos": np.full(6, 1.05),
        "model_ids": np.array([0, 1, 0, 1, 0, 1], dtype=np.int32),
        "model_names": ("m0", "m1"),
    }
    return ReplayResult(**{**columns, **changes})


def test_counts_add_up():
    counts = result_of().counts()
    assert counts == {
        "sent": 5,
        "answered": 4,
        "served": 1,
        "rejected": 1,
        "overloaded": 1,
        "failed": 1,
        "unanswered": 1,
        "retries": 3,
    }


def test_latency_counts_from_sending_or_by_the_schedule():
    assert result_of().latency == pytest.approx([1.0, 0, 0, 0, 0, 0])
    assert result_of().good.tolist() == [True, False, False, False, False, False]
    by_schedule = result_of(from_schedule=True)
    assert by_schedule.latency == pytest.approx([1.1, 0, 0, 0, 0, 0])
    assert not by_schedule.good.any()


def test_lateness_is_that_of_the_requests_sent():
    sent = np.array([0.0, 1.1, 2.2, 3.3, 4.4, np.nan])
    late = result_of(sent=sent).lateness
    assert (late.mean, late.p50, late.max) == pytest.approx((0.2, 0.2, 0.4))
    assert 0.39 < late.p99 <= 0.4
    unsent = result_of(status=np.zeros(6, dtype=np.int8), sent=np.full(6, np.nan))
    assert (unsent.lateness, unsent.goodput) == (Lateness(0, 0, 0, 0), 0)


def test_statistics_are_those_of_the_requests_sent_from_their_arrivals_on():
    stats = result_of().stats()
    assert (stats.num_requests, stats.goodput, stats.request_rate) == (5, 0.2, 5 / 4)
    assert stats.latency_mean == pytest.approx(0.2)
    assert [(model.name, model.num_requests, model.goodput) for model in stats.per_model_stats] == [
        ("m1", 2, 0.0),
        ("m0", 3, pytest.approx(1 / 3)),
    ]
    served = stats.per_model_stats[1]
    assert served.latency == pytest.approx([1.0])
    assert (served.request_starts, served.request_finishes) == (pytest.approx([0.0]), pytest.approx([1.0]))


def test_the_warm_up_cuts_both_ends():
    assert result_of().stats(warmup=1).num_requests == 3


def test_a_request_that_just_meets_its_slo_is_good():
    exact = result_of(sent=np.arange(6.0), finish=np.arange(6.0) + 1, slos=np.ones(6))
    assert exact.good[0]


def test_a_frame_has_a_row_per_request():
    frame = result_of().to_frame()
    assert frame["status"].tolist() == [Status(status).name.lower() for status in (2, 3, 4, 5, 1, 0)]
    assert frame["model"].tolist() == ["m0", "m1"] * 3
    assert frame["latency_s"].sum() == pytest.approx(1.0)


def test_progress_knows_what_is_in_flight():
    progress = ReplayProgress(10, 6, 3, 4, 2, 0.0, 0.0)
    assert (progress.in_flight, progress.attainment) == (2, 0.5)
    assert ReplayProgress(10, 0, 0, 0, 0, 0.0, 0.0).attainment == 0


def test_an_interrupt_keeps_its_result_in_another_process():
    copy = pickle.loads(pickle.dumps(ReplayInterrupted(result="a result")))
    assert (type(copy), copy.result, str(copy)) == (ReplayInterrupted, "a result", "the replay was stopped")
    assert isinstance(copy, KeyboardInterrupt)
