"""Helpers of the simulator: stand-ins for Ray's calling convention, and the Markov-modulated Poisson sampler."""

from __future__ import annotations

from functools import update_wrapper
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from alpa_serve.errors import InvalidConfigError
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from numpy.typing import ArrayLike, NDArray

Result = TypeVar("Result")


class _RemoteMethod:
    """A bound method that can be called as ``method(...)`` and as ``method.remote(...)``."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        update_wrapper(self, method)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)

    def remote(self, *args: Any, **kwargs: Any) -> Any:
        return self._method(*args, **kwargs)


def install_remote_methods(obj: Any) -> None:
    """Let every public method of `obj` be called as ``obj.method.remote(...)`` too, as on a Ray actor.

    The call is direct: it returns what the method returns.
    """
    for name in dir(type(obj)):
        if not name.startswith("_") and callable(getattr(type(obj), name)):
            setattr(obj, name, _RemoteMethod(getattr(obj, name)))


def async_to_sync(async_def: Callable[..., Coroutine[Any, Any, Result]]) -> Callable[..., Result]:
    """Turn a coroutine function that never waits into a plain function.

    Returns
    -------
    callable
        Returns what the coroutine returns.

    Raises
    ------
    RuntimeError
        When called, if the coroutine waits for something.
    """

    def call(*args: Any, **kwargs: Any) -> Result:
        coroutine = async_def(*args, **kwargs)
        try:
            coroutine.send(None)
        except StopIteration as stop:
            result: Result = stop.value
            return result
        coroutine.close()
        raise RuntimeError(f"{async_def.__qualname__} waits for something; it needs an event loop")

    return update_wrapper(call, async_def)


def legacy_random(seed: int) -> np.random.RandomState:
    """Return a private generator of the kind that AlpaServe's arrivals come from.

    Raises
    ------
    InvalidConfigError
        If `seed` is not a whole number from 0 to 2**32 - 1.
    """
    if check_int(seed, "seed", minimum=0) >= 2**32:
        raise InvalidConfigError(f"seed must be below 2**32, got {seed!r}")
    return np.random.RandomState(seed)


def _numbers(values: ArrayLike, what: str) -> NDArray[np.float64]:
    try:
        return np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidConfigError(f"{what} must be numbers: {error}") from None


class MMPPSampler:
    """Markov-modulated Poisson process: a Markov chain whose state sets the request rate.

    Parameters
    ----------
    Q : array_like, shape (m, m)
        Generator of the chain in 1/s: off-diagonal rates >= 0, rows that sum to 0.
    lambda_ : array_like, shape (m,)
        Requests per second in each state.

    Raises
    ------
    InvalidConfigError
        If the shapes or the rates do not fit.
    """

    def __init__(self, Q: ArrayLike, lambda_: ArrayLike) -> None:  # noqa: N803 (the field's name)
        self.Q = _numbers(Q, "Q")
        self.lambda_ = _numbers(lambda_, "the request rates")
        num_states = len(self.lambda_) if self.lambda_.ndim == 1 else 0
        if num_states == 0 or self.Q.shape != (num_states, num_states):
            raise InvalidConfigError(
                f"need an m x m generator and m rates, got shapes {self.Q.shape} and {self.lambda_.shape}"
            )
        leaving = self.Q - np.diag(np.diag(self.Q))
        if not np.isfinite(self.Q).all() or (leaving < 0).any() or not np.allclose(self.Q.sum(axis=1), 0):
            raise InvalidConfigError("Q must have finite off-diagonal rates >= 0 and rows that sum to 0")
        if not np.isfinite(self.lambda_).all() or (self.lambda_ < 0).any() or not self.lambda_.any():
            raise InvalidConfigError(f"the request rates must be finite, >= 0 and not all 0, got {self.lambda_}")
        self.num_states = num_states

    @classmethod
    def uniform_mmpp(cls, durations: Sequence[float], rates: Sequence[float]) -> MMPPSampler:
        """Return the process that stays in state i for `durations[i]` seconds on average, then goes to any other.

        Parameters
        ----------
        durations : sequence of float, length m
            Mean seconds of a stay, > 0.
        rates : sequence of float, length m
            Requests per second in each state.
        """
        stay = _numbers(durations, "state durations")
        if stay.ndim != 1 or not (np.isfinite(stay) & (stay > 0)).all():
            raise InvalidConfigError(f"state durations must be finite and > 0 s, got {durations}")
        request_rates = _numbers(rates, "the request rates")
        if request_rates.shape != stay.shape:
            raise InvalidConfigError(f"{len(stay)} state durations but {request_rates.size} request rates")
        num_others = len(stay) - 1
        generator = np.zeros((len(stay), len(stay)))
        if num_others:
            generator = np.repeat(1 / (stay[:, None] * num_others), len(stay), axis=1)
            np.fill_diagonal(generator, -1 / stay)
        return cls(generator, request_rates)

    unifrom_mmpp = uniform_mmpp
    """AlpaServe's spelling."""

    def stationary(self) -> NDArray[np.float64]:
        """Return the share of time spent in each state, shape (m,)."""
        # pi Q = 0 with sum(pi) = 1, as a least-squares system
        system = np.vstack([self.Q.T, np.ones(self.num_states)])
        target = np.append(np.zeros(self.num_states), 1.0)
        shares: NDArray[np.float64] = np.linalg.lstsq(system, target, rcond=None)[0]
        return shares

    def expected_request_rate(self) -> float:
        """Return the long-run requests per second."""
        return float(self.stationary() @ self.lambda_)

    def expected_cv(self) -> float:
        """Return the long-run coefficient of variation of the gaps between requests.

        References
        ----------
        W. Fischer, K. Meier-Hellstern, "The Markov-modulated Poisson process (MMPP) cookbook", Performance
        Evaluation 18 (1993): moments of the gap are k! phi (Lambda - Q)^-k 1 with phi the state at an arrival.
        """
        at_arrival = self.stationary() * self.lambda_
        at_arrival /= at_arrival.sum()
        try:
            inverse = np.linalg.inv(np.diag(self.lambda_) - self.Q)
        except np.linalg.LinAlgError:
            raise InvalidConfigError("a state has no requests and is never left: gaps have no end") from None
        ones = np.ones(self.num_states)
        first = at_arrival @ inverse @ ones
        second = 2 * at_arrival @ inverse @ inverse @ ones
        return float(np.sqrt(max(second / first**2 - 1, 0.0)))

    def sample(self, num_requests: int, initial_state: int = 0, *, seed: int = 0) -> NDArray[np.float64]:
        """Return the first `num_requests` arrival times.

        Parameters
        ----------
        num_requests : int
        initial_state : int
        seed : int
            Of a private legacy generator; equal seeds give AlpaServe's arrivals.

        Returns
        -------
        ndarray of float64, shape (num_requests,)
            Seconds, ascending.
        """
        check_int(num_requests, "num_requests", minimum=0)
        state = check_int(initial_state, "initial_state", minimum=0)
        if state >= self.num_states:
            raise InvalidConfigError(f"initial_state must be below {self.num_states}, got {initial_state}")
        random = legacy_random(seed)
        with np.errstate(divide="ignore"):
            mean_gaps = 1 / self.lambda_
            mean_stays = -1 / np.diag(self.Q)
        leaving = np.where(np.eye(self.num_states, dtype=bool), 0.0, self.Q)
        rates_out = leaving.sum(axis=1, keepdims=True)
        chances = np.divide(leaving, rates_out, out=np.eye(self.num_states), where=rates_out > 0)
        arrivals = np.empty(num_requests)
        count, now = 0, 0.0
        while count < num_requests:
            next_state = random.choice(self.num_states, p=chances[state])
            end = now + random.exponential(abs(mean_stays[state]))
            if np.isinf(end) and not self.lambda_[state]:
                raise InvalidConfigError(f"state {state} has no requests and is never left")
            while count < num_requests:
                now += random.exponential(mean_gaps[state])
                if now >= end:
                    now = end
                    break
                arrivals[count] = now
                count += 1
            state = next_state
        return arrivals
