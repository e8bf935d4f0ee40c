import asyncio

import pytest

from alpa_serve.runtime.models.sleeper import LARGEST_LEAD_S, Sleeper


def test_it_wakes_exactly_on_a_loop_that_is_never_late(virtual_time):
    async def main():
        sleeper, loop = Sleeper(), asyncio.get_running_loop()
        for when in (0.1, 0.7, 0.70001, 100.0):
            await sleeper.sleep_until(when)
            assert loop.time() == when
        await sleeper.sleep_until(50.0)
        return loop.time(), sleeper.lead_s

    assert virtual_time(main()) == (100.0, 0.0)


def test_timers_are_set_earlier_by_the_lateness_that_was_measured(virtual_time):
    late_s = 0.001

    async def main():
        sleeper, loop = Sleeper(), asyncio.get_running_loop()
        plain = loop.call_at
        loop.call_at = lambda when, *call: plain(when + late_s, *call)
        for step in range(1, 101):
            await sleeper.sleep_until(step)
        return loop.time()

    assert virtual_time(main()) == pytest.approx(100.0, abs=late_s / 100)


def test_a_busy_loop_does_not_make_it_wake_too_early(virtual_time):
    async def main():
        sleeper, loop = Sleeper(), asyncio.get_running_loop()
        plain = loop.call_at
        loop.call_at = lambda when, *call: plain(when + 0.5, *call)
        for step in range(1, 101):
            await sleeper.sleep_until(step)
        return sleeper.lead_s

    assert virtual_time(main()) == pytest.approx(LARGEST_LEAD_S, rel=0.01)


def test_a_sleep_that_is_cancelled_leaves_no_timer(virtual_time):
    async def main():
        task = asyncio.ensure_future(Sleeper().sleep_until(1000.0))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(2000)

    virtual_time(main())
