"""How long a request takes by its tokens: prefill and decode time of a model on a parallel configuration."""

from __future__ import annotations

from dataclasses import dataclass

from alpa_serve.errors import InvalidProfileError, InvalidWorkloadError
from alpa_serve.validation import check_int, check_real


@dataclass(frozen=True)
class PrefillDecode:
    """How long a request takes by its tokens: L(n) = prefill_s + n * decode_s_per_token for n output tokens.

    The first output token comes out of the prefill, and the prefill is proportional to the prompt. So with

        first_token_s = (prefill_s + decode_s_per_token) * input_tokens / prompt_tokens

    n output tokens take first_token_s + (n - 1) * decode_s_per_token: L(n) for a prompt of `prompt_tokens`. Where the
    length of the measured prompts is not known, first_token_s is prefill_s + decode_s_per_token for every prompt.

    Attributes
    ----------
    prefill_s : float
        Seconds >= 0, the part of the measured latency that does not grow with the output.
    decode_s_per_token : float
        Seconds >= 0 per output token.
    prompt_tokens : int or None
        Tokens >= 1 of the prompts it was measured with; None if not known.

    Raises
    ------
    InvalidProfileError
        If a figure is out of its range.
    """

    prefill_s: float
    decode_s_per_token: float
    prompt_tokens: int | None

    def __post_init__(self) -> None:
        # kept as plain numbers, whatever kind was given: pickles hold them as they are
        for name in ("prefill_s", "decode_s_per_token"):
            seconds = check_real(getattr(self, name), name, minimum=0.0, error=InvalidProfileError)
            object.__setattr__(self, name, seconds)
        if self.prompt_tokens is not None:
            tokens = check_int(self.prompt_tokens, "prompt_tokens", minimum=1, error=InvalidProfileError)
            object.__setattr__(self, "prompt_tokens", tokens)

    @property
    def coefficients(self) -> tuple[float, float, float]:
        """(fixed_s, s_per_input_token, s_per_further_token), the linear form of the service time.

        A request takes fixed_s + s_per_input_token * input_tokens + s_per_further_token * further_tokens, where
        further_tokens are the output tokens after the first: max(output_tokens - 1, 0).
        """
        first_s = self.prefill_s + self.decode_s_per_token
        if self.prompt_tokens is None:
            return first_s, 0.0, self.decode_s_per_token
        return 0.0, first_s / self.prompt_tokens, self.decode_s_per_token

    def first_token_s(self, input_tokens: int) -> float:
        """Return the seconds from the start of service to the first output token.

        Parameters
        ----------
        input_tokens : int
            Tokens >= 0 of the prompt.

        Raises
        ------
        InvalidWorkloadError
            If `input_tokens` is no whole number >= 0.
        """
        return self.service_s(input_tokens, 1)

    def service_s(self, input_tokens: int, output_tokens: int) -> float:
        """Return the seconds from the start of service to the last output token.

        Parameters
        ----------
        input_tokens, output_tokens : int
            Tokens >= 0. Without output the prefill still runs, and takes as long as to the first token.

        Raises
        ------
        InvalidWorkloadError
            If a number of tokens is no whole number >= 0.
        """
        input_tokens = check_int(input_tokens, "input_tokens", minimum=0, error=InvalidWorkloadError)
        output_tokens = check_int(output_tokens, "output_tokens", minimum=0, error=InvalidWorkloadError)
        fixed_s, s_per_input_token, s_per_further_token = self.coefficients
        return fixed_s + s_per_input_token * input_tokens + s_per_further_token * max(output_tokens - 1, 0)
