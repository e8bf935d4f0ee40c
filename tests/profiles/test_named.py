import pytest

from alpa_serve.errors import InvalidConfigError, UnknownNameError
from alpa_serve.profiles.named import load_profiles


def test_profiles_come_from_any_source(tmp_path):
    names = ["m0", "m1", "m2"]
    given = ["m0=test-2GB-100ms", "m1=llama-2-7b@maveriq-published"]
    profiles = load_profiles(given, names)
    assert [profile.model_name for profile in profiles.values()] == ["test-2GB-100ms", "llama-2-7b"]
    with pytest.raises(FileNotFoundError):
        load_profiles([f"m2=x@{tmp_path / 'absent.csv'}"], names)


@pytest.mark.parametrize("text", ["m0", "m0=", "=llama-2-7b", "other=llama-2-7b", "m0=nobody"])
def test_a_profile_that_is_none_is_refused(text):
    with pytest.raises((InvalidConfigError, UnknownNameError)):
        load_profiles([text], ["m0"])


def test_a_profile_is_given_once():
    with pytest.raises(InvalidConfigError, match="twice"):
        load_profiles(["m0=llama-2-7b", "m0=llama-2-7b"], ["m0"])
