import logging
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpa_serve.errors import InvalidConfigError
from alpa_serve.util import (
    GB,
    ServingCase,
    add_sync_method,
    batchsize_config,
    build_logger,
    decompose2tok,
    eps,
    get2tok,
    get_factors,
    get_partitions,
    inf,
    to_str_round,
    write_tsv,
)

numbers = st.integers(1, 400)


def test_constants_are_those_of_alpaserve():
    assert (GB, eps, inf, batchsize_config) == (2**30, 1e-6, 1e100, [1, 2, 4, 8, 16])
    assert ServingCase._fields == ("register_models", "generate_workload", "placement_policy")


@given(numbers)
def test_factors_are_the_divisors_ascending(n):
    assert get_factors(n) == [i for i in range(1, n + 1) if n % i == 0]


@given(numbers)
def test_powers_of_two_go_up_to_n(n):
    assert get2tok(n) == [2**k for k in range(20) if 2**k <= n]


def test_there_is_no_power_of_two_up_to_zero():
    assert get2tok(0) == decompose2tok(0) == []


@given(numbers)
def test_decomposition_is_distinct_powers_of_two_that_sum_to_n(n):
    parts = decompose2tok(n)
    assert sum(parts) == n
    assert parts == sorted(set(parts))
    assert set(parts) <= set(get2tok(n))


@pytest.mark.parametrize("function", [get_factors, get2tok, decompose2tok])
@pytest.mark.parametrize("bad", [-1, 1.5, True, "8", float("nan")])
def test_number_helpers_refuse_what_is_no_count(function, bad):
    with pytest.raises(InvalidConfigError, match="n must be a whole number"):
        function(bad)


def allowed_partition(parts):
    left = sum(parts)
    for part in reversed(parts[1:]):
        if not (part <= left % 8 or (left - part) % 8 == 0 or left % 8 == 0):
            return False
        left -= part
    return True


def compositions(n, k):
    if k == 1:
        return [[n]] if n >= 1 else []
    return [[*rest, part] for part in range(1, n) for rest in compositions(n - part, k - 1)]


@given(st.integers(0, 20), st.integers(1, 4))
def test_partitions_are_the_allowed_compositions_each_once(n, k):
    found = get_partitions(n, k)
    assert len({tuple(parts) for parts in found}) == len(found)
    assert sorted(found) == sorted(parts for parts in compositions(n, k) if allowed_partition(parts))


def test_last_element_of_a_partition_is_the_part_chosen_first():
    # of 9 devices the part dealt first must be 1 (9 % 8) or 8 at a time; what is left is a whole node
    assert get_partitions(9, 2) == [[8, 1]]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1 / 3, "0.333333"),
        (np.float64(0.5), "0.500000"),
        (3, "3"),
        (np.int64(3), "3"),
        (True, "True"),
        (None, "None"),
        ("name", "name"),
        ([1.0, (2, 0.25)], "[1.000000, [2, 0.250000]]"),
        (np.array([1.5]), "[1.500000]"),
        ({"a": 1.0}, "{a: 1.000000}"),
    ],
)
def test_to_str_round_writes_every_float_with_six_places(value, text):
    assert to_str_round(value) == text


def test_to_str_round_takes_the_number_of_places():
    assert to_str_round([1 / 3], decimal=2) == "[0.33]"


def test_to_str_round_refuses_what_it_cannot_write():
    with pytest.raises(ValueError, match="object"):
        to_str_round(object())


def test_write_tsv_appends_one_line_and_shows_it(tmp_path, capsys):
    file = tmp_path / "results.tsv"
    write_tsv(["model", "rate"], ["m0", 1.5], file)
    write_tsv(["model", "rate"], ["m1", 2], str(file), print_line=False)
    assert file.read_text() == "m0\t1.5\nm1\t2\n"
    shown = capsys.readouterr().out
    assert "model: m0" in shown
    assert "m1" not in shown


@pytest.mark.parametrize(("heads", "values"), [(["a"], [1, 2]), (["a"], ["x\ty"]), (["a"], ["x\ny"])])
def test_write_tsv_writes_nothing_that_would_break_the_file(tmp_path, heads, values):
    with pytest.raises(InvalidConfigError, match="write_tsv"):
        write_tsv(heads, values, tmp_path / "results.tsv")
    assert list(tmp_path.iterdir()) == []


def test_building_a_logger_twice_adds_one_handler():
    logger = build_logger("alpa_serve.test_util")
    try:
        assert build_logger("alpa_serve.test_util") is logger
        assert len(logger.handlers) == 1
        assert logger.isEnabledFor(logging.INFO)
    finally:
        logger.handlers.clear()


class FakeMethod:
    def __init__(self):
        self.calls = []

    def remote(self, *args, **kwargs):
        self.calls.append((args, kwargs))
        return f"reference {len(self.calls)}"


class FakeActor:
    def __init__(self):
        self.work, self.other = FakeMethod(), FakeMethod()


@pytest.fixture
def waited_for(monkeypatch):
    """Stand in for Ray; the list of what ray.get was asked for."""
    waited = []
    fake_ray = type("ray", (), {"get": staticmethod(waited.append)})
    monkeypatch.setitem(sys.modules, "ray", fake_ray)
    return waited


def test_sync_waits_once_for_the_earlier_calls_of_the_named_methods(waited_for):
    actor = FakeActor()
    work = actor.work
    add_sync_method(actor, ["work"])
    assert actor.work.remote(1, key=2) == "reference 1"
    actor.work.remote()
    actor.other.remote()
    actor.sync()
    actor.sync()
    assert work.calls == [((1,), {"key": 2}), ((), {})]
    assert waited_for == ["reference 1", "reference 2"]


def test_sync_waits_for_all_calls_before_it_raises_the_first_error(waited_for, monkeypatch):
    def get(reference):
        waited_for.append(reference)
        if reference != "reference 2":
            raise ValueError(reference)

    monkeypatch.setattr(sys.modules["ray"], "get", staticmethod(get))
    actor = FakeActor()
    add_sync_method(actor, ["work"])
    for _ in range(3):
        actor.work.remote()
    with pytest.raises(ValueError, match="reference 1"):
        actor.sync()
    assert waited_for == ["reference 1", "reference 2", "reference 3"]
    actor.sync()
    assert len(waited_for) == 3


@pytest.mark.slow
def test_sync_waits_for_the_calls_of_a_real_ray_actor():
    code = """
import time, ray
from alpa_serve.util import add_sync_method

@ray.remote
class Slow:
    done = 0
    def work(self):
        time.sleep(0.3)
        self.done += 1
    def count(self):
        return self.done

ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
actor = Slow.remote()
add_sync_method(actor, ["work"])
for _ in range(2):
    actor.work.remote()
actor.sync()
print("counted", ray.get(actor.count.remote()))
ray.shutdown()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "counted 2" in done.stdout, done.stderr
