import pickle
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import AlpaServeError, InvalidConfigError, InvalidProfileError, UnknownNameError
from alpa_serve.profiles import aiconfigurator, load, maveriq, sources, validate, write_csv
from alpa_serve.profiles.tsv import MANUAL_COLUMNS
from alpa_serve.profiling import ProfilingDatabase, ProfilingResult, load_test_prof_result, load_test_prof_result_v2

AUTO = "bert\t1\t1\tx\t0.3\t0.01\t12.5\t[1, 2]\t[1, 2]\t[0.1, 0.2]\t{'submesh_shapes': [(1, 4), (1, 4)]}\t2022\n"
MANUAL = "bert\t4\t1\t1\t1\t2\t2\t0.3\t0.01\t12.5\t[1,2]\t[1,2]\t[0.1,0.2]\n"
RAW = (
    "Model,TP,PP,PP_Map,DTYPE,INT8_KV_Cache,Output_Lenght,Batch_Size,Latency,Memory-Pre-Run,Memory-After-Run\n"
    "m,1,1,,int8,False,20,1,0.5,11,12\nm,1,1,,int8,False,10,1,0.3,11,12\n"
)


@pytest.fixture
def file_of(tmp_path):
    """Return file_of(source) -> a file in the form of that source."""

    def make(source, name="profiles"):
        path = tmp_path / name
        if source == "database":
            path.write_bytes(pickle.dumps({"bert": load_test_prof_result("alpa/bert-1.3b")}))
        elif source == "csv":
            write_csv(maveriq.load("llama-2-7b"), path)
        else:
            path.write_text({"tsv": MANUAL, "auto-tsv": AUTO, "maveriq-raw": RAW}[source])
        return path

    return make


MODEL_IN = {"database": "bert", "tsv": "bert", "auto-tsv": "bert", "csv": "llama-2-7b", "maveriq-raw": "m"}


def test_shipped_models_are_found_by_their_name():
    assert load("llama-2-7b") == load("llama-2-7b", "maveriq") == maveriq.load("llama-2-7b")
    assert load("alpa/bert-1.3b") == load("alpa/bert-1.3b", "test") == load_test_prof_result("alpa/bert-1.3b")
    assert load("gptj-6b", source="maveriq-published") == load_test_prof_result_v2("gptj-6b")


def test_keywords_reach_the_source():
    assert load("llama-2-7b", dtype="int8", int8_kv_cache=True) == maveriq.load("llama-2-7b", "int8", True)


def test_shipped_profiles_know_where_they_come_from():
    profile = load("llama-2-7b", dtype="int8", int8_kv_cache=True)
    assert "MaverIQ" in profile.source
    assert "int8 KV cache" in profile.source
    assert (profile.hardware, profile.dtype) == ("RTX A6000", "int8")
    published = load("llama-2-7b", "maveriq-published")
    assert "/ 5" in published.source
    assert (published.hardware, published.dtype) == ("RTX A6000", "float16")
    assert "AlpaServe" in load("alpa/bert-1.3b").source


@pytest.mark.parametrize("source", MODEL_IN)
def test_the_form_of_a_file_is_told_from_what_is_in_it(file_of, source):
    where = {"dtype": "int8"} if source == "maveriq-raw" else {}
    path = file_of(source)
    told = load(MODEL_IN[source], path=path, **where)
    assert told == load(MODEL_IN[source], source, path=path, **where)
    assert isinstance(told, ProfilingResult)
    assert told.source


def test_the_source_of_a_file_without_one_names_the_file(file_of):
    path = file_of("tsv")
    assert str(path) in load("bert", path=path).source
    assert load("bert", path=file_of("database")).source == "AlpaServe's test profiles"


def test_a_header_in_the_tsv_form_is_no_hindrance(tmp_path):
    path = tmp_path / "p"
    path.write_text("\t".join(MANUAL_COLUMNS) + "\n" + MANUAL)
    assert load("bert", path=path).stage_latency((1, 1, 2), 4) == [0.1, 0.2]


def test_an_old_pickle_is_told_by_its_suffix(tmp_path):
    database = ProfilingDatabase(tmp_path / "p.PKL", new_database=True)
    database.update(load_test_prof_result("test-2GB-100ms"))
    (tmp_path / "p.PKL").write_bytes(pickle.dumps(database.results, protocol=0))
    assert load("test-2GB-100ms", path=tmp_path / "p.PKL").model_name == "test-2GB-100ms"


@pytest.mark.parametrize("source", MODEL_IN)
def test_a_model_that_a_file_lacks_is_refused_with_those_it_has(file_of, source):
    with pytest.raises(UnknownNameError, match=f"'other'; known: {MODEL_IN[source]}"):
        load("other", path=file_of(source))


@pytest.mark.parametrize("content", ["", "\n", "a,b\n1,2\n", "x\ty\n", "{}"])
def test_a_file_of_no_known_form_is_refused(tmp_path, content):
    (tmp_path / "p").write_text(content)
    with pytest.raises(
        InvalidProfileError, match=r"p, line 1: cannot tell the form.*database, tsv, auto-tsv, csv, mav"
    ):
        load("m", path=tmp_path / "p")


@pytest.mark.parametrize("source", [None, *MODEL_IN])
def test_a_missing_file_is_a_missing_file(tmp_path, source):
    with pytest.raises(FileNotFoundError):
        load("m", source, path=tmp_path / "absent.csv")


@given(st.sampled_from(list(MODEL_IN)), st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
def test_a_damaged_file_gives_a_whole_profile_or_an_error_of_ours(file_of, source, data):
    path = file_of(source)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans(), "cut short"):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for place in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=3)):
            content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    where = {"dtype": "int8"} if source == "maveriq-raw" else {}
    for chosen in (None, source):
        with suppress(AlpaServeError):
            result = load(MODEL_IN[source], chosen, path=path, **where)
            # what came is checked: it has no error, or at most stages that take no time
            assert all("no time" in str(f) for f in validate(result) if f.severity == "error")


def test_several_profiles_of_a_model_are_told_apart_by_where_they_come_from(tmp_path):
    profiles = [maveriq.load("llama-2-7b", "int8", kv) for kv in (False, True)]
    profiles += [maveriq.load("llama-2-7b", "int4")]
    write_csv(profiles, tmp_path / "p.csv")
    assert load("llama-2-7b", path=tmp_path / "p.csv", dtype="int4").dtype == "int4"
    chosen = load("llama-2-7b", path=tmp_path / "p.csv", dtype="int8", origin=profiles[1].source)
    assert chosen.source == profiles[1].source
    with pytest.raises(InvalidConfigError, match=r"p\.csv: 2 profiles of 'llama-2-7b' fit; there are: origin="):
        load("llama-2-7b", path=tmp_path / "p.csv", dtype="int8")
    with pytest.raises(InvalidConfigError, match="0 profiles"):
        load("llama-2-7b", path=tmp_path / "p.csv", hardware="H100")


def test_an_unknown_name_is_refused_with_close_names_and_all_sources():
    with pytest.raises(UnknownNameError, match=r"unknown model 'llama-2-8b', did you mean 'llama-2-7b'\?") as caught:
        load("llama-2-8b")
    assert all(name in str(caught.value) for name in [*maveriq.model_names(), "alpa/bert-1.3b", *sources()])


def test_a_name_of_the_extra_says_that_it_needs_a_system():
    with pytest.raises(UnknownNameError, match=r"source 'aiconfigurator'.*needs system="):
        load("Qwen/Qwen3-32B")


def test_an_unknown_source_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"unknown source of profiles 'vidur'; known: maveriq,.*aiconfigurator"):
        load("llama-2-7b", "vidur")


@pytest.mark.parametrize(
    ("source", "where", "message"),
    [
        ("maveriq", {"path": "x"}, "source 'maveriq' take no argument 'path'; they take: dtype, int8_kv_cache"),
        ("test", {"dtype": "x"}, "source 'test' take no argument 'dtype'; they take: none"),
        ("csv", {}, "source 'csv' need the argument path"),
        ("aiconfigurator", {"gpu": "x"}, "'aiconfigurator' take no argument 'gpu'; they take: system, backend, input"),
        (None, {"dtyp": "int8"}, "source 'maveriq' take no argument 'dtyp'"),
    ],
)
def test_arguments_that_a_source_has_not_or_needs_are_named(source, where, message):
    with pytest.raises(InvalidConfigError, match=message):
        load("llama-2-7b", source, **where)


def test_system_means_the_extra(monkeypatch):
    asked = []

    def record(name, system="h100_sxm"):
        asked.append((name, system))
        return ProfilingResult(name)

    from alpa_serve.profiles import loading

    monkeypatch.setitem(loading._SOURCES, "aiconfigurator", loading._Source("", record))
    load("Qwen/Qwen3-32B", system="a100_sxm")
    assert asked == [("Qwen/Qwen3-32B", "a100_sxm")]


def test_without_the_extra_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk.common", None)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", None)
    with pytest.raises(InvalidConfigError, match=r'pip install "alpa_serve\[aiconfigurator\]"'):
        aiconfigurator.load("Qwen/Qwen3-32B")
    with pytest.raises(UnknownNameError, match=r'not installed, pip install "alpa_serve\[aiconfigurator\]"'):
        load("Qwen/Qwen3-32B")


def test_importing_profiles_loads_no_heavy_package():
    heavy = ["pandas", "scipy", "numba", "aiconfigurator_core"]
    code = f"import sys, alpa_serve.profiles; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
