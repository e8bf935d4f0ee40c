import csv
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from alpa_serve.api_key import API_KEY_VARIABLE
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_json import to_json
from alpa_serve.replay import cli, replay_workload
from alpa_serve.simulator.workload import DeterministicProcess

LOAD = ["uniform:rate=20", "--duration", "0.5"]


@pytest.fixture
def run(capsys, placement_file, server, monkeypatch):
    """Return run(*arguments) -> exit code, standard output, standard error, of a replay against the server."""
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)

    def call(*arguments, placement=placement_file):
        code = cli.main([str(placement), *map(str, arguments), "--url", server.url])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def command(placement, url, *arguments):
    return [sys.executable, "-m", "alpa_serve.replay", str(placement), *arguments, "--url", url]


def test_a_process_ends_with_0_when_all_was_answered(server, placement_file):
    done = subprocess.run(command(placement_file, server.url, *LOAD), capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "all: 20 requests" in done.stdout
    assert "SLO attainment 1.0000" in done.stdout
    assert len(server.bodies) == 20
    assert "20 answered, 0 in flight" in done.stderr


def test_a_process_ends_with_130_after_ctrl_c_and_says_what_was_measured(server, placement_file):
    arguments = ("uniform:rate=20", "--duration", "3600")
    process = subprocess.Popen(
        command(placement_file, server.url, *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        for _ in range(600):
            if len(server.bodies) > 10:
                break
            time.sleep(0.1)
        # as a terminal does: to all processes of the group
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == cli.STOPPED
    assert output.startswith("Stopped before")
    # what was on its way when it was stopped may not have come
    (num_sent,) = (int(line.split()[1]) for line in output.splitlines() if line.startswith("all: "))
    assert len(server.bodies) <= num_sent <= len(server.bodies) + 5
    assert "Traceback" not in errors
    assert errors.endswith("stopped; this is what was measured so far\n")


def test_ctrl_c_before_anything_was_sent_has_no_figures(run, monkeypatch):
    def stop(workload, url, **_):
        workload.arrivals += 3600
        return replay_workload(workload, url, on_progress=press)

    def press(progress):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "replay_workload", stop)
    assert run(*LOAD, "--quiet") == (cli.STOPPED, "", "stopped; nothing was sent yet\n")


def test_failed_requests_make_it_1(run, server):
    server.drops = 1
    code, output, _ = run(*LOAD)
    assert code == 1
    assert "ServerDisconnectedError" in output


def test_requests_that_miss_their_slo_are_answered(run):
    code, output, _ = run(*LOAD, "--slo", "0", "--quiet")
    assert code == 0
    assert "SLO attainment 0.0000" in output


def test_what_the_server_lacks_is_an_error_and_nothing_is_sent(run, server):
    server.models = ["m0"]
    assert run(*LOAD) == (2, "", f"error: {server.url} has no model 'm1'; it has: m0\n")
    assert not server.bodies


def test_a_token_comes_from_a_file_or_from_the_environment(run, server, tmp_path, monkeypatch):
    server.api_key = "secret"
    code, _, errors = run(*LOAD)
    assert (code, "wants a token" in errors) == (2, True)
    key = tmp_path / "key"
    key.write_text("secret\n", encoding="utf-8")
    assert run(*LOAD, "--api-key-file", key)[0] == 0
    monkeypatch.setenv(API_KEY_VARIABLE, "secret")
    assert run(*LOAD)[0] == 0
    monkeypatch.setenv(API_KEY_VARIABLE, "other")
    assert run(*LOAD)[0] == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["poisson:rate=1"],
        [*LOAD, "--slo", "m7=1"],
        [*LOAD, "--warmup", "3"],
        [*LOAD, "--num-processes", "0"],
        [*LOAD, "--simulate"],
        [*LOAD, "--json", "no/such/folder.json"],
        [*LOAD, "--api-key-file", "no/such/file"],
        [*LOAD, "--timeout", "0"],
        [*LOAD, "--ca-file", "no/such/file"],
    ],
)
def test_bad_input_is_an_error_before_anything_is_sent(run, server, arguments):
    code, output, errors = run(*arguments, "--quiet")
    assert (code, output) == (2, "")
    assert errors.startswith("error: ")
    assert errors.count("\n") == 1
    assert not server.bodies


def test_a_placement_that_is_none_is_an_error(run, tmp_path):
    code, _, errors = run(*LOAD, placement=tmp_path / "absent.json")
    assert (code, "absent.json" in errors) == (2, True)


def test_models_that_no_group_holds_get_requests_all_the_same(run, server, tmp_path):
    path = tmp_path / "partial.json"
    path.write_text(to_json(ModelPlacement([(1, 1, 1)], [[0]]), ["m0", "m_missing"]), encoding="utf-8")
    code, output, errors = run(*LOAD, placement=path)
    assert code == 1
    assert "note: no group holds m_missing" in errors
    assert server.count("model") == {'"m0"': 10, '"m_missing"': 10}
    assert "HTTP 404" in output
    assert "SLO attainment 0.5000" in output


def test_figures_and_requests_are_written_to_files(run, tmp_path):
    figures, rows = tmp_path / "figures.json", tmp_path / "rows.csv"
    code, _, errors = run(*LOAD, "--slo", "9", "--json", figures, "--csv", rows, "--quiet")
    assert (code, [line for line in errors.splitlines() if not line.startswith("warning: ")]) == (0, [])
    document = json.loads(figures.read_text(encoding="utf-8"))
    assert document["counts"]["served"] == document["served"]["num_requests"] == 20
    assert document["simulated"] is None
    with rows.open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["idx"] for row in table] == [str(idx) for idx in range(20)]
    assert {(row["status"], row["slo_s"]) for row in table} == {("served", "9.0")}


def test_a_simulation_is_shown_beside_what_was_served(run, tmp_path):
    figures = tmp_path / "figures.json"
    profiles = ["--profile", "m0=test-2GB-100ms", "--profile", "m1=test-4GB-150ms"]
    # at 20 requests/s and 100 ms a device cannot keep an SLO that the server, which answers at once, does keep
    code, output, _ = run(*LOAD, "--slo-scale", "3", *profiles, "--simulate", "--json", figures)
    assert code == 0
    document = json.loads(figures.read_text(encoding="utf-8"))
    assert document["simulated"]["num_requests"] == document["served"]["num_requests"] == 20
    assert document["simulated"]["goodput"] < 1
    assert document["simulated"]["latency_mean"] > 0.1
    table = output.split("Simulated and served\n")[1].splitlines()
    assert [line.split()[0] for line in table[2:]] == ["m0", "m1", "all"]
    assert table[-1].split()[2] == f"{document['simulated']['goodput']:.4f}"


def test_late_sending_is_warned_of(run, monkeypatch):
    monkeypatch.setattr(cli, "LATE_S", 0.0)
    code, _, errors = run(*LOAD)
    assert (code, "warning: 1 in 100 requests was sent" in errors) == (0, True)


def test_processes_are_as_many_as_the_busiest_second_needs(monkeypatch):
    monkeypatch.setattr(cli.os, "cpu_count", lambda: 4)
    for rate, expected in ((10, 1), (2500, 3), (50_000, 4)):
        workload = DeterministicProcess(rate).generate_workload("m0", 0, 2)
        assert cli._num_processes("auto", workload) == expected
