import asyncio
import contextlib
import datetime
import gc
import ipaddress
import signal
import socket
import ssl
import threading
import time

import httpx
import pytest
from uvicorn.protocols.http import httptools_impl

from alpa_serve.errors import InvalidConfigError
from alpa_serve.runtime.dispatcher import Health
from alpa_serve.runtime.http import connections
from alpa_serve.runtime.http.app import build_app
from alpa_serve.runtime.http.server import HttpServer
from alpa_serve.runtime.settings import ServerSettings

GET = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"


def receive_health(client):
    """Return the answer to GET, whose body may come after its head."""
    received = b""
    while not received.endswith(b"}"):
        chunk = client.recv(1000)
        assert chunk
        received += chunk
    return received


def test_port_is_had_from_the_start_and_by_nobody_else():
    first = HttpServer(None, ServerSettings())
    assert first.port > 0
    assert first.url == f"http://127.0.0.1:{first.port}/"
    with pytest.raises(InvalidConfigError, match=rf"host '127\.0\.0\.1', port {first.port}"):
        HttpServer(None, ServerSettings(port=first.port))
    asyncio.run(first.stop(0))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", first.port))
    second = HttpServer(None, ServerSettings(port=first.port))
    assert second.port == first.port
    asyncio.run(second.stop(0))


def test_host_that_is_none_is_named():
    with pytest.raises(InvalidConfigError, match=r"host 'no\.such\.host\.invalid'"):
        HttpServer(None, ServerSettings(host="no.such.host.invalid"))


def test_server_that_was_stopped_before_it_served_does_not_serve():
    async def run():
        server = HttpServer(None, ServerSettings())
        await server.stop(0)
        await asyncio.wait_for(server.serve(), 20)

    asyncio.run(run())


def test_client_that_comes_before_serving_begins_is_answered():
    settings = ServerSettings()

    async def run():
        class Healthy:
            def health(self):
                return Health("ok", 1, 1)

        server = HttpServer(build_app(Healthy(), settings), settings)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(GET)
        serving = asyncio.create_task(server.serve())
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")
        writer.close()
        await server.stop(5)
        await serving

    asyncio.run(run())


def test_signals_stay_with_the_process():
    """In the main thread too, where uvicorn would take them."""
    settings = ServerSettings()

    async def run():
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        server = HttpServer(None, settings)
        serving = asyncio.create_task(server.serve())
        await asyncio.sleep(0.05)
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
        await server.stop(1)
        await serving

    assert threading.current_thread() is threading.main_thread()
    asyncio.run(run())


def test_server_whose_task_is_cancelled_frees_its_port_and_connections():
    async def run():
        server = HttpServer(None, ServerSettings())
        serving = asyncio.create_task(server.serve())
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.sleep(0.05)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        with contextlib.suppress(ConnectionError):
            assert await asyncio.wait_for(reader.read(), 20) == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", server.port))

    asyncio.run(run())


def test_stop_lets_requests_finish_and_closes_idle_connections(serving, http):
    entered, leave = threading.Event(), threading.Event()

    async def wait(request):
        entered.set()
        while not leave.is_set():
            await asyncio.sleep(0.01)
        return "done"

    responses = []
    with serving({"wait": wait}) as server, server.connect() as idle, server.connect() as silent:
        idle.sendall(GET)
        assert receive_health(idle).startswith(b"HTTP/1.1 200 ")
        asking = threading.Thread(target=lambda: responses.append(http.post(server.url, json={"model": "wait"})))
        asking.start()
        assert entered.wait(20)
        stopped = server.begin_stop(20)
        assert idle.recv(1000) == b""
        assert silent.recv(1000) == b""
        with pytest.raises(ConnectionRefusedError):
            server.connect()
        assert not stopped.done()
        leave.set()
        stopped.result(20)
        asking.join(20)
    assert responses[0].json() == "done"
    assert responses[0].headers["connection"] == "close"


def test_stream_that_outlasts_the_time_to_drain_is_cut_off_and_closed(serving):
    async def sleep(request):
        await asyncio.sleep(1000)

    body = b'{"model": "endless", "prompt": "x", "stream": true}'
    with serving({"endless": ["Hello", sleep]}) as server, server.connect() as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(1000)
        server.stop(0.1)
        assert server.dispatcher.stream_closed.is_set()
        while client.recv(1000):
            pass


def test_connections_beyond_the_limit_are_told_to_come_again(serving, http):
    with serving(max_connections=2, retry_after_s=3) as server:
        first, second = server.connect(), server.connect()
        with first, second:
            first.sendall(GET)
            second.sendall(GET)
            assert receive_health(first).startswith(b"HTTP/1.1 200 ")
            assert receive_health(second).startswith(b"HTTP/1.1 200 ")
            for _ in range(5):
                received = server.converse()
                assert received.startswith(b"HTTP/1.1 503 ")
                assert b"\r\nretry-after: 3\r\n" in received
                assert b'"too_many_connections"' in received
            first.sendall(GET)
            assert receive_health(first).startswith(b"HTTP/1.1 200 ")
        until = time.monotonic() + 20
        while not server.converse(GET[:-2] + b"Connection: close\r\n\r\n").startswith(b"HTTP/1.1 200 "):
            assert time.monotonic() < until


def test_body_of_a_client_that_wants_to_close_is_taken_before_the_connection_ends(serving):
    """As of libraries that close after each request, and read the answer only after sending all."""
    head = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 5000000\r\n\r\n"
    with serving(max_body_bytes=1000) as server, server.connect() as client:
        client.sendall(head)
        for _ in range(500):
            client.sendall(b"x" * 10_000)
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_head_and_body_of_an_answer_come_in_one_write(serving):
    with serving() as server, server.connect() as client:
        written = []
        until = time.monotonic() + 20
        while not server.server._server.server_state.connections:
            assert time.monotonic() < until
        (connection,) = server.server._server.server_state.connections
        transport = connection.transport

        class Recorder:
            def write(self, data):
                written.append(data)
                transport.write(data)

            def __getattr__(self, name):
                return getattr(transport, name)

        connection.transport = Recorder()
        client.sendall(GET)
        receive_health(client)
        assert len(written) == 1
        assert written[0].endswith(b'"groups":2}')


def test_requests_leave_nothing_to_the_garbage_collector(serving, http):
    def cycles():
        return sum(isinstance(found, httptools_impl.RequestResponseCycle) for found in gc.get_objects())

    with serving() as server:
        http.post(server.url, json={"model": "echo"})
        gc.collect()
        gc.disable()
        try:
            before = cycles()
            for _ in range(20):
                http.post(server.url, json={"model": "echo"})
            assert cycles() <= before + 2
        finally:
            gc.enable()


def test_refused_connections_linger_in_a_limited_number(serving, monkeypatch):
    monkeypatch.setattr(connections, "MAX_LINGERING", 3)
    with serving(max_connections=1) as server, server.connect() as first:
        first.sendall(GET)
        assert receive_health(first)
        clients = [server.connect() for _ in range(10)]
        for client in clients:
            assert client.recv(1000).startswith(b"HTTP/1.1 503 ")
        lingering = server.server._connection_class.lingering
        assert len(lingering) == 3
        for client in clients:
            client.close()
        until = time.monotonic() + 20
        while lingering:
            assert time.monotonic() < until
            time.sleep(0.01)


@pytest.mark.parametrize("stream", ["true", "false"])
def test_client_that_does_not_read_its_answer_is_cut_off(serving, monkeypatch, stream):
    monkeypatch.setattr(connections, "STALLED_S", 0.3)
    body = b'{"model": "long", "prompt": "x", "stream": %s}' % stream.encode()
    with serving({"long": "x" * 20_000_000}) as server, server.connect() as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(10)
        until = time.monotonic() + 20
        while server.server._server.server_state.connections:
            assert time.monotonic() < until
            time.sleep(0.01)


def test_nothing_is_logged_as_an_error_where_all_is_well(serving, caplog):
    with serving() as server:
        httpx.get(server.url + "/healthz", trust_env=False)
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("tls")
    key_file, certificate_file = folder / "key.pem", folder / "certificate.pem"
    encryption = serialization.NoEncryption()
    key_file.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return {"ssl_keyfile": str(key_file), "ssl_certfile": str(certificate_file)}


def test_tls_is_served_with_the_same_limits(serving, certificate):
    with serving(**certificate, header_timeout_s=0.3) as server:
        assert server.url.startswith("https://")
        trusted = ssl.create_default_context(cafile=certificate["ssl_certfile"])
        response = httpx.post(server.url, json={"model": "echo"}, verify=trusted, trust_env=False)
        assert response.json() == {"model": "echo"}
        with trusted.wrap_socket(server.connect(), server_hostname="127.0.0.1") as client:
            client.sendall(b"POST / HT")
            assert client.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert b"200" not in server.converse(GET)


def test_a_client_that_keeps_its_tls_connection_does_not_hold_up_the_end(serving, certificate):
    with serving(**certificate) as server:
        trusted = ssl.create_default_context(cafile=certificate["ssl_certfile"])
        with httpx.Client(verify=trusted, trust_env=False) as client:
            assert client.post(server.url, json={"model": "echo"}).status_code == 200
            began = time.monotonic()
            # asyncio waits 30 s for a client to close its side
            server.stop(drain_timeout_s=60)
            assert time.monotonic() - began < 20


def test_errors_are_counted_by_status(serving):
    with serving() as server:
        for content in (b"{", b'{"model": "absent"}', b'{"model": "echo"}'):
            httpx.post(server.url, content=content, trust_env=False)
        httpx.get(server.url + "/nothing", trust_env=False)
        assert server.dispatcher.errors == [400, 404, 404]


def test_certificate_that_is_none_is_named(tmp_path):
    file = tmp_path / "empty.pem"
    file.write_text("nothing")
    with pytest.raises(InvalidConfigError, match=r"ssl_certfile .*empty\.pem"):
        HttpServer(None, ServerSettings(ssl_keyfile=str(file), ssl_certfile=str(file)))
