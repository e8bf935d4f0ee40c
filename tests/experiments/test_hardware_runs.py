import gzip
import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidTraceError
from alpa_serve.experiments.hardware_estimates import estimate_rules, mean_service, other_runs
from alpa_serve.experiments.hardware_replay import (
    CROWDING_S,
    deploy_times,
    load_stalls,
    measured,
    replay,
    resident_models,
    slo_s,
)
from alpa_serve.experiments.hardware_runs import COLUMNS, INDEX_COLUMNS, read_runs
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig, load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hardware_fidelity.py"
NAME = "Mine__test__code__0.1__5.0"
ONE = ParallelConfig(1, 1, 1)
RULES = replace(MAVERIQ, dispatch_interval_s=0.01, idle_after_s=math.inf, idle_penalty_s=0.0)


def request(
    arrival_s, client_id=1, model="gptj-6b", devices="0", latency_s=1.01, service_s=1.0, status="served", tp=1, pp=1
):
    """Return a row of a run file; what is None is left empty."""
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


def write_run(folder, rows, name=NAME, suffix=".csv"):
    pd.DataFrame(rows).to_csv(folder / f"{name}{suffix}", index=False)
    return folder


def write_index(folder, last_finish_s, experiment=NAME, model_set="test"):
    row = (experiment, "Mine", model_set, "code", 0.1, 5.0, last_finish_s)
    pd.DataFrame([row], columns=INDEX_COLUMNS).to_csv(folder / "index.csv", index=False)


def read_one(folder, rows, **named):
    (run,) = read_runs(write_run(folder, rows, **named))
    return run


@pytest.fixture
def four_requests():
    """Return four requests for two replicas on a device each, the last not served before the recording ended."""
    return [
        request(1.0),
        request(1.2, latency_s=1.8),
        request(1.3, client_id=2, devices="1", latency_s=1.7),
        request(1.4, status="queued_at_end"),
    ]


# reading


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_file_is_read_with_what_its_name_says(tmp_path, four_requests, suffix):
    run = read_one(tmp_path, four_requests, name="BestStar__large__code__0.25__7.5", suffix=suffix)
    assert (run.experiment, run.baseline) == ("Best*__large__code__0.25__7.5", "Best*")
    assert (run.model_set, run.trace, run.scale, run.slo_factor) == ("large", "code", 0.25, 7.5)
    assert run.last_finish_s == pytest.approx(3.0)
    assert run.groups == {(0,): ONE, (1,): ONE}
    assert run.frame["status"].tolist() == ["served"] * 3 + ["queued_at_end"]


def test_the_index_goes_before_the_name_and_runs_that_it_lacks_go_by_theirs(tmp_path, four_requests):
    write_index(tmp_path, 99.0, model_set="regular")
    write_run(tmp_path, four_requests)
    write_run(tmp_path, four_requests, name="Other__large__code__0.1__5.0")
    mine, other = read_runs(tmp_path)
    assert (mine.model_set, mine.last_finish_s) == ("regular", 99.0)
    assert (other.model_set, other.last_finish_s) == ("large", pytest.approx(3.0))
    (alone,) = read_runs(tmp_path / f"{NAME}.csv")
    assert alone.last_finish_s == 99.0


def test_requests_are_put_in_the_order_of_arrival(tmp_path, four_requests):
    run = read_one(tmp_path, four_requests[::-1])
    assert run.frame["arrival_s"].tolist() == [1.0, 1.2, 1.3, 1.4]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named_with_its_file(tmp_path, four_requests, column):
    for row in four_requests:
        del row[column]
    with pytest.raises(InvalidTraceError, match=rf"{NAME}\.csv, line 1: no column {column}; found "):
        read_one(tmp_path, four_requests)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("status", "lost", r"line 3, column status: unknown status: 'lost'; known: served, rejected_not_placed"),
        ("status", None, "line 3, column status: unknown status: an empty cell"),
        ("model", "gpt-5", r"line 3, column model: unknown model: 'gpt-5'; known: .*gptj-6b"),
        ("model", "falcon-7b", r"line 3, column model: client 1 is gptj-6b, not falcon-7b"),
        ("arrival_s", "soon", r"line 3, column arrival_s: not a number >= 0: 'soon'"),
        ("arrival_s", -1.0, r"line 3, column arrival_s: not a number >= 0: '-1.0'"),
        ("arrival_s", "inf", r"line 3, column arrival_s: not a number >= 0: 'inf'"),
        ("client_id", 1.5, r"line 3, column client_id: not a whole number >= 0: '1.5'"),
        ("measured_latency_s", None, r"line 3, column measured_latency_s: not a number >= 0: an empty cell"),
        ("measured_service_s", "1,0", r"line 3, column measured_service_s: not a number >= 0: '1,0'"),
        ("device_assigned", None, r"line 3, column device_assigned: served without devices: an empty cell"),
        ("device_assigned", "a b", r"line 3, column device_assigned: not a list of devices: 'a b'"),
        ("device_assigned", "3", r"line 3: client 1 is on devices \(3,\) .* before that on \(0,\)"),
        ("tp", None, r"line 3, column tp: not a whole number >= 0: an empty cell"),
    ],
)
def test_what_cannot_be_read_is_named_with_line_and_column(tmp_path, four_requests, column, value, message):
    four_requests[1][column] = value
    with pytest.raises(InvalidTraceError, match=message):
        read_one(tmp_path, four_requests)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            request(2.0, client_id=3, devices="0 1 2", tp=2),
            "line 6, columns tp and pp: tp 2 and pp 1 take 2 devices, but 3",
        ),
        (request(2.0, client_id=3, devices="2 3 4", tp=3), r"line 6: gptj-6b is not profiled at tp 3, pp 1; it is at"),
        (
            request(2.0, client_id=3, devices="1 2", tp=2),
            r"line 6: clients 2 and 3 share devices \[1\] but not their group",
        ),
    ],
)
def test_placements_that_cannot_be_are_refused(tmp_path, four_requests, row, message):
    with pytest.raises(InvalidTraceError, match=message):
        read_one(tmp_path, [*four_requests, row])


def test_folders_and_files_without_a_run_are_refused(tmp_path, four_requests):
    with pytest.raises(InvalidTraceError, match="no run here"):
        read_runs(tmp_path)
    with pytest.raises(InvalidTraceError, match="no such file or folder"):
        read_runs(tmp_path / "absent")
    path = tmp_path / f"{NAME}.csv"
    path.write_text("")
    with pytest.raises(InvalidTraceError, match="the file is empty"):
        read_runs(path)
    path.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(InvalidTraceError, match="no request in this file"):
        read_runs(path)
    path.unlink()
    (tmp_path / f"{NAME}.csv.gz").write_bytes(gzip.compress(b"not whole")[:-6])
    with pytest.raises(InvalidTraceError, match="cannot be read"):
        read_runs(tmp_path)
    (tmp_path / f"{NAME}.csv.gz").unlink()
    with pytest.raises(InvalidTraceError, match="its name is not BASELINE__MODELSET__TRACE__SCALE__SLO"):
        read_one(tmp_path, four_requests, name="run1")


def test_one_run_in_two_files_is_refused(tmp_path, four_requests):
    write_run(tmp_path, four_requests, suffix=".csv.gz")
    with pytest.raises(InvalidTraceError, match="are the same run"):
        read_one(tmp_path, four_requests)


def test_an_index_that_cannot_be_read_is_named(tmp_path, four_requests):
    write_index(tmp_path, "late")
    with pytest.raises(InvalidTraceError, match=r"index.csv, line 2, column last_finish_s: not a number >= 0: 'late'"):
        read_one(tmp_path, four_requests)
    (tmp_path / "index.csv").write_text("experiment,baseline\na,b\n")
    with pytest.raises(InvalidTraceError, match=r"index.csv, line 1: no column model_list"):
        read_runs(tmp_path)


# replay


def test_four_requests_are_replayed_as_computed_by_hand(tmp_path, four_requests):
    run = read_one(tmp_path, four_requests)
    prediction = replay(replace(run, last_finish_s=4.1), RULES, {("gptj-6b", ONE): 1.0})
    # the third waits for the start of the second: one queue
    assert prediction.simulation.start == pytest.approx([1.01, 2.02, 2.03, 3.03])
    assert prediction.simulation.latency == pytest.approx([1.01, 1.82, 1.73, 2.63])
    figures = prediction.figures
    assert (figures.num_served, figures.mean_latency_s) == (4, pytest.approx(1.7975))
    assert figures.p90_latency_s == pytest.approx(1.82 + 0.7 * 0.81)
    assert figures.p99_latency_s == pytest.approx(1.82 + 0.97 * 0.81)
    actual = measured(run)
    assert (actual.num_served, actual.mean_latency_s) == (3, pytest.approx((1.01 + 1.8 + 1.7) / 3))


def test_requests_that_would_be_done_after_the_recording_are_not_counted(tmp_path, four_requests):
    write_index(tmp_path, 4.0)
    figures = replay(read_one(tmp_path, four_requests), RULES, {("gptj-6b", ONE): 1.0}).figures
    assert (figures.num_served, figures.mean_latency_s) == (3, pytest.approx((1.01 + 1.82 + 1.73) / 3))


def test_rejected_requests_are_left_out_and_those_without_a_record_are_load(tmp_path, four_requests):
    rejected = [
        request(0.9, client_id=3, devices=None, status="rejected_not_placed"),
        request(0.9, client_id=2, devices="1", status="rejected_not_loaded"),
    ]
    run = read_one(tmp_path, [*rejected, *four_requests, request(1.5, status="sent_no_record")])
    assert replay(run, RULES).simulation.arrivals.tolist() == [1.0, 1.2, 1.3, 1.4, 1.5]
    with pytest.raises(InvalidTraceError, match="every request was rejected"):
        replay(read_one(tmp_path, rejected), RULES)


def test_requests_go_to_the_replica_that_they_went_to(tmp_path):
    clients = [1, 1, 1, 2, 2, 1]
    rows = [request(1.0 + k, client_id=client, devices=str(client)) for k, client in enumerate(clients)]
    for rules in (RULES, ALPASERVE):
        simulation = replay(read_one(tmp_path, rows), rules).simulation
        assert (simulation.group + 1).tolist() == clients


def test_the_slo_is_a_label_from_the_measured_latency_on_the_fewest_devices(tmp_path):
    profile = maveriq.load("llama-2-70b")
    smallest = min(config.pp for config in profile.para_dict if config.op == 1)
    alone = sum(profile.stage_latency(ParallelConfig(1, 1, smallest)))
    row = {"model": "llama-2-70b", "devices": "0 1 2 3", "tp": 4}
    rows = [request(1.0, latency_s=5 * alone - 0.01, **row), request(20.0, latency_s=5 * alone + 0.01, **row)]
    run = read_one(tmp_path, rows)
    assert slo_s(run, "llama-2-70b") == pytest.approx(5 * alone)
    assert measured(run).attainment == 0.5
    assert replay(run, RULES).simulation.slos == pytest.approx(5 * alone)


def test_by_the_profile_a_request_takes_its_decode_steps_and_the_overhead(tmp_path):
    config = ParallelConfig(1, 2, 2)
    run = read_one(
        tmp_path, [request(1.0, devices="0 1 2 3", tp=2, pp=2), request(30.0, devices="0 1 2 3", tp=2, pp=2)]
    )
    decode_s = maveriq.load("gptj-6b").prefill_decode(config).decode_s_per_token
    expected = MAVERIQ.dispatch_interval_s + MAVERIQ.request_overhead_s + 19 * decode_s
    latency = replay(run).simulation.latency
    assert latency == pytest.approx([expected, expected + 2 * MAVERIQ.idle_penalty_s])


def test_alpaserves_prediction_has_the_published_profiles_and_drops_count_as_missed(tmp_path):
    write_index(tmp_path, 100.0)
    run = read_one(tmp_path, [request(1.0) for _ in range(200)])
    prediction = replay(run, ALPASERVE, stalls=(), load_profile=load_test_prof_result_v2)
    stage_s = load_test_prof_result_v2("gptj-6b").stage_latency(ONE)[0]
    assert prediction.simulation.latency[0] == pytest.approx(stage_s * 1.009 + 0.011)
    assert not prediction.simulation.served.all()
    assert prediction.figures.attainment == prediction.simulation.goodput


# when models are loaded


def clients_of(*placed):
    """Return a request per (model, devices), for clients 1, 2, ...; devices "" is not placed."""
    return [
        request(
            1000.0 + client_id,
            client_id=client_id,
            model=model,
            devices=devices or None,
            tp=len(devices.split()),
            status="served" if devices else "rejected_not_placed",
        )
        for client_id, (model, devices) in enumerate(placed, 1)
    ]


LOW, HIGH = "0 1 2 3", "4 5 6 7"


@pytest.mark.parametrize(
    ("model_set", "placed", "deployed"),
    [
        (
            "large",
            [("llama-2-70b", LOW), ("falcon-40b", LOW), ("llama-2-7b", LOW), ("falcon-40b", HIGH)],
            [0, 270, 510, 750],
        ),
        # a replica delays the models after it
        (
            "large",
            [("llama-2-70b", ""), ("falcon-40b", LOW), ("llama-2-7b", LOW), ("llama-2-7b", HIGH), ("falcon-40b", HIGH)],
            [0, 270, 510, 600, 840],
        ),
        # a recording may end early
        ("large", [("llama-2-70b", LOW), ("falcon-40b", LOW)], [0, 270]),
        ("large", [("llama-2-70b", LOW), ("llama-2-7b", LOW)], None),
        ("unheard-of", [("llama-2-70b", LOW)], None),
    ],
)
def test_times_of_loading_follow_from_the_model_set(tmp_path, model_set, placed, deployed):
    run = read_one(tmp_path, clients_of(*placed), name=f"Mine__{model_set}__code__0.1__5.0")
    assert deploy_times(run) == (None if deployed is None else dict(enumerate(deployed, 1)))
    loaded = [at for at, (_, devices) in zip(deployed or [], placed, strict=deployed is not None) if devices]
    assert load_stalls(run).tolist() == [[at + 30, at + 40] for at in loaded]


def test_equal_neighbours_in_a_set_are_told_apart_by_their_devices(tmp_path):
    names = ["llama-2-7b", "llama-2-13b", "falcon-7b", "gptj-6b", "llama-2-70b", "llama-2-70b"]
    placed = [(name, "") for name in names] + [("falcon-40b", LOW), ("falcon-40b", HIGH), ("falcon-40b", LOW)]
    rows = clients_of(*placed, ("llama-2-7b", ""))
    run = read_one(tmp_path, rows, name="Mine__twentyone__code__0.1__5.0")
    steps = [0, 1, 2, 3, 4, 5, 6, 6, 7, 8]
    assert list(deploy_times(run).values()) == [30 * (step > 0) + 30 * step + 90 * k for k, step in enumerate(steps)]


def test_nothing_begins_while_a_model_is_loaded(tmp_path):
    rows = clients_of(("llama-2-70b", LOW), ("falcon-40b", LOW))
    rows += [request(305.0, model="llama-2-70b", devices=LOW, tp=4)]
    run = read_one(tmp_path, rows, name="Mine__large__code__0.1__5.0")
    assert replay(run, RULES).simulation.start[0] == pytest.approx(310.0)
    assert replay(run, RULES, stalls=()).simulation.start[0] == pytest.approx(305.01)


def test_crowding_grows_with_the_models_that_are_loaded_by_then(tmp_path):
    rows = clients_of(("llama-2-70b", LOW), ("falcon-40b", LOW))
    rows += [request(at, model="llama-2-70b", devices=LOW, tp=4) for at in (290.0, 311.0)]
    run = read_one(tmp_path, rows, name="Mine__large__code__0.1__5.0")
    assert resident_models(run, np.array([0.0, 39.0, 40.0, 309.0, 310.0])).tolist() == [0, 0, 1, 1, 2]
    crowded, plain = (replay(run, RULES, crowding_s=s).simulation.latency for s in (CROWDING_S, 0.0))
    assert (crowded - plain)[:2] == pytest.approx([CROWDING_S, 2 * CROWDING_S])
    unknown = replace(run, model_set="mine")
    assert resident_models(unknown, np.array([100.0, 290.0, 1002.0])).tolist() == [0, 1, 2]


# estimates


def test_calibration_takes_busy_requests_and_falls_back_to_all_and_to_the_profile(tmp_path):
    falcon = {"client_id": 2, "model": "falcon-7b", "devices": "1"}
    rows = [
        request(10.0, service_s=0.5, latency_s=1.0) for _ in range(5)
    ]  # a group idle for 10 s, and starts before ends
    rows += [request(100.0 + k, service_s=0.8, latency_s=0.81) for k in range(30)]
    rows += [request(10.0 + 20 * k, service_s=0.6 + 0.1 * k, latency_s=0.8, **falcon) for k in range(3)]
    run = read_one(tmp_path, rows)
    table = mean_service([run])
    # four of the first five began before the one before them ended, 29 of the next 30 within a second
    assert table["gptj-6b", ONE] == pytest.approx((4 * 0.5 + 29 * 0.8) / 33)
    assert table["falcon-7b", ONE] == pytest.approx(0.7)
    assert mean_service([]) == {}
    prediction = replay(run, RULES, {("gptj-6b", ONE): 0.9})
    assert prediction.calibrated == {("gptj-6b", ONE): True, ("falcon-7b", ONE): False}
    decode_s = maveriq.load("falcon-7b").prefill_decode(ONE).decode_s_per_token
    by_model = dict(zip(run.load["model"], prediction.simulation.work, strict=True))
    assert by_model == pytest.approx({"gptj-6b": 0.9, "falcon-7b": 19 * decode_s + RULES.request_overhead_s})


def test_a_run_is_not_among_the_others_under_any_file(tmp_path, four_requests):
    run = read_one(tmp_path, four_requests)
    again = replace(run, last_finish_s=9.0)
    other = replace(run, experiment="another")
    assert other_runs([again, other], run) == [other]


@settings(max_examples=20, deadline=None)
@given(
    dispatch=st.floats(0.001, 0.05),
    overhead=st.floats(0.0, 0.5),
    penalty=st.floats(0.01, 0.3),
    seed=st.integers(0, 1000),
)
def test_a_run_that_obeys_the_rules_shows_their_constants_and_is_predicted_exactly(
    tmp_path_factory, dispatch, overhead, penalty, seed
):
    rules = replace(
        MAVERIQ, dispatch_interval_s=dispatch, request_overhead_s=overhead, idle_after_s=15.0, idle_penalty_s=penalty
    )
    gaps = np.random.default_rng(seed).choice([0.0, 0.1, 0.7, 3.0, 30.0], size=60)
    layout = [("gptj-6b", "0 1", 1, 2), ("falcon-7b", "0 1", 1, 2), ("gptj-6b", "2 3", 2, 1)]
    rows = []
    for k, arrival_s in enumerate(np.cumsum(gaps)):
        model, devices, tp, pp = layout[k % 3]
        rows.append(request(arrival_s, 1 + k % 3, model, devices, tp=tp, pp=pp))
    folder = tmp_path_factory.mktemp("runs")
    simulation = replay(read_one(folder, rows), rules).simulation
    for row, arrival_s, start_s, end_s in zip(
        rows, simulation.arrivals, simulation.start, simulation.finish, strict=True
    ):
        row.update(measured_latency_s=end_s - arrival_s, measured_service_s=end_s - start_s)
    run = replace(read_one(folder, rows), last_finish_s=1e9)
    found = estimate_rules([run], rules)
    assert found.dispatch_interval_s == pytest.approx(dispatch, abs=1e-6)
    assert found.request_overhead_s == pytest.approx(overhead, abs=1e-6)
    assert found.idle_penalty_s == pytest.approx(penalty, abs=1e-6)
    predicted, actual = replay(run, rules).figures, measured(run)
    assert predicted.num_served == actual.num_served == 60
    assert predicted.mean_latency_s == pytest.approx(actual.mean_latency_s)
    assert predicted.p99_latency_s == pytest.approx(actual.p99_latency_s)


def test_what_no_request_shows_stays_as_it_was(tmp_path, four_requests):
    assert estimate_rules([]) == MAVERIQ
    run = read_one(tmp_path, four_requests)
    assert estimate_rules([run], RULES).idle_penalty_s == RULES.idle_penalty_s
    assert estimate_rules([replace(run, frame=run.frame.iloc[3:])]) == MAVERIQ


# the recorded runs


@pytest.fixture(scope="module")
def recorded(shared_data):
    return read_runs(shared_data("hardware_runs"))


def errors(pairs):
    """Return (relative error of the mean latency, error of the attainment) of (measured, predicted) pairs."""
    return np.array(
        [
            (predicted.mean_latency_s / actual.mean_latency_s - 1, predicted.attainment - actual.attainment)
            for actual, predicted in pairs
        ]
    )


def test_the_figures_are_those_of_the_index(recorded, shared_data):
    index = pd.read_csv(shared_data("hardware_runs") / "index.csv").set_index("experiment")
    for run in recorded:
        known, figures = index.loc[run.experiment], measured(run)
        assert figures.num_served == known["n_served"]
        assert figures.mean_latency_s == pytest.approx(known["mean_latency_s"])
        assert figures.p90_latency_s == pytest.approx(known["p90_latency_s"])
        assert figures.p99_latency_s == pytest.approx(known["p99_latency_s"])
        assert figures.attainment == pytest.approx(known["slo_att_served"])
        assert deploy_times(run) is not None


def test_by_profile_figures_alone_the_mean_is_within_6_percent_and_attainment_within_3_points(recorded):
    for rules_of in (lambda run: MAVERIQ, lambda run: estimate_rules(other_runs(recorded, run))):
        mean, attainment = np.abs(errors([(measured(run), replay(run, rules_of(run)).figures) for run in recorded])).T
        assert mean.mean() <= 0.06
        assert attainment.mean() <= 0.03


def test_calibrated_on_other_runs_the_mean_is_within_3_percent_and_attainment_within_1_point(recorded):
    code = [run for run in recorded if run.trace == "code" and run.scale == 0.1]
    assert len(code) == 2
    service = mean_service(code)
    judged = [run for run in recorded if run.model_set == "large" and run not in code]
    assert len(judged) == 2
    for run in judged:
        prediction = replay(run, estimate_rules(other_runs(recorded, run)), service)
        assert all(prediction.calibrated.values())
        ((mean, attainment),) = np.abs(errors([(measured(run), prediction.figures)]))
        assert mean <= 0.03
        assert attainment <= 0.01


def test_the_shipped_constants_are_what_the_runs_show(recorded):
    found = estimate_rules(recorded)
    for name in ("dispatch_interval_s", "request_overhead_s", "idle_penalty_s"):
        assert round(getattr(found, name), 3) == getattr(MAVERIQ, name)


# the script


@pytest.fixture
def benchmark(tmp_path):
    """Return benchmark(*arguments) -> the finished process; runs in tmp_path."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, SCRIPT, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def folder(tmp_path, four_requests):
    """Return a folder with two runs of few models and one of the set of 21."""
    runs = tmp_path / "runs"
    runs.mkdir()
    for name in ("Mine__large__code__0.1__5.0", "MineStar__large__code__0.2__5.0", "Mine__twentyone__code__0.1__5.0"):
        write_run(runs, four_requests, name=name)
    write_index(runs, 100.0, experiment=name, model_set="twentyone")
    return runs


def test_the_script_prints_tables_and_writes_json(benchmark, folder, tmp_path):
    result = benchmark(folder, "--leave-one-out", "--estimate", "--calibrate", folder, "--json", "out.json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    few, many, crowded, *_ = result.stdout.split("Mean absolute error over")[::2]
    assert "Mine large code 0.1, slo 5" in few
    assert "Runs with many models" in many
    assert "twentyone" not in few
    assert "with crowding: 0.025 s more" in crowded
    assert "Left out of the calibration of its own prediction: Mine*__large__code__0.2__5.0" in result.stdout
    assert "does not fit model set 'large'" in result.stdout
    assert "without Mine__large__code__0.1__5.0" in result.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    assert sorted(document) == ["estimates", "left_out_of_own_calibration", "mean_absolute_error", "runs"]
    assert len(document["left_out_of_own_calibration"]) == 3
    by_name = {row["experiment"]: row for row in document["runs"]}
    assert [row["many_models"] for row in by_name.values()] == [False, False, True]
    row = by_name["Mine__twentyone__code__0.1__5.0"]
    assert (row["cells"], row["calibrated"], row["measured"]["num_served"]) == (1, 1, 3)
    assert row["predicted_crowded"]["mean_latency_s"] > row["predicted"]["mean_latency_s"]
    assert document["mean_absolute_error"]["few_models"]["predicted"]["num_runs"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out.json"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "error: no such file or folder: absent"),
        (["runs", "--calibrate", "."], "error: .: no run here"),
        (["runs/Mine__large__code__0.1__5.0.csv", "--leave-one-out"], "error: --leave-one-out: no other run"),
        (["runs", "--json", "absent/out.json"], "error: "),
        ([], "the following arguments are required: RUNS_DIR"),
    ],
)
def test_the_script_ends_with_2_and_says_what_is_wrong(benchmark, folder, arguments, message):
    result = benchmark(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_script_names_a_missing_column(benchmark, tmp_path, four_requests):
    for row in four_requests:
        del row["measured_service_s"]
    write_run(tmp_path, four_requests)
    result = benchmark(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / NAME}.csv, line 1: no column measured_service_s; found ")


def test_the_script_draws_or_says_what_drawing_needs(benchmark, folder, tmp_path):
    result = benchmark(folder, "--plot", "out.png")
    drawn = (
        subprocess.run([sys.executable, "-c", "import matplotlib"], capture_output=True, check=False).returncode == 0
    )
    if drawn:
        assert result.returncode == 0, result.stderr
        assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    else:
        assert result.returncode == 2
        assert 'error: --plot needs matplotlib: pip install "alpa_serve[plot]"' in result.stderr


def test_a_single_file_is_replayed_like_its_folder(benchmark, folder):
    result = benchmark(folder / "Mine__large__code__0.1__5.0.csv")
    assert result.returncode == 0, result.stderr
    assert "over 1 runs, MAVERIQ rules" in result.stdout
    shutil.rmtree(folder)
