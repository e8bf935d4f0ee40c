"""What models answer, in the objects of OpenAI's API."""

from __future__ import annotations

import time
import uuid
from typing import TYPE_CHECKING, Any

from alpa_serve.runtime.http.openai_messages import estimate_tokens
from alpa_serve.runtime.http.replies import encode_answer
from alpa_serve.runtime.request import CHAT_COMPLETIONS

if TYPE_CHECKING:
    from alpa_serve.runtime.request import ServeRequest

PIECE_KEYS = frozenset({"text", "finish_reason", "usage"})
"""What a model that does not speak OpenAI's API can say of its answer."""


class AnswerWriter:
    """Puts what a model answers to one request into objects of OpenAI's API.

    Parameters
    ----------
    request : ServeRequest
    includes_usage : bool
        Whether a stream is to end with the count of tokens.
    """

    def __init__(self, request: ServeRequest, *, includes_usage: bool = False) -> None:
        self._request = request
        self._is_chat = request.endpoint == CHAT_COMPLETIONS
        self._includes_usage = includes_usage
        self._id = f"{'chatcmpl' if self._is_chat else 'cmpl'}-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._tokens = 0
        self._finish_reason: str | None = None
        self._usage: Any = None
        self._usage_sent = self._finished = False
        self._begun = False

    def whole(self, answer: Any) -> dict[str, Any]:
        """Return the object for an answer that comes as a whole."""
        envelope = self._envelope("chat.completion" if self._is_chat else "text_completion")
        if _has_choices(answer):
            return {**envelope, **answer, "model": self._request.model}
        fields = answer if isinstance(answer, dict) and "text" in answer else {"text": answer}
        text = _as_text(fields["text"])
        self._tokens = estimate_tokens(text)
        said: dict[str, Any] = {"text": text}
        if self._is_chat:
            said = {"message": {"role": "assistant", "content": text, "refusal": None}}
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": fields.get("finish_reason") or "stop"}
        return {**envelope, "choices": [choice], "usage": fields.get("usage") or self._count()}

    def piece(self, answer: Any) -> dict[str, Any] | None:
        """Return the object for the next piece of a stream; None if it has nothing to be sent yet."""
        if _has_choices(answer):
            return self._passed_through(answer)
        fields = answer if isinstance(answer, dict) and PIECE_KEYS & answer.keys() else {"text": answer}
        self._finish_reason = fields.get("finish_reason") or self._finish_reason
        self._usage = fields.get("usage") or self._usage
        if fields.get("text") is None:
            return None
        text = _as_text(fields["text"])
        self._tokens += estimate_tokens(text)
        return self._chunk(text, None)

    def end(self) -> list[dict[str, Any]]:
        """Return the objects that end a stream: why it ended, and the count of tokens if that was asked for."""
        chunks = []
        if not self._finished:
            chunks.append(self._chunk("", self._finish_reason or "stop"))
        if self._includes_usage and not self._usage_sent:
            chunks.append({**self._piece_envelope(), "choices": [], "usage": self._usage or self._count()})
        return chunks

    def _passed_through(self, answer: dict[str, Any]) -> dict[str, Any]:
        choices = answer["choices"]
        chunk = {**self._piece_envelope(), **answer, "model": self._request.model}
        if self._is_chat:
            # a model that does not stream answers with a whole message where a stream has its next part
            chunk["choices"] = choices = [_with_delta(choice) for choice in choices]
            chunk["object"] = "chat.completion.chunk"
        self._finished = self._finished or any(
            isinstance(choice, dict) and choice.get("finish_reason") is not None for choice in choices
        )
        if chunk.get("usage") is not None:
            self._usage = chunk["usage"]
            if choices:
                # counted once, in the piece without choices that ends the stream
                chunk["usage"] = None
            else:
                self._usage_sent = True
        return chunk

    def _chunk(self, text: str, finish_reason: str | None) -> dict[str, Any]:
        said: dict[str, Any] = {"text": text}
        if self._is_chat:
            delta = {} if self._begun else {"role": "assistant"}
            said = {"delta": {**delta, "content": text} if finish_reason is None else delta}
        self._begun = True
        choice = {"index": 0, **said, "logprobs": None, "finish_reason": finish_reason}
        return {**self._piece_envelope(), "choices": [choice]}

    def _piece_envelope(self) -> dict[str, Any]:
        envelope = self._envelope("chat.completion.chunk" if self._is_chat else "text_completion")
        return {**envelope, "usage": None} if self._includes_usage else envelope

    def _envelope(self, kind: str) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._request.model}

    def _count(self) -> dict[str, int]:
        prompt = self._request.input_tokens or 0
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._tokens,
            "total_tokens": prompt + self._tokens,
        }


def _has_choices(answer: Any) -> bool:
    return isinstance(answer, dict) and isinstance(answer.get("choices"), list)


def _with_delta(choice: Any) -> Any:
    if not isinstance(choice, dict) or "delta" in choice or "message" not in choice:
        return choice
    return {("delta" if key == "message" else key): value for key, value in choice.items()}


def _as_text(answer: Any) -> str:
    return answer if isinstance(answer, str) else encode_answer(answer).decode("ascii")
