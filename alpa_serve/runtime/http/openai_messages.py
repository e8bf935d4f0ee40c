"""The requests of OpenAI's API that are forwarded to models: what of them is checked.

Whatever else a request has is left to the model, so all fields that are not named here are allowed.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from alpa_serve.errors import InvalidRequestError
from alpa_serve.runtime.request import LARGEST_TOKEN_COUNT

CHARACTERS_PER_TOKEN = 4
"""Rule of thumb for English text, by which prompts and answers are counted that nobody counted better."""

DEFAULT_OUTPUT_TOKENS = 16
"""What a request that does not say gets; OpenAI's default for completions."""

TokenCount = Annotated[int, Field(ge=0, le=LARGEST_TOKEN_COUNT)]
Token = Annotated[int, Field(ge=0)]


class _Message(BaseModel):
    # strict: "yes" is no boolean, and "16" no number, to any model behind this
    model_config = ConfigDict(extra="allow", strict=True, protected_namespaces=())


class StreamOptions(_Message):
    """What a stream has beside the answer."""

    include_usage: bool | None = Field(None, description="whether the last piece counts the tokens")


class _GenerationRequest(_Message):
    model: str = Field(min_length=1, description="the name of a model")
    stream: bool | None = Field(None, description="whether the answer comes piece by piece")
    stream_options: StreamOptions | None = Field(None, description="an object")
    n: Literal[1] | None = Field(None, description="1, as one answer is made per request")
    max_tokens: TokenCount | None = Field(None, description="the most tokens that the answer may have")
    slo: Annotated[float, Field(ge=0)] | None = Field(
        None, description="seconds from submit_time within which the answer is wanted"
    )
    submit_time: float | None = Field(None, description="when the request was sent, in Unix seconds")
    input_tokens: TokenCount | None = Field(None, description="tokens of the prompt, if known")
    output_tokens: TokenCount | None = Field(None, description="tokens of the answer, if known")

    @property
    def includes_usage(self) -> bool:
        """Whether a stream is to end with the count of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def count_output(self) -> int:
        """Return how many tokens the answer will have."""
        return DEFAULT_OUTPUT_TOKENS if self.max_tokens is None else self.max_tokens


_One = Field(min_length=1, max_length=1)


class CompletionRequest(_GenerationRequest):
    """Body of ``POST /v1/completions``."""

    prompt: str | list[Token] | Annotated[list[str], _One] | Annotated[list[list[Token]], _One] = Field(
        description="one prompt: a string or a list of tokens, or a list of one of them"
    )

    def count_input(self) -> int:
        """Return how many tokens the prompt has: exactly if it is given as tokens, or else about."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            prompt = prompt[0]
        return estimate_tokens(prompt) if isinstance(prompt, str) else len(prompt)


class ContentPart(_Message):
    """A part of what is said: text, or something that only the model knows how to count."""

    type: str = Field(description="what it is")
    text: str | None = Field(None, description="text")


class ChatMessage(_Message):
    """What somebody says in a chat."""

    role: str = Field(description="who says it")
    content: str | list[ContentPart] | None = Field(None, description="text, or a list of parts")

    def count_characters(self) -> int:
        """Return the length of the text in it."""
        if isinstance(self.content, list):
            return sum(len(part.text or "") for part in self.content)
        return len(self.content or "")


class ChatCompletionRequest(_GenerationRequest):
    """Body of ``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1, description="what was said: objects with role and content")
    max_completion_tokens: TokenCount | None = Field(None, description="the most tokens that the answer may have")

    def count_input(self) -> int:
        """Return about how many tokens the messages have."""
        return _tokens_of(sum(message.count_characters() for message in self.messages))

    def count_output(self) -> int:
        """Return how many tokens the answer will have."""
        return super().count_output() if self.max_completion_tokens is None else self.max_completion_tokens


Message = CompletionRequest | ChatCompletionRequest


def parse_message(kind: type[Message], fields: dict[str, Any]) -> Message:
    """Return `fields` as a checked message of `kind`.

    Raises
    ------
    InvalidRequestError
        Naming the field, what is wrong with it and what would be right.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        name = str(first["loc"][0])
        wanted = kind.model_fields[name].description
        raise InvalidRequestError(f'"{name}" must be {wanted}: {first["msg"]}') from None


def estimate_tokens(text: str) -> int:
    """Return about how many tokens `text` has."""
    return _tokens_of(len(text))


def _tokens_of(characters: int) -> int:
    return -(-characters // CHARACTERS_PER_TOKEN)
