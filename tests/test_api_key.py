import pytest

from alpa_serve.api_key import API_KEY_VARIABLE, read_api_key
from alpa_serve.errors import InvalidConfigError


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    monkeypatch.delenv(API_KEY_VARIABLE, raising=False)


def test_a_token_comes_from_its_file_without_the_end_of_the_line(tmp_path, monkeypatch):
    monkeypatch.setenv(API_KEY_VARIABLE, "other")
    path = tmp_path / "key"
    path.write_text("secret\n")
    assert read_api_key(path) == "secret"


@pytest.mark.parametrize(("value", "key"), [("secret", "secret"), ("", None), (None, None)])
def test_without_a_file_it_is_that_of_the_environment_if_there_is_one(monkeypatch, value, key):
    if value is not None:
        monkeypatch.setenv(API_KEY_VARIABLE, value)
    assert read_api_key(None) == key


@pytest.mark.parametrize(("content", "said"), [(b" \n", "is empty"), (b"\xff\xfe", "ASCII text")])
def test_a_file_without_a_token_is_refused(tmp_path, content, said):
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(InvalidConfigError, match=said):
        read_api_key(path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent"):
        read_api_key(tmp_path / "absent")
