"""Recorded runs as files: rows, the index beside them, and the runs that are read from them."""

import math
from dataclasses import replace

import pandas as pd
import pytest

from alpa_serve.experiments.hardware_runs import INDEX_COLUMNS, read_runs
from alpa_serve.scheduling import MAVERIQ

RUN_NAME = "Mine__test__code__0.1__5.0"


@pytest.fixture(scope="session")
def run_name():
    """Return the name of a run for which a test states none; its model set is unknown."""
    return RUN_NAME


@pytest.fixture(scope="session")
def plain_rules():
    """Return the MAVERIQ rules with a start every 10 ms and no penalty for pauses."""
    return replace(MAVERIQ, dispatch_interval_s=0.01, idle_after_s=math.inf, idle_penalty_s=0.0)


@pytest.fixture(scope="session")
def row_of():
    """Return row_of(arrival_s, ...) -> a row of a run file; what is None is left empty."""

    def build(
        arrival_s, client_id=1, model="gptj-6b", devices="0", latency_s=1.01, service_s=1.0, status="served", tp=1, pp=1
    ):
        if status != "served":
            latency_s = service_s = None
        return {
            "request_id": 1,
            "arrival_s": arrival_s,
            "client_id": client_id,
            "model": model,
            "device_assigned": devices,
            "tp": tp if devices else None,
            "pp": pp if devices else None,
            "measured_latency_s": latency_s,
            "measured_service_s": service_s,
            "req_id": 1,
            "status": status,
            "scheduled_s": arrival_s,
        }

    return build


@pytest.fixture(scope="session")
def write_run():
    """Return write_run(folder, rows, name, suffix) -> the path of the run file that it wrote."""

    def write(folder, rows, name=RUN_NAME, suffix=".csv"):
        path = folder / f"{name}{suffix}"
        pd.DataFrame(rows).to_csv(path, index=False)
        return path

    return write


@pytest.fixture(scope="session")
def write_index():
    """Return write_index(folder, last_finish_s, experiment, model_set), which writes an index of one run."""

    def write(folder, last_finish_s, experiment=RUN_NAME, model_set="test"):
        row = (experiment, "Mine", model_set, "code", 0.1, 5.0, last_finish_s)
        pd.DataFrame([row], columns=INDEX_COLUMNS).to_csv(folder / "index.csv", index=False)

    return write


@pytest.fixture(scope="session")
def read_run(write_run):
    """Return read_run(folder, rows, ...) -> the only run of the folder, after writing it there."""

    def read(folder, rows, **named):
        write_run(folder, rows, **named)
        (run,) = read_runs(folder)
        return run

    return read


@pytest.fixture
def four_requests(row_of):
    """Return four requests for two replicas on a device each, the last not served before the recording ended."""
    return [
        row_of(1.0),
        row_of(1.2, latency_s=1.8),
        row_of(1.3, client_id=2, devices="1", latency_s=1.7),
        row_of(1.4, status="queued_at_end"),
    ]


@pytest.fixture(scope="session")
def recorded(shared_data):
    """Return the runs that MaverIQ's evaluation recorded."""
    return read_runs(shared_data("hardware_runs"))
