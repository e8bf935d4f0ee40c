"""Parts in worker processes; most tests share a Ray that this module has initialised."""

import os
import random
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from alpa_serve.errors import InvalidWorkloadError, WorkerError
from alpa_serve.placement import ClusterEnv, ModelPlacement
from alpa_serve.placement_policy import PlacementEvaluator
from alpa_serve.placement_policy.part_runner import LocalRunner
from alpa_serve.placement_policy.ray_runner import RayRunner
from alpa_serve.profiling import ParallelConfig
from alpa_serve.util import GB

pytestmark = pytest.mark.slow

MODELS = [{"profile": "test-2GB-100ms", "rate": rate, "cv": 3.0, "slo": 0.4} for rate in (3.0, 5.0, 8.0)]
STEPS = np.array([-1.0, 1.0, 2.5])
SECONDS_TO_DIE = 10


@pytest.fixture
def shared_ray(ray):
    if not ray.is_initialized():
        ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    assert ray.is_initialized(), "the runner has shut down a Ray that is not its own"


def random_walk(steps, seed, stopped):
    assert not stopped()
    return float(np.random.default_rng(seed).choice(steps, 1000).cumsum().max())


def walk_on_second_attempt(folder, seed, stopped):
    """Kill its own process the first time."""
    attempt = Path(folder) / f"{seed}"
    if seed % 2 and not attempt.exists():
        attempt.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return random_walk(STEPS, seed, stopped)


def kill_worker(problem, part, stopped):
    if part == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return part


class TwoArgumentsError(Exception):
    """Cannot be unpickled: pickle hands over one argument."""

    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")


ERRORS = {
    "builtin": KeyError("m7"),
    "ours": InvalidWorkloadError("arrivals of 'm7' are not sorted"),
    "of several arguments": TwoArgumentsError("this", "that"),
}


def fail(folder, part, stopped):
    with (Path(folder) / "attempts").open("a") as attempts:
        attempts.write(part + "\n")
    raise ERRORS[part]


def sleep_for_a_minute(folder, part, stopped):
    if part == "quick":
        return part
    (Path(folder) / f"{os.getpid()}").touch()
    for _ in range(600):
        time.sleep(0.1)


def ignore_ctrl_c(folder, part, stopped):
    if part != "quick":
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    return sleep_for_a_minute(folder, part, stopped)


def add_in_place(array, part, stopped):
    """Change the problem and say where: what a search must not do, but its kernels want to be able to."""
    array += part
    return os.getpid(), array.flags.writeable


def note_process(folder):
    """Note each call in a file of its own, and keep the processes busy until both have been here."""
    (Path(folder) / f"{os.getpid()}-{time.monotonic_ns()}").touch()
    return folder


def wait_for_two_processes(folder, part, stopped):
    end = time.monotonic() + SECONDS_TO_DIE
    while part == "meet" and len(list(Path(folder).iterdir())) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    return os.getpid()


class CountsPickling:
    def __init__(self):
        self.count = 0

    def __getstate__(self):
        self.count += 1
        return {"count": self.count}


def count_of(problem, part, stopped):
    return problem.count


def is_alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state[0] != "Z"


def descendants():
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
        except (FileNotFoundError, ProcessLookupError):
            continue
    found = {os.getpid()}
    while True:
        more = {pid for pid, parent in parents.items() if parent in found} - found
        if not more:
            return {pid for pid in found - {os.getpid()} if is_alive(pid)}
        found |= more


def assert_dead(pids):
    end = time.monotonic() + SECONDS_TO_DIE
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    assert [pid for pid in pids if is_alive(pid)] == []


def begun(folder, count):
    """Wait until `count` parts have noted the pids of their processes, and return these."""
    end = time.monotonic() + SECONDS_TO_DIE
    while len(pids := [int(path.name) for path in folder.iterdir()]) < count:
        assert time.monotonic() < end
        time.sleep(0.01)
    return pids


def interrupt_once_begun(folder, count):
    def wait_and_interrupt():
        begun(folder, count)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=wait_and_interrupt)
    thread.start()
    return thread


def test_results_are_those_of_threads_in_whatever_order_the_parts_are_given(shared_ray):
    with LocalRunner(random_walk, STEPS, 1) as one, LocalRunner(random_walk, STEPS, 2) as two:
        expected = dict(one.run(range(12)))
        assert dict(two.run(range(12))) == expected
    shuffled = random.Random(0).sample(range(12), 12)
    for num_workers in (1, 2):
        with RayRunner(random_walk, STEPS, num_workers) as runner:
            assert dict(runner.run(range(12))) == expected
            assert {shuffled[position]: result for position, result in runner.run(shuffled)} == expected
            assert list(runner.run([])) == []


def evaluator_of(problem):
    return PlacementEvaluator(*problem)


def counts_of(evaluator, models_on_first_group, stopped):
    others = [m for m in range(3) if m not in models_on_first_group]
    placement = ModelPlacement([ParallelConfig(1, 1, 2)] * 2, [list(models_on_first_group), others])
    return evaluator.evaluate(placement).model_num_good.tolist()


def test_placements_are_evaluated_alike_in_threads_and_processes(shared_ray, datas, workload):
    problem = datas, ClusterEnv(4, 9 * GB), workload
    parts = [(0,), (1,), (2,), (0, 1, 2)]
    with LocalRunner(counts_of, problem, 2, prepare=evaluator_of) as threads:
        expected = dict(threads.run(parts))
    assert len(set(map(tuple, expected.values()))) == len(parts)
    with RayRunner(counts_of, problem, 2, prepare=evaluator_of) as processes:
        assert dict(processes.run(parts)) == expected


def test_a_part_whose_worker_is_killed_is_done_again(shared_ray, tmp_path):
    with RayRunner(walk_on_second_attempt, tmp_path, 2) as runner:
        results = dict(runner.run(range(4)))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "3"]
    assert results == {seed: random_walk(STEPS, seed, bool) for seed in range(4)}


def test_a_part_that_kills_its_worker_every_time_is_named(shared_ray):
    with RayRunner(kill_worker, None, 2) as runner:
        with pytest.raises(WorkerError, match=r"part 1 of 2 \('deadly'\) was begun 4 times, .* its worker died: "):
            dict(runner.run(["harmless", "deadly"]))
        assert dict(runner.run(["harmless"])) == {0: "harmless"}


@pytest.mark.parametrize("part", ["builtin", "ours"])
def test_an_exception_of_the_work_keeps_its_type_and_is_not_tried_again(part, shared_ray, tmp_path):
    with RayRunner(fail, tmp_path, 2) as runner, pytest.raises(type(ERRORS[part])) as caught:
        list(runner.run([part]))
    assert type(caught.value) is type(ERRORS[part])
    assert str(caught.value) == str(ERRORS[part])
    assert "raise ERRORS[part]" in str(caught.value.__cause__)
    assert (tmp_path / "attempts").read_text() == f"{part}\n"


def test_an_exception_that_cannot_travel_is_told(shared_ray, tmp_path):
    with (
        RayRunner(fail, tmp_path, 1) as runner,
        pytest.raises(WorkerError, match="part failed with TwoArgumentsError: this and that"),
    ):
        list(runner.run(["of several arguments"]))


def test_the_problem_is_pickled_once(shared_ray):
    problem = CountsPickling()
    with RayRunner(count_of, problem, 2) as runner:
        for _ in range(2):
            assert [result for _, result in runner.run(range(4))] == [1] * 4
    assert problem.count == 1


def test_the_problem_is_prepared_once_in_each_process(shared_ray, tmp_path):
    with RayRunner(wait_for_two_processes, str(tmp_path), 2, prepare=note_process) as runner:
        pids = {pid for _ in range(2) for _, pid in runner.run(["meet", "meet", "pass", "pass"])}
    assert len(pids) == 2
    assert sorted(int(path.name.split("-")[0]) for path in tmp_path.iterdir()) == sorted(pids)


def test_arrays_are_as_writable_as_the_callers_and_each_process_has_its_own(shared_ray):
    for writeable in (True, False):
        array = np.zeros(100_000)
        array.flags.writeable = writeable
        with RayRunner(add_in_place, array, 1) as runner:
            if writeable:
                (_, first), (_, second) = runner.run([1, 2])
                assert first == second == (first[0], True)
            else:
                with pytest.raises(ValueError, match="read-only"):
                    list(runner.run([1]))
        assert not array.any()


def test_a_run_that_ends_early_cancels_its_parts(shared_ray, tmp_path):
    with RayRunner(sleep_for_a_minute, tmp_path, 2) as runner:
        results = runner.run(["slow", "quick", "slow"])
        assert next(results) == (1, "quick")
        begun(tmp_path, 1)
        results.close()
        # both workers are free
        assert sorted(runner.run(["quick", "quick"])) == [(0, "quick"), (1, "quick")]


def test_a_part_that_does_not_notice_its_end_is_killed_with_its_worker(shared_ray, tmp_path):
    with RayRunner(ignore_ctrl_c, tmp_path, 2) as runner:
        results = runner.run(["slow", "quick"])
        assert next(results) == (1, "quick")
        pids = begun(tmp_path, 1)
        results.close()
        assert_dead(pids)


def test_ctrl_c_in_a_shared_ray_ends_the_parts_and_leaves_the_ray(shared_ray, tmp_path):
    with RayRunner(sleep_for_a_minute, tmp_path, 2) as runner:
        thread = interrupt_once_begun(tmp_path, 2)
        with pytest.raises(KeyboardInterrupt):
            list(runner.run(["slow", "slow", "slow"]))
        thread.join()
        assert dict(runner.run(["quick"])) == {0: "quick"}


def test_ctrl_c_leaves_no_process_and_no_thread_of_the_runners_own_ray(no_ray, tmp_path, capfd):
    handler, threads, before = signal.getsignal(signal.SIGTERM), threading.active_count(), descendants()
    results = []

    def interrupted():
        with RayRunner(sleep_for_a_minute, tmp_path, 2) as runner:
            thread = interrupt_once_begun(tmp_path, 2)
            started.extend(descendants() - before)
            for position, result in runner.run(["quick", "slow", "slow"]):
                results.append((position, result))
            thread.join()

    started = []
    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert results == [(0, "quick")]
    assert len(started) >= 2
    assert_dead([*started, *begun(tmp_path, 2)])
    assert descendants() == before
    assert threading.active_count() <= threads
    assert signal.getsignal(signal.SIGTERM) == handler
    assert capfd.readouterr() == ("", "")
