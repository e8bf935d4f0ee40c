import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.tsv import AUTO_COLUMNS, MANUAL_COLUMNS, read_auto, read_manual
from alpa_serve.profiling import ParallelConfig, ProfilingDatabase, ProfilingResult

MANUAL = {
    "ModelName": "bert",
    "BS": "4",
    "#Microbatch": "1",
    "DP": "1",
    "OP": "2",
    "PP": "2",
    "#GPU": "4",
    "MeanTime(s)": "0.3",
    "StdTime(s)": "0.01",
    "TFLOPs": "12.5",
    "StageWeights(B)": "[100,200]",
    "StagePeakMem(B)": "[150,190]",
    "StageLatencies(s)": "[0.1,0.2]",
}
AUTO = {
    "ModelName": "bert",
    "BS": "1",
    "#Microbatch": "1",
    "ParallelArgs": "auto(2, (1, 2))",
    "MeanTime(s)": "0.3",
    "StdTime(s)": "0.01",
    "TFLOPs": "12.5",
    "StageWeights(B)": "[100, 200]",
    "StagePeakMem(B)": "[150, 250]",
    "StageLatencies(s)": "[0.1, 0.2]",
    "Metadata": "{'submesh_shapes': [(1, 4), (1, 4)], 'note': None}",
    "TimeStamp": "2022-10-01",
}


@pytest.fixture
def written(tmp_path):
    """Return a function that writes rows, as a file of the given columns, and returns its path."""

    def write(*rows, header=False):
        path = tmp_path / "profiles.tsv"
        lines = ["\t".join(row)] if (row := list(rows[0]) if header else None) else []
        lines += ["\t".join(row.values()) for row in rows]
        path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def test_columns_are_in_the_documented_order():
    assert tuple(MANUAL) == MANUAL_COLUMNS
    assert tuple(AUTO) == AUTO_COLUMNS


@pytest.mark.parametrize("header", [False, True])
def test_a_manual_row_is_read_with_and_without_header(written, header):
    (row,) = read_manual(written(MANUAL, header=header))
    assert (row.model_name, row.config, row.batch_size) == ("bert", ParallelConfig(1, 2, 2), 4)
    assert (row.stage_latency, row.weight_mem) == ([0.1, 0.2], [100.0, 200.0])


def test_activations_are_the_peak_without_the_weights_and_never_negative(written):
    (row,) = read_manual(written(MANUAL))
    assert row.act_mem == [50.0, 0.0]


def test_an_auto_row_takes_its_config_from_the_submeshes(written):
    (row,) = read_auto(written(AUTO))
    assert row.config == ParallelConfig(1, 4, 2)
    assert row.metadata == {"submesh_shapes": [(1, 4), (1, 4)], "note": None}
    assert row.act_mem == [50.0, 50.0]


@pytest.mark.parametrize("header", [False, True])
def test_reading_changes_neither_the_file_nor_its_folder(written, header):
    path = written(MANUAL, header=header)
    before = path.read_bytes()
    read_manual(path)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_blank_lines_are_no_rows(tmp_path):
    path = tmp_path / "profiles.tsv"
    path.write_text("\n" + "\t".join(MANUAL.values()) + "\n\n")
    assert len(read_manual(path)) == 1


@pytest.mark.parametrize("rows", [[], [()]])
def test_a_file_without_measurement_is_refused(tmp_path, rows):
    path = tmp_path / "profiles.tsv"
    path.write_text("\t".join(MANUAL_COLUMNS) if rows else "")
    with pytest.raises(InvalidProfileError, match="no measurement"):
        read_manual(path)


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "profiles.tsv"
    path.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InvalidProfileError, match="not a text file"):
        read_manual(path)


@pytest.mark.parametrize(
    ("column", "bad"),
    [
        ("BS", "0"),
        ("BS", "one"),
        ("DP", "1.0"),
        ("OP", ""),
        ("PP", "-2"),
        ("StageWeights(B)", "[100"),
        ("StageWeights(B)", "100"),
        ("StagePeakMem(B)", "['a','b']"),
        ("StageLatencies(s)", "[0.1,-0.2]"),
        ("StageLatencies(s)", "[0.1,1e999]"),
        ("StageLatencies(s)", "__import__('os')"),
    ],
)
def test_a_bad_manual_cell_is_named_by_line_and_column(written, column, bad):
    path = written(MANUAL, {**MANUAL, column: bad}, header=True)
    with pytest.raises(InvalidProfileError) as caught:
        read_manual(path)
    assert str(path) in str(caught.value)
    assert f"line 3, column {column}" in str(caught.value)


@pytest.mark.parametrize(
    "metadata",
    ["{}", "{'submesh_shapes': []}", "{'submesh_shapes': [1, 2]}", "{'submesh_shapes': [(1,)]}", "None", "'text'"],
)
def test_metadata_without_submeshes_is_refused(written, metadata):
    with pytest.raises(InvalidProfileError, match="line 1, column Metadata: needs submesh_shapes"):
        read_auto(written({**AUTO, "Metadata": metadata}))


def test_metadata_that_is_no_literal_is_refused(written):
    with pytest.raises(InvalidProfileError, match="line 1, column Metadata: not a Python literal"):
        read_auto(written({**AUTO, "Metadata": "open('x', 'w')"}))


@pytest.mark.parametrize("shorter", ["StageWeights(B)", "StageLatencies(s)"])
def test_lists_that_do_not_fit_the_stages_are_refused_with_the_line(written, shorter):
    with pytest.raises(InvalidProfileError, match="line 1"):
        read_manual(written({**MANUAL, shorter: "[1]"}))


@pytest.mark.parametrize(("reader", "other"), [(read_manual, AUTO), (read_auto, MANUAL)])
def test_a_file_of_the_other_kind_is_refused_with_the_columns_expected(written, reader, other):
    with pytest.raises(InvalidProfileError, match=r"line 1: expected 1[23] tab-separated columns \(ModelName, BS"):
        reader(written(other))


@given(st.lists(st.text(st.characters(exclude_characters="\t\r\n", exclude_categories=["Cs"])), max_size=14))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_text_is_refused_and_nothing_else_is_raised(tmp_path, cells):
    path = tmp_path / "random.tsv"
    path.write_text("\t".join(cells), encoding="utf-8")
    for reader in (read_manual, read_auto):
        with pytest.raises(InvalidProfileError):
            reader(path)


def test_a_database_takes_both_kinds_of_file_and_keeps_the_faster_measurement(written):
    database = ProfilingDatabase("not written", new_database=True)
    slower = {**MANUAL, "StageLatencies(s)": "[0.1,0.9]"}
    database.update_from_csv(written(slower, MANUAL, {**MANUAL, "BS": "1", "ModelName": "gpt"}))
    database.update_from_auto_csv(written(AUTO))
    assert set(database.results) == {"bert", "gpt"}
    assert database.get("bert").stage_latency(ParallelConfig(1, 2, 2), 4) == [0.1, 0.2]
    assert database.get("bert").stage_latency(ParallelConfig(1, 4, 2), 1) == [0.1, 0.2]


def test_a_bad_line_leaves_the_database_as_it_was(written):
    database = ProfilingDatabase("not written", new_database=True)
    database.update(ProfilingResult("bert"))
    with pytest.raises(InvalidProfileError, match="line 2"):
        database.update_from_csv(written(MANUAL, {**MANUAL, "BS": "x"}))
    assert database.results == {"bert": ProfilingResult("bert")}


def test_a_byte_order_mark_before_the_header_is_no_part_of_it(written):
    path = written(MANUAL, header=True)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert [row.model_name for row in read_manual(path)] == ["bert"]
