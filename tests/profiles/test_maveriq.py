import csv
from importlib import resources

import pytest

from alpa_serve.errors import UnknownNameError
from alpa_serve.profiles.maveriq import model_names
from alpa_serve.profiling import load_test_prof_result_v2
from alpa_serve.util import GB

MODELS = {"llama-2-7b", "llama-2-13b", "llama-2-70b", "falcon-7b", "falcon-40b", "gptj-6b"}
TABLE = "maveriq_a6000_profiles.csv"


def shipped(name):
    return resources.files("alpa_serve.profiles").joinpath("data", name).read_text("utf-8")


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


@pytest.mark.parametrize("name", [TABLE, "maveriq_a6000_batch_profiles.csv"])
def test_the_shipped_table_is_the_shared_one(name, shared_data):
    assert shipped(name) == shared_data(name).read_text(encoding="utf-8")


def test_an_unknown_model_is_a_value_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown model 'llama-3'") as caught:
        load_test_prof_result_v2("llama-3")
    assert isinstance(caught.value, UnknownNameError)
    assert all(name in str(caught.value) for name in MODELS)
