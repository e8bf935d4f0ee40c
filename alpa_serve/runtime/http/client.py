"""The client of a connection: whether it is there, and the request that is being answered for it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from alpa_serve.runtime.http.errors import ClientGoneError

if TYPE_CHECKING:
    from types import TracebackType

STATE_KEY = "client"
"""Where requests have the client of their connection, in the state of their ASGI scope."""


class Client:
    """A context that ends when the client leaves: what the running task waits for in it is then cancelled.

    A connection has one request answered at a time. Its tasks are not watched by others: that would cost each request
    a task more.

    Raises
    ------
    ClientGoneError
        At the beginning or the end of the context, if the client has left.
    """

    __slots__ = ("_is_gone", "_task")

    def __init__(self) -> None:
        self._is_gone = False
        self._task: asyncio.Task[object] | None = None

    def __enter__(self) -> None:
        if self._is_gone:
            raise ClientGoneError
        self._task = asyncio.current_task()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task = None
        if self._is_gone:
            raise ClientGoneError from error

    def leave(self) -> None:
        """Note that the client is gone."""
        self._is_gone = True
        if self._task is not None:
            self._task.cancel()
