"""Answers over HTTP as they are sent, and the JSON in them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

from alpa_serve.errors import ModelFailedError

if TYPE_CHECKING:
    from collections.abc import Iterable

JSON_TYPE, EVENT_STREAM_TYPE = b"application/json", b"text/event-stream; charset=utf-8"


def _as_lists(value: Any) -> Any:
    """Return an array or a number of NumPy's (or of a package with its ``tolist``) in Python's own types."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__} is nothing that JSON has")


# one for all answers; ASCII, since clients may send lone surrogates, which UTF-8 does not have
_to_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, default=_as_lists).encode

Headers = list[tuple[bytes, bytes]]


class HttpReply(NamedTuple):
    """An answer with its whole body.

    Attributes
    ----------
    status : int
    headers : list of (bytes, bytes)
    body : bytes
    """

    status: int
    headers: Headers
    body: bytes


def make_reply(
    body: bytes, content_type: bytes, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()
) -> HttpReply:
    """Return a reply with the headers that every answer has, and `headers`."""
    length = str(len(body)).encode("ascii")
    return HttpReply(status, [*stream_headers(content_type), (b"content-length", length), *headers], body)


def stream_headers(content_type: bytes) -> Headers:
    """Return the headers of an answer whose length is not known."""
    return [(b"content-type", content_type), (b"x-content-type-options", b"nosniff")]


def json_reply(content: object, status: int = 200, headers: Iterable[tuple[bytes, bytes]] = ()) -> HttpReply:
    """Return `content` as a reply in JSON; it is the server's own or was checked by :func:`encode_answer`."""
    return make_reply(_to_json(content).encode("ascii"), JSON_TYPE, status, headers)


def encode_answer(answer: Any) -> bytes:
    """Return what a model answered as JSON; arrays of NumPy become lists.

    Raises
    ------
    ModelFailedError
        If there is something in it that JSON does not have.
    """
    try:
        return _to_json(answer).encode("ascii")
    except (TypeError, ValueError, RecursionError) as error:
        raise ModelFailedError(f"the model's answer cannot be written as JSON: {error}") from error
