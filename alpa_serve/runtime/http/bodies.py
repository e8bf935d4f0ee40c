"""Bodies of requests: read within limits, and taken as JSON without its loose ends."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NoReturn

from alpa_serve.errors import InvalidRequestError
from alpa_serve.runtime.http.errors import ClientGoneError, HttpError

if TYPE_CHECKING:
    from starlette.types import Receive

MAX_NESTING = 100
"""Objects and lists within each other; more would exhaust the stack of what copies and encodes them later."""


async def read_body(receive: Receive, content_length: int, limit: int) -> bytes:
    """Return the body of a request. How long it may take is up to the connection (``connections``).

    Parameters
    ----------
    receive : callable
        ASGI's.
    content_length : int
        Bytes that the head announces; 0 if it does not.
    limit : int
        Bytes that it may have.

    Raises
    ------
    HttpError
        413, as soon as it is known to be too long.
    ClientGoneError
        If the client leaves before its end.
    """
    chunks: list[bytes] = []
    received, more = 0, True
    while True:
        if max(content_length, received) > limit:
            raise HttpError(413, "body_too_large", f"the body of a request must not be longer than {limit} bytes")
        if not more:
            return b"".join(chunks)
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunk = message.get("body", b"")
        received += len(chunk)
        chunks.append(chunk)
        more = message.get("more_body", False)


def parse_object(body: bytes) -> dict[str, Any]:
    """Return the JSON object that `body` is.

    Raises
    ------
    InvalidRequestError
        If it is none, is not UTF-8, has a key twice or a number that JSON does not have, or nests too deeply.
    """
    try:
        parsed = _decode(body.decode("utf-8"))
    except InvalidRequestError:
        raise
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"the body is not UTF-8: {error.reason} at byte {error.start}") from None
    except RecursionError:
        raise InvalidRequestError(_TOO_DEEP) from None
    except ValueError as error:
        raise InvalidRequestError(f"the body is not JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise InvalidRequestError(f"the body must be a JSON object, got {_NAMES[type(parsed)]}")
    # most bodies have too few brackets to nest deeply
    if body.count(b"[") + body.count(b"{") > MAX_NESTING and _nests_too_deeply(parsed):
        raise InvalidRequestError(_TOO_DEEP)
    return parsed


_TOO_DEEP = f"the body nests objects and lists more than {MAX_NESTING} deep"
_NAMES = {list: "a list", str: "a string", int: "a number", float: "a number", bool: "a boolean", type(None): "null"}


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise InvalidRequestError("the body has an object with the same key twice")
    return result


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidRequestError(f"the body has a number beyond 1e308: {text[:40]}")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise InvalidRequestError(f"the body has {name}, which is no number in JSON")


_decode = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_refuse_constant).decode


def _nests_too_deeply(value: dict[str, Any]) -> bool:
    level: list[Any] = [value]
    for _ in range(MAX_NESTING):
        inner: list[Any] = []
        for container in level:
            members = container.values() if isinstance(container, dict) else container
            inner.extend(member for member in members if isinstance(member, (dict, list)))
        if not inner:
            return False
        level = inner
    return True
