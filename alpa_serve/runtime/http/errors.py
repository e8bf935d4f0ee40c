"""Errors as HTTP tells them: one JSON object, ``{"error": {"message", "type", "code"}}``, for every endpoint."""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, NamedTuple

from alpa_serve.errors import (
    GroupLostError,
    InvalidRequestError,
    ModelFailedError,
    ModelNotFoundError,
    OverloadedError,
    RequestRejectedError,
    RequestTimeoutError,
    ServingError,
)
from alpa_serve.runtime.http.replies import HttpReply, json_reply

if TYPE_CHECKING:
    from collections.abc import Iterable

    from alpa_serve.runtime.settings import ServerSettings

logger = logging.getLogger(__name__)

# the types that OpenAI's API has
INVALID, AUTHENTICATION, SERVER = "invalid_request_error", "authentication_error", "server_error"


class _Kind(NamedTuple):
    status: int
    type: str
    code: str
    retry: bool = False


_KINDS: dict[type[ServingError], _Kind] = {
    InvalidRequestError: _Kind(400, INVALID, "invalid_request"),
    ModelNotFoundError: _Kind(404, INVALID, "model_not_found"),
    RequestRejectedError: _Kind(503, SERVER, "slo_rejected"),
    OverloadedError: _Kind(503, SERVER, "overloaded", retry=True),
    GroupLostError: _Kind(503, SERVER, "group_lost", retry=True),
    RequestTimeoutError: _Kind(504, SERVER, "timeout"),
    ModelFailedError: _Kind(500, SERVER, "model_failed"),
}
_INTERNAL = _Kind(500, SERVER, "internal_error")

# a request that missed its SLO has missed it for good, and one that took too long would again; OpenAI's client tries
# any 5xx again unless told not to
_DO_NOT_RETRY = (b"x-should-retry", b"false")


class ClientGoneError(Exception):
    """The client closed the connection before its request was read."""


class HttpError(Exception):
    """A request is refused by the server itself.

    Parameters
    ----------
    status : int
    code : str
        For programs.
    message : str
        For people.
    type : str
    headers : iterable of (bytes, bytes)
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        type: str = INVALID,
        headers: Iterable[tuple[bytes, bytes]] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.type = type
        self.headers = list(headers)


def error_object(message: str, type: str, code: str) -> dict[str, dict[str, str]]:
    """Return the body of an error."""
    return {"error": {"message": message, "type": type, "code": code}}


def retry_after(settings: ServerSettings) -> tuple[bytes, bytes]:
    """Return the header that tells clients when to try again."""
    return b"retry-after", str(math.ceil(settings.retry_after_s)).encode("ascii")


def http_error_reply(error: HttpError) -> HttpReply:
    """Return what the client of a refused request is told."""
    return json_reply(error_object(str(error), error.type, error.code), error.status, error.headers)


def error_reply(error: Exception, settings: ServerSettings) -> HttpReply:
    """Return what the client is told of `error`; one that is not expected is logged, and only so told in detail."""
    if isinstance(error, HttpError):
        return http_error_reply(error)
    kind, message = _explain(error)
    headers = []
    if kind.retry:
        headers.append(retry_after(settings))
    if isinstance(error, (RequestRejectedError, RequestTimeoutError)):
        headers.append(_DO_NOT_RETRY)
    return json_reply(error_object(message, kind.type, kind.code), kind.status, headers)


def error_event(error: Exception) -> dict[str, dict[str, str]]:
    """Return what the client is told of an error after a stream has begun."""
    kind, message = _explain(error)
    return error_object(message, kind.type, kind.code)


def _explain(error: Exception) -> tuple[_Kind, str]:
    kind = next((_KINDS[base] for base in type(error).__mro__ if base in _KINDS), None)
    if kind is None:
        logger.error("a request failed by an unexpected error", exc_info=error)
        return _INTERNAL, "the server failed; its log says why"
    return kind, str(error)
