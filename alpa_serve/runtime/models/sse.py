"""Reading server-sent events: what a server sends piece by piece over HTTP.

References
----------
WHATWG HTML Living Standard, section 9.2, "Server-sent events".
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpa_serve.errors import ModelFailedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

LONGEST_EVENT_BYTES = 1 << 20
"""Longest event that is read; one of OpenAI's API has a few hundred bytes."""


async def event_data(chunks: AsyncIterable[bytes], longest: int = LONGEST_EVENT_BYTES) -> AsyncIterator[bytes]:
    """Yield the data of each event, several lines joined; comments and other fields are passed over.

    Parameters
    ----------
    chunks : async iterable of bytes
        The stream, cut anywhere.
    longest : int
        Bytes that an event may have.

    Raises
    ------
    ModelFailedError
        If an event is longer.
    """
    data: list[bytes] = []
    size = 0
    async for line in _lines(chunks, longest):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
            size += len(line)
            _check_size(size, longest)
        elif not line and data:
            yield b"\n".join(data)
            data, size = [], 0
    if data:
        # the standard drops an event without the empty line behind it; servers leave that out at the end
        yield b"\n".join(data)


async def _lines(chunks: AsyncIterable[bytes], longest: int) -> AsyncIterator[bytes]:
    """Yield the lines of a stream without their ends."""
    rest = bytearray()
    async for chunk in chunks:
        rest += chunk
        if b"\n" in chunk:
            *lines, last = rest.split(b"\n")
            rest = last
            for line in lines:
                yield bytes(line.removesuffix(b"\r"))
        _check_size(len(rest), longest)
    if rest:
        yield bytes(rest.removesuffix(b"\r"))


def _check_size(size: int, longest: int) -> None:
    if size > longest:
        raise ModelFailedError(f"the server behind the model sent an event of more than {longest} bytes")
