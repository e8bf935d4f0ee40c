"""How the mixed search divides its budget: rounds of chains, each from what the rounds before it have found."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from alpa_serve.placement_policy.search_parts import UNLIMITED, Part

if TYPE_CHECKING:
    from alpa_serve.placement_policy.elite import Elite
    from alpa_serve.placement_policy.part_runner import PartRunner
    from alpa_serve.placement_policy.search_parts import MixedProblem, PartResult

EVALUATIONS_PER_PAIR = 8
FEWEST_EVALUATIONS = 500
"""Evaluations of a chain for each pair of a model and a device, given the budget, but not fewer than that: many short
chains find better placements of few models than few long ones, and of many models the other way round."""

CHAINS = 8
FEWEST_CHAINS = 2
"""Chains of a round at most, and where the budget is short for the size of the problem; as many as run at the same time
are needed, if their budget is seconds."""

HOT_LOSS = 0.1
COLD_SHARE = 0.01
"""Temperature at the start of a chain, times the number of models: what it hurts to serve a model worse; and at its
end, as a share of that."""

NOISE = 1.0
"""Spread (of the logarithm) of the weights of models in chains that look for other places."""

LONGEST_REMOTE_S = 2.0
"""Of a chain in another process, where what it has found is lost if the search is stopped."""

_TRIAL_S = 0.05
_SHORTEST_S = 0.02
"""Of a chain that tells the speed of others, and of one that is worth its start."""


def trial(elite: Elite, seed: int, most_seconds: float) -> Part:
    """Return a chain that tells how fast they are."""
    return Part(elite.best.placement, seed, 1e-9, 1e-9, 0.0, UNLIMITED, min(_TRIAL_S, most_seconds))


def timed_parts(
    problem: MixedProblem,
    elite: Elite,
    seed: int,
    round_number: int,
    seconds: float,
    speed: float,
    num_parallel: int,
    longest: float,
) -> list[Part]:
    """Return the chains of a round, so many at a time, of `longest` seconds at most; none if too few seconds are left.

    While the speed is not known they are short.
    """
    if seconds < _SHORTEST_S:
        return []
    number, each = _divide(seconds * num_parallel, _chain_length(problem) / max(speed, 1e-9), num_parallel)
    each = min(each, longest if speed else _TRIAL_S)
    return _parts(problem, elite, seed, round_number, number, UNLIMITED, each, num_parallel)


def counted_parts(problem: MixedProblem, elite: Elite, seed: int, round_number: int, rest: int) -> list[Part]:
    """Return the chains of a round, whoever runs them; none if no evaluation is left."""
    number, each = _divide(rest, _chain_length(problem), FEWEST_CHAINS)
    return _parts(problem, elite, seed, round_number, min(number, rest), max(int(each), 1), math.inf, FEWEST_CHAINS)


def _parts(
    problem: MixedProblem,
    elite: Elite,
    seed: int,
    round_number: int,
    number: int,
    num_evaluations: int,
    seconds: float,
    fewest: int,
) -> list[Part]:
    """Return the chains of a round: some that refine the best, others that look elsewhere."""
    hot = HOT_LOSS / len(problem.model_datas)
    largest = np.iinfo(np.uint64).max
    chain_seeds = np.random.default_rng([seed, round_number]).integers(largest, size=number, dtype=np.uint64)
    parts = []
    for chain, chain_seed in enumerate(chain_seeds.tolist()):
        refines = number <= fewest or chain % 4 == 0
        parts.append(
            Part(
                start=elite.best.placement if refines else elite.some(chain_seed),
                seed=chain_seed,
                hot=hot / (1 + 9 * (refines and round_number > 0)),
                cold=hot * COLD_SHARE,
                noise=0.0 if refines else NOISE,
                num_evaluations=num_evaluations,
                seconds=seconds,
            )
        )
    return parts


def _chain_length(problem: MixedProblem) -> int:
    """Return how many evaluations a chain should have."""
    pairs = len(problem.model_datas) * problem.cluster_env.num_devices
    return max(EVALUATIONS_PER_PAIR * pairs, FEWEST_EVALUATIONS)


def _divide(rest: float, length: float, num_parallel: int) -> tuple[int, float]:
    """Divide a budget into rounds of chains of about a `length`, or shorter ones if it does not suffice.

    Returns
    -------
    number : int
        Of chains of the next round: a multiple of `num_parallel`.
    each : float
        The budget of each.
    """
    waves = min(max(int(rest / (length * num_parallel)), 1), math.ceil(CHAINS / num_parallel))
    number = waves * num_parallel
    rounds = max(int(rest / (length * number)), 1)
    return number, rest / rounds / number


def run_round(runner: PartRunner[Part, PartResult], parts: list[Part], elite: Elite) -> list[PartResult]:
    """Run some chains and add what comes of them to the elite, also when they are stopped."""
    results: list[PartResult | None] = [None] * len(parts)
    try:
        for position, result in runner.run(parts):
            results[position] = result
    finally:
        # in the order of the parts, whichever came first
        ended = [result for result in results if result is not None]
        for result in ended:
            elite.add(result.placement)
    return ended


def evaluations_per_second(results: list[PartResult]) -> float:
    """Return the speed of a chain beside others."""
    return sum(result.num_evaluations for result in results) / max(sum(result.seconds for result in results), 1e-9)
