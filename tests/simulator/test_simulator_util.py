import asyncio

import numpy as np
import pytest

from alpa_serve.errors import InvalidConfigError
from alpa_serve.simulator.util import MMPPSampler, async_to_sync, install_remote_methods


class Actor:
    def __init__(self):
        self.total = 0
        install_remote_methods(self)

    def add(self, amount, *, times=1):
        """Add to the total."""
        self.total += amount * times
        return self.total

    def _hidden(self):
        return None


def test_methods_can_be_called_directly_and_remotely():
    actor = Actor()
    assert actor.add(2) == 2
    assert actor.add.remote(3, times=2) == 8
    assert actor.add.__doc__ == "Add to the total."
    assert not hasattr(actor._hidden, "remote")


def test_objects_do_not_share_their_remote_methods():
    first, second = Actor(), Actor()
    first.add.remote(5)
    assert (first.total, second.total) == (5, 0)


def test_a_coroutine_that_never_waits_becomes_a_plain_function():
    async def inner(x):
        return x + 1

    async def double(x, *, extra=0):
        return 2 * await inner(x) + extra

    plain = async_to_sync(double)
    assert plain(3, extra=1) == 9
    assert plain.__name__ == "double"


def test_errors_of_the_coroutine_come_through():
    async def fail():
        raise KeyError("inner")

    with pytest.raises(KeyError, match="inner"):
        async_to_sync(fail)()


def test_a_coroutine_that_waits_is_refused_by_name():
    async def waits():
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waits waits for something"):
        async_to_sync(waits)()


TWO_STATES = MMPPSampler([[-0.5, 0.5], [2, -2]], [1, 20])


def test_the_expected_rate_weighs_the_states_by_the_time_spent_in_them():
    assert TWO_STATES.stationary() == pytest.approx([0.8, 0.2])
    assert TWO_STATES.expected_request_rate() == pytest.approx(0.8 * 1 + 0.2 * 20)


def test_a_long_sample_has_the_expected_rate_and_cv():
    gaps = np.diff(TWO_STATES.sample(100_000, seed=1))
    assert 1 / gaps.mean() == pytest.approx(TWO_STATES.expected_request_rate(), rel=0.03)
    assert gaps.std() / gaps.mean() == pytest.approx(TWO_STATES.expected_cv(), rel=0.03)


def test_one_state_is_a_poisson_process():
    sampler = MMPPSampler([[0]], [5])
    assert sampler.expected_cv() == pytest.approx(1)
    assert sampler.sample(10_000)[-1] == pytest.approx(2000, rel=0.05)


def test_the_uniform_process_leaves_each_state_for_any_other_with_equal_chance():
    sampler = MMPPSampler.uniform_mmpp([1, 2, 4], [3, 5, 7])
    expected = [[-1, 0.5, 0.5], [0.25, -0.5, 0.25], [0.125, 0.125, -0.25]]
    np.testing.assert_allclose(sampler.Q, expected)
    assert sampler.lambda_.tolist() == [3, 5, 7]
    np.testing.assert_array_equal(MMPPSampler.unifrom_mmpp([1, 2, 4], [3, 5, 7]).Q, sampler.Q)


def test_samples_start_in_the_initial_state():
    # state 1 has no requests and is left after 100 s on average
    sampler = MMPPSampler.uniform_mmpp([100, 100], [50, 0])
    from_busy, from_quiet = (sampler.sample(1, initial_state=state)[0] for state in (0, 1))
    assert from_busy < 1 < from_quiet


def test_samples_follow_the_seed_and_leave_the_global_state_alone(random_state_untouched):
    np.testing.assert_array_equal(TWO_STATES.sample(50, seed=3), TWO_STATES.sample(50, seed=3))
    assert TWO_STATES.sample(50, seed=3).tolist() != TWO_STATES.sample(50, seed=4).tolist()


def test_a_longer_sample_goes_on_where_the_shorter_ends():
    np.testing.assert_array_equal(TWO_STATES.sample(100)[:40], TWO_STATES.sample(40))
    assert len(TWO_STATES.sample(0)) == 0


@pytest.mark.parametrize(
    ("generator", "rates"),
    [
        ([[-1, 1]], [1, 1]),
        ([[-1, 1], [1, -1]], [1]),
        ([], []),
        ([[-1, 2], [1, -1]], [1, 1]),
        ([[1, -1], [1, -1]], [1, 1]),
        ([[np.nan, 1], [1, -1]], [1, 1]),
        ([[-1, 1], [1, -1]], [1, -1]),
        ([[-1, 1], [1, -1]], [1, np.nan]),
        ([[-1, 1], [1, -1]], [0, 0]),
    ],
)
def test_a_malformed_chain_is_refused(generator, rates):
    with pytest.raises(InvalidConfigError):
        MMPPSampler(generator, rates)


def test_a_quiet_state_that_is_never_left_is_refused_instead_of_sampled_forever():
    sampler = MMPPSampler([[-1, 1], [0, 0]], [1, 0])
    with pytest.raises(InvalidConfigError, match="state 1 has no requests and is never left"):
        sampler.sample(100)


@pytest.mark.parametrize(("arguments", "name"), [((-1,), "num_requests"), ((1, 2), "initial_state")])
def test_bad_sampling_arguments_are_refused(arguments, name):
    with pytest.raises(InvalidConfigError, match=name):
        TWO_STATES.sample(*arguments)
