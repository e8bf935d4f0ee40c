"""How the runner comes by a Ray: starts one, joins one, or says why it cannot."""

import builtins
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from alpa_serve import ray_connection
from alpa_serve.errors import InvalidConfigError, WorkerError
from alpa_serve.placement_policy.ray_runner import RayRunner

pytestmark = pytest.mark.slow

STEPS = np.array([-1.0, 1.0, 2.5])
SECONDS_TO_REFUSE = 10


def largest_sum(steps, seed, stopped):
    return float(np.random.default_rng(seed).choice(steps, 1000).cumsum().max())


def test_a_runner_starts_its_own_ray_once_more_but_not_when_that_is_shut_down_meanwhile(no_ray, monkeypatch):
    # without an address no cluster is joined, even if Ray would by itself
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{unused_port()}")
    with RayRunner(largest_sum, STEPS, 1) as runner:
        assert dict(runner.run([3])) == {0: largest_sum(STEPS, 3, bool)}
    with RayRunner(largest_sum, STEPS, 1) as runner:
        no_ray.shutdown()
        with pytest.raises(WorkerError, match="Ray was shut down"):
            list(runner.run([1]))


def unused_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def test_a_cluster_is_joined_by_its_address_and_left_running(no_ray):
    script = (
        "import ray, sys\n"
        "ray.init('local', num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='ERROR')\n"
        "print(ray.get_runtime_context().gcs_address, flush=True)\n"
        "sys.stdin.read()\n"
        "print(ray.cluster_resources()['CPU'])\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as head:
        address = head.stdout.readline().strip()
        with RayRunner(largest_sum, STEPS, 2, address) as runner:
            assert dict(runner.run([3, 4])) == {0: largest_sum(STEPS, 3, bool), 1: largest_sum(STEPS, 4, bool)}
            with pytest.raises(WorkerError, match=rf"connected to the Ray at {address} and cannot join 'other:1'"):
                RayRunner(largest_sum, STEPS, 2, "other:1")
        assert head.communicate("")[0] == "2.0\n"


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (f"127.0.0.1:{unused_port()}", "nothing answers at 127.0.0.1, port "),
        ("ray://no-such-host.invalid:10001", "nothing answers at no-such-host.invalid, port 10001"),
        ("127.0.0.1", "an address is host:port"),
        ("127.0.0.1:99999", "nothing answers"),
        ("", "an address is host:port"),
    ],
)
def test_an_address_that_cannot_be_joined_is_named_at_once(address, message, no_ray):
    start = time.monotonic()
    with pytest.raises(WorkerError, match=f"'{address}' could not be joined: {message}"):
        RayRunner(largest_sum, STEPS, 2, address)
    assert time.monotonic() - start < SECONDS_TO_REFUSE


def test_an_address_where_something_else_answers_is_named_in_bounded_time(no_ray, monkeypatch):
    monkeypatch.setattr(ray_connection, "JOIN_TIMEOUT_S", 3.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(WorkerError, match=f"'{address}' could not be joined within 3 s; is it the address"):
            RayRunner(largest_sum, STEPS, 2, address)


def test_without_ray_the_package_is_named(monkeypatch):
    real = builtins.__import__

    def without_ray(name, *args, **kwargs):
        if name.split(".")[0] == "ray":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_ray)
    with pytest.raises(WorkerError, match=r"need the package ray, .*No module named 'ray'.*pip install"):
        RayRunner(largest_sum, STEPS, 2)


@pytest.mark.parametrize("num_workers", [0, -2, 1.5, "two", True])
def test_a_number_of_workers_that_is_none_is_refused(num_workers, ray):
    with pytest.raises(InvalidConfigError, match="num_workers must be a whole number >= 1"):
        RayRunner(largest_sum, STEPS, num_workers)


def test_a_problem_that_cannot_be_pickled_is_refused_before_ray_starts(no_ray):
    with pytest.raises(InvalidConfigError, match=r"must be picklable to reach worker processes: .*lock"):
        RayRunner(largest_sum, threading.Lock(), 2)
