import math

import pytest

from alpa_serve.errors import InvalidConfigError
from alpa_serve.runtime.settings import ServerSettings

COUNTS = ("max_body_bytes", "max_header_bytes", "max_connections", "max_queue", "max_attempts")
POSITIVE_SECONDS = ("header_timeout_s", "body_timeout_s", "request_timeout_s")
SECONDS = ("retry_after_s", "recovery_timeout_s", "drain_timeout_s")


def test_by_default_only_this_machine_is_listened_to():
    settings = ServerSettings()
    assert (settings.host, settings.port, settings.scheme) == ("127.0.0.1", None, "http")


@pytest.mark.parametrize(
    ("setting", "value"),
    [("host", value) for value in ("", None, 5, b"127.0.0.1")]
    + [("port", value) for value in (-1, 65536, 80.0, "80", True)]
    + [("root_path", value) for value in ("", "api", None, 5)]
    + [("api_key", value) for value in ("", "ü", b"key", 5, "key\n", "a key", "\x7f")]
    + [(name, value) for name in COUNTS for value in (0, -1, 1.5, True, "9", None)]
    + [(name, value) for name in POSITIVE_SECONDS for value in (0, -1.0, math.inf, math.nan, "9", True, None)]
    + [(name, value) for name in SECONDS for value in (-1e-9, math.inf, math.nan, "9", True, None)],
)
def test_what_is_out_of_range_is_refused_by_name(setting, value):
    with pytest.raises(InvalidConfigError, match=setting):
        ServerSettings(**{setting: value})


@pytest.mark.parametrize(
    "given",
    [{"port": 0}, {"port": 65535}, {"api_key": "sk-!~"}, {"root_path": "/api"}]
    + [{name: 1} for name in COUNTS]
    + [{name: 1e-3} for name in POSITIVE_SECONDS]
    + [{name: 0} for name in SECONDS],
)
def test_the_ends_of_the_ranges_are_taken(given):
    settings = ServerSettings(**given)
    assert {name: getattr(settings, name) for name in given} == given


def test_tls_needs_both_files_and_that_they_are_there(tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    for path in (key, certificate):
        path.write_text("")
    for given in ({"ssl_keyfile": str(key)}, {"ssl_certfile": str(certificate)}):
        with pytest.raises(InvalidConfigError, match="both"):
            ServerSettings(**given)
    for missing in (str(tmp_path / "missing"), str(tmp_path), "", 5):
        with pytest.raises(InvalidConfigError, match="ssl_certfile: there is no file"):
            ServerSettings(ssl_keyfile=str(key), ssl_certfile=missing)
        with pytest.raises(InvalidConfigError, match="ssl_keyfile: there is no file"):
            ServerSettings(ssl_keyfile=missing, ssl_certfile=str(certificate))
    assert ServerSettings(ssl_keyfile=key, ssl_certfile=str(certificate)).scheme == "https"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, "http://127.0.0.1:8000/"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:8000/"),
        ({"host": "::"}, "http://[::1]:8000/"),
        ({"host": "fe80::1"}, "http://[fe80::1]:8000/"),
        ({"host": "node", "root_path": "/api"}, "http://node:8000/api/"),
        ({"root_path": "/api/"}, "http://127.0.0.1:8000/api/"),
        # the port that was asked for may be any free one
        ({"port": 0}, "http://127.0.0.1:8000/"),
    ],
)
def test_the_url_is_one_to_connect_to(given, url):
    assert ServerSettings(**given).url(8000) == url


def test_the_bearer_token_is_neither_shown_nor_told_by_an_error():
    assert "secret" not in repr(ServerSettings(api_key="secret"))
    with pytest.raises(InvalidConfigError) as refusal:
        ServerSettings(api_key="secret\n")
    assert "secret" not in str(refusal.value)


def test_settings_cannot_be_changed_nor_given_by_position():
    with pytest.raises(AttributeError):
        ServerSettings().port = 1
    with pytest.raises(TypeError):
        ServerSettings("127.0.0.1")
