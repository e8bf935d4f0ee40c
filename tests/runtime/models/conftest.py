"""A clock that jumps: what takes hours on emulated devices is tested in no time, and to the last digit."""

import asyncio
import math
import selectors
from unittest import mock

import pytest


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing, but puts the clock of its loop to the next timer."""

    loop = None

    def select(self, timeout=None):
        if timeout is None:
            raise RuntimeError("nothing will ever happen on this loop")
        if timeout > 0:
            self.loop.now = self.loop._scheduled[0].when()
            # the loop runs timers before now plus this: those of now, but none later
            self.loop._clock_resolution = math.ulp(self.loop.now)
        return super().select(0)


class _VirtualLoop(asyncio.SelectorEventLoop):
    def __init__(self):
        selector = _JumpingSelector()
        selector.loop = self
        self.now = 0.0
        super().__init__(selector)
        self._clock_resolution = math.ulp(0.0)

    def time(self):
        return self.now


@pytest.fixture(scope="session")
def virtual_time():
    """Return virtual_time(coroutine) -> its result, on a loop and with a `time.time` that start at 0 and jump."""

    def run(main):
        loop = _VirtualLoop()
        try:
            with mock.patch("time.time", loop.time):
                result = loop.run_until_complete(main)
                assert not asyncio.all_tasks(loop)
                return result
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    return run


@pytest.fixture(scope="session")
def until():
    """Return until(when), which returns exactly then."""

    async def wait(when):
        loop = asyncio.get_running_loop()
        reached = loop.create_future()
        loop.call_at(when, reached.set_result, None)
        await reached

    return wait


@pytest.fixture(scope="session")
def answers_of(until):
    """Return answers_of([(arrival, model, request fields)]) -> [(answer or error, when it came)], in that order."""
    from alpa_serve.runtime.request import ServeRequest

    async def answer(model, request):
        try:
            outcome = await model.handle_request(request)
        except Exception as error:
            outcome = error
        return outcome, asyncio.get_running_loop().time()

    async def run(arrivals):
        tasks = []
        for arrival, model, fields in arrivals:
            await until(arrival)
            request = ServeRequest(fields, model="m")
            tasks.append(asyncio.ensure_future(answer(model, request)))
        return await asyncio.gather(*tasks)

    return run
