import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "hardware_fidelity.py"


@pytest.fixture
def benchmark(tmp_path):
    """Return benchmark(*arguments) -> the finished process; runs in tmp_path."""

    def run(*arguments):
        return subprocess.run(
            [sys.executable, SCRIPT, *map(str, arguments)], cwd=tmp_path, capture_output=True, text=True, check=False
        )

    return run


def moved(row, shift):
    """Return a row on other devices and a little later."""
    devices = row["device_assigned"]
    return {
        **row,
        "arrival_s": row["arrival_s"] + shift / 1000,
        "device_assigned": devices and " ".join(str(int(device) + 2 * shift) for device in devices.split()),
    }


@pytest.fixture
def folder(tmp_path, four_requests, write_run, write_index):
    """Return a folder with two runs of few models and one of the set of 21, each on devices of its own."""
    runs = tmp_path / "runs"
    runs.mkdir()
    names = ("Mine__large__code__0.1__5.0", "MineStar__large__code__0.2__5.0", "Mine__twentyone__code__0.1__5.0")
    for shift, name in enumerate(names):
        write_run(runs, [moved(row, shift) for row in four_requests], name=name)
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
    assert "without the placement of Mine__large__code__0.1__5.0" in result.stdout
    document = json.loads((tmp_path / "out.json").read_text())
    assert sorted(document) == [
        "estimates",
        "left_out_of_own_calibration",
        "mean_absolute_error",
        "not_replayed",
        "runs",
    ]
    assert len(document["left_out_of_own_calibration"]) == 3
    by_name = {row["experiment"]: row for row in document["runs"]}
    assert [row["many_models"] for row in by_name.values()] == [False, False, True]
    row = by_name["Mine__twentyone__code__0.1__5.0"]
    assert (row["cells"], row["calibrated"], row["measured"]["num_served"]) == (1, 1, 3)
    assert row["predicted_crowded"]["mean_latency_s"] > row["predicted"]["mean_latency_s"]
    assert document["mean_absolute_error"]["few_models"]["predicted"]["num_runs"] == 2
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "out.json"}


def test_a_run_of_which_every_request_was_rejected_is_told_and_the_others_are_reported(
    benchmark, folder, four_requests, write_run
):
    rows = [{**row, "status": "rejected_not_loaded"} for row in four_requests]
    write_run(folder, rows, name="Mine__regular__code__0.3__5.0")
    result = benchmark(folder, "--json", "out.json")
    assert result.returncode == 0, result.stderr
    assert "Not replayed, every request was rejected: Mine__regular__code__0.3__5.0" in result.stdout
    assert "Mine large code 0.1, slo 5" in result.stdout


def test_shipped_constants_that_come_from_a_judged_run_are_told(benchmark, four_requests, write_run, tmp_path):
    write_run(tmp_path, four_requests, name="AlpaServe__large__code__0.1__5.0")
    result = benchmark("AlpaServe__large__code__0.1__5.0.csv", "--json", "out.json")
    assert "The shipped constants come, among others, from 1 of these runs" in result.stdout
    assert json.loads((tmp_path / "out.json").read_text())["runs"][0]["estimated_from_this_run"] is True


def test_stalls_can_be_left_out(benchmark, folder):
    result = benchmark(folder, "--no-stalls")
    assert result.returncode == 0, result.stderr
    assert "service time from the profile; no stalls" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent"], "error: no such file or folder: absent"),
        (["runs", "--calibrate", "."], "error: .: no run here"),
        (
            ["runs/Mine__large__code__0.1__5.0.csv", "--leave-one-out"],
            "error: --leave-one-out: no run of another placement",
        ),
        (["runs", "--json", "absent/out.json"], "error: there is no folder absent to write out.json to"),
        ([], "the following arguments are required: RUNS_DIR"),
    ],
)
def test_the_script_ends_with_2_and_says_what_is_wrong(benchmark, folder, arguments, message):
    result = benchmark(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_the_script_names_a_missing_column(benchmark, tmp_path, four_requests, write_run, run_name):
    for row in four_requests:
        del row["measured_service_s"]
    write_run(tmp_path, four_requests)
    result = benchmark(tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / run_name}.csv, line 1: no column measured_service_s; found ")


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
