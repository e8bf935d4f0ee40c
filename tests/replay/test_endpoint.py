import shutil
import ssl
import subprocess

import pytest

from alpa_serve.errors import InvalidConfigError, ModelNotFoundError, ServingError
from alpa_serve.replay import Endpoint


@pytest.mark.parametrize(
    "url",
    ["", "localhost:8000", "ftp://127.0.0.1/", "http://", "http://127.0.0.1:99999", "http://127.0.0.1/?a=b", None],
)
def test_a_url_that_is_none_is_refused(url):
    with pytest.raises(InvalidConfigError, match="url must"):
        Endpoint(url=url)


def test_a_password_in_the_url_is_refused_and_not_repeated():
    with pytest.raises(InvalidConfigError) as caught:
        Endpoint(url="http://me:secret@127.0.0.1/")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two\nlines", "schlüssel"])
def test_a_key_that_fits_no_header_is_refused(key):
    with pytest.raises(InvalidConfigError, match="api_key"):
        Endpoint(url="http://127.0.0.1/", api_key=key)


def test_the_key_is_not_shown():
    assert "secret" not in repr(Endpoint(url="http://127.0.0.1/", api_key="secret"))


def test_certificates_that_cannot_be_read_are_refused(tmp_path):
    for path in (tmp_path / "absent.pem", tmp_path / "empty.pem"):
        if path.name == "empty.pem":
            path.write_text("nothing", encoding="utf-8")
        with pytest.raises(InvalidConfigError, match=path.name):
            Endpoint(url="https://127.0.0.1/", ca_file=path)


def test_the_models_are_listed_under_the_root_path():
    for url in ("http://127.0.0.1:1/root", "http://127.0.0.1:1/root/"):
        assert Endpoint(url=url).models_url == "http://127.0.0.1:1/root/v1/models"


def test_models_that_the_server_has_are_found(server):
    Endpoint(url=server.url).check_models(["m1"])


def test_models_that_the_server_lacks_are_named(server):
    with pytest.raises(ModelNotFoundError, match=r"no model 'm2', 'm3'; it has: m0, m1"):
        Endpoint(url=server.url).check_models(["m0", "m2", "m3"])


def test_a_token_that_is_wanted_is_said_to_be(server):
    server.api_key = "secret"
    with pytest.raises(ServingError, match=r"wants a token .* no token was given"):
        Endpoint(url=server.url).check_models(["m0"])
    with pytest.raises(ServingError, match="the one that was given is not its own"):
        Endpoint(url=server.url, api_key="other").check_models(["m0"])
    Endpoint(url=server.url, api_key="secret").check_models(["m0"])


def test_another_root_path_is_no_list_of_models(server):
    with pytest.raises(ServingError, match="root path"):
        Endpoint(url=server.url + "root").check_models(["m0"])


def test_a_server_that_is_not_there_cannot_be_reached():
    with pytest.raises(ServingError, match="cannot be reached"):
        Endpoint(url="http://127.0.0.1:1/").check_models(["m0"])


@pytest.fixture
def tls_server(tmp_path, fake_server):
    """Return a FakeServer that speaks TLS, and the file of its certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*make.split(), "-keyout", key, "-out", certificate], check=True, capture_output=True)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return fake_server(context), certificate


def test_a_certificate_is_taken_if_it_is_trusted_or_any_is(tls_server):
    server, certificate = tls_server
    Endpoint(url=server.url, ca_file=certificate).check_models(["m0"])
    Endpoint(url=server.url, insecure=True).check_models(["m0"])
    with pytest.raises(ServingError, match="certificate"):
        Endpoint(url=server.url).check_models(["m0"])
