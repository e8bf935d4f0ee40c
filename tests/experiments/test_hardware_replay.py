from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from alpa_serve.errors import InvalidTraceError
from alpa_serve.experiments.hardware_replay import (
    CROWDING_S,
    deploy_times,
    load_stalls,
    measured,
    replay,
    resident_models,
    slo_s,
)
from alpa_serve.profiles import maveriq
from alpa_serve.profiling import ParallelConfig, load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ

ONE = ParallelConfig(1, 1, 1)
LOW, HIGH = "0 1 2 3", "4 5 6 7"


def test_four_requests_are_replayed_as_computed_by_hand(tmp_path, four_requests, read_run, plain_rules):
    run = read_run(tmp_path, four_requests)
    prediction = replay(replace(run, last_finish_s=4.1), plain_rules, {("gptj-6b", ONE): 1.0})
    # the third waits for the start of the second: one queue
    assert prediction.simulation.start == pytest.approx([1.01, 2.02, 2.03, 3.03])
    assert prediction.simulation.latency == pytest.approx([1.01, 1.82, 1.73, 2.63])
    figures = prediction.figures
    assert (figures.num_served, figures.mean_latency_s) == (4, pytest.approx(1.7975))
    assert figures.p90_latency_s == pytest.approx(1.82 + 0.7 * 0.81)
    assert figures.p99_latency_s == pytest.approx(1.82 + 0.97 * 0.81)
    actual = measured(run)
    assert (actual.num_served, actual.mean_latency_s) == (3, pytest.approx((1.01 + 1.8 + 1.7) / 3))


def test_requests_that_would_be_done_after_the_recording_are_not_counted(
    tmp_path, four_requests, read_run, write_index, plain_rules
):
    write_index(tmp_path, 4.0)
    figures = replay(read_run(tmp_path, four_requests), plain_rules, {("gptj-6b", ONE): 1.0}).figures
    assert (figures.num_served, figures.mean_latency_s) == (3, pytest.approx((1.01 + 1.82 + 1.73) / 3))


def test_a_request_done_at_the_very_end_of_the_recording_counts(tmp_path, four_requests, read_run, plain_rules):
    run = read_run(tmp_path, four_requests)
    finish = replay(run, plain_rules).simulation.finish
    for num_done, end_s in enumerate(finish, 1):
        for last_finish_s, expected in ((end_s, num_done), (np.nextafter(end_s, 0.0), num_done - 1)):
            assert replay(replace(run, last_finish_s=last_finish_s), plain_rules).figures.num_served == expected


def test_the_seconds_of_a_service_table_are_taken_as_they_are(tmp_path, row_of, read_run, plain_rules):
    # with every overhead that the rules could add to them, the penalty of two stages among these
    rules = replace(plain_rules, stage_penalty=0.25, request_overhead_s=0.5)
    config = ParallelConfig(1, 1, 2)
    run = read_run(tmp_path, [row_of(1.0, devices="0 1", pp=2), row_of(5.0, devices="0 1", pp=2)])
    assert replay(run, rules, {("gptj-6b", config): 2.0}).simulation.work == pytest.approx([2.0, 2.0])


def test_what_a_service_table_lacks_takes_the_profile_with_the_overheads_once(tmp_path, row_of, read_run, plain_rules):
    rules = replace(plain_rules, service="profile", stage_penalty=0.25, request_overhead_s=0.5)
    run = read_run(tmp_path, [row_of(1.0, devices="0 1", pp=2)])
    profiled_s = sum(maveriq.load("gptj-6b").stage_latency(ParallelConfig(1, 1, 2)))
    for service in (None, {}):
        assert replay(run, rules, service).simulation.work == pytest.approx(profiled_s * 1.5 + 0.5)


def test_rejected_requests_are_left_out_and_those_without_a_record_are_load(
    tmp_path, four_requests, row_of, read_run, plain_rules
):
    rejected = [
        row_of(0.9, client_id=3, devices=None, status="rejected_not_placed"),
        row_of(0.9, client_id=2, devices="1", status="rejected_not_loaded"),
    ]
    run = read_run(tmp_path, [*rejected, *four_requests, row_of(1.5, status="sent_no_record")])
    assert replay(run, plain_rules).simulation.arrivals.tolist() == [1.0, 1.2, 1.3, 1.4, 1.5]
    with pytest.raises(InvalidTraceError, match="every request was rejected"):
        replay(read_run(tmp_path, rejected), plain_rules)


def test_requests_go_to_the_replica_that_they_went_to(tmp_path, row_of, read_run, plain_rules):
    clients = [1, 1, 1, 2, 2, 1]
    rows = [row_of(1.0 + k, client_id=client, devices=str(client)) for k, client in enumerate(clients)]
    for rules in (plain_rules, ALPASERVE):
        simulation = replay(read_run(tmp_path, rows), rules).simulation
        assert (simulation.group + 1).tolist() == clients


def test_the_slo_is_a_label_from_the_measured_latency_on_the_fewest_devices(tmp_path, row_of, read_run, plain_rules):
    profile = maveriq.load("llama-2-70b")
    smallest = min(config.pp for config in profile.para_dict if config.op == 1)
    alone = sum(profile.stage_latency(ParallelConfig(1, 1, smallest)))
    row = {"model": "llama-2-70b", "devices": "0 1 2 3", "tp": 4}
    rows = [row_of(1.0, latency_s=5 * alone - 0.01, **row), row_of(20.0, latency_s=5 * alone + 0.01, **row)]
    run = read_run(tmp_path, rows)
    assert slo_s(run, "llama-2-70b") == pytest.approx(5 * alone)
    assert measured(run).attainment == 0.5
    assert replay(run, plain_rules).simulation.slos == pytest.approx(5 * alone)


def test_by_the_profile_a_request_takes_its_decode_steps_and_the_overhead(tmp_path, row_of, read_run):
    config = ParallelConfig(1, 2, 2)
    run = read_run(tmp_path, [row_of(1.0, devices="0 1 2 3", tp=2, pp=2), row_of(30.0, devices="0 1 2 3", tp=2, pp=2)])
    decode_s = maveriq.load("gptj-6b").prefill_decode(config).decode_s_per_token
    expected = MAVERIQ.dispatch_interval_s + MAVERIQ.request_overhead_s + 19 * decode_s
    latency = replay(run).simulation.latency
    assert latency == pytest.approx([expected, expected + 2 * MAVERIQ.idle_penalty_s])


def test_alpaserves_prediction_has_the_published_profiles_and_drops_count_as_missed(
    tmp_path, row_of, read_run, write_index
):
    write_index(tmp_path, 100.0)
    run = read_run(tmp_path, [row_of(1.0) for _ in range(200)])
    prediction = replay(run, ALPASERVE, stalls=(), load_profile=load_test_prof_result_v2)
    stage_s = load_test_prof_result_v2("gptj-6b").stage_latency(ONE)[0]
    assert prediction.simulation.latency[0] == pytest.approx(stage_s * 1.009 + 0.011)
    assert not prediction.simulation.served.all()
    assert prediction.figures.attainment == prediction.simulation.goodput


@pytest.fixture(scope="module")
def clients_of(row_of):
    """Return clients_of(*placed) -> a row per (model, devices), for clients 1, 2, ...; devices "" is not placed."""

    def build(*placed):
        return [
            row_of(
                1000.0 + client_id,
                client_id=client_id,
                model=model,
                devices=devices or None,
                tp=len(devices.split()),
                status="served" if devices else "rejected_not_placed",
            )
            for client_id, (model, devices) in enumerate(placed, 1)
        ]

    return build


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
def test_times_of_loading_follow_from_the_model_set(tmp_path, model_set, placed, deployed, read_run, clients_of):
    run = read_run(tmp_path, clients_of(*placed), name=f"Mine__{model_set}__code__0.1__5.0")
    assert deploy_times(run) == (None if deployed is None else dict(enumerate(deployed, 1)))
    loaded = [at for at, (_, devices) in zip(deployed or [], placed, strict=deployed is not None) if devices]
    assert load_stalls(run).tolist() == [[at + 30, at + 40] for at in loaded]


def test_equal_neighbours_in_a_set_are_told_apart_by_their_devices(tmp_path, read_run, clients_of):
    names = ["llama-2-7b", "llama-2-13b", "falcon-7b", "gptj-6b", "llama-2-70b", "llama-2-70b"]
    placed = [(name, "") for name in names] + [("falcon-40b", LOW), ("falcon-40b", HIGH), ("falcon-40b", LOW)]
    rows = clients_of(*placed, ("llama-2-7b", ""))
    run = read_run(tmp_path, rows, name="Mine__twentyone__code__0.1__5.0")
    steps = [0, 1, 2, 3, 4, 5, 6, 6, 7, 8]
    assert list(deploy_times(run).values()) == [30 * (step > 0) + 30 * step + 90 * k for k, step in enumerate(steps)]


def test_nothing_begins_while_a_model_is_loaded(tmp_path, row_of, read_run, plain_rules, clients_of):
    rows = clients_of(("llama-2-70b", LOW), ("falcon-40b", LOW))
    rows += [row_of(305.0, model="llama-2-70b", devices=LOW, tp=4)]
    run = read_run(tmp_path, rows, name="Mine__large__code__0.1__5.0")
    assert replay(run, plain_rules).simulation.start[0] == pytest.approx(310.0)
    assert replay(run, plain_rules, stalls=()).simulation.start[0] == pytest.approx(305.01)


def test_crowding_grows_with_the_models_that_are_loaded_by_then(tmp_path, row_of, read_run, plain_rules, clients_of):
    rows = clients_of(("llama-2-70b", LOW), ("falcon-40b", LOW))
    rows += [row_of(at, model="llama-2-70b", devices=LOW, tp=4) for at in (290.0, 311.0)]
    run = read_run(tmp_path, rows, name="Mine__large__code__0.1__5.0")
    assert resident_models(run, np.array([0.0, 39.0, 40.0, 309.0, 310.0])).tolist() == [0, 0, 1, 1, 2]
    crowded, plain = (replay(run, plain_rules, crowding_s=s).simulation.latency for s in (CROWDING_S, 0.0))
    assert (crowded - plain)[:2] == pytest.approx([CROWDING_S, 2 * CROWDING_S])
    unknown = replace(run, model_set="mine")
    assert resident_models(unknown, np.array([100.0, 290.0, 1002.0])).tolist() == [0, 1, 2]


def test_crowding_is_25_ms_of_service_per_resident_model_and_nothing_else(
    tmp_path, four_requests, read_run, plain_rules
):
    run = read_run(tmp_path, four_requests)
    rules = replace(plain_rules, stage_penalty=0.25)
    crowded = replay(run, rules, {("gptj-6b", ONE): 1.0}, crowding_s=CROWDING_S)
    # the third request is the first of the second client, whose model counts from then on
    assert crowded.simulation.work == pytest.approx([1.025, 1.025, 1.05, 1.05])
    by_profile = [replay(run, rules, crowding_s=s).simulation.work for s in (CROWDING_S, 0.0)]
    grown = by_profile[0] - by_profile[1]
    assert grown == pytest.approx([0.025, 0.025, 0.05, 0.05])


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
