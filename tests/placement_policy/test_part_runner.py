import os
import random
import signal
import threading
import time

import numpy as np
import pytest

from alpa_serve.errors import InvalidConfigError, WorkerError
from alpa_serve.placement_policy.part_runner import LocalRunner

SECONDS_TO_NOTICE = 5


def random_walk(steps, seed, stopped):
    return float(np.random.default_rng(seed).choice(steps, 1000).cumsum().max())


def until_stopped(problem, part, stopped):
    """Return "cut" when stopped; part "quick" returns at once."""
    end = time.monotonic() + 60
    while part != "quick" and not stopped():
        assert time.monotonic() < end, "nobody stopped this part"
        time.sleep(0.005)
    return "whole" if part == "quick" else "cut"


@pytest.fixture
def no_thread_left():
    before = threading.active_count()
    yield
    assert threading.active_count() == before


@pytest.fixture
def interrupt_after():
    """Return interrupt_after(seconds): Ctrl-C for the main thread."""
    timers = []

    def start(seconds):
        timers.append(threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGINT)))
        timers[-1].start()

    yield start
    for timer in timers:
        timer.join()


STEPS = np.array([-1.0, 1.0, 2.5])


def test_results_are_those_of_the_parts_whatever_the_number_of_threads_and_the_order(no_thread_left):
    expected = {seed: random_walk(STEPS, seed, None) for seed in range(20)}
    shuffled = random.Random(0).sample(range(20), 20)
    for parts in (list(range(20)), shuffled):
        for num_threads in (1, 2, 5):
            with LocalRunner(random_walk, STEPS, num_threads) as runner:
                assert {parts[position]: result for position, result in runner.run(parts)} == expected


def test_results_come_as_parts_complete():
    def first_waits_for_second(second_is_done, part, stopped):
        if part == 0:
            assert second_is_done.wait(SECONDS_TO_NOTICE)
        else:
            second_is_done.set()
        return part

    with LocalRunner(first_waits_for_second, threading.Event()) as runner:
        assert sorted(runner.run([0, 1])) == [(0, 0), (1, 1)]
        assert [position for position, _ in runner.run([1, 1, 0])][-1] == 2


@pytest.mark.parametrize(("num_threads", "num_parts"), [(1, 3), (4, 1)])
def test_one_thread_or_one_part_runs_in_the_calling_thread(num_threads, num_parts):
    def where(problem, part, stopped):
        return threading.current_thread(), stopped()

    with LocalRunner(where, None, num_threads) as runner:
        results = [result for _, result in runner.run([None] * num_parts)]
    assert results == [(threading.main_thread(), False)] * num_parts


def test_no_parts_give_no_results():
    with LocalRunner(random_walk, STEPS) as runner:
        assert list(runner.run([])) == []


def test_the_problem_is_prepared_once():
    calls = []

    def prepare(problem):
        calls.append(problem)
        return problem + 1

    with LocalRunner(lambda problem, part, stopped: problem * part, 1, 2, prepare=prepare) as runner:
        for _ in range(2):
            assert dict(runner.run([10, 20, 30])) == {0: 20, 1: 40, 2: 60}
    assert calls == [1]


@pytest.mark.parametrize("num_threads", [1, 2])
def test_an_exception_in_a_part_is_raised_after_the_other_parts_were_stopped(num_threads, no_thread_left):
    def fail(problem, part, stopped):
        if part == "bad":
            raise KeyError("what went wrong")
        return until_stopped(problem, part, stopped)

    with LocalRunner(fail, None, num_threads) as runner:
        results = runner.run(["quick", "bad", "slow", "slow"])
        with pytest.raises(KeyError, match="what went wrong"):
            list(results)


def test_of_several_exceptions_the_first_by_position_is_raised(no_thread_left):
    def fail(problem, part, stopped):
        until_stopped(problem, "quick" if part == 1 else "slow", stopped)
        raise ValueError(f"part {part}")

    with LocalRunner(fail, None, 3) as runner, pytest.raises(ValueError, match="part 0"):
        list(runner.run(range(3)))


def test_ctrl_c_stops_the_parts_and_yields_what_they_have_before_it_is_raised(no_thread_left, interrupt_after):
    results = {}
    start = time.monotonic()

    def collect(parts):
        for position, result in runner.run(parts):
            results[position] = result
            if result == "whole":
                interrupt_after(0.2)

    with LocalRunner(until_stopped, None, 2) as runner, pytest.raises(KeyboardInterrupt):
        collect(["quick", "slow", "slow", "never begun"])
    assert results == {0: "whole", 1: "cut", 2: "cut"}
    assert time.monotonic() - start < SECONDS_TO_NOTICE


def test_ctrl_c_outranks_exceptions_of_parts_that_were_stopped(no_thread_left, interrupt_after):
    def fail(problem, part, stopped):
        until_stopped(problem, part, stopped)
        raise ValueError("stopped too early to have a result")

    with LocalRunner(fail, None, 2) as runner:
        interrupt_after(0.2)
        with pytest.raises(KeyboardInterrupt):
            list(runner.run(["slow", "slow"]))


def test_ctrl_c_in_the_callers_loop_leaves_nothing_running(no_thread_left, interrupt_after):
    def interrupted_between_results():
        with LocalRunner(until_stopped, None, 2) as runner:
            for _ in runner.run(["quick", "slow", "slow"]):
                interrupt_after(0)
                time.sleep(SECONDS_TO_NOTICE)

    with pytest.raises(KeyboardInterrupt):
        interrupted_between_results()


@pytest.mark.parametrize("end", ["results.close()", "runner.close()", "runner.run([])"])
def test_a_run_that_is_not_finished_ends(end, no_thread_left):
    runner = LocalRunner(until_stopped, None, 2)
    results = runner.run(["quick", "slow", "slow"])
    assert next(results) == (0, "whole")
    before = threading.active_count()
    eval(end)
    assert threading.active_count() < before
    assert list(results) == []


def test_a_closed_runner_says_so():
    runner = LocalRunner(random_walk, STEPS)
    runner.close()
    runner.close()
    with pytest.raises(WorkerError, match="runner is closed"):
        runner.run([1])


@pytest.mark.parametrize("num_threads", [0, -1, 1.5, "two", True])
def test_a_number_of_threads_that_is_none_is_refused(num_threads):
    with pytest.raises(InvalidConfigError, match=r"num_threads must be a whole number >= 1"):
        LocalRunner(random_walk, STEPS, num_threads)
