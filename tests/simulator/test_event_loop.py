import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError
from alpa_serve.simulator.event_loop import (
    Signal,
    clock,
    current_loop,
    main_loop,
    run_event_loop,
    sleep,
    sleep_until,
    timed_coroutine,
    wait_multi_stream,
    wait_stream,
)


def noting(log):
    """Return a coroutine function that sleeps and then notes its name and the time."""

    async def note(name, *naps):
        for nap in naps:
            await sleep(nap)
            log.append((name, clock()))

    return note


def test_a_run_starts_at_time_zero_and_returns_the_result():
    async def work():
        assert clock() == 0.0
        await sleep(2.5)
        await sleep(0)
        return clock()

    assert run_event_loop(work()) == 2.5
    assert run_event_loop(work()) == 2.5


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20))
def test_coroutines_go_on_in_the_order_of_time_and_ties_in_the_order_of_asking(naps):
    log = []
    note = noting(log)

    async def main():
        for number, nap in enumerate(naps):
            current_loop().spawn(note(number, nap))

    run_event_loop(main())
    assert log == [(number, nap) for number, nap in sorted(enumerate(naps), key=lambda pair: pair[1])]


def test_a_run_ends_when_everything_that_was_started_has_ended():
    log = []

    async def main():
        current_loop().spawn(noting(log)("late", 10.0))
        return "early"

    assert run_event_loop(main()) == "early"
    assert log == [("late", 10.0)]


def test_a_task_gives_its_result_to_all_who_await_it_before_or_after_its_end():
    async def work():
        await sleep(1)
        return "result"

    async def main():
        task = current_loop().spawn(work())
        others = [current_loop().spawn(ask(task, nap)) for nap in (0, 1, 5)]
        return [await other for other in others]

    async def ask(task, nap):
        await sleep(nap)
        return await task, clock()

    assert run_event_loop(main()) == [("result", 1), ("result", 1), ("result", 5)]


def test_a_signal_wakes_all_who_wait_and_holds_up_nobody_after():
    log = []

    async def wait(name, signal):
        await signal
        log.append((name, clock()))

    async def main():
        signal = Signal()
        for name in "ab":
            current_loop().spawn(wait(name, signal))
        await sleep(3)
        signal.give()
        await wait("c", signal)

    run_event_loop(main())
    assert log == [("c", 3), ("a", 3), ("b", 3)]


def test_a_stream_does_one_thing_after_the_other_in_the_order_of_asking():
    log = []

    async def use(name, arrival, seconds):
        await sleep(arrival)
        await wait_stream("stream", seconds)
        log.append((name, clock()))

    async def main():
        for use_of in (use("a", 0, 2), use("b", 1, 3), use("c", 1, 1), use("d", 10, 1)):
            current_loop().spawn(use_of)

    run_event_loop(main())
    assert log == [("a", 2), ("b", 5), ("c", 6), ("d", 11)]


def test_work_on_several_streams_begins_when_all_are_free_and_ends_with_the_longest():
    async def main():
        loop = current_loop()
        loop.spawn(wait("x", 2))
        await sleep(1)
        await wait_multi_stream(["x", "y"], [1, 4])
        ended = clock()
        await wait_stream("x", 1)
        return ended, clock(), loop.free_at

    async def wait(name, seconds):
        await wait_stream(name, seconds)

    # from 2 s on, x works until 3 s and y until 6 s; x then is free at once
    assert run_event_loop(main()) == (6, 7, {"x": 7, "y": 6})


def test_a_timed_coroutine_begins_when_its_call_says():
    log = []

    @timed_coroutine
    async def note(name):
        log.append((name, clock()))
        return name.upper()

    async def main():
        await sleep(1)
        tasks = [note("at", tstamp=5), note("later", delay=2), note("now")]
        return [await task for task in tasks]

    assert run_event_loop(main()) == ["AT", "LATER", "NOW"]
    assert log == [("now", 1), ("later", 3), ("at", 5)]


def test_the_main_loop_runs_what_was_asked_for_outside_of_any_loop():
    log = []

    @timed_coroutine
    async def note(name):
        await sleep(1)
        log.append((name, clock()))

    note("b", tstamp=4)
    note("a", delay=2)
    assert log == []
    main_loop()
    assert log == [("a", 3), ("b", 5)]
    main_loop()
    assert len(log) == 2


def test_runs_can_be_nested_without_disturbing_each_other():
    async def inner():
        await wait_stream("stream", 7)
        return clock()

    async def outer():
        await sleep(1)
        await wait_stream("stream", 2)
        seen = run_event_loop(inner())
        after = clock()
        await sleep(1)
        return seen, after, clock(), current_loop().free_at

    assert run_event_loop(outer()) == (7, 3, 4, {"stream": 3})


def test_runs_in_several_threads_do_not_disturb_each_other():
    barrier = threading.Barrier(4)

    async def count(step):
        barrier.wait()
        for _ in range(500):
            await wait_stream("stream", step)
        return clock()

    with ThreadPoolExecutor(4) as pool:
        ends = pool.map(lambda step: run_event_loop(count(step)), [1.0, 2.0, 3.0, 4.0])
    assert list(ends) == [500, 1000, 1500, 2000]


def test_an_error_that_nobody_awaits_ends_the_run_and_closes_the_others():
    closed = []

    async def fail():
        await sleep(1)
        raise ValueError("broken")

    async def last():
        try:
            await sleep(100)
        finally:
            closed.append(True)

    async def main():
        current_loop().spawn(last())
        current_loop().spawn(fail())
        await sleep(50)

    with pytest.raises(ValueError, match="broken"):
        run_event_loop(main())
    assert closed == [True]
    with pytest.raises(RuntimeError, match="no event loop"):
        clock()


def test_an_error_reaches_those_who_await_the_task():
    async def fail():
        await sleep(1)
        raise ValueError("broken")

    async def main():
        try:
            await current_loop().spawn(fail())
        except ValueError as error:
            return f"caught {error} at {clock():g}"

    assert run_event_loop(main()) == "caught broken at 1"


def test_the_error_of_the_coroutine_itself_is_raised():
    async def fail():
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        run_event_loop(fail())


def test_waiting_for_what_never_comes_is_an_error():
    async def hang():
        await Signal()

    with pytest.raises(RuntimeError, match=r"1 coroutines wait for what never comes: .*hang"):
        run_event_loop(hang())


def test_coroutines_that_wait_for_each_other_are_told_and_closed():
    tasks, closed = {}, []

    async def wait_for(name):
        try:
            await sleep(1)
            await tasks[name]
        finally:
            closed.append(name)

    async def main():
        for name, other in (("a", "b"), ("b", "a")):
            tasks[name] = current_loop().spawn(wait_for(other))

    with pytest.raises(RuntimeError, match=r"2 coroutines wait for what never comes: .*wait_for"):
        run_event_loop(main())
    assert sorted(closed) == ["a", "b"]


def test_an_error_closes_those_who_wait_for_others_and_is_not_hidden_by_what_they_raise_then(caplog):
    async def fail():
        await sleep(1)
        raise ValueError("the cause")

    async def wait():
        try:
            await Signal()
        finally:
            raise KeyError("while closing")

    async def main():
        current_loop().spawn(wait())
        current_loop().spawn(fail())

    with pytest.raises(ValueError, match="the cause"):
        run_event_loop(main())
    assert "failed while it was closed" in caplog.text


def test_the_main_loop_inside_a_loop_is_an_error():
    async def main():
        main_loop()

    with pytest.raises(RuntimeError, match="running already"):
        run_event_loop(main())


def test_work_on_streams_tells_when_it_began():
    async def main():
        current_loop().spawn(wait_stream("x", 2))
        await sleep(1)
        one = await wait_stream("x", 1)
        return one, await wait_multi_stream(["x", "y"], [1, 1])

    assert run_event_loop(main()) == (2, 3)


@pytest.mark.parametrize("seconds", [-1e-9, float("nan"), float("inf"), "1", None])
def test_a_sleep_must_be_a_finite_time_that_is_not_negative(seconds):
    async def nap():
        await sleep(seconds)

    async def work():
        await wait_stream("x", seconds)

    async def work_on_two():
        await wait_multi_stream(["x", "y"], [1, seconds])

    for wrong in (nap, work, work_on_two):
        with pytest.raises(InvalidConfigError, match="must be a finite number >= 0"):
            run_event_loop(wrong())


def test_streams_and_seconds_must_go_together():
    async def work(names, seconds):
        await wait_multi_stream(names, seconds)

    for names, seconds in ((["x"], [1, 2]), ([], [])):
        with pytest.raises(InvalidConfigError, match="as many seconds as streams"):
            run_event_loop(work(names, seconds))


def test_a_coroutine_cannot_begin_in_the_past():
    @timed_coroutine
    async def note():
        pass

    async def main(**when):
        await sleep(2)
        note(**when)

    for when in ({"tstamp": 1.9}, {"delay": -1}, {"tstamp": float("nan")}):
        with pytest.raises(InvalidConfigError, match="cannot begin at"):
            run_event_loop(main(**when))
    with pytest.raises(InvalidConfigError, match="not both"):
        run_event_loop(main(tstamp=3, delay=1))


def test_sleeping_until_a_time_that_is_past_does_not_wait():
    async def main():
        await sleep(2)
        await sleep_until(1)
        await sleep_until(3)
        return clock()

    assert run_event_loop(main()) == 3
