import builtins
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from alpa_serve.errors import InvalidProfileError
from alpa_serve.profiles.maveriq import load
from alpa_serve.profiling import (
    LatencyMemData,
    ParallelConfig,
    PrefillDecode,
    ProfilingDatabase,
    ProfilingResult,
    load_test_prof_result,
    load_test_prof_result_v2,
)

SINGLE = ParallelConfig(1, 1, 1)


class Calls:
    """Pickles as a call of `function` with `arguments`."""

    def __init__(self, function, *arguments):
        self.reduced = function, arguments

    def __reduce__(self):
        return self.reduced


def profile_with(latency=None, act_mem=None, weight_mem=None, config=SINGLE, metadata=None):
    latency = {1: [0.5]} if latency is None else latency
    act_mem = {1: [0.0]} if act_mem is None else act_mem
    weight_mem = [1.0] if weight_mem is None else weight_mem
    return ProfilingResult("m", {config: LatencyMemData(latency, act_mem, weight_mem, metadata)})


@pytest.fixture
def load_bytes(tmp_path):
    """Return a function that reads a database file of the given bytes."""

    def load(content):
        path = tmp_path / "profiles.pkl"
        path.write_bytes(content)
        return ProfilingDatabase(str(path)).results

    return load


@pytest.fixture
def load_pickled(load_bytes):
    """Return a function that reads a database file with the given object pickled in it."""
    return lambda content, protocol=pickle.DEFAULT_PROTOCOL: load_bytes(pickle.dumps(content, protocol))


@pytest.fixture
def refused(load_bytes, tmp_path):
    """Return a function that checks that bytes are refused, that nothing ran and no class changed."""

    def check(content, match="profiles.pkl"):
        before = dict(vars(ProfilingResult)), dict(vars(LatencyMemData)), dict(vars(ParallelConfig))
        with pytest.raises(InvalidProfileError, match=match):
            load_bytes(content)
        assert (dict(vars(ProfilingResult)), dict(vars(LatencyMemData)), dict(vars(ParallelConfig))) == before
        assert [path.name for path in tmp_path.iterdir()] == ["profiles.pkl"]

    return check


def test_what_is_materialized_is_read_back(tmp_path):
    path = tmp_path / "any name"
    database = ProfilingDatabase(path, new_database=True)
    assert not path.exists()
    profiles = [load_test_prof_result("alpa/bert-1.3b"), load_test_prof_result_v2("gptj-6b")]
    for profile in profiles:
        database.update(profile)
    database.materialize()
    read = ProfilingDatabase(path)
    assert read.results == {profile.model_name: profile for profile in profiles}
    assert read.get("gptj-6b") == profiles[1]
    assert read.get("absent") is None
    # no temporary file stays behind
    assert list(tmp_path.iterdir()) == [path]


def test_materializing_replaces_the_file(tmp_path):
    path = tmp_path / "profiles.pkl"
    ProfilingDatabase(path, new_database=True).materialize()
    database = ProfilingDatabase(path)
    assert database.results == {}
    database.update(load_test_prof_result("test-2GB-100ms"))
    database.materialize()
    assert list(ProfilingDatabase(path).results) == ["test-2GB-100ms"]


def test_a_new_database_ignores_what_is_in_the_file(tmp_path):
    path = tmp_path / "profiles.pkl"
    path.write_bytes(b"no pickle")
    assert ProfilingDatabase(path, new_database=True).results == {}
    assert path.read_bytes() == b"no pickle"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "profiles.pkl"
    path.write_bytes(b"old")
    database = ProfilingDatabase(path, new_database=True)
    database.results["m"] = profile_with(metadata=lambda: None)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        database.materialize()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_an_absent_file_is_a_file_not_found_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        ProfilingDatabase(tmp_path / "absent.pkl")


def test_a_plain_unpickler_finds_the_classes_where_alpaserve_has_them(tmp_path):
    database = ProfilingDatabase(tmp_path / "profiles.pkl", new_database=True)
    database.update(load_test_prof_result("test-2GB-100ms"))
    database.materialize()
    content = (tmp_path / "profiles.pkl").read_bytes()
    assert pickle.loads(content) == database.results
    assert b"alpa_serve.profiling" in content
    assert b"alpa_serve.profiles" not in content


# protocols 0 and 1 are older than any Python that AlpaServe runs on
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_protocols_from_2_on_are_read(load_pickled, protocol):
    results = {"m": profile_with(), "test-2GB-100ms": load_test_prof_result("test-2GB-100ms")}
    assert load_pickled(results, protocol) == results


# the default protocols of Python 3.7 to 3.13
@pytest.mark.parametrize("protocol", [3, 4])
def test_numpy_figures_are_read_as_numbers(load_pickled, protocol):
    profile = profile_with(
        {1: np.array([0.25, 0.5]), 2: [np.float32(0.5), np.float64(0.75)]},
        {1: np.zeros(2), 2: [np.int64(3), np.float64(4)]},
        np.array([5.0, 6.0]),
        ParallelConfig(1, 1, 2),
    )
    config, data = next(iter(load_pickled({"m": profile}, protocol)["m"].para_dict.items()))
    assert config == (1, 1, 2)
    assert data.latency == {1: [0.25, 0.5], 2: [0.5, 0.75]}
    assert data.act_mem == {1: [0.0, 0.0], 2: [3, 4]}
    assert data.weight_mem == [5.0, 6.0]


def test_pickles_written_with_the_other_numpy_layout_are_read(load_bytes):
    content = pickle.dumps({"m": profile_with({1: np.array([0.25])})}, protocol=3)
    # protocol 3 names a global as c, module and name ended by line breaks, so the module can be exchanged
    new, old = b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n"
    assert new in content or old in content
    for name in (new, old):
        assert load_bytes(content.replace(new, name).replace(old, name))["m"].stage_latency(SINGLE) == [0.25]


def test_plain_metadata_is_kept(load_pickled):
    metadata = {"submesh_shapes": [(1, 4)], "flops": 1.5, "note": None}
    assert load_pickled({"m": profile_with(metadata=metadata)})["m"].para_dict[SINGLE].metadata == metadata


@pytest.mark.parametrize("content", [[], None, 3, "text", ["m"], profile_with()])
def test_what_is_no_dict_is_refused_by_its_type(refused, content):
    refused(pickle.dumps(content), f"expected a dict of model name to profile, found a {type(content).__name__}")


@pytest.mark.parametrize("results", [{1: profile_with()}, {"m": None}, {"m": {}}, {"m": LatencyMemData()}])
def test_a_dict_of_something_else_is_refused_with_the_entry(refused, results):
    refused(pickle.dumps(results), f"entry {next(iter(results))!r} is not a profile")


@pytest.mark.parametrize(
    "profile",
    [
        profile_with(latency={}),
        profile_with(latency=[0.5]),
        profile_with(latency={1: [0.5, 0.5]}),
        profile_with(latency={1: [float("nan")]}),
        profile_with(latency={1: [-0.5]}),
        profile_with(latency={1: ["0.5"]}),
        profile_with(latency={1: 0.5}),
        profile_with(latency={0: [0.5]}),
        profile_with(latency={"1": [0.5]}),
        profile_with(act_mem=[0.0]),
        profile_with(act_mem={1: [-1.0]}),
        profile_with(act_mem={1: "TODO"}),
        profile_with(weight_mem=["TODO"]),
        profile_with(weight_mem=[]),
        profile_with(weight_mem=[1.0, 1.0]),
        profile_with(weight_mem=[float("inf")]),
        profile_with(config=(1, 1)),
        profile_with(config=(1, 1, 0)),
        profile_with(config="config"),
        ProfilingResult("m", None),
        ProfilingResult(None),
        ProfilingResult("m", {SINGLE: None}),
    ],
    ids=repr,
)
def test_a_malformed_profile_is_refused_by_name(refused, profile):
    refused(pickle.dumps({"m": profile}), "profile (of )?'m'")


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (os.system, ("touch ran",)),
        (eval, ("open('ran', 'w')",)),
        (exec, ("open('ran', 'w')",)),
        (getattr, (ProfilingResult, "add_result")),
        (open, ("ran", "w")),
        (setattr, (ProfilingResult, "ran", True)),
        (subprocess.run, (["touch", "ran"],)),
        (builtins.__import__, ("os",)),
        (np.load, ("ran",)),
        (np.fromfile, ("profiles.pkl",)),
        (pickle.loads, (b"N.",)),
        (bytearray, (10,)),
        (type, ("A", (), {})),
    ],
)
def test_a_pickle_that_calls_something_is_refused_and_runs_nothing(
    refused, monkeypatch, tmp_path, function, arguments, protocol
):
    monkeypatch.chdir(tmp_path)
    # anywhere in the file: the whole, a value, a key, or within a profile
    call = Calls(function, *arguments)
    for content in (call, {"m": call}, {"m": profile_with(metadata=[call])}):
        refused(pickle.dumps(content, protocol), "which is no part of a profile")


PROFILE_CLASS = b"calpa_serve.profiling\nProfilingResult\n"


@pytest.mark.parametrize(
    "crafted",
    [
        # BUILD onto a class: with a state dict, and with a slot state
        PROFILE_CLASS + b"(dVadd_result\nI1\nsb.",
        PROFILE_CLASS + b"N(dVadd_result\nI1\ns\x86b.",
        b"calpa_serve.profiling\nLatencyMemData\nN(dVadd_result\nI1\ns\x86b.",
        b"calpa_serve.profiling\nParallelConfig\nN(dV__doc__\nI1\ns\x86b.",
        b"cnumpy\nndarray\nN(dV__doc__\nI1\ns\x86b.",
        b"ccollections\nOrderedDict\nN(dV__doc__\nI1\ns\x86b.",
        # dotted names reach through a class
        b"\x80\x04\x8c\x14alpa_serve.profiling\x8c\x1aProfilingResult.add_result\x93.",
        b"\x80\x04\x8c\x14alpa_serve.profiling\x8c\x11ProfilingDatabase\x93.",
        # extension registry, persistent id
        b"\x80\x02\x82\x01.",
        b"Pname\n.",
    ],
)
def test_a_crafted_pickle_is_refused_and_changes_no_class(refused, crafted):
    refused(crafted)


def test_a_profile_whose_state_hides_a_method_is_refused_or_harmless(load_bytes):
    # {"m": profile with state {"model_name": "m", "para_dict": {}, "stage_latency": 1}}
    state = b"(dVmodel_name\nVm\nsVpara_dict\n(dsVstage_latency\nI1\ns"
    results = load_bytes(b"(dVm\n" + PROFILE_CLASS + b")\x81" + state + b"bs.")
    assert results == {"m": ProfilingResult("m")}
    assert callable(results["m"].stage_latency)


def test_every_truncation_is_refused(refused):
    content = pickle.dumps({"m": profile_with({1: np.array([0.25])})})
    for length in range(len(content)):
        refused(content[:length])


@given(st.binary(max_size=60))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_refused(load_bytes, content):
    try:
        results = load_bytes(content)
    except InvalidProfileError:
        return
    # the only thing that so few random bytes can be
    assert results == {}


@given(st.data())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_damaged_byte_gives_a_profile_or_a_clear_error(load_bytes, data):
    content = bytearray(pickle.dumps({"m": profile_with()}, protocol=2))
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        results = load_bytes(bytes(content))
    except InvalidProfileError:
        return
    assert all(isinstance(profile, ProfilingResult) for profile in results.values())


def test_an_object_array_over_raw_bytes_is_refused_without_following_its_pointers(tmp_path):
    pointers = Calls(np.ndarray, (1,), np.dtype("O"), b"A" * 8)
    path = tmp_path / "profiles.pkl"
    path.write_bytes(pickle.dumps({"m": profile_with({1: pointers})}))
    # in a process of its own: following such a pointer ends the process
    script = (
        "import sys\nfrom alpa_serve.errors import InvalidProfileError\nfrom alpa_serve.profiling import *\n"
        "try:\n    ProfilingDatabase(sys.argv[1])\nexcept InvalidProfileError:\n    print('refused')"
    )
    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "refused\n")


def test_materialize_keeps_the_mode_and_follows_a_link(tmp_path):
    real, link = tmp_path / "real.pkl", tmp_path / "link.pkl"
    ProfilingDatabase(real, new_database=True).materialize()
    real.chmod(0o640)
    link.symlink_to(real)
    database = ProfilingDatabase(link)
    database.update(load_test_prof_result("test-2GB-100ms"))
    database.materialize()
    assert link.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o640
    assert list(ProfilingDatabase(real).results) == ["test-2GB-100ms"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.pkl", "real.pkl"]


@pytest.mark.parametrize("act_mem", [{1: ["TODO"]}, {}])
def test_activation_memory_that_was_never_measured_is_read_as_unknown(tmp_path, act_mem):
    path = tmp_path / "profiles.pkl"
    path.write_bytes(pickle.dumps({"m": profile_with(act_mem=act_mem)}))
    data = ProfilingDatabase(path).results["m"].para_dict[SINGLE]
    assert np.isnan(data.act_mem[1]).tolist() == [True]
    assert data.latency[1] == [0.5]


@pytest.mark.parametrize(
    "crafted",
    [
        b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",
        b"\x80\x04\x8f(N)" + b"\x85" * 300_000 + b"\x90.",
        b"\x80\x02}" + b"cbuiltins\ntuple\n](" * 3 + b".",
        b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".",
    ],
    ids=["nested key", "nested set", "tuple called", "nested lists"],
)
def test_nesting_that_would_exhaust_the_stack_is_refused(tmp_path, crafted):
    path = tmp_path / "profiles.pkl"
    path.write_bytes(crafted)
    # in a process of its own: a crash of the interpreter is a failure here
    code = f"from alpa_serve.profiling import ProfilingDatabase\nProfilingDatabase({str(path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1, done.returncode
    assert "InvalidProfileError" in done.stderr


def test_metadata_arrays_keep_their_shape(tmp_path):
    result = load_test_prof_result("test-2GB-100ms")
    table = np.arange(6).reshape(2, 3)
    result.para_dict[SINGLE].metadata = {"rows": table, "columns": np.asfortranarray(table), "none": b""}
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path = tmp_path / f"{protocol}.pkl"
        path.write_bytes(pickle.dumps({"m": result}, protocol))
        metadata = ProfilingDatabase(path).results["m"].para_dict[SINGLE].metadata
        assert metadata == {"rows": table.tolist(), "columns": table.tolist(), "none": b""}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_prefill_and_decode_times_are_read_back(load_pickled, protocol):
    results = {"gptj-6b": load("gptj-6b"), "llama-2-7b": load("llama-2-7b", "int4", True)}
    content = pickle.dumps(results, protocol)
    assert load_pickled(results, protocol) == pickle.loads(content) == results


# what AlpaServe has: no class for prefill and decode times, and none of its classes sets its own state
ALPASERVE_CLASSES = {
    "ProfilingResult": type("ProfilingResult", (), {}),
    "LatencyMemData": type("LatencyMemData", (), {}),
    "ParallelConfig": type("ParallelConfig", (tuple,), {"__new__": lambda cls, *degrees: tuple.__new__(cls, degrees)}),
}


class AlpaServeUnpickler(pickle.Unpickler):
    """Finds what AlpaServe has."""

    def find_class(self, module, name):
        assert module == "alpa_serve.profiling"
        return ALPASERVE_CLASSES[name]


def test_alpaserve_reads_profiles_with_prefill_and_decode_times(tmp_path):
    database = ProfilingDatabase(tmp_path / "profiles.pkl", new_database=True)
    database.update(load("gptj-6b"))
    database.materialize()
    with (tmp_path / "profiles.pkl").open("rb") as file:
        read = AlpaServeUnpickler(file).load()["gptj-6b"]
    data, ours = read.para_dict[1, 1, 1], database.results["gptj-6b"].para_dict[SINGLE]
    assert (data.latency, data.act_mem, data.weight_mem) == (ours.latency, ours.act_mem, ours.weight_mem)
    assert all(type(figures) is tuple for figures in data.prefill_decode.values())


def test_profiles_without_prefill_and_decode_times_are_written_as_before():
    data = profile_with().para_dict[SINGLE]
    assert list(data.__getstate__()) == ["latency", "act_mem", "weight_mem", "metadata"]


def test_old_pickles_have_no_prefill_and_decode_times(load_bytes):
    # {"m": profile of config (1, 1, 1)}, as AlpaServe writes it
    module = b"calpa_serve.profiling\n"
    data = b"(dVlatency\n(dI1\n(lF0.5\nassVact_mem\n(dI1\n(lF0.0\nassVweight_mem\n(lF1.0\nasVmetadata\nNs"
    configs = b"(d" + module + b"ParallelConfig\n(I1\nI1\nI1\nt\x81" + module + b"LatencyMemData\n)\x81" + data + b"bs"
    profile = PROFILE_CLASS + b")\x81(dVmodel_name\nVm\nsVpara_dict\n" + configs
    content = b"(dVm\n" + profile + b"sVpreprocess_cpu\nF0.0\nsVpostprocess_cpu\nF0.0\nsbs."
    for results in (load_bytes(content), pickle.loads(content)):
        assert results == {"m": profile_with()}
        assert results["m"].para_dict[SINGLE].prefill_decode == {}


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ([], "prefill_decode must be a dict"),
        ({2: (0.1, 0.1, None)}, "prefill_decode must be a dict of batch sizes that latency has"),
        ({1: (0.1, 0.1)}, "batch size 1: prefill_decode must be"),
        ({1: 0.1}, "batch size 1: prefill_decode must be"),
        ({1: (0.1, -0.1, None)}, "batch size 1: prefill_decode: decode_s_per_token must be"),
        ({1: (0.1, 0.1, 0)}, "batch size 1: prefill_decode: prompt_tokens must be"),
        ({1: ("0.1", 0.1, 5)}, "batch size 1: prefill_decode: prefill_s must be"),
    ],
)
def test_malformed_prefill_and_decode_times_in_a_file_are_refused(refused, monkeypatch, figures, message):
    monkeypatch.setattr(LatencyMemData, "__getstate__", lambda data: {**vars(data), "prefill_decode": figures})
    content = pickle.dumps({"m": profile_with()})
    refused(content, rf"profile 'm', config \(1, 1, 1\).*{message}")


def test_figures_given_as_numpy_numbers_are_kept_as_plain_numbers():
    figures = PrefillDecode(np.float32(0.5), np.float64(0.25), np.int64(7))
    assert [type(figure) for figure in (figures.prefill_s, figures.decode_s_per_token)] == [float, float]
    assert type(figures.prompt_tokens) is int


def test_kv_cache_and_origin_survive_the_file(tmp_path):
    profile = ProfilingResult("m", source="measured", hardware="H100", dtype="float16")
    profile.add_result(SINGLE, 1, [0.5], [0.0], [1.0], kv_bytes_per_token=[2.5])
    database = ProfilingDatabase(tmp_path / "profiles.pkl", new_database=True)
    database.update(profile)
    database.materialize()
    assert ProfilingDatabase(tmp_path / "profiles.pkl").results == {"m": profile}


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        ("2.5", "kv_bytes_per_token must list a figure per stage"),
        ([-1.0], "kv_bytes_per_token must be a finite number >= 0"),
        ([1.0, 2.0], "KV cache per token must list 1 figures"),
    ],
)
def test_a_malformed_kv_cache_in_a_file_is_refused(refused, monkeypatch, figures, message):
    monkeypatch.setattr(
        LatencyMemData,
        "__getstate__",
        lambda data: {**vars(data), "prefill_decode": {}, "kv_bytes_per_token": figures},
    )
    refused(pickle.dumps({"m": profile_with()}), rf"config \(1, 1, 1\).*{message}")
