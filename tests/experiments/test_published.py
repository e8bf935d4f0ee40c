import re
import subprocess
import sys
from pathlib import Path

import pytest

import alpa_serve
from alpa_serve.errors import InvalidPlacementError
from alpa_serve.experiments.published import (
    NOT_FEASIBLE,
    format_entries,
    format_replica,
    parse_entries,
    published_experiments,
    read_entries,
)
from alpa_serve.placement import ModelPlacement, ReplicaDeployment

LISTED = Path(alpa_serve.__file__).parents[1] / "alpaserve_configs.txt"


@pytest.fixture(scope="module")
def text():
    return LISTED.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def entries():
    return read_entries(LISTED)


def test_the_file_is_parsed_and_written_back_byte_for_byte(text, entries):
    assert len(entries) == 49
    assert format_entries(entries) == text


def test_the_command_regenerates_the_file_byte_for_byte_and_leaves_nothing_else(tmp_path):
    command = [sys.executable, "-m", "alpa_serve.experiments.published", "--output", "again.txt"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
    assert (tmp_path / "again.txt").read_bytes() == LISTED.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["again.txt"]


def test_the_listed_experiments_are_the_published_ones_in_their_order(entries):
    assert [entry.experiment for entry in entries] == published_experiments()


def placement_of(outcome):
    return None if outcome is None else outcome.placement


@pytest.mark.parametrize("number", range(49))
def test_listed_placements_and_attainments_are_alpaserves(number, golden, entries):
    reference, entry = golden("published_placements")[number], entries[number]
    run = entry.experiment
    assert [run.baseline, run.model_set, run.scale_rate, run.trace, run.slo_scale] == [
        reference[key] for key in ("baseline", "model_set", "scale_rate", "trace", "slo_scale")
    ]
    expected = None if reference["placement"] is None else ModelPlacement(**reference["placement"])
    assert placement_of(entry.published) == expected
    if run.baseline == "AlpaServe":
        assert placement_of(entry.aligned) == ModelPlacement(**reference["placement_with_ids_aligned"])
        assert entry.published.attainment == pytest.approx(reference["goodput_misnamed"], abs=1e-4)
        assert entry.aligned.attainment == pytest.approx(reference["goodput_with_ids_aligned"], abs=1e-4)
        assert entry.num_requests == reference["num_requests"]


def test_aligning_the_ids_serves_the_large_models_in_full(entries):
    large = [entry for entry in entries if entry.experiment.model_set == "large"]
    assert {entry.aligned.attainment for entry in large} == {1.0}
    assert max(entry.published.attainment for entry in large) < 0.85


def test_replicas_are_written_as_one_line_each():
    assert format_replica(ReplicaDeployment(3, "gptj-6b", (4, 5), 2, 1)) == (
        "3 gptj-6b: device_assigned=4,5 tp_size=2 pp_size=1"
    )
    assert format_replica(ReplicaDeployment(4, "gptj-6b", (), None, None)) == "4 gptj-6b: not placed"


def test_a_file_without_sections_has_no_entries():
    assert parse_entries("# nothing here\n") == []


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (r"^\[AlpaServe \| large \| code", "[AlpaServe / large / code", r"cannot read 'AlpaServe / large"),
        (r"^requests = 1722\n", "", "lacks 'requests'"),
        (r"^published attainment.*\n", "", "lacks 'published attainment'"),
        (r"^aligned placement.*\n.*\n", "", "lacks 'aligned placement'"),
        (r"\(1, 4, 1\): 1 2", "(1, 4): 1 2", r"section \[AlpaServe \| large \| code .* cannot read '\(1, 4\): 1 2'"),
        (r"\(1, 4, 1\): 1 2", "(1, 4, 1): one two", r"cannot read '\(1, 4, 1\): one two'"),
        (r"device_assigned=0,1,2,3 ", "devices=0-3 ", "cannot read '2 falcon-40b: devices=0-3"),
        (r"^requests = 1722", "requests 1722", "not a list of placements"),
        (r"\A", "requests = 5\n", "not a list of placements"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_section_and_what_is_wrong(text, old, new, message):
    broken, changed = re.subn(old, new, text, count=1, flags=re.MULTILINE)
    assert changed
    with pytest.raises(InvalidPlacementError, match=message):
        parse_entries(broken)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (r"^requests = 1722", "requests = many"),
        (r"^published attainment = .*", "published attainment = high"),
        (r"scale 0\.1 \| slo 5\]", "scale little | slo 5]"),
        (r"device_assigned=0,1,2,3 ", "device_assigned=0,,3 "),
    ],
)
def test_a_figure_that_is_no_number_names_the_section(text, old, new):
    broken, changed = re.subn(old, new, text, count=1, flags=re.MULTILINE)
    assert changed
    with pytest.raises(InvalidPlacementError, match="AlpaServe"):
        parse_entries(broken)


def test_two_entries_of_one_experiment_are_refused(text):
    with pytest.raises(InvalidPlacementError, match="already exists"):
        parse_entries(text + "\n" + text[text.index("[AlpaServe") :])


def test_an_infeasible_entry_has_no_outcome(text, entries):
    infeasible = [entry for entry in entries if entry.published is None]
    assert text.count(NOT_FEASIBLE) == 2 * len(infeasible) == 2
    assert infeasible[0].experiment.baseline == "AlpaServe*"
