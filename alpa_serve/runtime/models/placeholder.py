"""Text that stands for an answer, and when its pieces come."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

MOST_WORDS = 4096
"""Words that are built at a time, whatever number of tokens was asked for."""

SHORTEST_PAUSE_S = 0.010
"""Seconds between pieces of a stream: tokens that come closer are joined, so that streams do not cost the CPU."""


def placeholder_text(tokens: int, *, goes_on: bool = False) -> str:
    """Return text of one word per token, but of at most :data:`MOST_WORDS` words.

    Parameters
    ----------
    tokens : int
        Tokens >= 0.
    goes_on : bool
        Whether other text comes before it.
    """
    text = " ".join(["token"] * min(tokens, MOST_WORDS))
    return f" {text}" if goes_on and text else text


def pieces(begin: float, end: float, first_share: float, tokens: int) -> Iterator[tuple[float, int]]:
    """Yield when each piece of an answer comes and how many tokens it has.

    The first token comes on time, the last at `end`; those between are evenly apart, and late by less than
    :data:`SHORTEST_PAUSE_S` where they are joined.

    Parameters
    ----------
    begin, end : float
        Seconds when service begins and ends.
    first_share : float
        Share of the service, on [0, 1], that is over when the first token comes.
    tokens : int
        Tokens >= 0.
    """
    if tokens == 0:
        return
    first = begin + first_share * (end - begin)
    step = (end - first) / max(tokens - 1, 1)
    due, sent = (first, 0) if tokens > 1 else (end, 0)
    # a service of no time has no steps, nor has one that is too short for floats to part
    while sent < tokens - 1 and due < end and step > 0:
        # rounding must not leave a token that is due for the next piece
        there = min(int((due - first) / step + 1e-6) + 1, tokens - 1)
        yield due, max(there - sent, 1)
        sent = max(there, sent + 1)
        due = max(first + sent * step, due + SHORTEST_PAUSE_S)
    yield end, tokens - sent
