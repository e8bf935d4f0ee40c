"""Connections that keep limits: uvicorn's, with bounds on how long and how large what a client sends may be.

uvicorn waits for ever for the rest of a request, and keeps as much of its head as comes. Of its protocol class only
the callbacks of the parser and of the transport are extended, and the answer to what cannot be parsed is replaced.

A client that ends its side of the connection has left, as for uvicorn: one that would still read its answer sends the
same as one that closed, and for the many that close, groups would work on.
"""

from __future__ import annotations

import time
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from alpa_serve.runtime.http.client import STATE_KEY, Client
from alpa_serve.runtime.http.errors import SERVER, HttpError, http_error_reply, retry_after

if TYPE_CHECKING:
    import asyncio

    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

    from alpa_serve.runtime.settings import ServerSettings

LINGER_S = 2.0
"""Seconds in which a refused client may send on, to no effect: closing at once could cost it the answer."""

STALLED_S = 60.0
"""Seconds after which a client is gone that does not read its answer."""

MAX_LINGERING = 256
"""Refused connections that may linger; more are closed at once."""


class LimitedConnection(HttpToolsProtocol):
    """A connection of which heads and bodies must come in time and within their sizes.

    A request comes in two parts, head and body. A part that comes at once costs no timer.
    """

    settings: ClassVar[ServerSettings]
    lingering: ClassVar[set[LimitedConnection]]

    _parts_read = 0  # even: the next is a head; odd: a body
    _timed_part = -1  # the part that the timer is for
    _timer: asyncio.TimerHandle | None = None
    _head_begun = False
    _head_bytes = 0  # without the chunk that is being parsed
    _chunk_bytes = 0
    _stalled: asyncio.TimerHandle | None = None
    _refusal: HttpError | None = None
    _is_refused = False
    _client: Client

    # --- the transport's side

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head; refuse the connection if there are too many."""
        super().connection_made(transport)
        self._client = Client()
        # each request has a copy of this
        self.app_state = {**self.app_state, STATE_KEY: self._client}
        settings = self.settings
        if len(self.connections) > settings.max_connections:
            self._refuse(
                HttpError(
                    503,
                    "too_many_connections",
                    "the server has as many connections as it may have",
                    type=SERVER,
                    headers=[retry_after(settings)],
                )
            )
        else:
            self._start_timer(settings.header_timeout_s)

    def data_received(self, data: bytes) -> None:
        """Have `data` parsed, and see to it that the rest of a part that has not ended comes in time."""
        if self._is_refused:
            return
        parts_before = self._parts_read
        self._chunk_bytes = len(data)
        super().data_received(data)
        if self._is_refused or self.transport.is_closing():
            return
        if self._timed_part != self._parts_read:
            self._stop_timer()
        if self._parts_read % 2:
            if self._timer is None:
                self._start_timer(self.settings.body_timeout_s)
        elif self._head_begun or self._parts_read == parts_before:
            # blank lines before a request count as part of its head
            self._head_bytes += len(data)
            if self._head_bytes > self.settings.max_header_bytes:
                self.send_400_response(self._head_too_large())
            elif self._timer is None:
                self._start_timer(self.settings.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and have nobody wait for an answer that cannot be sent."""
        self._stop_timer()
        self._stop_stalled()
        self.lingering.discard(self)
        super().connection_lost(exc)
        self._client.leave()

    def pause_writing(self) -> None:
        """Give the client a time to read what waits for it; answers are kept in memory until then."""
        super().pause_writing()
        self._stop_stalled()
        self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        """Note that the client reads."""
        self._stop_stalled()
        super().resume_writing()

    # --- the parser's side

    def on_message_begin(self) -> None:
        """Note that a head begins."""
        self._head_begun = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Have the request answered, unless its head is too large."""
        limit = self.settings.max_header_bytes
        if self._head_bytes + self._chunk_bytes > limit:
            # the last chunk may have more than the head
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > limit:
                raise ValueError(self._head_too_large())
        upgrades = self.parser.should_upgrade()
        if upgrades and any(name in (b"content-length", b"transfer-encoding") for name, _ in self.headers):
            # the parser takes the body for the other protocol, and the model would get none
            self._refusal = HttpError(400, "unsupported_upgrade", "a body cannot be sent with the header Upgrade")
            raise ValueError(str(self._refusal))
        super().on_headers_complete()
        if upgrades:
            self.cycle.keep_alive = False
        self.cycle.transport = _AnswerTransport(self)  # type: ignore[assignment]
        self._head_begun = False
        self._head_bytes = 0
        self._parts_read += 1

    def on_message_complete(self) -> None:
        """Note that a body has come."""
        self._parts_read += 1
        super().on_message_complete()
        if not self.pipeline:
            # a long body may have paused it, and a client that leaves is only noticed while the connection is read
            self.flow.resume_reading()

    def on_response_complete(self) -> None:
        """Do not wait long for the rest of a body that no one is going to read."""
        super().on_response_complete()
        if self._parts_read % 2 and self.cycle.response_complete and not self._is_refused:
            self._stop_timer()
            self._start_timer(LINGER_S)

    # --- limits

    def send_400_response(self, msg: str) -> None:
        """Refuse what could not be parsed, or what the parser was stopped for."""
        self._refuse(self._refusal or HttpError(400, "malformed_request", "this is not HTTP/1.1"))

    def _head_too_large(self) -> str:
        limit = self.settings.max_header_bytes
        self._refusal = HttpError(431, "head_too_large", f"the head of a request must not exceed {limit} bytes")
        return str(self._refusal)

    def _start_timer(self, seconds: float) -> None:
        self._timed_part = self._parts_read
        self._timer = self.loop.call_later(seconds, self._on_time_over)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_stalled(self) -> None:
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def _on_time_over(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        awaits_body = self._parts_read % 2 == 1
        is_answered = self.cycle is None or self.cycle.response_complete
        if self._is_refused:
            self.transport.abort()
        elif self.flow.read_paused or not (awaits_body or is_answered):
            # what came before is being answered, and must not be lost for what follows it
            self._start_timer(self.settings.header_timeout_s)
        elif is_answered if awaits_body else not self._head_begun:
            self.transport.close()
        else:
            part = "body" if awaits_body else "head"
            self._refuse(HttpError(408, f"{part}_timeout", f"the {part} of the request did not come in time"))

    def _refuse(self, error: HttpError) -> None:
        """Answer with `error`, unless another answer is due or begun, and close the connection."""
        if self._is_refused:
            return
        self._is_refused = True
        self._stop_timer()
        self._unset_keepalive_if_required()
        cycle = self.cycle
        answers_this = self._parts_read % 2 and not self.pipeline and not (cycle and cycle.response_started)
        if not (answers_this or cycle is None or cycle.response_complete):
            self.transport.close()
            return
        self.transport.write(_to_bytes(error))
        if cycle is not None and not cycle.response_complete:
            # whoever waits for the rest of the request learns that none comes
            cycle.disconnected = True
            cycle.message_event.set()
        self._linger()

    def close_when_read(self) -> None:
        """Close the connection, but let the client send the rest of a body that no one is going to read."""
        if self._parts_read % 2:
            self._is_refused = True
            self._stop_timer()
            self._linger()
        else:
            self.transport.close()

    def _linger(self) -> None:
        if len(self.lingering) >= MAX_LINGERING or not self.transport.can_write_eof():
            self.transport.close()
            return
        self.transport.write_eof()
        self.connections.discard(self)
        self.lingering.add(self)
        self._start_timer(LINGER_S)


class _AnswerTransport:
    """The transport of a connection as the answer to one request uses it.

    uvicorn writes head and body apart, which are two calls of the system and two packets: the head waits for the body.
    And the end of the connection waits for the end of the request.
    """

    __slots__ = ("_connection", "_cycle", "_head", "_transport")

    def __init__(self, connection: LimitedConnection) -> None:
        self._connection = connection
        # until the answer begins: the cycle refers to this too, and would be left to the garbage collector
        self._cycle: RequestResponseCycle | None = connection.cycle
        self._transport = connection.transport
        self._head = b""

    def write(self, data: bytes) -> None:
        cycle = self._cycle
        if self._head:
            data, self._head = self._head + data, b""
        elif cycle is not None and cycle.response_started:
            self._cycle = None
            if cycle.scope["method"] != "HEAD":
                self._head = data
                return
        self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def close(self) -> None:
        if self._head:
            self.write(b"")
        self._connection.close_when_read()


def limited_connection(settings: ServerSettings) -> type[LimitedConnection]:
    """Return the class of the connections of one server."""
    return type("LimitedConnection", (LimitedConnection,), {"settings": settings, "lingering": set()})


def _to_bytes(error: HttpError) -> bytes:
    status, headers, body = http_error_reply(error)
    headers = [(b"date", formatdate(time.time(), usegmt=True).encode("ascii")), *headers, (b"connection", b"close")]
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}".encode("ascii")]
    lines += [name + b": " + value for name, value in headers]
    return b"\r\n".join([*lines, b"", body])
