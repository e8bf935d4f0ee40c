import csv
import errno
import math
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles import maveriq, read_csv, validate, write_csv
from alpa_serve.profiles.csv_form import COLUMNS, REQUIRED_COLUMNS
from alpa_serve.profiling import ParallelConfig, PrefillDecode, ProfilingResult, load_test_prof_result

SAME_FILE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
figures = st.floats(0, 1e300)


def profile(name="m", scale=1.0, **origin):
    result = ProfilingResult(name, preprocess_cpu=0.1, **origin)
    for op, pp in ((1, 1), (2, 3)):
        for batch_size in (1, 4):
            result.add_result(
                ParallelConfig(1, op, pp),
                batch_size,
                stage_latency=[scale * 0.1 * batch_size / op] * pp,
                act_mem=[math.nan] + [7e7] * (pp - 1),
                weight_mem=[2e10 / op / pp] * pp,
                prefill_decode=PrefillDecode(0.03 / 7, 0.01 / 3, 512) if op == 2 else None,
                kv_bytes_per_token=[4096 / op / pp] * pp,
            )
    return result


def by_figures(result):
    """Everything that a table holds of a profile, comparable though there are NaNs."""
    origin = (result.model_name, result.source, result.hardware, result.dtype)
    host = (result.preprocess_cpu, result.postprocess_cpu)
    measured = {
        (config, batch_size): repr(
            (
                data.latency[batch_size],
                data.act_mem[batch_size],
                data.weight_mem,
                data.kv_bytes_per_token,
                data.prefill_decode.get(batch_size),
            )
        )
        for config, data in result.para_dict.items()
        for batch_size in data.latency
    }
    return origin, host, measured


@pytest.fixture
def written(tmp_path):
    """Return written(text or rows) -> the path of a file that has it."""

    def write(content):
        path = tmp_path / "profiles.csv"
        if not isinstance(content, (str, bytes)):
            content = "".join(",".join(row) + "\n" for row in content)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture
def table(tmp_path):
    """Return the rows of a written profile, the header first."""
    write_csv(profile(), tmp_path / "table.csv")
    return list(csv.reader((tmp_path / "table.csv").read_text().splitlines()))


def test_profiles_come_back_as_they_were_written(tmp_path):
    results = [
        profile("a", source='x, "y"\nz', hardware="ü", dtype="int8"),
        profile("a", 2.0, dtype="int4"),
        maveriq.load("gptj-6b"),
        load_test_prof_result("alpa/bert-1.3b"),
    ]
    write_csv(results, tmp_path / "p.csv")
    assert list(map(by_figures, read_csv(tmp_path / "p.csv"))) == list(map(by_figures, results))


@given(st.lists(figures, min_size=4, max_size=4), st.integers(1, 2**40))
@SAME_FILE
def test_figures_come_back_to_the_last_bit(tmp_path, numbers, prompt_tokens):
    latency, weights, prefill_s, kv = numbers
    result = ProfilingResult("m")
    known = PrefillDecode(prefill_s, latency, prompt_tokens)
    config = ParallelConfig(1, 1, 2)
    result.add_result(
        config, 1, [latency, weights], [kv, 0], [weights] * 2, prefill_decode=known, kv_bytes_per_token=[kv, latency]
    )
    write_csv(result, tmp_path / "p.csv")
    (back,) = read_csv(tmp_path / "p.csv")
    assert back == result


@given(st.data())
@SAME_FILE
def test_the_order_of_rows_and_columns_is_free(written, table, data):
    columns = data.draw(st.permutations(range(len(COLUMNS))))
    rows = [table[0], *data.draw(st.permutations(table[1:]))]
    (result,) = read_csv(written([[row[column] for column in columns] for row in rows]))
    assert by_figures(result) == by_figures(profile())


def test_required_columns_suffice(written):
    path = written([REQUIRED_COLUMNS, ["m", "1", "2", "1", "1", "0.25", "2e9"], ["m", "1", "2", "1", "0", ".5", "1e9"]])
    (result,) = read_csv(path)
    data = result.para_dict[1, 1, 2]
    assert data.latency == {1: [0.5, 0.25]}
    assert data.weight_mem == [1e9, 2e9]
    assert all(map(math.isnan, data.act_mem[1]))
    assert data.kv_bytes_per_token is None
    assert not data.prefill_decode
    assert (result.source, result.hardware, result.dtype, result.preprocess_cpu) == ("", "", "", 0.0)


@given(st.data())
@SAME_FILE
def test_a_file_cut_short_gives_whole_stages_only(tmp_path, written, data):
    write_csv([profile(), profile("other", dtype="int8")], tmp_path / "whole.csv")
    content = (tmp_path / "whole.csv").read_bytes()
    whole = {origin: measured for origin, _, measured in map(by_figures, read_csv(tmp_path / "whole.csv"))}
    lines = content[: data.draw(st.integers(0, len(content) - 1))].split(b"\n")
    cut = written(b"\n".join(lines))
    if lines[-1] and lines[-1].count(b",") < len(COLUMNS) - 1:
        with pytest.raises(InvalidProfileError, match=r"profiles\.csv"):
            read_csv(cut)
        return
    # after a whole line, nothing may tell that there was more; of a last cell that is cut, nothing either
    with suppress(InvalidProfileError):
        for origin, _, measured in map(by_figures, read_csv(cut)):
            assert measured.keys() <= whole[origin].keys()
            if not lines[-1]:
                assert measured.items() <= whole[origin].items()


NUMBERS = [column for column in COLUMNS if column not in ("model", "source", "hardware", "dtype")]
WRONG = ["-1", "inf", "1e999", "x", "1_0", "٣", "--", "0x10", "1,5"]


@given(st.sampled_from(NUMBERS), st.integers(1, 8), st.sampled_from(WRONG))
@SAME_FILE
def test_what_is_no_figure_is_refused_by_file_line_and_column(written, table, column, line, wrong):
    rows = [list(cells) for cells in table]
    rows[line][COLUMNS.index(column)] = f'"{wrong}"'
    with pytest.raises(InvalidProfileError, match=rf"profiles\.csv, line {line + 1}, column {column}\b") as caught:
        read_csv(written(rows))
    assert wrong in str(caught.value)


# a model may be called nan
@pytest.mark.parametrize(
    ("column", "wrong"), [("model", ""), *product(["latency_s", "weight_mem_bytes", "op", "stage"], ["", "nan"])]
)
def test_a_required_cell_without_a_figure_is_refused(written, table, column, wrong):
    table[3][COLUMNS.index(column)] = wrong
    with pytest.raises(InvalidProfileError, match=rf"line 4, column {column}\b"):
        read_csv(written(table))


@given(st.binary(max_size=200))
@SAME_FILE
def test_other_content_is_refused_with_the_file_named(written, content):
    with pytest.raises(InvalidProfileError, match=r"profiles\.csv"):
        read_csv(written(content))


def changed(table, line, **cells):
    for column, text in cells.items():
        table[line - 1][COLUMNS.index(column)] = text
    return table


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t[:-1], "line 8, column stage: .* batch size 4, which lacks stage 2 of its 3"),
        (lambda t: [*t, t[-1]], "line 10, column stage: stage 2 of 'm'.* is on line 9 already"),
        (lambda t: changed(t, 9, stage="3"), "line 9, column stage: .* from 0 to 2 .*got '3'"),
        (lambda t: changed(t, 9, weight_mem_bytes="5"), "line 9, column weight_mem_bytes: must be as on line 6"),
        (lambda t: changed(t, 9, kv_bytes_per_token=""), "line 9, column kv_bytes_per_token: must be as on line 6"),
        (lambda t: changed(t, 9, prefill_s="9"), "line 9, column prefill_s: must be as on line 7"),
        (lambda t: changed(t, 9, preprocess_cpu_s="9"), "line 9, column preprocess_cpu_s: must be as on line 2"),
        (lambda t: changed(t, 2, prompt_tokens="9"), "line 2, column prompt_tokens: given without prefill_s"),
        (lambda t: changed(t, 2, prefill_s="9"), "line 2, column decode_s_per_token: the cell is empty"),
        (lambda t: [*t[:4], t[4][:-1], *t[5:]], "line 5: expected 18 cells as in the header, found 17"),
        (lambda t: [["model", "op"]], "line 1: no column pp, batch_size, stage, latency_s, weight_mem_bytes"),
        (lambda t: [[*t[0][:-1], "op"], *t[1:]], "line 1: more than one column op"),
        (lambda t: t[:1], "no measurement in this file"),
        (lambda t: [], "the file is empty"),
    ],
)
def test_what_is_missing_or_said_twice_is_refused(written, table, spoil, message):
    with pytest.raises(InvalidProfileError, match=rf"profiles\.csv.*{message}"):
        read_csv(written(spoil(table)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b\x08\x00\xff", "not a text file"),
        (b"model\0,op\n", "line 1: a NUL character"),
        (b'model,"op\n', "line 1: not a CSV line"),
    ],
)
def test_what_is_no_table_is_refused(written, content, message):
    with pytest.raises(InvalidProfileError, match=message):
        read_csv(written(content))


def test_latency_in_milliseconds_is_found_by_validate(written, table):
    assert not any("milliseconds" in finding.message for finding in validate(profile()))
    for row in table[1:]:
        row[COLUMNS.index("latency_s")] = repr(1000 * float(row[COLUMNS.index("latency_s")]))
    (result,) = read_csv(written(table))
    assert any("milliseconds" in finding.message for finding in validate(result))


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ([], "no profile to write"),
        ([ProfilingResult("m")], "no measurement to write"),
        ([profile(), profile()], "more than one profile of m"),
        ([profile(" m")], "' m' cannot be written"),
        ([profile(dtype="a\0")], "dtype .* cannot be written"),
    ],
)
def test_what_would_not_come_back_is_not_written(tmp_path, results, message):
    with pytest.raises(InvalidProfileError, match=message):
        write_csv(results, tmp_path / "p.csv")
    assert not (tmp_path / "p.csv").exists()


def test_malformed_figures_are_not_written(tmp_path):
    result = profile()
    result.para_dict[1, 2, 3].latency[4] = [1.0]
    with pytest.raises(InvalidProfileError, match="must list 3 figures"):
        write_csv(result, tmp_path / "p.csv")


def test_a_table_that_cannot_be_written_leaves_the_old_one_and_is_named(tmp_path, monkeypatch):
    path = tmp_path / "p.csv"
    write_csv(profile("old"), path)
    before = path.read_bytes()

    def fail(self, target):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(PermissionError, match=r"Permission denied: '.*/p\.csv'$"):
        write_csv(profile("new"), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
