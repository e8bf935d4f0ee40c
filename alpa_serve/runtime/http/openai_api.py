"""OpenAI's API: completions and chats, whole or streamed, and the list of models."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import ModelNotFoundError
from alpa_serve.runtime.http.errors import error_event
from alpa_serve.runtime.http.openai_answers import AnswerWriter
from alpa_serve.runtime.http.openai_messages import ChatCompletionRequest, CompletionRequest, Message, parse_message
from alpa_serve.runtime.http.replies import (
    EVENT_STREAM_TYPE,
    JSON_TYPE,
    HttpReply,
    encode_answer,
    json_reply,
    make_reply,
    stream_headers,
)
from alpa_serve.runtime.request import CHAT_COMPLETIONS, COMPLETIONS, ServeRequest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import Receive, Send

    from alpa_serve.runtime.dispatcher import Dispatcher, ModelCard
    from alpa_serve.runtime.http.exchange import Exchange

OWNER = "alpa_serve"


class OpenAIApi:
    """The handlers of OpenAI's endpoints.

    Parameters
    ----------
    dispatcher : Dispatcher
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def list_models(self, exchange: Exchange) -> HttpReply:
        """``GET /v1/models``."""
        return json_reply({"object": "list", "data": [_model_object(card) for card in self._dispatcher.model_cards()]})

    def describe_model(self, name: str) -> HttpReply:
        """``GET /v1/models/{model}``."""
        for card in self._dispatcher.model_cards():
            if card.name == name:
                return json_reply(_model_object(card))
        raise ModelNotFoundError(f"there is no model {name[:60]!r}")

    async def complete(self, exchange: Exchange) -> HttpReply | None:
        """``POST /v1/completions``."""
        return await self._generate(exchange, CompletionRequest, COMPLETIONS)

    async def chat(self, exchange: Exchange) -> HttpReply | None:
        """``POST /v1/chat/completions``."""
        return await self._generate(exchange, ChatCompletionRequest, CHAT_COMPLETIONS)

    async def _generate(self, exchange: Exchange, kind: type[Message], endpoint: str) -> HttpReply | None:
        fields = await exchange.json()
        message = parse_message(kind, fields)
        request = ServeRequest(
            fields, endpoint=endpoint, input_tokens=message.count_input(), output_tokens=message.count_output()
        )
        writer = AnswerWriter(request, includes_usage=message.includes_usage)
        if message.stream:
            await _while_connected(exchange.receive, _stream(self._dispatcher.stream(request), writer, exchange.send))
            return None
        with exchange.client:
            answer = await self._dispatcher.answer(request)
        return make_reply(encode_answer(writer.whole(answer)), JSON_TYPE)


async def _while_connected(receive: Receive, sending: Any) -> None:
    """Run `sending` until it is done, or the client leaves."""
    pump = asyncio.ensure_future(sending)
    watch = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait((pump, watch), return_when=asyncio.FIRST_COMPLETED)
        if pump.done():
            pump.result()
    finally:
        for task in (pump, watch):
            task.cancel()
        # what a model does at its end is waited for, whatever becomes of it
        await asyncio.gather(pump, watch, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _stream(pieces: AsyncIterator[Any], writer: AnswerWriter, send: Send) -> None:
    """Send `pieces` as server-sent events; errors before the first are raised, later ones sent."""
    begun = False
    try:
        try:
            async for piece in pieces:
                chunk = writer.piece(piece)
                events = b"" if chunk is None else _event(chunk)
                if not begun:
                    begun = True
                    await _begin(send)
                if events:
                    await send({"type": "http.response.body", "body": events, "more_body": True})
            events = b"".join(_event(chunk) for chunk in writer.end()) + b"data: [DONE]\n\n"
        except Exception as error:
            if not begun:
                raise
            events = _event(error_event(error))
        if not begun:
            await _begin(send)
        await send({"type": "http.response.body", "body": events, "more_body": False})
    finally:
        close = getattr(pieces, "aclose", None)
        if close is not None:
            with suppress(Exception):
                await close()


async def _begin(send: Send) -> None:
    headers = [*stream_headers(EVENT_STREAM_TYPE), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + encode_answer(content) + b"\n\n"


def _model_object(card: ModelCard) -> dict[str, Any]:
    return {"id": card.name, "object": "model", "created": card.created, "owned_by": OWNER}
