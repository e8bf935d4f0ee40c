"""The application: who may ask what where.

It is plain ASGI. AlpaServe's ``POST /`` is measured against other servers, and a framework's layers of middleware,
request objects and validation would cost it more than all that is done here.
"""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

from alpa_serve.errors import InvalidRequestError, RequestRejectedError
from alpa_serve.runtime.http.errors import (
    AUTHENTICATION,
    SERVER,
    ClientGoneError,
    HttpError,
    error_reply,
    http_error_reply,
    retry_after,
)
from alpa_serve.runtime.http.exchange import Exchange, Head
from alpa_serve.runtime.http.openai_api import OpenAIApi
from alpa_serve.runtime.http.openapi import naming_models, openapi_document
from alpa_serve.runtime.http.replies import JSON_TYPE, HttpReply, encode_answer, json_reply, make_reply
from alpa_serve.runtime.metrics import CONTENT_TYPE
from alpa_serve.runtime.request import ServeRequest

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

    from alpa_serve.runtime.dispatcher import Dispatcher
    from alpa_serve.runtime.settings import ServerSettings

Handler = Callable[[Exchange], Awaitable[HttpReply | None]]

_REJECTED = json_reply({"rejected": True})
_GONE = http_error_reply(HttpError(400, "client_gone", "the client left"))


def build_app(dispatcher: Dispatcher, settings: ServerSettings) -> ASGIApp:
    """Return the ASGI application that has requests answered by `dispatcher`.

    It is to be served by :class:`~alpa_serve.runtime.http.server.HttpServer`, whose connections tell it when clients
    leave. All its routes are under ``settings.root_path``: AlpaServe's ``POST /``, OpenAI's ``/v1/models``,
    ``/v1/completions`` and ``/v1/chat/completions``, and ``/healthz``, ``/metrics`` and ``/openapi.json``.
    """
    return _App(dispatcher, settings)


class _App:
    def __init__(self, dispatcher: Dispatcher, settings: ServerSettings) -> None:
        self._dispatcher = dispatcher
        self._settings = settings
        self._openai = openai = OpenAIApi(dispatcher)
        self._token = None if settings.api_key is None else settings.api_key.encode("ascii")
        base = settings.root_path.rstrip("/")
        self._openapi = openapi_document(base, needs_token=self._token is not None)
        self._health_path = f"{base}/healthz"
        self._model_prefix = f"{base}/v1/models/"
        self._routes: dict[str, dict[str, Handler]] = {
            f"{base}/": {"POST": self._answer},
            f"{base}/v1/completions": {"POST": openai.complete},
            f"{base}/v1/chat/completions": {"POST": openai.chat},
            f"{base}/v1/models": {"GET": openai.list_models},
            self._health_path: {"GET": self._health},
            f"{base}/metrics": {"GET": self._metrics},
            f"{base}/openapi.json": {"GET": self._describe},
        }
        if base:
            self._routes[base] = self._routes[f"{base}/"]
        self._model_route: dict[str, Handler] = {"GET": self._model}
        for route in (*self._routes.values(), self._model_route):
            if "GET" in route:
                route["HEAD"] = route["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise RuntimeError(f"only HTTP is served, not {scope['type']}")
        expects = False
        try:
            head = Head.read(scope)
            expects = head.expects
            exchange = Exchange(scope, receive, send, head, self._settings.max_body_bytes)
            reply = await self._find(exchange)(exchange)
        except ClientGoneError:
            # it goes nowhere, but uvicorn takes a request without an answer for an error of the server
            reply = _GONE
        except asyncio.CancelledError:
            # the server is done with draining, and this task has nobody above it who would want to know
            reply = http_error_reply(
                HttpError(
                    503,
                    "shutting_down",
                    "the server was shut down before the request was answered",
                    type=SERVER,
                    headers=[retry_after(self._settings)],
                )
            )
        except Exception as error:
            reply = error_reply(error, self._settings)
        if reply is None:
            return
        status, headers, body = reply
        if status >= 400:
            self._dispatcher.count_error(status)
        if expects and status >= 400:
            # the client may skip its body now, or not; what comes next on this connection could be either
            headers = [*headers, (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _find(self, exchange: Exchange) -> Handler:
        path = exchange.scope["path"]
        if self._token is not None and path != self._health_path:
            self._check_token(exchange.head.authorization)
        route = self._routes.get(path)
        if route is None:
            if not path.startswith(self._model_prefix):
                raise HttpError(404, "not_found", f"there is nothing at {path[:100]}")
            route = self._model_route
        handler = route.get(exchange.scope["method"])
        if handler is None:
            allowed = ", ".join(route)
            raise HttpError(
                405,
                "method_not_allowed",
                f"{path[:100]} takes {allowed}",
                headers=[(b"allow", allowed.encode("ascii"))],
            )
        return handler

    def _check_token(self, authorization: bytes) -> None:
        scheme, _, given = authorization.partition(b" ")
        assert self._token is not None
        if scheme.lower() != b"bearer" or not hmac.compare_digest(given.strip(), self._token):
            raise HttpError(
                401,
                "invalid_api_key",
                "the header Authorization must be: Bearer, and the API key of this server",
                type=AUTHENTICATION,
                headers=[(b"www-authenticate", b"Bearer")],
            )

    async def _answer(self, exchange: Exchange) -> HttpReply:
        fields = await exchange.json()
        query = exchange.scope["query_string"]
        request = ServeRequest(fields, model=_model_in(query) if query else None)
        try:
            with exchange.client:
                answer = await self._dispatcher.answer(request)
        except RequestRejectedError:
            return _REJECTED
        return make_reply(encode_answer(answer), JSON_TYPE)

    async def _model(self, exchange: Exchange) -> HttpReply:
        return self._openai.describe_model(exchange.scope["path"][len(self._model_prefix) :])

    async def _health(self, exchange: Exchange) -> HttpReply:
        health = self._dispatcher.health()
        if health.status in ("starting", "draining", "unavailable"):
            return json_reply(health._asdict(), 503, [retry_after(self._settings)])
        return json_reply(health._asdict())

    async def _metrics(self, exchange: Exchange) -> HttpReply:
        return make_reply(self._dispatcher.metrics(), CONTENT_TYPE)

    async def _describe(self, exchange: Exchange) -> HttpReply:
        names = [card.name for card in self._dispatcher.model_cards()]
        return json_reply(naming_models(self._openapi, names))


def _model_in(query: bytes) -> str | None:
    """Return the model that the query names, if it names one."""
    try:
        pairs = parse_qsl(query.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=100)
    except ValueError:
        raise InvalidRequestError("the query must be name=value pairs in percent-encoded UTF-8") from None
    models = [value for name, value in pairs if name == "model"]
    if len(models) > 1 or models == [""]:
        raise InvalidRequestError('the query must have one "model" at most, with the name of a model')
    return models[0] if models else None
