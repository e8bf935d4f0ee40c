import pytest

from alpa_serve.errors import UnknownNameError
from alpa_serve.profiling import load_test_prof_result
from alpa_serve.util import GB

EXPECTED = {
    "alpa/bert-1.3b": (
        2.6,
        {1: [99], 2: [51, 52], 4: [28, 27, 27, 29], 8: [15, 14, 14, 14, 14, 14, 14, 16]},
    ),
    "alpa/bert-2.6b": (5.2, {1: [148], 2: [75, 76]}),
    "test-2GB-100ms": (2, {1: [100], 2: [51, 51], 4: [26, 26, 26, 26]}),
    "test-4GB-150ms": (4, {1: [150], 2: [76, 76], 4: [39, 39, 39, 39]}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_the_profile_has_the_documented_figures(name):
    weights_gib, pipelines = EXPECTED[name]
    profile = load_test_prof_result(name)
    assert profile.model_name == name
    assert set(profile.para_dict) == {(1, 1, pp) for pp in pipelines}
    for config, data in profile.para_dict.items():
        assert list(data.latency) == [1]
        assert [1000 * seconds for seconds in data.latency[1]] == pytest.approx(pipelines[config.pp])
        assert data.weight_mem == pytest.approx([weights_gib * GB / config.pp] * config.pp)


def test_two_loads_share_nothing():
    load_test_prof_result("alpa/bert-2.6b").para_dict.clear()
    assert len(load_test_prof_result("alpa/bert-2.6b").para_dict) == 2


def test_an_unknown_name_is_a_value_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match="unknown test profile 'bert'") as caught:
        load_test_prof_result("bert")
    assert isinstance(caught.value, UnknownNameError)
    assert all(name in str(caught.value) for name in EXPECTED)
