import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from alpa_serve.errors import InvalidPlacementError, InvalidTraceError, UnknownNameError
from alpa_serve.experiments.maveriq import model_datas, model_list
from alpa_serve.experiments.vidur_accuracy import main
from alpa_serve.experiments.vidur_comparison import compare
from alpa_serve.experiments.vidur_export import vidur_runs
from alpa_serve.placement import ModelPlacement
from alpa_serve.profiling import ParallelConfig
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator import simulate
from alpa_serve.simulator.trace_workload import WorkloadFromTrace
from alpa_serve.trace.llm import load_llm_trace

ROOT = Path(__file__).parents[2]
SAMPLE = Path(__file__).parent / "data" / "vidur_sample"
HALVES = ModelPlacement([ParallelConfig(1, 4, 1)] * 2, [[1, 2], [2, 3]])
SUMMARY = """\
latency (s)                    mean        p50        p90        p99
Vidur                        0.3008     0.2928     0.2928     0.4696
ours, alone                  0.3478     0.3536     0.3536     0.5289
difference                   +15.6%     +20.8%     +20.8%     +12.6%
32 requests; the largest difference of one is +20.8%: request 0, 0.3536 s, Vidur 0.2928 s
"""


@pytest.fixture
def script(monkeypatch, capsys):
    """Return script(*arguments) -> (exit code, standard output, standard error), run from the checkout."""
    monkeypatch.chdir(ROOT)

    def run(*arguments):
        code = main([str(argument) for argument in arguments])
        return (code, *capsys.readouterr())

    return run


@pytest.fixture
def sample(tmp_path):
    """Return a copy of the sample run, to be changed."""
    return Path(shutil.copytree(SAMPLE, tmp_path / "run"))


def problem(rules):
    models = model_list("large")
    trace = WorkloadFromTrace(0.4, load_llm_trace("code"))
    workload = trace.generate_workload(models, slo=5.0, tokens="trace")
    return model_datas(models, 5.0, workload, rules=rules), workload


@pytest.mark.parametrize("rules", [ALPASERVE, MAVERIQ], ids=["alpaserve", "maveriq"])
def test_the_runs_of_all_groups_hold_every_served_request_once_with_its_latency(rules):
    datas, workload = problem(rules)
    result = simulate(HALVES, datas, workload, rules)
    runs = [run for group_id in (0, 1) for run in vidur_runs(HALVES, datas, workload, rules, group_id)]
    assert [(run.group_id, run.model_name) for run in runs] == [(0, "m2"), (0, "m3"), (1, "m3"), (1, "m4")]
    assert sum(map(len, runs)) == result.served.sum()
    assert sum(run.num_dropped for run in runs) == ((result.group >= 0) & ~result.served).sum()
    frame = result.to_frame().assign(input=workload.input_tokens, output=workload.output_tokens)
    for run in runs:
        own = frame[(frame["group"] == run.group_id) & (frame["model"] == run.model_name) & frame["served"]]
        np.testing.assert_array_equal(run.arrivals, own["arrival_s"])
        np.testing.assert_array_equal(run.shared_latency, own["latency_s"])
        np.testing.assert_array_equal(run.input_tokens, own["input"])
        np.testing.assert_array_equal(run.output_tokens, own["output"])


def test_alone_a_model_waits_only_for_itself():
    datas, workload = problem(MAVERIQ)
    for run in vidur_runs(HALVES, datas, workload, MAVERIQ, 0):
        # a pause that the other model filled costs its penalty
        assert (run.alone_latency <= run.shared_latency + MAVERIQ.idle_penalty_s + 1e-9).mean() > 0.99
        assert run.alone_latency.mean() < run.shared_latency.mean()


def test_a_group_that_is_not_there_or_empty_is_refused():
    datas, workload = problem(ALPASERVE)
    with pytest.raises(InvalidPlacementError, match="no group 2; groups are 0 to 1"):
        vidur_runs(HALVES, datas, workload, ALPASERVE, 2)
    with pytest.raises(InvalidPlacementError, match="group 0 holds no model"):
        vidur_runs(ModelPlacement([ParallelConfig(1, 4, 1)], [[]]), datas, workload, ALPASERVE, 0)


def test_export_writes_the_sample_again(script, tmp_path):
    flags = ["--placement", SAMPLE / "placement.json", "--trace", "code", "--scale_factor", 0.01]
    code, text, errors = script("export", *flags, "--output", tmp_path / "runs")
    folder = tmp_path / "runs" / "group0_m3"
    assert (code, text, errors) == (0, f"{folder}: 32 requests for m3 llama-2-7b\n", "")
    assert sorted(path.name for path in folder.iterdir()) == ["command.sh", "ours.csv", "vidur_trace.csv"]
    for name in ("ours.csv", "vidur_trace.csv"):
        pd.testing.assert_frame_equal(pd.read_csv(folder / name), pd.read_csv(SAMPLE / name))


def test_the_command_of_an_export_calls_vidur_with_the_trace_beside_it(script, tmp_path):
    flags = ["--baseline", "AlpaServe", "--trace", "code", "--output", tmp_path]
    names = ["--vidur_model", "falcon-40b=my/falcon", "--device", "a100", "--batch_size", 4]
    code, text, _ = script("export", *flags, *names)
    assert code == 0
    assert len(text.splitlines()) == 2
    # a python that says what it was called with
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    fake.chmod(0o755)
    command = tmp_path / "group0_m2" / "command.sh"
    result = subprocess.run(
        ["bash", command], env={"PATH": f"{fake.parent}:/usr/bin:/bin"}, capture_output=True, text=True, check=True
    )
    words = result.stdout.splitlines()
    assert words[:2] == ["-m", "vidur.main"]
    called = dict(zip(words[2::2], words[3::2], strict=True))
    assert called["--trace_request_generator_config_trace_file"] == str(command.with_name("vidur_trace.csv"))
    assert called["--replica_config_model_name"] == "my/falcon"
    assert called["--replica_config_tensor_parallel_size"] == "4"
    assert called["--replica_config_device"] == "a100"
    assert called["--vllm_scheduler_config_batch_size_cap"] == "4"
    notes = command.read_text()
    assert "Vidur is not known to ship a profile of falcon-40b" in notes
    assert "ship a profile" not in (tmp_path / "group0_m3" / "command.sh").read_text()


def test_token_counts_of_the_trace_are_exported(script, tmp_path):
    flags = ["--placement", SAMPLE / "placement.json", "--trace", "code", "--scale_factor", 0.01]
    assert script("export", *flags, "--tokens", "trace", "--output", tmp_path)[0] == 0
    trace = pd.read_csv(tmp_path / "group0_m3" / "vidur_trace.csv")
    assert trace["num_prefill_tokens"].nunique() > 10
    np.testing.assert_allclose(trace["arrived_at"], pd.read_csv(SAMPLE / "vidur_trace.csv")["arrived_at"])


def test_a_request_without_tokens_is_named_with_its_group_and_model_and_nothing_is_written(
    script, tmp_path, monkeypatch
):
    def with_a_bad_last_run(*arguments):
        first, last = vidur_runs(*arguments)
        return [first, replace(last, output_tokens=np.where(np.arange(len(last)) == 4, 0, last.output_tokens))]

    monkeypatch.setattr("alpa_serve.experiments.vidur_accuracy.vidur_runs", with_a_bad_last_run)
    code, text, errors = script("export", "--trace", "code", "--output", tmp_path / "runs")
    assert (code, text, (tmp_path / "runs").exists()) == (2, "", False)
    assert "error: group 0, model m3: request 4 has 0 output tokens; Vidur needs" in errors


def test_the_sample_compares_as_the_readme_says(script, tmp_path):
    code, text, errors = script("compare", SAMPLE, SAMPLE / "request_metrics.csv", "--output", tmp_path / "each.csv")
    assert (code, text, errors) == (0, SUMMARY, "")
    assert SUMMARY in (ROOT / "baselines" / "Vidur" / "README.md").read_text()
    each = pd.read_csv(tmp_path / "each.csv")
    ours, metrics = (pd.read_csv(SAMPLE / name) for name in ("ours.csv", "request_metrics.csv"))
    np.testing.assert_allclose(each["ours_s"], ours["alone_latency_s"])
    np.testing.assert_allclose(each["vidur_s"], metrics["request_e2e_time"])
    np.testing.assert_allclose(each["difference_s"], each["ours_s"] - each["vidur_s"])
    np.testing.assert_allclose(each["relative_difference"], each["ours_s"] / each["vidur_s"] - 1)


def test_rows_are_paired_by_id_and_other_columns_ignored(sample):
    metrics = pd.read_csv(sample / "request_metrics.csv")
    expected = compare(sample / "ours.csv", sample / "request_metrics.csv")
    # Vidur writes them in the order of completion
    needed = metrics[["Request Id", "request_e2e_time"]].assign(anything="x")
    needed.sample(frac=1.0, random_state=0).to_csv(sample / "request_metrics.csv", index=False)
    shuffled = compare(sample / "ours.csv", sample / "request_metrics.csv")
    pd.testing.assert_frame_equal(shuffled.to_frame(), expected.to_frame())


def test_either_latency_of_ours_can_be_compared(sample):
    ours = pd.read_csv(sample / "ours.csv")
    ours["shared_latency_s"] += 1.0
    ours.to_csv(sample / "ours.csv", index=False)
    files = sample / "ours.csv", sample / "request_metrics.csv"
    alone, shared = (compare(*files, which) for which in ("alone", "shared"))
    np.testing.assert_allclose(shared.ours, alone.ours + 1.0)
    assert "ours, shared " in shared.summary()
    with pytest.raises(UnknownNameError, match="unknown latency of ours 'both'; known: alone, shared"):
        compare(*files, "both")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.drop(columns="request_e2e_time"), "line 1: no column request_e2e_time"),
        (lambda m: m.drop(columns="Request Id"), "line 1: no column Request Id"),
        (lambda m: m.iloc[:-2], ": 2 of 32 requests are missing, the first is 30; let Vidur simulate to the end"),
        (lambda m: pd.concat([m, m.iloc[:1]]), "line 34, column Request Id: a request that is there before: '0'"),
        (
            lambda m: m.assign(**{"Request Id": m["Request Id"] + 1}),
            "line 33, column Request Id: the exported run has requests 0 to 31 only: '32'",
        ),
        (
            lambda m: m.assign(**{"Request Id": m["Request Id"] + 0.5}),
            "line 2, column Request Id: not a whole number >= 0: '0.5'",
        ),
        (lambda m: m.assign(request_e2e_time=0.0), "line 2, column request_e2e_time: not a number > 0: '0.0'"),
        (lambda m: m.assign(request_e2e_time="nan"), "line 2, column request_e2e_time: not a number > 0: 'nan'"),
        (lambda m: m.assign(request_e2e_time=""), "line 2, column request_e2e_time: not a number > 0: an empty cell"),
        (
            lambda m: m.assign(request_num_prefill_tokens=64),
            "line 2, column request_num_prefill_tokens: not the exported request: '64'",
        ),
        (lambda m: m.iloc[:0], ": no request in this file"),
    ],
)
def test_metrics_that_are_not_of_the_run_are_an_error_that_names_file_line_and_column(sample, change, message):
    path = sample / "request_metrics.csv"
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(InvalidTraceError) as caught:
        compare(sample / "ours.csv", path)
    assert str(caught.value).startswith(str(path))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["export", "--group", "9", "--trace", "code", "--output", "out"], "no group 9; groups are 0 to 1"),
        (["export", "--trace", "poisson", "--output", "out"], "no entry for AlpaServe | large | poisson"),
        (["export", "--vidur_model", "falcon", "--output", "out"], "--vidur_model is MODEL=NAME, got 'falcon'"),
        (["export", "--prompt_tokens", "0", "--output", "out"], "prompt_tokens must be a whole number >= 1, got 0"),
        (["export", "--trace", "code", "--output", "setup.py"], "setup.py/group0_m2 cannot be written"),
        (["compare", "absent", "absent.csv"], "absent/ours.csv: cannot be read"),
        (["compare", SAMPLE, "absent.csv"], "absent.csv: cannot be read"),
        (
            ["compare", SAMPLE, SAMPLE / "request_metrics.csv", "--output", "absent/each.csv"],
            "--output: absent/each.csv cannot be written",
        ),
    ],
)
def test_the_script_ends_with_2_and_says_what_is_wrong(script, arguments, message):
    code, text, errors = script(*arguments)
    assert (code, text) == (2, "")
    assert errors.startswith("error: ")
    assert message in errors


def test_the_script_runs_from_anywhere(tmp_path):
    command = [sys.executable, ROOT / "baselines" / "Vidur" / "vidur_accuracy.py", "compare", SAMPLE]
    result = subprocess.run(
        [*command, SAMPLE / "request_metrics.csv"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(ROOT)},
    )
    assert (result.returncode, result.stdout, result.stderr) == (0, SUMMARY, "")
