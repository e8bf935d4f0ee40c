import asyncio
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import ModelFailedError
from alpa_serve.runtime.models.sse import event_data

STREAM = b": hello\ndata: one\n\nevent: x\ndata:two\ndata:  three\r\n\r\nid: 7\n\ndata\n\ndata: four\n\n\n"
EVENTS = [b"one", b"two\n three", b"four"]


def read(chunks, **options):
    async def main():
        async def sent():
            for chunk in chunks:
                yield chunk

        return [data async for data in event_data(sent(), **options)]

    return asyncio.run(main())


@given(st.lists(st.integers(0, len(STREAM)), max_size=8))
def test_events_are_the_same_however_the_stream_is_cut(cuts):
    cuts = [0, *sorted(cuts), len(STREAM)]
    assert read([STREAM[start:end] for start, end in pairwise(cuts)]) == EVENTS


def test_an_event_at_the_end_needs_no_empty_line():
    assert read([b"data: one\n\ndata: two"]) == [b"one", b"two"]


@pytest.mark.parametrize("chunks", [[b"data: " + b"x" * 100], [b"x"] * 100, [b"data: 1\n" * 20]])
def test_an_event_that_is_too_long_ends_the_reading(chunks):
    with pytest.raises(ModelFailedError, match="more than 50 bytes"):
        read(chunks, longest=50)
