import csv
from collections import Counter
from importlib import resources

import pytest

from alpa_serve.errors import InvalidConfigError, UnknownNameError
from alpa_serve.profiles.maveriq import load, model_names, variants
from alpa_serve.profiling import PrefillDecode, load_test_prof_result_v2
from alpa_serve.util import GB

MODELS = {"llama-2-7b", "llama-2-13b", "llama-2-70b", "falcon-7b", "falcon-40b", "gptj-6b"}
TABLE = "maveriq_a6000_profiles.csv"
BATCH_TABLE = "maveriq_a6000_batch_profiles.csv"


def shipped(name):
    return resources.files("alpa_serve.profiles").joinpath("data", name).read_text("utf-8")


def table_rows(name):
    """Return the rows of a table as (arguments of load, (1, op, pp), row)."""
    return [
        (
            (row["model"], row["dtype"], {"true": True, "false": False}[row["int8_kv_cache"]]),
            (1, int(row["op"]), int(row["pp"])),
            row,
        )
        for row in csv.DictReader(shipped(name).splitlines())
    ]


@pytest.fixture(scope="module")
def profiles():
    """Return the profile of each variant."""
    return {variant: load(*variant) for variant in variants()}


def test_the_six_models_are_profiled():
    assert set(model_names()) == MODELS


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_profile_is_the_float16_rows_of_the_table(name):
    rows = [
        row
        for row in csv.DictReader(shipped(TABLE).splitlines())
        if row["model"] == name and row["dtype"] == "float16" and row["int8_kv_cache"] == "false"
    ]
    profile = load_test_prof_result_v2(name)
    assert set(profile.para_dict) == {(1, int(row["op"]), int(row["pp"])) for row in rows}
    assert len(profile.para_dict) == len(rows) > 0
    for row in rows:
        op, pp = int(row["op"]), int(row["pp"])
        data = profile.para_dict[1, op, pp]
        assert data.latency == {1: pytest.approx([float(row["latency_20_tokens_s"]) / 5 / pp] * pp)}
        assert data.weight_mem == pytest.approx([float(row["memory_gib_total"]) * GB / (op * pp)] * pp)


def test_two_loads_share_nothing():
    load_test_prof_result_v2("gptj-6b").para_dict.clear()
    assert load_test_prof_result_v2("gptj-6b").para_dict


@pytest.mark.parametrize("name", [TABLE, BATCH_TABLE])
def test_the_shipped_table_is_the_shared_one(name, shared_data):
    assert shipped(name) == shared_data(name).read_text(encoding="utf-8")


def test_an_unknown_model_is_a_value_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'llama-3'") as caught:
        load_test_prof_result_v2("llama-3")
    assert isinstance(caught.value, UnknownNameError)
    assert all(name in str(caught.value) for name in MODELS)


def test_the_variants_are_those_of_the_table():
    assert variants() == list(dict.fromkeys(variant for variant, _, _ in table_rows(TABLE)))
    assert variants("falcon-7b") == [("falcon-7b", dtype, False) for dtype in ("float16", "int4", "int8")]
    with pytest.raises(UnknownNameError, match="unknown model 'llama-3'"):
        variants("llama-3")


def test_all_412_configurations_are_loaded_as_measured(profiles):
    rows = table_rows(TABLE)
    assert len(rows) == sum(len(profile.para_dict) for profile in profiles.values()) == 412
    for variant, config, row in rows:
        _, op, pp = config
        profile = profiles[variant]
        data = profile.para_dict[config]
        assert profile.model_name == variant[0]
        assert data.latency[1] == [float(row["latency_20_tokens_s"]) / pp] * pp
        assert data.act_mem[1] == [0.0] * pp
        assert data.weight_mem == pytest.approx([float(row["memory_gib_total"]) * GB / (op * pp)] * pp)
        assert data.metadata == {"weight_gib_total": float(row["weight_gib_total"])}
        expected = PrefillDecode(float(row["prefill_s"]), float(row["decode_s_per_token"]), 923)
        assert profile.prefill_decode(config) == expected


def test_the_batch_table_is_loaded_for_every_batch_size_above_1(profiles):
    rows = table_rows(BATCH_TABLE)
    # every config of the batch table is in the other table, so none is left out
    loaded = Counter(b for profile in profiles.values() for data in profile.para_dict.values() for b in data.latency)
    in_table = Counter(int(row["batch_size"]) for _, _, row in rows)
    assert loaded == {**in_table, 1: 412}
    assert in_table == {1: 89, 8: 89, 16: 89, 32: 88, 64: 86}
    single = {(variant, config): row for variant, config, row in rows if row["batch_size"] == "1"}
    for variant, config, row in rows:
        batch_size = int(row["batch_size"])
        if batch_size == 1:
            continue
        _, op, pp = config
        data = profiles[variant].para_dict[config]
        prefill, decode = max(float(row["prefill_s"]), 0.0), float(row["decode_s_per_token"])
        assert profiles[variant].prefill_decode(config, batch_size) == PrefillDecode(prefill, decode, None)
        assert data.latency[batch_size] == pytest.approx([(prefill + 20 * decode) / pp] * pp)
        growth = float(row["memory_gib_total"]) - float(single[variant, config]["memory_gib_total"])
        assert data.act_mem[batch_size] == pytest.approx([growth * GB / (op * pp)] * pp)


def test_every_figure_of_a_batch_size_has_its_latency(profiles):
    for profile in profiles.values():
        for data in profile.para_dict.values():
            assert data.prefill_decode.keys() == data.latency.keys() == data.act_mem.keys()


def test_the_measured_latencies_are_five_times_the_published_ones():
    for model in model_names():
        measured, published = load(model), load_test_prof_result_v2(model)
        assert measured.para_dict.keys() == published.para_dict.keys()
        for config in published.para_dict:
            expected = [5 * stage for stage in published.stage_latency(config)]
            assert measured.stage_latency(config) == pytest.approx(expected)
            assert measured.weight_bytes(config) == published.weight_bytes(config)
            # published experiments knew stage latency at batch size 1 only
            data = published.para_dict[config]
            assert (list(data.latency), data.prefill_decode, data.metadata) == ([1], {}, None)


def test_the_line_is_close_to_the_measured_latency_of_20_tokens(profiles):
    errors = {}
    for variant, config, row in table_rows(TABLE):
        line = profiles[variant].prefill_decode(config).service_s(923, 20)
        errors[variant, config] = abs(line / float(row["latency_20_tokens_s"]) - 1)
    # the few that are far off are all of eight-way tensor parallelism
    far = [config for (_, config), error in errors.items() if error > 0.02]
    assert far == [(1, 8, 1)] * 6
    assert max(errors.values()) < 0.11


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("llama-3",), UnknownNameError, "unknown model 'llama-3'; known: falcon-40b,"),
        ((None,), UnknownNameError, "unknown model None; known: falcon-40b,"),
        (("falcon-7b", "bfloat16"), UnknownNameError, "dtype of falcon-7b 'bfloat16'; known: float16, int4, int8$"),
        (("falcon-7b", "int4_gptq"), UnknownNameError, "dtype of falcon-7b 'int4_gptq'; known: float16, int4, int8$"),
        (
            ("falcon-7b", "float16", True),
            InvalidConfigError,
            "falcon-7b was not .*=True; it was in: float16 with .*False",
        ),
        (("llama-2-7b", "int4_gptq", True), InvalidConfigError, "it was in: .*int4_gptq with int8_kv_cache=False"),
        (("llama-2-7b", "int4", 1), InvalidConfigError, "int8_kv_cache must be True or False, got 1"),
        (("llama-2-7b", "int4", "true"), InvalidConfigError, "int8_kv_cache must be True or False, got 'true'"),
    ],
)
def test_what_was_not_measured_is_refused_with_what_was(arguments, error, message):
    with pytest.raises(error, match=message):
        load(*arguments)


def test_a_loaded_profile_shares_nothing_with_the_next():
    load("gptj-6b").para_dict[1, 1, 1].prefill_decode.clear()
    assert load("gptj-6b").prefill_decode((1, 1, 1), 64)
