"""A dispatcher that answers as a test says, and the real server before it, in a thread, on a socket of 127.0.0.1."""

import asyncio
import contextlib
import socket
import threading
from contextlib import contextmanager

import httpx
import pytest

from alpa_serve.errors import ModelNotFoundError
from alpa_serve.runtime.dispatcher import Health, ModelCard
from alpa_serve.runtime.http.app import build_app
from alpa_serve.runtime.http.server import HttpServer
from alpa_serve.runtime.settings import ServerSettings

PATIENCE_S = 20.0


class FakeDispatcher:
    """Answers by model: a value is the answer, an exception is raised, a coroutine function is called.

    A list is a stream of such; where no stream was asked for, it is the answer.
    """

    def __init__(self, answers=None):
        self.errors = []
        self.answers = {"echo": _echo, **(answers or {})}
        self.requests = []
        self.stream_closed = threading.Event()
        self.status = "ok"

    def _what(self, request):
        self.requests.append(request)
        if request.model not in self.answers:
            raise ModelNotFoundError(f"there is no model {request.model!r}")
        return self.answers[request.model]

    async def answer(self, request):
        return await _resolve(self._what(request), request)

    async def stream(self, request):
        try:
            what = self._what(request)
            for piece in what if isinstance(what, list) else [what]:
                yield await _resolve(piece, request)
        finally:
            self.stream_closed.set()

    def model_cards(self):
        return [ModelCard(name, 1_700_000_000) for name in self.answers]

    def health(self):
        return Health(self.status, 1, 2)

    def count_error(self, status):
        self.errors.append(status)

    def metrics(self):
        return b"# TYPE some_total counter\nsome_total 1.0\n"


async def _echo(request):
    return await request.json()


async def _resolve(what, request):
    if isinstance(what, Exception):
        raise what
    return await what(request) if callable(what) else what


class Running:
    """A server that runs in a thread."""

    def __init__(self, dispatcher, settings, loop_factory):
        self.dispatcher = dispatcher
        self.settings = settings
        self.loop = loop_factory()
        self.server = HttpServer(build_app(dispatcher, settings), settings)
        self.port = self.server.port
        self.url = self.server.url.rstrip("/")
        self._stopped = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        self.loop.run_until_complete(self.server.serve())
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def begin_stop(self, drain_timeout_s):
        if self._stopped is None:
            self._stopped = asyncio.run_coroutine_threadsafe(self.server.stop(drain_timeout_s), self.loop)
        return self._stopped

    def stop(self, drain_timeout_s=0.5):
        self.begin_stop(drain_timeout_s)
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the server does not stop"

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def converse(self, *sent):
        """Return all that the server says until it closes the connection, which must be within PATIENCE_S."""
        with self.connect() as client:
            with contextlib.suppress(ConnectionError):
                for data in sent:
                    client.sendall(data)
            return receive_all(client)


def receive_all(client):
    received = b""
    with contextlib.suppress(ConnectionError):
        while chunk := client.recv(65536):
            received += chunk
    return received


@contextmanager
def _serving(answers=None, loop_factory=asyncio.new_event_loop, **settings):
    running = Running(FakeDispatcher(answers), ServerSettings(**settings), loop_factory)
    try:
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="session")
def serving():
    """Return serving(answers, **settings): a context in which a FakeDispatcher of `answers` is served."""
    return _serving


@pytest.fixture(scope="session")
def http():
    """Return an HTTP client that is patient, and takes no proxy from the environment."""
    with httpx.Client(trust_env=False, timeout=PATIENCE_S) as client:
        yield client


@pytest.fixture(scope="session")
def assert_error():
    """Return assert_error(response, status, code), which holds what every error has."""

    def check(response, status, code):
        assert response.status_code == status, response.text
        assert response.headers["content-type"] == "application/json"
        assert response.headers["x-content-type-options"] == "nosniff"
        error = response.json()["error"]
        assert set(response.json()) == {"error"}
        assert set(error) == {"message", "type", "code"}
        assert error["code"] == code
        assert error["message"]
        assert "Traceback" not in response.text
        return error["message"]

    return check
