from dataclasses import asdict

import numpy as np
import pytest

from alpa_serve.trace.functions.replay_settings import ReplaySettings

SETTINGS = {
    "trace_name": "azure_v2",
    "start_time": "0.0.1",
    "end_time": "0.1.0",
    "start_seconds": 60,
    "end_seconds": 3600,
    "arrival_distribution": "gamma",
    "interval_seconds": 120.0,
    "rate_scale_factor": 2.0,
    "cv_scale_factor": 3.0,
    "time_scale_factor": 1.0,
    "replication_factor": 1,
}


def test_a_replay_has_each_setting_under_its_own_name():
    replay = ReplaySettings(**SETTINGS).replay("m", np.array([61.0]))
    assert (replay.model, replay.arrivals.tolist()) == ("m", [61.0])
    assert {name: value for name, value in asdict(replay).items() if name not in ("model", "arrivals")} == SETTINGS


def test_settings_are_given_by_name_so_that_none_can_be_mistaken_for_another():
    with pytest.raises(TypeError, match="positional argument"):
        ReplaySettings(*SETTINGS.values())


def test_trace_replay_passes_each_setting_under_its_own_name(trace_of):
    trace = trace_of("azure_v2", {"f": np.arange(0.0, 3600, 5)})
    slices = ("start_seconds", "end_seconds", "trace_name")
    replay = trace.replay(["m"], **{name: value for name, value in SETTINGS.items() if name not in slices})["m"]
    assert {name: getattr(replay, name) for name in SETTINGS} == SETTINGS
