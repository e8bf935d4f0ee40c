import re
import subprocess
import sys
from pathlib import Path

import pytest

from alpa_serve import cli
from alpa_serve.errors import SearchInterrupted
from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy import SearchProgress
from alpa_serve.placement_policy.plan_search import SearchSettings
from alpa_serve.profiling import ParallelConfig

pytestmark = pytest.mark.usefixtures("quick_plans")

SCRIPT = Path(__file__).parent / "serve" / "test_placement_policy_dummy.py"
SMALL = ["--scale-rate", "0.1"]
PUBLISHED = "ModelPlacement(group_configs=[ParallelConfig(dp=1, op=4, pp=2)], group_models=[[0, 1, 2, 3]])"


@pytest.fixture
def run(capsys):
    """Return run(*arguments) -> exit code, standard output, standard error."""

    def call(*arguments):
        code = cli.main([*map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def placement_in(output):
    (line,) = [line for line in output.splitlines() if line.startswith("ModelPlacement(")]
    return eval(line, {"ModelPlacement": ModelPlacement, "ParallelConfig": ParallelConfig})


def test_place_prints_what_the_script_prints(run):
    code, output, _ = run("place", *SMALL)
    script = subprocess.run([sys.executable, SCRIPT, *SMALL], capture_output=True, text=True, check=True)
    assert (code, output) == (0, script.stdout)


def test_a_trace_file_of_any_published_form_is_taken(run, tmp_path):
    lines = {
        "mooncake.jsonl": [f'{{"timestamp": {3000 * i}, "input_length": 9, "output_length": 5}}' for i in range(200)],
        "vidur.csv": ["arrived_at,num_prefill_tokens,num_decode_tokens", *(f"{3 * i}.0,9,5" for i in range(200))],
        "azure.csv": ["TIMESTAMP", *(f"1970-01-01 00:{i // 20:02d}:{i % 20 * 3:02d}" for i in range(200))],
    }
    outputs = set()
    for name, content in lines.items():
        path = tmp_path / name
        path.write_text("\n".join(content), encoding="utf-8")
        code, output, _ = run("place", "--trace", path, "--baseline", "alpaserve")
        assert code == 0
        outputs.add(output.replace(str(path), "FILE"))
    assert len(outputs) == 1
    assert "trace FILE at scale_rate 0.4" in outputs.pop()


def test_the_module_and_the_console_script_are_the_same_command():
    done = subprocess.run(
        [sys.executable, "-m", "alpa_serve", "place", *SMALL], capture_output=True, text=True, check=True
    )
    assert PUBLISHED in done.stdout.splitlines()
    setup = (Path(__file__).parents[1] / "setup.py").read_text(encoding="utf-8")
    assert '"alpa-serve=alpa_serve.cli:main"' in setup


@pytest.mark.parametrize("arguments", [[], ["deploy"], ["plan", "--axis", "money"], ["place", "--target", "0.9"]])
def test_an_unknown_command_or_flag_is_refused(arguments, run, capsys):
    with pytest.raises(SystemExit) as raised:
        run(*arguments)
    assert raised.value.code == 2
    assert "usage: " in capsys.readouterr().err


def test_plan_prints_the_fewest_devices_what_was_tried_and_the_strategy(run):
    code, output, _ = run("plan", *SMALL, "--target", "0.7")
    assert code == 0
    parts = output.split("\n\n")
    assert parts[0].startswith(
        "4 models on devices of 48 GiB, mixed, trace Conversation at scale_rate 0.1, slo 5: 3826 "
    )
    fewest = int(re.match(r"(\d+) devices? attain", parts[1])[1])
    assert re.search(rf"^ +{fewest} +\S+ +\S+ +reached$", parts[2], re.MULTILINE)
    assert [part.split()[0] for part in parts[3:5]] == ["Groups", "Models"]
    placement = placement_in(output)
    assert sum(config.num_devices for config in placement.group_configs) <= fewest
    attained = float(re.search(r"^SLO attainment ([\d.]+) over 3826", output, re.MULTILINE)[1])
    assert attained >= 0.7
    # fewer devices than the published placement uses
    assert fewest < 8


def test_plan_starts_from_other_numbers_of_devices_and_comes_to_no_more(run):
    found = []
    for first in (1, 8, 32):
        _, output, _ = run("plan", *SMALL, "--target", "0.7", "--num-devices", first, "--max-devices", 32)
        found.append(int(re.search(r"^(\d+) devices? attain", output, re.MULTILINE)[1]))
    assert max(found) <= 8


@pytest.mark.parametrize("axis", ["rate", "slo"])
def test_plan_prints_the_hardest_scale_and_the_strategy_there(axis, run):
    code, output, _ = run("plan", "--axis", axis, "--tolerance", "0.2", "--baseline", "alpaserve", *SMALL)
    assert code == 0
    assert output.startswith("4 models on 8 devices of 48 GiB, alpaserve, trace")
    scale, attained = re.search(
        rf"^{axis} scale (\S+) attains ([\d.]+) \(target 0\.99\)", output, re.MULTILINE
    ).groups()
    assert float(scale) > 1 if axis == "rate" else float(scale) < 1
    assert f"SLO attainment {attained} over 3826 requests" in output
    shown = float(re.search(r"^ m1 llama-2-70b +([\d.]+) ", output, re.MULTILINE)[1])
    assert shown == pytest.approx(25.832 * (float(scale) if axis == "slo" else 1.0), rel=1e-3)


def test_plan_with_alpaserves_search_uses_its_placements_as_they_are(run):
    code, output, _ = run("plan", "--baseline", "alpaserve-star", *SMALL)
    assert code == 0
    assert len(placement_in(output).group_configs) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["place", "--scale-rate", "0"], "rate_scale must be"),
        (["plan", "--target", "0"], r"target \(SLO attainment\) must be"),
        (["plan", "--target", "1.5"], r"in \(0, 1\], got 1.5"),
        (["plan", "--target", "nan"], "target.*nan"),
        (["plan", "--max-devices", "0"], "max_devices"),
        (["plan", "--max-devices", "2"], r"on up to 2 devices.*'m1' .*profiled on no config"),
        (["plan", "--axis", "slo", "--tolerance", "0"], "tolerance"),
        (["plan", "--axis", "rate", "--slo", "0.01"], r"at any rate at most 0\.0000.*'m1'.* alone on idle devices"),
        (["plan", "--mem-budget", "1"], r"on any number of devices at most 0\.0000.*'m4' \(.*at least .* GiB a device"),
        (["plan", "--trace", "Poetry"], "Poetry"),
        (["plan", "--scale-rate", "1e-9"], "scale_rate is too small"),
    ],
)
def test_bad_input_ends_with_an_error_and_without_a_result(arguments, message, run):
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    (error,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert re.search(message, error)


def interrupted(*found, at=1, goes_on_to=None):
    """A search that reports `found` and is stopped in its call number `at`, with the last or another placement."""
    calls = []

    def find(self, model_datas, cluster_env, workload, starts, callback):
        calls.append(cluster_env.num_devices)
        if len(calls) == at and goes_on_to is not None:
            raise SearchInterrupted(placement=goes_on_to)
        for placement in found:
            callback(SearchProgress("searching", 1, 0, 0.5, placement))
        if len(calls) == at:
            raise SearchInterrupted(placement=found[-1] if found else None)
        return found[-1]

    return find


WHOLE = ModelPlacement([(1, 4, 2)], [[0, 1, 2, 3]])
PART = ModelPlacement([(1, 4, 1)], [[0, 2]])


def test_place_prints_what_an_interrupted_search_had(run, monkeypatch):
    monkeypatch.setattr(SearchSettings, "find", interrupted(WHOLE))
    code, output, errors = run("place", "--baseline", "mixed", *SMALL)
    assert code == 130
    assert placement_in(output) == WHOLE
    assert "Stopped before the search was done; the best strategy so far:" in output
    assert "stopped; this is the best strategy so far" in errors


def test_place_prints_the_strategy_even_if_the_proof_of_the_bound_is_interrupted(run, monkeypatch):
    def endless(settings, model_datas, cluster_env, workload, rules):
        raise KeyboardInterrupt

    monkeypatch.setattr(SearchSettings, "bound", endless)
    monkeypatch.setattr(SearchSettings, "find", lambda *_: PART)
    code, output, errors = run("place", "--baseline", "mixed", *SMALL)
    assert code == 130
    assert placement_in(output) == PART
    assert "is possible" not in output
    assert "stopped" in errors


def test_plan_prints_the_best_plan_so_far_when_interrupted(run, monkeypatch):
    # all are served by eight devices, which is known when the search for fewer is stopped
    monkeypatch.setattr(SearchSettings, "find", interrupted(WHOLE, at=2, goes_on_to=PART))
    code, output, errors = run("plan", "--num-devices", "16", *SMALL)
    assert code == 130
    assert "Stopped before the search was done; the best plan so far:" in output
    assert re.search(r"^8 devices attain 1\.0000", output, re.MULTILINE)
    assert "stopped; this is the best plan so far" in errors


def test_plan_says_what_is_best_when_interrupted_before_the_target_is_reached(run, monkeypatch):
    monkeypatch.setattr(SearchSettings, "find", interrupted(PART))
    code, output, errors = run("plan", *SMALL)
    assert code == 130
    assert re.match(r"Stopped before a placement reached 0\.99; the best attains 0\.5\d+:\n\n", output)
    assert placement_in(output) == PART
    assert "stopped; no plan was found yet" in errors
    monkeypatch.setattr(SearchSettings, "find", interrupted())
    code, output, errors = run("plan", *SMALL)
    assert (code, output) == (130, "")
    assert "stopped; no strategy was found yet" in errors
