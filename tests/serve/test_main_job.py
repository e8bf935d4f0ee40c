import csv
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from alpa_serve.placement import ModelPlacement
from alpa_serve.profiling import ParallelConfig

SCRIPT = Path(__file__).with_name("test_placement_policy_dummy.py")
PUBLISHED = "ModelPlacement(group_configs=[ParallelConfig(dp=1, op=4, pp=2)], group_models=[[0, 1, 2, 3]])"


@pytest.fixture
def main_job(tmp_path):
    """Return main_job(*flags) -> the finished process; runs in tmp_path."""

    def run(*flags):
        return subprocess.run(
            [sys.executable, SCRIPT, *map(str, flags)], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


@pytest.fixture
def output_of(main_job):
    """Return output_of(*flags) -> the standard output of a run that must succeed."""

    def run(*flags):
        result = main_job(*flags)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return run


def placement_in(output):
    (line,) = [line for line in output.splitlines() if line.startswith("ModelPlacement(")]
    return eval(line, {"ModelPlacement": ModelPlacement, "ParallelConfig": ParallelConfig})


def write_trace(path, per_minute=60, minutes=12):
    rows = [
        f"2024-01-01 00:{minute:02d}:{30 * k / per_minute:09.6f},100,20"
        for minute in range(minutes)
        for k in range(per_minute)
    ]
    path.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *rows]) + "\n")
    return path


def test_without_flags_it_prints_the_published_placement_and_leaves_no_file(main_job, tmp_path):
    result = main_job()
    assert result.returncode == 0, result.stderr
    assert PUBLISHED in result.stdout.splitlines()
    assert "llama-2-70b   0,1,2,3,4,5,6,7         4         2" in result.stdout
    assert "15444 requests" in result.stdout
    for name, count in (("m1 llama-2-70b", 4511), ("m2 falcon-40b", 3892), ("m3 llama-2-7b", 3565)):
        assert re.search(rf"{name} +[\d.]+ +{count} +1\.0000", result.stdout)
    assert "shapes of groups" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_whole_strategy_goes_to_standard_output_and_progress_to_standard_error(main_job):
    result = main_job("--model-set", "regular", "--trace", "Coding")
    parts = [part.split()[0] for part in result.stdout.split("\n\n")]
    assert parts == ["8", "Groups", "Models", "SLO", "ModelPlacement(group_configs=[ParallelConfig(dp=1,", "Deployment"]
    assert "best score" in result.stderr
    assert "best score" not in result.stdout


def test_the_default_settings_given_as_flags_give_the_same_strategy(output_of):
    flags = [
        *("--trace", "Conversation", "--scale-rate", "0.4", "--slo", "5", "--num-devices", "8", "--mem-budget", "48"),
        *("--num-devices-per-node", "8", "--baseline", "alpaserve", "--model-set", "large"),
    ]
    assert output_of(*flags) == output_of()


def test_model_set_baseline_and_naming_choose_the_published_experiment(output_of):
    star = output_of("--model-set", "regular", "--trace", "Coding", "--baseline", "alpaserve-star")
    assert placement_in(star) == ModelPlacement([(1, 2, 4)], [range(8)])
    misnamed = output_of("--published-naming", "--trace", "code", "--scale-rate", "0.1")
    assert placement_in(misnamed) == ModelPlacement([(1, 4, 1), (1, 4, 1)], [[1, 2], [2, 3]])
    assert "SLO attainment 0.8031 over 1722 requests" in misnamed
    assert "Not placed\n  m0 llama-2-70b:" in misnamed
    assert "requests name a model that does not exist" in misnamed


def test_a_trace_file_scale_and_slo_change_the_requests(output_of, tmp_path):
    trace = write_trace(tmp_path / "mine.csv")
    full = output_of("--trace", trace, "--scale-rate", "1")
    # twelve minutes of sixty requests, played twice
    assert "1440 requests" in full
    assert "720 requests" in output_of("--trace", trace, "--scale-rate", "0.5")
    assert re.search(r"m1 llama-2-70b +25\.832 ", full)
    assert re.search(r"m1 llama-2-70b +10\.333 ", output_of("--trace", trace, "--slo", "2"))


def test_cluster_flags_change_the_devices_the_memory_and_the_nodes(output_of, tmp_path):
    trace = write_trace(tmp_path / "mine.csv")
    small = output_of("--trace", trace, "--num-devices", "4", "--mem-budget", "64.5", "--num-devices-per-node", "2")
    assert "4 devices of 64.5 GiB" in small
    assert "used of 64.50" in small
    placement = placement_in(small)
    assert sum(config.num_devices for config in placement.group_configs) == 4


def test_output_gets_a_header_and_a_row_for_every_run(output_of, tmp_path):
    results = tmp_path / "results.csv"
    shown = [output_of("--output", results, "--scale-rate", scale) for scale in (0.1, 0.2)]
    with results.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["scale_rate"] for row in rows] == ["0.1", "0.2"]
    for row, text in zip(rows, shown, strict=True):
        assert row["placement"] in text.splitlines()
        assert f"SLO attainment {float(row['slo_attainment']):.4f} over {row['num_requests']} requests" in text
        assert (row["baseline"], row["trace"], row["num_devices"]) == ("alpaserve", "Conversation", "8")
    assert list(tmp_path.iterdir()) == [results]


def test_output_refuses_a_file_with_other_columns_and_leaves_it_as_it_is(main_job, tmp_path):
    foreign = tmp_path / "taxes.csv"
    foreign.write_text("year,amount\n2023,12\n")
    result = main_job("--output", foreign, "--scale-rate", "0.1")
    assert result.returncode == 2
    assert "error: " in result.stderr
    assert "taxes.csv has other columns (year, amount)" in result.stderr.replace("\n", " ")
    assert foreign.read_text() == "year,amount\n2023,12\n"


@pytest.mark.parametrize("target", ["taxes.csv", "missing/results.csv", "."])
def test_an_output_that_cannot_be_appended_to_gives_no_result(target, main_job, tmp_path):
    (tmp_path / "taxes.csv").write_text("year,amount\n2023,12\n")
    result = main_job("--output", target, "--scale-rate", "0.1")
    assert result.returncode == 2
    assert result.stdout == ""


def test_an_output_file_that_is_empty_gets_the_header(output_of, tmp_path):
    (tmp_path / "empty.csv").touch()
    output_of("--output", "empty.csv", "--scale-rate", "0.1")
    assert (tmp_path / "empty.csv").read_text().startswith("baseline,models,trace,")


BAD_FILES = {
    "no_stamp.csv": "time,tokens\n2023-11-16,3\n",
    "bad_date.csv": "TIMESTAMP\n2023-11-16 18:17:03\nsoon\n",
    "empty.csv": "",
    "header.csv": "TIMESTAMP,ContextTokens\n",
    "nan.csv": "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,nan\n",
}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--trace", "Poetry"], "'Poetry'.*Conversation, Coding"),
        (["--trace", "missing.csv"], "'missing.csv'.*nor a file"),
        (["--trace", "no_stamp.csv"], "no_stamp.csv, line 1: no known form of a trace; found the columns time, tokens"),
        (["--trace", "bad_date.csv"], "bad_date.csv, line 3, column TIMESTAMP: not a date: 'soon'"),
        (["--trace", "empty.csv"], "empty.csv: the file is empty"),
        (["--trace", "header.csv"], "header.csv: no request"),
        (["--trace", "nan.csv"], "nan.csv, line 2, column ContextTokens"),
        (["--model-set", "huge"], "'huge'.*large.*regular.*twentyone"),
        (["--baseline", "vllm"], "'vllm'.*alpaserve.*alpaserve-star.*mixed"),
        (["--baseline", "mixed", "--time-budget", "-1"], "time_budget.*>= 0"),
        (["--baseline", "mixed", "--time-budget", "nan"], "time_budget.*nan"),
        (["--baseline", "mixed", "--seed", "-1"], "seed.*>= 0"),
        (["--baseline", "mixed", "--num-workers", "0"], "num_workers.*>= 1"),
        (["--baseline", "mixed", "--mem-budget", "1"], "mem_budget"),
        (["--scale-rate", "0"], "rate_scale must be .*> 0"),
        (["--scale-rate", "-1"], "rate_scale"),
        (["--scale-rate", "nan"], "rate_scale.*nan"),
        (["--scale-rate", "1e-9"], "scale_rate is too small"),
        (["--scale-rate", "fast"], "--scale-rate.*'fast'"),
        (["--slo", "0"], "slo .*> 0"),
        (["--slo", "inf"], "slo .*finite"),
        (["--num-devices", "0"], "num_devices.*>= 1"),
        (["--num-devices", "2.5"], "--num-devices.*'2.5'"),
        (["--num-devices-per-node", "-1"], "num_devices_per_node.*>= 1"),
        (["--mem-budget", "nan"], "mem_budget.*nan"),
        (["--mem-budget", "-3"], "mem_budget"),
        (["--mem-budget", "1"], r"no model fits in a mem_budget of 1\.000 GiB.*smallest that would do is"),
        (["--baseline", "alpaserve-star", "--mem-budget", "10"], "require_all_models: .* GiB a device would do"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
    ],
)
def test_bad_input_ends_with_an_error_and_without_result_or_file(flags, message, main_job, tmp_path):
    for name, content in BAD_FILES.items():
        (tmp_path / name).write_text(content)
    result = main_job(*flags)
    assert result.returncode == 2
    assert result.stdout == ""
    assert "error: " in result.stderr
    assert re.search(message, " ".join(result.stderr.split()))
    assert "Traceback" not in result.stderr
    assert {path.name for path in tmp_path.iterdir()} == set(BAD_FILES)


def test_nodes_of_an_odd_size_get_a_strategy_too(main_job):
    result = main_job("--num-devices-per-node", "3", "--scale-rate", "0.1")
    assert result.returncode == 0, result.stderr


def test_an_error_after_the_search_leaves_standard_output_empty(main_job):
    result = main_job("--num-devices-per-node", "3", "--scale-rate", "0.1")
    assert result.stdout == "" or result.returncode == 0


def test_the_smallest_budget_that_the_error_names_is_enough(main_job, output_of):
    error = main_job("--mem-budget", "1", "--scale-rate", "0.1").stderr
    (num_bytes,) = re.findall(r"\((\d+) bytes\)", " ".join(error.split()))
    output = output_of("--mem-budget", repr(int(num_bytes) / 2**30), "--scale-rate", "0.1")
    assert placement_in(output).num_replicas


def edited_job(tmp_path, *changes):
    text = SCRIPT.read_text(encoding="utf-8")
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    # below a copy of the layout: the tests in the file read the published placements
    folder = tmp_path / "tests" / "serve"
    folder.mkdir(parents=True)
    shutil.copy(SCRIPT.parents[2] / "alpaserve_configs.txt", tmp_path)
    script = folder / SCRIPT.name
    script.write_text(text, encoding="utf-8")
    return subprocess.run([sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path)


def test_editing_the_models_and_the_slo_at_the_top_changes_profile_and_slo_together(tmp_path):
    done = edited_job(tmp_path, ("slo = 5.0", "slo = 2.5"), ('"name": "falcon-40b"', '"name": "gptj-6b"'))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ m1 llama-2-70b +12\.916 ", done.stdout, re.MULTILINE)
    assert re.search(r"^ m2 gptj-6b +1\.274 ", done.stdout, re.MULTILINE)
    assert not re.search(r"m2 gptj-6b +12\.10$", done.stdout, re.MULTILINE)


def test_models_without_their_model_data_are_refused(tmp_path):
    done = edited_job(tmp_path, ("    for model in model_list\n]", "    for model in model_list[:3]\n]"))
    assert done.returncode == 2
    assert "error: model_datas names m1, m2, m3, model_list m1, m2, m3, m4" in done.stderr


def test_a_line_that_was_cut_short_is_not_continued(output_of, tmp_path):
    results = tmp_path / "results.csv"
    output_of("--output", results, "--scale-rate", "0.1")
    first = results.read_text()
    results.write_text(first.rstrip())
    output_of("--output", results, "--scale-rate", "0.1")
    assert results.read_text() == first + first.splitlines(keepends=True)[1]


def test_maveriqs_rules_predict_what_alpaserves_do_not(output_of, tmp_path):
    results = tmp_path / "results.csv"
    for rules in ("alpaserve", "maveriq"):
        output_of("--rules", rules, "--scale-rate", "0.1", "--output", results)
    with results.open(newline="", encoding="utf-8") as file:
        published, measured = csv.DictReader(file)
    assert (published["rules"], measured["rules"]) == ("alpaserve", "maveriq")
    assert float(published["slo_attainment"]) == 1.0
    assert float(measured["slo_attainment"]) < 0.9
    assert float(measured["latency_mean_s"]) > 10 * float(published["latency_mean_s"])


def test_flags_change_what_they_name_and_keep_the_rest_of_edited_model_datas(tmp_path):
    edit = ('load_test_prof_result_v2(model["name"]),', 'load_test_prof_result_v2("gptj-6b"),')
    plain = edited_job(tmp_path, edit, ("slo = 5.0", "slo = 5.0"))
    flagged = subprocess.run(
        [sys.executable, str(tmp_path / "tests" / "serve" / SCRIPT.name), "--slo", "5.1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    memory = [re.search(r"m1 llama-2-70b +([\d.]+)$", out.stdout, re.MULTILINE)[1] for out in (plain, flagged)]
    assert memory[0] == memory[1]


def test_the_line_of_the_attainment_says_how_much_is_possible(output_of):
    assert "SLO attainment 1.0000 over 15444 requests, at most 1.0000 is possible, mean latency" in output_of()
    # a quarter of the requests are for a model that is not there, and can be served by nothing
    misnamed = output_of("--published-naming", "--scale-rate", "0.1")
    attained, possible = re.search(r"SLO attainment ([\d.]+) .* at most ([\d.]+) is possible", misnamed).groups()
    assert float(attained) <= float(possible) < 0.8


def test_a_mixed_search_is_not_worse_than_alpaserves(output_of):
    flags = ("--model-set", "regular", "--trace", "Coding", "--num-devices", "4", "--scale-rate", "2")
    attained = [
        float(re.search(r"SLO attainment ([\d.]+) over", output_of(*flags, *more))[1])
        for more in ([], ["--baseline", "mixed", "--time-budget", "1", "--seed", "3"])
    ]
    assert attained[0] <= attained[1]


# a search that takes all the time there is, for a process of its own
ENDLESS = """
import runpy, sys, time
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy import SearchProgress
from alpa_serve.placement_policy.plan_search import SearchSettings

def find(self, model_datas, cluster_env, workload, starts, callback):
    for placement in found:
        callback(SearchProgress("searching", 1, 0, 0.5, placement))
    print("READY", file=sys.stderr, flush=True)
    time.sleep(600)

SearchSettings.find = find
script, *sys.argv[1:] = sys.argv[1:]
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


def stopped_job(tmp_path, found, *flags):
    """Run the script with a search that finds `found` and goes on, stop it by Ctrl-C, and return what it printed."""
    driver = tmp_path / "driver.py"
    driver.write_text(ENDLESS.replace("in found:", f"in [{found}]:"), encoding="utf-8")
    command = [sys.executable, str(driver), str(SCRIPT), "--baseline", "mixed", "--scale-rate", "0.1", *flags]
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
    )
    try:
        errors = []
        for line in process.stderr:
            errors.append(line)
            if "READY" in line:
                break
        process.send_signal(signal.SIGINT)
        output, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    return process.returncode, output, "".join(errors) + rest


def test_ctrl_c_prints_the_best_strategy_so_far_and_says_that_it_was_stopped(tmp_path):
    first, best = "ModelPlacement([(1, 4, 1)], [[0]])", "ModelPlacement([(1, 4, 1), (1, 4, 1)], [[0, 2], [1, 3]])"
    code, output, errors = stopped_job(tmp_path, f"{first}, {best}", "--output", "results.csv")
    assert code == 130
    assert placement_in(output) == ModelPlacement([(1, 4, 1), (1, 4, 1)], [[0, 2], [1, 3]])
    assert "Stopped before the search was done; the best strategy so far:\n\nGroups\n" in output
    assert re.search(r"^SLO attainment 1\.0000 over 3826 requests", output, re.MULTILINE)
    assert "stopped; this is the best strategy so far" in errors
    assert "Traceback" not in errors
    # the results are those of searches that were not cut short
    assert not (tmp_path / "results.csv").exists()


def test_ctrl_c_before_anything_is_found_says_so(tmp_path):
    code, output, errors = stopped_job(tmp_path, "")
    assert (code, output) == (130, "")
    assert "stopped; no strategy was found yet" in errors
    assert "Traceback" not in errors
