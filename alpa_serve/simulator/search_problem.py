"""A placement problem as the arrays that compiled searches work on: requests, costs and rules."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from alpa_serve.scheduling import replica_timing
from alpa_serve.scheduling.scheduler import dispatch_draws
from alpa_serve.simulator.fast import RuleKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from alpa_serve.profiling import ParallelConfig
    from alpa_serve.simulator.problem import ModelTable, RequestTable


BLOCK = 32
"""Turns that are passed over together where none of their models has to be looked at."""

_BITS = 64
"""Models of one word of a set."""


def num_words(num_models: int) -> int:
    """Return the length of an array of int64 with a bit for each model."""
    return -(-num_models // _BITS)


class SearchProblem(NamedTuple):
    """Everything that does not change while placements do.

    Requests are numbered model by model, in the order of arrival within a model, so that what belongs to a model lies
    together in memory. Requests for models that are not registered are left out: nothing serves them.

    Attributes
    ----------
    first_request : ndarray of int64, shape (num_models + 1,)
        The requests of model m are first_request[m] to first_request[m + 1] - 1.
    turn : ndarray of int32, shape (n,)
        Position of each request in the order of arrival.
    by_turn, model_by_turn : ndarray of int32, shape (n,)
        The requests in the order of arrival, and their models.
    models_of_block : ndarray of int64, shape (num_blocks, num_words)
        For every :data:`BLOCK` turns, the models that they are of: bit m % 64 of word m // 64 for model m.
    arrivals, slos : ndarray of float64, shape (n,)
        Seconds.
    input_tokens, output_tokens : ndarray of int64, shape (n,) or (0,)
    draws : ndarray of float64, shape (n,) or (0,)
        By which requests choose their replica at random; none if they do not.
    latency : ndarray of float64, shape (num_models, num_configs, max_stages)
        Seconds per stage; 0 where the model is not profiled.
    token_rates : ndarray of float64, shape (num_models, num_configs, 2)
        Seconds per stage for each input token and for each output token after the first.
    weights : ndarray of float64, shape (num_models, num_configs)
        Bytes on each device; infinite where the model is not profiled.
    num_stages, num_devices : ndarray of int64, shape (num_configs,)
        Of a group of each config.
    kind : RuleKind
    overhead, dispatch_interval, idle_after, idle_penalty : float
        Seconds, of the rules.
    """

    first_request: NDArray[np.int64]
    turn: NDArray[np.int32]
    by_turn: NDArray[np.int32]
    model_by_turn: NDArray[np.int32]
    models_of_block: NDArray[np.int64]
    arrivals: NDArray[np.float64]
    slos: NDArray[np.float64]
    input_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    draws: NDArray[np.float64]
    latency: NDArray[np.float64]
    token_rates: NDArray[np.float64]
    weights: NDArray[np.float64]
    num_stages: NDArray[np.int64]
    num_devices: NDArray[np.int64]
    kind: RuleKind
    overhead: float
    dispatch_interval: float
    idle_after: float
    idle_penalty: float


def search_problem(
    models: ModelTable, requests: RequestTable, configs: Sequence[ParallelConfig], weights: NDArray[np.float64]
) -> SearchProblem:
    """Return the problem of placing `models` on groups of `configs`, which get the ids 0, 1, ... in this order.

    Parameters
    ----------
    models : ModelTable
        Of batch size 1 only.
    requests : RequestTable
    configs : sequence of ParallelConfig
    weights : ndarray of float64, shape (num_models, num_configs)
        Bytes; infinite where a model is not profiled.

    Raises
    ------
    InvalidProfileError
        If a profile has a config, but not the figures that the rules' service needs.
    """
    rules = models.rules
    registered = np.flatnonzero(requests.model_ids >= 0)
    model_by_turn = requests.model_ids[registered]
    # the turn of each request, then its position in the whole workload
    turn = np.argsort(model_by_turn, kind="stable").astype(np.int32)
    position = registered[turn]
    by_turn = np.empty_like(turn)
    by_turn[turn] = np.arange(len(turn), dtype=np.int32)
    draws = dispatch_draws(rules, len(requests))[position] if rules.dispatch == "random" else np.empty(0)
    return SearchProblem(
        first_request=np.concatenate([[0], np.cumsum(requests.model_num_requests)]).astype(np.int64),
        turn=turn,
        by_turn=by_turn,
        model_by_turn=model_by_turn,
        models_of_block=_models_of_block(model_by_turn, len(models)),
        arrivals=requests.arrivals[position],
        slos=requests.slos[position],
        input_tokens=requests.input_tokens[position] if len(requests.input_tokens) else np.empty(0, np.int64),
        output_tokens=requests.output_tokens[position] if len(requests.output_tokens) else np.empty(0, np.int64),
        draws=draws,
        kind=RuleKind.of(rules),
        overhead=rules.fixed_overhead_s,
        dispatch_interval=rules.dispatch_interval_s,
        idle_after=rules.idle_after_s,
        idle_penalty=rules.idle_penalty_s,
        **_costs(models, configs, weights),
    )


def with_configs(
    problem: SearchProblem, models: ModelTable, configs: Sequence[ParallelConfig], weights: NDArray[np.float64]
) -> SearchProblem:
    """Return the same problem for groups of other configs (:func:`search_problem`)."""
    return problem._replace(**_costs(models, configs, weights))


def _models_of_block(model_by_turn: NDArray[np.int32], num_models: int) -> NDArray[np.int64]:
    num_blocks = -(-len(model_by_turn) // BLOCK)
    is_there = np.zeros((num_blocks, num_words(num_models) * _BITS), np.bool_)
    is_there[np.arange(len(model_by_turn)) // BLOCK, model_by_turn] = True
    return np.packbits(is_there, axis=1, bitorder="little").view("<i8").astype(np.int64)


def _costs(models: ModelTable, configs: Sequence[ParallelConfig], weights: NDArray[np.float64]) -> dict[str, Any]:
    max_stages = max([config.pp for config in configs], default=1)
    shape = len(models), len(configs)
    latency = np.zeros((*shape, max_stages))
    token_rates = np.zeros((*shape, 2))
    for column, config in enumerate(configs):
        known = models.config_ids.get(config)
        if known is None:
            continue
        stages = models.stage_latency[:, known, 0, : config.pp]
        for model_id in np.flatnonzero(np.isnan(stages[:, 0]) & np.isfinite(weights[:, column])).tolist():
            # says which figure is missing
            replica_timing(models.profiles[model_id], config, models.rules)
        latency[:, column, : config.pp] = np.where(np.isnan(stages), 0.0, stages)
        token_rates[:, column] = models.token_rates[:, known]
    return {
        "latency": latency,
        "token_rates": token_rates,
        "weights": np.ascontiguousarray(weights, dtype=np.float64),
        "num_stages": np.array([config.pp for config in configs], dtype=np.int64),
        "num_devices": np.array([config.num_devices for config in configs], dtype=np.int64),
    }
