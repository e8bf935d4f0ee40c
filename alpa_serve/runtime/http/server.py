"""The server: a socket, and uvicorn on it inside an event loop that runs already."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING

import uvicorn

from alpa_serve.errors import InvalidConfigError
from alpa_serve.runtime.http.connections import limited_connection

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from alpa_serve.runtime.settings import ServerSettings

KEEP_ALIVE_S = 30
"""Seconds that a connection may be idle between requests."""

BACKLOG = 2048
"""Connections that wait to be accepted."""

FLUSH_S = 0.3
"""Seconds after which it is seen, again and again, which connections only wait for their clients to close them."""

CANCELLED_S = 1.0
"""Seconds in which requests that were cancelled tell their clients."""


class _Server(uvicorn.Server):
    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        """Leave signals to the process, which is not the server's."""
        return contextlib.nullcontext()


class HttpServer:
    """Serves an application on a socket of its own, which it has from the start.

    All methods belong to one event loop, in whichever thread it runs.

    Parameters
    ----------
    app : ASGI application
    settings : ServerSettings

    Raises
    ------
    InvalidConfigError
        If the address cannot be had, or the certificate not be used.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self._settings = settings
        self._connection_class = limited_connection(settings)
        config = uvicorn.Config(
            app,
            http=self._connection_class,
            interface="asgi3",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            backlog=BACKLOG,
            ssl_keyfile=settings.ssl_keyfile,
            ssl_certfile=settings.ssl_certfile,
        )
        try:
            config.load()
        except (ssl.SSLError, OSError) as error:
            raise InvalidConfigError(
                f"TLS with ssl_certfile {settings.ssl_certfile} and ssl_keyfile {settings.ssl_keyfile}: {error}"
            ) from error
        self._server = _Server(config)
        self._socket = _listen(settings.host, settings.port or 0)
        self.port: int = self._socket.getsockname()[1]
        self._ended: asyncio.Event | None = None

    @property
    def url(self) -> str:
        """Where clients of this machine reach the routes."""
        return self._settings.url(self.port)

    async def serve(self) -> None:
        """Serve until :meth:`stop`; not at all if that was before."""
        if self._server.should_exit:
            return
        self._ended = asyncio.Event()
        try:
            await self._server.serve(sockets=[self._socket])
            tasks = list(self._server.server_state.tasks)
            if tasks:
                await asyncio.wait(tasks, timeout=CANCELLED_S)
        finally:
            self._close()
            self._ended.set()

    async def stop(self, drain_timeout_s: float) -> None:
        """Take no more connections, and close each once its request is answered; return when all are closed.

        Parameters
        ----------
        drain_timeout_s : float
            Seconds after which requests without an answer are told that there will be none.
        """
        # read by uvicorn when it begins to wait; whole seconds are only what its command line takes
        self._server.config.timeout_graceful_shutdown = drain_timeout_s  # type: ignore[assignment]
        self._server.should_exit = True
        if self._ended is None:
            self._close()
            return
        aborting = asyncio.get_running_loop().create_task(self._abort_silent())
        await self._ended.wait()
        aborting.cancel()

    async def _abort_silent(self) -> None:
        """Close connections that have nothing to say any more; over TLS, clients may take their time to agree."""
        while True:
            await asyncio.sleep(FLUSH_S)
            if self._server.server_state.tasks:
                continue
            for connection in list(self._server.server_state.connections):
                transport = connection.transport
                if transport.is_closing() and not transport.get_write_buffer_size():
                    transport.abort()

    def _close(self) -> None:
        for server in getattr(self._server, "servers", ()):
            server.close()
        for connection in [*self._server.server_state.connections, *self._connection_class.lingering]:
            connection.transport.abort()
        self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        # from now on nobody else can have the port, and clients wait
        listener.listen(BACKLOG)
        listener.setblocking(False)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        raise InvalidConfigError(f"cannot listen on host {host!r}, port {port}: {error}") from error
    return listener
