"""Clients that leave, on real sockets, before they have an answer that is not streamed."""

import asyncio
import contextlib
import json
import threading
import time

import pytest
import uvloop

from alpa_serve.runtime.http.client import Client
from alpa_serve.runtime.http.errors import ClientGoneError

PATIENCE_S = 20.0
BODIES = {
    "/": {},
    "/v1/completions": {"prompt": "x"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]},
}


class Endless:
    """A model that never answers."""

    def __init__(self):
        self.entered, self.cancelled, self.ended = threading.Event(), threading.Event(), threading.Event()

    async def __call__(self, request):
        self.entered.set()
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        finally:
            self.ended.set()


def raw(path, size=0):
    body = json.dumps({"model": "endless", **BODIES[path], "more": "x" * size}).encode()
    return b"POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % (path.encode(), len(body)) + body


@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("size", [0, 80_000])
def test_request_of_a_client_that_leaves_is_cancelled(serving, http, caplog, loop_factory, path, size):
    endless = Endless()
    with serving({"endless": endless}, loop_factory=loop_factory) as server:
        with server.connect() as client:
            head, _, body = raw(path, size).partition(b"\r\n\r\n")
            client.sendall(head + b"\r\n\r\n")
            # a long body of which the end comes at once is where uvicorn reads no more
            time.sleep(0.05)
            client.sendall(body)
            assert endless.entered.wait(PATIENCE_S)
            assert not endless.ended.is_set()
        assert endless.cancelled.wait(PATIENCE_S)
        assert http.post(server.url, json={"model": "echo"}).status_code == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_second_request_of_a_connection_is_cancelled_too(serving):
    endless = Endless()
    with serving({"endless": endless}) as server:
        with server.connect() as client:
            body = b'{"model": "echo"}'
            client.sendall(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
            client.sendall(raw("/"))
            assert endless.entered.wait(PATIENCE_S)
        assert endless.cancelled.wait(PATIENCE_S)


def test_client_that_leaves_with_requests_still_to_come_is_no_error_of_the_server(serving, caplog):
    endless = Endless()
    body = b'{"model": "echo"}'
    echo = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with serving({"endless": endless}) as server:
        with server.connect() as client:
            client.sendall(echo + raw("/") + echo)
            assert endless.entered.wait(PATIENCE_S)
            assert client.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert endless.cancelled.wait(PATIENCE_S)
        assert [request.model for request in server.dispatcher.requests] == ["echo", "endless"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_request_of_another_client_goes_on(serving):
    endless = Endless()
    with serving({"endless": endless}) as server, server.connect() as stays:
        stays.sendall(raw("/"))
        assert endless.entered.wait(PATIENCE_S)
        with server.connect() as leaves:
            leaves.sendall(b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
            assert leaves.recv(1000)
        assert not endless.ended.wait(0.1)


def test_client_that_is_gone_has_nothing_begun():
    async def run():
        client = Client()
        with client:
            pass
        client.leave()
        with pytest.raises(ClientGoneError), client:
            pytest.fail("begun")

    asyncio.run(run())


def test_client_that_leaves_is_gone_even_if_its_cancellation_is_swallowed():
    async def swallow(client):
        with client:
            asyncio.get_running_loop().call_soon(client.leave)
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1000)

    with pytest.raises(ClientGoneError):
        asyncio.run(swallow(Client()))


def test_cancellation_that_is_not_the_clients_is_passed_on():
    async def wait():
        with Client():
            await asyncio.sleep(1000)

    async def run():
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(run())
