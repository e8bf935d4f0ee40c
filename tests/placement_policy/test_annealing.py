"""Chains of annealing: what they report is what a full simulation says, and shortcuts change nothing."""

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from alpa_serve.placement import ModelPlacement
from alpa_serve.placement_policy.annealing import MOST_FRUITLESS, anneal, make_chain, start_chain
from alpa_serve.placement_policy.moves import propose
from alpa_serve.placement_policy.replica_moves import CHANGED, SAME
from alpa_serve.placement_policy.splitmix import uniform
from alpa_serve.simulator.counting import count_good
from alpa_serve.simulator.groups import undo

HOT, COLD = 0.05, 0.001


def run(prepared, seed, number, step=None, start=None, value=1.0):
    """Anneal from `start`, in steps of so many evaluations; return the groups and the chain."""
    groups = prepared.groups_of(start or ModelPlacement([], []))
    chain = make_chain(groups, seed)
    chain.value[:] = value
    n, placed = prepared.num_requests, prepared.placed_value
    start_chain(prepared.arrays, groups, chain, n, placed)
    for until in [*range(step or number, number, step or number), number]:
        anneal(prepared.arrays, prepared.cluster, groups, chain, n, placed, HOT, COLD, 0, number, until)
    return groups, chain


def full_score(prepared, groups, value):
    """Return the score by a count of all requests of all models."""
    good, latency = np.zeros(len(value), np.int64), np.zeros(len(value))
    turns = np.arange(len(prepared.arrays.turn), dtype=np.int32)
    assert count_good(prepared.arrays, groups, turns, value, -1.0, good, latency)
    count, replicas = float((good * value).sum()), groups.num_replicas
    return score_of(prepared, count, float(latency.sum()), int(replicas.sum()), int((replicas > 0).sum())), good


def score_of(prepared, count, latency, replicas, placed):
    """Return what a chain maximises: good requests, then AlpaServe's other terms, for less than a request in all."""
    n = prepared.num_requests
    rest = replicas / 1e6 - latency / n / 10000
    return (count + rest / (abs(rest) + 1e-3) / 2) / n + placed * prepared.placed_value


def plain_annealing(prepared, seed, number, value):
    """Anneal as `anneal` says it does, every time with a count of everything."""
    groups = prepared.groups_of(ModelPlacement([], []))
    random = np.array([seed], np.uint64)
    score, good = full_score(prepared, groups, value)
    requests = np.diff(prepared.arrays.first_request)
    done = fruitless = 0
    while done < number and fruitless < MOST_FRUITLESS:
        fruitless += 1
        outcome = propose(prepared.arrays, prepared.cluster, groups, (requests - good).astype(np.float64), random)
        if outcome == SAME:
            groups.log_length[0] = 0
        elif outcome != CHANGED:
            undo(groups)
        else:
            fruitless = 0
            temperature = HOT * (COLD / HOT) ** (done / number)
            needed = score + temperature * math.log(max(uniform(random), 1e-300))
            done += 1
            new_score, new_good = full_score(prepared, groups, value)
            if new_score < needed:
                undo(groups)
            else:
                groups.log_length[0] = 0
                score, good = new_score, new_good
    return groups, score


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_the_best_score_is_that_of_the_evaluator_for_the_placement(mixed_cases, serving_rules, prepared_of, data):
    case, rules = data.draw(mixed_cases), data.draw(serving_rules)
    prepared = prepared_of(case, rules, data.draw(st.booleans()))
    _, chain = run(prepared, data.draw(st.integers(0, 2**32)), 100)
    best = prepared.best_of(chain)
    best.verify(case.models, case.cluster)
    evaluation = prepared.evaluator.evaluate(best)
    assert chain.score[1] == score_of(
        prepared,
        float(evaluation.model_num_good.sum()),
        # a sum of multiples of 2^-24, so that nothing is lost
        round(evaluation.latency_mean * prepared.num_requests * 2**24) / 2**24,
        evaluation.num_replicas,
        len(best.placed_models()),
    )
    assert chain.score[1] >= chain.score[0]


@given(data=st.data())
@settings(deadline=None, max_examples=100)
def test_counting_less_and_stopping_early_change_nothing(mixed_cases, serving_rules, prepared_of, data):
    case, rules = data.draw(mixed_cases), data.draw(serving_rules)
    prepared = prepared_of(case, rules, data.draw(st.booleans()))
    seed = data.draw(st.integers(0, 2**32))
    value = np.array([data.draw(st.integers(0, 2**22)) / 2**20 for _ in case.models])
    groups, chain = run(prepared, seed, 80, value=value)
    expected, score = plain_annealing(prepared, seed, 80, value)
    assert groups.config.tolist() == expected.config.tolist()
    assert groups.holds.tolist() == expected.holds.tolist()
    assert chain.score[0] == score
    assert full_score(prepared, groups, value)[0] == score


@given(data=st.data())
@settings(deadline=None, max_examples=40)
def test_in_how_many_steps_a_chain_runs_makes_no_difference(mixed_cases, prepared_of, data):
    prepared = prepared_of(data.draw(mixed_cases))
    seed = data.draw(st.integers(0, 2**32))
    (one, one_chain), (other, other_chain) = (run(prepared, seed, 90, step) for step in (None, 7))
    assert one.holds.tolist() == other.holds.tolist()
    for ours, theirs in zip(one_chain, other_chain, strict=True):
        np.testing.assert_array_equal(ours, theirs)
