"""What the limits of connections take for granted in uvicorn, which promises none of it: see ``connections.py``."""

import asyncio
import operator
import re
from collections import deque
from pathlib import Path

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

ROOT = Path(__file__).parents[3]
METHODS = (
    "pause_writing",
    "resume_writing",
    "connection_made",
    "connection_lost",
    "data_received",
    "on_message_begin",
    "on_headers_complete",
    "on_message_complete",
    "on_response_complete",
    "send_400_response",
    "_unset_keepalive_if_required",
    "parser.should_upgrade",
    "flow.resume_reading",
    "cycle.message_event.set",
)
ATTRIBUTES = {
    "connections": set,
    "url": bytes,
    "headers": list,
    "loop": asyncio.AbstractEventLoop,
    "pipeline": deque,
    "transport": object,
    "flow.read_paused": bool,
    "cycle.scope": dict,
    "cycle.transport": object,
    "cycle.keep_alive": bool,
    "cycle.disconnected": bool,
    "cycle.response_started": bool,
    "cycle.response_complete": bool,
    "server_state.connections": set,
    "server_state.tasks": set,
}


class Transport(asyncio.Transport):
    """Notes whether it is read."""

    reads = True
    written = b""

    def write(self, data):
        self.written += data

    def is_closing(self):
        return False

    def pause_reading(self):
        self.reads = False

    def resume_reading(self):
        self.reads = True


def post(size):
    return b"POST /a HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size


def with_connection(check, app=None):
    """Call `check`, in an event loop, with uvicorn's connection; requests are answered by `app`, or not at all."""

    async def wait(scope, receive, send):
        await asyncio.Event().wait()

    async def run():
        config = uvicorn.Config(app or wait, interface="asgi3", lifespan="off", log_config=None)
        connection = HttpToolsProtocol(config, ServerState(), {"key": "value"}, asyncio.get_running_loop())
        connection.connection_made(Transport())
        try:
            await check(connection)
        finally:
            for task in connection.tasks:
                task.cancel()
            await asyncio.gather(*connection.tasks, return_exceptions=True)

    asyncio.run(run())


def test_uvicorn_still_has_the_methods_and_attributes_that_limits_are_built_on():
    async def check(connection):
        connection.data_received(post(1))
        for name in METHODS:
            assert callable(operator.attrgetter(name)(connection)), name
        for name, kind in ATTRIBUTES.items():
            assert isinstance(operator.attrgetter(name)(connection), kind), name

    with_connection(check)


def test_requests_still_have_a_copy_of_the_state_of_their_connection():
    async def check(connection):
        connection.app_state = {"client": "here"}
        connection.data_received(post(1))
        assert connection.cycle.scope["state"] == {"client": "here"}
        assert connection.cycle.scope["state"] is not connection.app_state

    with_connection(check)


def test_a_client_that_leaves_is_still_noted_in_the_request():
    async def check(connection):
        connection.data_received(post(1))
        assert not connection.cycle.disconnected
        connection.connection_lost(ConnectionError())
        assert connection.cycle.disconnected
        assert connection.cycle.message_event.is_set()

    with_connection(check)


def test_what_is_pipelined_still_waits_and_pauses_the_connection():
    async def check(connection):
        connection.data_received(post(1))
        first = connection.cycle
        assert not connection.pipeline
        assert not connection.flow.read_paused
        connection.data_received(post(1))
        assert len(connection.pipeline) == 1
        assert connection.cycle is not first
        assert connection.flow.read_paused
        assert not connection.transport.reads

    with_connection(check)


def test_the_answer_still_goes_by_the_transport_of_the_request():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1")]})
        await send({"type": "http.response.body", "body": b"x"})

    async def check(connection):
        other = Transport()
        connection.data_received(post(1))
        connection.cycle.transport = other
        assert not connection.cycle.response_started
        await asyncio.gather(*connection.tasks)
        assert connection.cycle.response_started
        assert connection.cycle.response_complete
        assert other.written.endswith(b"\r\n\r\nx")
        assert connection.transport.written == b""

    with_connection(check, app)


def test_the_server_still_has_what_its_end_is_built_on():
    server = uvicorn.Server(uvicorn.Config(None, lifespan="off", log_config=None))
    assert callable(server.capture_signals)
    assert server.should_exit is False
    assert hasattr(server.config, "timeout_graceful_shutdown")
    assert server.server_state.tasks == server.server_state.connections == set()


def test_only_versions_of_uvicorn_are_installed_that_this_was_tried_with():
    requirement = re.search(r'"uvicorn>=([\d.]+),<([\d.]+)"', (ROOT / "setup.py").read_text(encoding="utf-8"))
    assert requirement is not None, "setup.py has no upper bound"
    lowest, bound, here = (
        tuple(map(int, version.split(".")[:2])) for version in (*requirement.groups(), uvicorn.__version__)
    )
    assert lowest <= here < bound
