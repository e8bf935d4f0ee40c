"""A request and the ways to answer it, as handlers get them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from alpa_serve.errors import InvalidRequestError
from alpa_serve.runtime.http.bodies import parse_object, read_body
from alpa_serve.runtime.http.client import STATE_KEY
from alpa_serve.runtime.http.errors import HttpError

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from alpa_serve.runtime.http.client import Client


class Head(NamedTuple):
    """What the server reads of a request's head.

    Attributes
    ----------
    content_length : int
        0 if not given.
    is_encoded : bool
        Whether the body is compressed or so.
    authorization : bytes
    expects : bool
        Whether the client may hold back the body until it is told to go on.
    """

    content_length: int
    is_encoded: bool
    authorization: bytes
    expects: bool

    @classmethod
    def read(cls, scope: Scope) -> Head:
        """Read it.

        Raises
        ------
        InvalidRequestError
            If the length is no whole number.
        """
        content_length, is_encoded, authorization, expects = 0, False, b"", False
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not value.isdigit():
                    raise InvalidRequestError("Content-Length must be a whole number of bytes")
                content_length = int(value)
            elif name == b"content-encoding":
                is_encoded = value.strip().lower() not in (b"", b"identity")
            elif name == b"authorization":
                authorization = value
            elif name == b"expect":
                expects = True
        return cls(content_length, is_encoded, authorization, expects)


class Exchange(NamedTuple):
    """A request and the ways to answer it.

    Attributes
    ----------
    scope, receive, send
        ASGI's.
    head : Head
    max_body_bytes : int
    """

    scope: Scope
    receive: Receive
    send: Send
    head: Head
    max_body_bytes: int

    @property
    def client(self) -> Client:
        """Who sent it; as a context, it ends when the client leaves."""
        client: Client = self.scope["state"][STATE_KEY]
        return client

    async def json(self) -> dict[str, Any]:
        """Return the JSON object that was posted.

        Raises
        ------
        InvalidRequestError
            If it is none.
        HttpError
            415 or 413.
        ClientGoneError
            If the client leaves before its end.
        """
        if self.head.is_encoded:
            raise HttpError(
                415, "unsupported_encoding", "the body must be sent as it is: Content-Encoding is not supported"
            )
        return parse_object(await read_body(self.receive, self.head.content_length, self.max_body_bytes))
