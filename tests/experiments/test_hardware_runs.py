import gzip

import pytest

from alpa_serve.errors import InvalidTraceError
from alpa_serve.experiments.hardware_runs import COLUMNS, INDEX_COLUMNS, read_runs
from alpa_serve.profiling import ParallelConfig

ONE = ParallelConfig(1, 1, 1)


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz"])
def test_a_file_is_read_with_what_its_name_says(tmp_path, four_requests, suffix, read_run):
    run = read_run(tmp_path, four_requests, name="BestStar__large__code__0.25__7.5", suffix=suffix)
    assert (run.experiment, run.baseline) == ("Best*__large__code__0.25__7.5", "Best*")
    assert (run.model_set, run.trace, run.scale, run.slo_factor) == ("large", "code", 0.25, 7.5)
    assert run.last_finish_s == pytest.approx(3.0)
    assert run.groups == {(0,): ONE, (1,): ONE}
    assert run.frame["status"].tolist() == ["served"] * 3 + ["queued_at_end"]


def test_the_index_goes_before_the_name_and_runs_that_it_lacks_go_by_theirs(
    tmp_path, four_requests, write_run, write_index, run_name
):
    write_index(tmp_path, 99.0, model_set="regular")
    write_run(tmp_path, four_requests)
    write_run(tmp_path, four_requests, name="Other__large__code__0.1__5.0")
    mine, other = read_runs(tmp_path)
    assert (mine.model_set, mine.last_finish_s) == ("regular", 99.0)
    assert (other.model_set, other.last_finish_s) == ("large", pytest.approx(3.0))
    (alone,) = read_runs(tmp_path / f"{run_name}.csv")
    assert alone.last_finish_s == 99.0


def test_requests_are_put_in_the_order_of_arrival(tmp_path, four_requests, read_run):
    run = read_run(tmp_path, four_requests[::-1])
    assert run.frame["arrival_s"].tolist() == [1.0, 1.2, 1.3, 1.4]


@pytest.mark.parametrize("column", COLUMNS)
def test_a_missing_column_is_named_with_its_file(tmp_path, four_requests, column, read_run, run_name):
    for row in four_requests:
        del row[column]
    with pytest.raises(InvalidTraceError, match=rf"{run_name}\.csv, line 1: no column {column}; found "):
        read_run(tmp_path, four_requests)


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
def test_what_cannot_be_read_is_named_with_line_and_column(tmp_path, four_requests, column, value, message, read_run):
    four_requests[1][column] = value
    with pytest.raises(InvalidTraceError, match=message):
        read_run(tmp_path, four_requests)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"devices": "0 1 2", "tp": 2}, "line 6, columns tp and pp: tp 2 and pp 1 take 2 devices, but 3"),
        ({"devices": "2 3 4", "tp": 3}, r"line 6: gptj-6b is not profiled at tp 3, pp 1; it is at"),
        ({"devices": "1 2", "tp": 2}, r"line 6: clients 2 and 3 share devices \[1\] but not their group"),
    ],
)
def test_placements_that_cannot_be_are_refused(tmp_path, four_requests, row, message, row_of, read_run):
    with pytest.raises(InvalidTraceError, match=message):
        read_run(tmp_path, [*four_requests, row_of(2.0, client_id=3, **row)])


def test_folders_and_files_without_a_run_are_refused(tmp_path, four_requests, read_run, run_name):
    with pytest.raises(InvalidTraceError, match="no run here"):
        read_runs(tmp_path)
    with pytest.raises(InvalidTraceError, match="no such file or folder"):
        read_runs(tmp_path / "absent")
    path = tmp_path / f"{run_name}.csv"
    path.write_text("")
    with pytest.raises(InvalidTraceError, match="the file is empty"):
        read_runs(path)
    path.write_text(",".join(COLUMNS) + "\n")
    with pytest.raises(InvalidTraceError, match="no request in this file"):
        read_runs(path)
    path.unlink()
    (tmp_path / f"{run_name}.csv.gz").write_bytes(gzip.compress(b"not whole")[:-6])
    with pytest.raises(InvalidTraceError, match="cannot be read"):
        read_runs(tmp_path)
    (tmp_path / f"{run_name}.csv.gz").unlink()
    with pytest.raises(InvalidTraceError, match="its name is not BASELINE__MODELSET__TRACE__SCALE__SLO"):
        read_run(tmp_path, four_requests, name="run1")


def test_one_run_in_two_files_is_refused(tmp_path, four_requests, read_run, write_run):
    write_run(tmp_path, four_requests, suffix=".csv.gz")
    with pytest.raises(InvalidTraceError, match="are the same run"):
        read_run(tmp_path, four_requests)


def test_an_index_that_cannot_be_read_is_named(tmp_path, four_requests, read_run, write_index):
    write_index(tmp_path, "late")
    with pytest.raises(InvalidTraceError, match=r"index.csv, line 2, column last_finish_s: not a number >= 0: 'late'"):
        read_run(tmp_path, four_requests)
    (tmp_path / "index.csv").write_text("experiment,baseline\na,b\n")
    with pytest.raises(InvalidTraceError, match=r"index.csv, line 1: no column model_list"):
        read_runs(tmp_path)


def test_a_service_longer_than_the_latency_that_includes_it_is_refused(tmp_path, row_of, write_run):
    rows = [row_of(1.0), row_of(5.0, latency_s=1.0, service_s=2.5)]
    with pytest.raises(InvalidTraceError, match=r"line 3.*measured_service_s.*more than measured_latency_s"):
        read_runs(write_run(tmp_path, rows))


@pytest.mark.parametrize(
    "name", ["Mine__test__code__nan__5.0", "Mine__test__code__0.1__inf", "Mine__test__code__0.1__0"]
)
def test_figures_in_a_file_name_must_be_above_0(tmp_path, row_of, write_run, name):
    with pytest.raises(InvalidTraceError, match=r"in the name of .*must be a finite number > 0"):
        read_runs(write_run(tmp_path, [row_of(1.0)], name=name))


def test_an_index_that_contradicts_itself_is_refused(tmp_path, row_of, write_run, run_name):
    write_run(tmp_path, [row_of(1.0)])
    lines = [",".join(INDEX_COLUMNS), f"{run_name},Mine,test,code,0.1,5.0,9.0"]
    (tmp_path / "index.csv").write_text("\n".join([*lines, lines[1]]))
    assert len(read_runs(tmp_path)) == 1
    (tmp_path / "index.csv").write_text("\n".join([*lines, lines[1].replace(",5.0,", ",1.0,")]))
    with pytest.raises(InvalidTraceError, match=r"index.csv, line 3.*listed before with other figures"):
        read_runs(tmp_path)
