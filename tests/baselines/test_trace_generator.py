import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alpa_serve.errors import InvalidPlacementError, UnknownNameError
from alpa_serve.experiments.command_lists import command_list, main
from alpa_serve.experiments.hardware_replay import deploy_times, slo_s
from alpa_serve.experiments.hardware_runs import read_runs
from alpa_serve.experiments.maveriq import Experiment, model_list
from alpa_serve.experiments.placement_source import published_placement
from alpa_serve.experiments.published import parse_entries, read_entries
from alpa_serve.experiments.trace_steps import trace_step_counts
from alpa_serve.export.command_files import parse_commands
from alpa_serve.export.maveriq_commands import Deploy, Send
from alpa_serve.placement_json import to_json

ROOT = Path(__file__).parents[2]
ENTRIES = read_entries(ROOT / "alpaserve_configs.txt")
OUTCOMES = [
    pytest.param(
        entry.experiment, naming, outcome, id=f"{'-'.join(map(str, vars(entry.experiment).values()))}-{naming}"
    )
    for entry in ENTRIES
    for naming, outcome in (("published", entry.published), ("aligned", entry.aligned))
    if outcome is not None
]
RUN_FILES = [
    "AlpaServe__large__code__0.1__5.0",
    "AlpaServe__regular__code__0.4__5.0",
    "AlpaServeStar__large__code__0.1__5.0",
    "AlpaServeStar__large__conversation__0.1__5.0",
    "AlpaServeStar__large__conversation__0.2__5.0",
]


@pytest.fixture
def run_in_root(monkeypatch, capsys):
    """Return run(flags) -> (exit code, standard output, standard error) of the script, from the checkout."""
    monkeypatch.chdir(ROOT)

    def run(flags):
        code = main(flags.split())
        return (code, *capsys.readouterr())

    return run


@pytest.mark.parametrize(("experiment", "naming", "outcome"), OUTCOMES)
def test_every_feasible_entry_becomes_commands_with_the_published_devices(experiment, naming, outcome):
    commands = command_list(published_placement(ENTRIES, experiment, naming), experiment)
    deployed = [command for command in commands if isinstance(command, Deploy)]
    assert [(c.client_id, c.model, c.device_assigned, c.tp_size, c.pp_size, c.batch_size) for c in deployed] == [
        (r.replica_id, r.model, r.device_assigned, r.tp_size, r.pp_size, 1)
        for r in outcome.deployment
        if r.device_assigned
    ]
    # a request goes to a client that is there, and that was deployed if it ever is
    models = {replica.replica_id: replica.model for replica in outcome.deployment}
    deployed_at = {command.client_id: command.time_s for command in deployed}
    sent = [command for command in commands if isinstance(command, Send)]
    assert len(sent) == trace_step_counts(experiment.trace, experiment.scale_rate).sum()
    assert all(models[send.client_id] == send.model for send in sent)
    assert all(send.time_s >= deployed_at.get(send.client_id, 0.0) + 60 for send in sent)
    assert {send.client_id for send in sent} == set(models)
    assert [command.time_s for command in commands] == sorted(command.time_s for command in commands)


@pytest.mark.parametrize("name", RUN_FILES)
def test_request_times_are_those_of_the_recorded_runs(name, shared_data):
    path = shared_data("hardware_runs") / f"{name}.csv.gz"
    (run,) = read_runs(path)
    experiment = Experiment(run.baseline, run.model_set, run.trace, run.scale, run.slo_factor)
    commands = command_list(published_placement(ENTRIES, experiment), experiment)
    sent = [command for command in commands if isinstance(command, Send)]
    scheduled = pd.read_csv(path).sort_values("request_id")["scheduled_s"].to_numpy()
    np.testing.assert_allclose([send.time_s for send in sent], scheduled, rtol=0, atol=1e-6)
    # so do the clients, their models, where they are, and the times at which they load
    assert {send.client_id: send.model for send in sent} == run.clients
    deployed = {command.client_id: command for command in commands if isinstance(command, Deploy)}
    assert {
        client_id: (command.model, command.device_assigned, command.tp_size, command.pp_size)
        for client_id, command in deployed.items()
    } == {
        client_id: (replica.model, replica.devices, replica.config.op, replica.config.pp)
        for client_id, replica in run.replicas.items()
    }
    times = deploy_times(run)
    assert {client_id: command.time_s for client_id, command in deployed.items()} == {
        client_id: times[client_id] for client_id in run.replicas
    }
    assert {send.model: send.slo_s for send in sent} == {send.model: slo_s(run, send.model) for send in sent}


def test_requests_are_spread_over_models_and_clients_as_in_the_recorded_runs(shared_data):
    (run,) = read_runs(shared_data("hardware_runs") / "AlpaServe__regular__code__0.4__5.0.csv.gz")
    experiment = Experiment(run.baseline, run.model_set, run.trace, run.scale, run.slo_factor)
    commands = command_list(published_placement(ENTRIES, experiment), experiment)
    clients = pd.Series([command.client_id for command in commands if isinstance(command, Send)])
    ours, recorded = (series.value_counts().sort_index() for series in (clients, run.frame["client_id"]))
    # both are draws: five standard deviations of a difference of counts
    assert (abs(ours - recorded) < 5 * np.sqrt(ours + recorded)).all()


def test_poisson_has_two_minute_stages_at_lambda_and_two_and_a_half_lambda():
    counts = trace_step_counts("poisson", 200.0)
    assert counts.shape == (60,)
    per_stage = counts.reshape(15, 4).sum(axis=1)
    expected = 120 * 1000 * np.resize([1.0, 2.5], 15)
    assert (abs(per_stage - expected) < 5 * np.sqrt(expected)).all()
    np.testing.assert_array_equal(counts, trace_step_counts("Poisson", 200.0))
    assert (counts != trace_step_counts("poisson", 200.0, seed=1)).any()


def test_a_trace_file_gives_the_steps_of_its_minutes(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("TIMESTAMP\n2024-01-01 00:00:01\n2024-01-01 00:00:02\n2024-01-01 00:02:00\n")
    assert trace_step_counts(str(path), 1.0).tolist() == [2, 0, 1]


def test_the_script_writes_a_list_that_reads_back(run_in_root, tmp_path):
    flags = "--baseline AlpaServe* --model_list large --trace Conversation --scale_factor 0.2 --slo 5 --batch_size 1"
    code, text, errors = run_in_root(flags)
    assert (code, errors) == (0, "")
    assert "4 deployments, 3849 requests" in text
    experiment = Experiment("AlpaServe*", "large", "conversation", 0.2, 5.0)
    expected = command_list(published_placement(ENTRIES, experiment), experiment)
    assert parse_commands(text) == expected
    star = flags.replace("*", "Star").replace("Conversation", "conversation")
    assert run_in_root(f"{star} --format jsonl --output {tmp_path / 'list'}") == (0, "", "")
    assert parse_commands((tmp_path / "list").read_text(), "jsonl") == expected


def test_the_list_is_the_one_that_the_readme_shows(run_in_root):
    readme = (ROOT / "baselines" / "MaverIQ" / "README.md").read_text()
    command = re.search(r"trace_generator.py (.*) --output commands.txt", readme).group(1)
    shown = re.search(r"```text\n(.*?)```", readme, re.DOTALL).group(1)
    _, text, _ = run_in_root(command)
    commands = parse_commands(text)[:2]
    assert [vars(command) for command in commands] == [
        {**vars(command), "time_s": pytest.approx(command.time_s)} for command in parse_commands(shown)
    ]


def test_the_script_takes_a_placement_from_json_and_a_poisson_trace(run_in_root, tmp_path):
    names = [f"m{model['id']}" for model in model_list("large")]
    placement = published_placement(ENTRIES, Experiment("AlpaServe", "large", "code", 0.1, 5.0))
    (tmp_path / "mine.json").write_text(to_json(placement, names))
    code, text, _ = run_in_root(f"--placement {tmp_path / 'mine.json'} --trace poisson --scale_factor 0.1 --seed 7")
    assert code == 0
    commands = parse_commands(text)
    assert [c.client_id for c in commands if isinstance(c, Deploy)] == [2, 3, 4, 5]
    assert len(commands) - 4 == trace_step_counts("poisson", 0.1, 7).sum()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--model_list small", "unknown model set 'small'; known: large, regular, twentyone"),
        ("--baseline Mine", "unknown baseline 'Mine'; known: AlpaServe, AlpaServe*, AlpaServeStar"),
        ("--trace chat", "no entry for AlpaServe | large | chat | scale 0.1 | slo 5; with this baseline"),
        ("--scale_factor nan", "scale_factor must be a finite number > 0, got nan"),
        ("--slo 0", "slo (factor) must be a finite number > 0, got 0.0"),
        ("--batch_size 0", "batch_size must be a whole number >= 1, got 0"),
        ("--placement tests/baselines/data/vidur_sample/placement.json --trace poisson --scale_factor 1e9", "1e+09"),
        ("--seed -1", "seed must be a whole number >= 0, got -1"),
        ("--configs absent.txt", "absent.txt: cannot be read"),
        ("--configs setup.py", "setup.py: not a list of placements"),
        ("--placement absent.json", "absent.json: cannot be read"),
        ("--placement README.md", "README.md: not JSON"),
        ("--output absent/list.txt", "--output: absent/list.txt cannot be written"),
    ],
)
def test_the_script_ends_with_2_and_says_what_is_wrong(run_in_root, flags, message):
    code, text, errors = run_in_root(flags)
    assert (code, text) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors


def test_an_entry_without_a_placement_is_an_error_that_says_so():
    infeasible = next(entry.experiment for entry in ENTRIES if entry.published is None)
    with pytest.raises(InvalidPlacementError, match="no placement is feasible for AlpaServe"):
        published_placement(ENTRIES, infeasible)
    with pytest.raises(UnknownNameError, match="unknown naming 'mine'"):
        published_placement(ENTRIES, infeasible, "mine")


def test_devices_that_the_placement_does_not_give_are_an_error():
    text = (ROOT / "alpaserve_configs.txt").read_text().replace("0,1,2,3 tp_size=4", "0,1,2,5 tp_size=4", 1)
    with pytest.raises(InvalidPlacementError, match=r"device_assigned=0,1,2,5 .* is not what the placement gives"):
        published_placement(parse_entries(text), Experiment("AlpaServe", "large", "code", 0.1, 5.0))


def test_the_script_runs_from_anywhere(tmp_path):
    command = [sys.executable, ROOT / "baselines" / "MaverIQ" / "trace_generator.py", "--baseline", "AlpaServeStar"]
    command += ["--model_list", "large", "--trace", "code"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, check=False, env={"PYTHONPATH": str(ROOT)}
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert len(parse_commands(result.stdout)) == 4 + 861
