import math
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest

from alpa_serve.errors import InvalidConfigError, UnknownNameError
from alpa_serve.scheduling import ALPASERVE, MAVERIQ, ServingRules, check_rules
from alpa_serve.scheduling.rules import CHOICES


def test_alpaserve_is_the_default_and_has_the_published_figures():
    assert ServingRules() == ALPASERVE
    assert (ALPASERVE.execution, ALPASERVE.queueing, ALPASERVE.dispatch) == ("pipelined", "per_group", "least_loaded")
    assert (ALPASERVE.admission, ALPASERVE.service) == ("deadline", "profile")
    assert (ALPASERVE.stage_penalty, ALPASERVE.fixed_overhead_s, ALPASERVE.dispatch_interval_s) == (0.009, 0.011, 0.0)


def test_maveriq_differs_from_alpaserve_in_every_choice():
    for name in CHOICES:
        assert getattr(MAVERIQ, name) != getattr(ALPASERVE, name)
    assert MAVERIQ.dispatch_interval_s == pytest.approx(0.007, abs=0.001)


def test_figures_are_kept_as_floats_whatever_numbers_were_given():
    rules = ServingRules(fixed_overhead_s=0, stage_penalty=np.float32(0.5), idle_after_s=15, idle_penalty_s=1)
    figures = (rules.fixed_overhead_s, rules.stage_penalty, rules.idle_after_s, rules.idle_penalty_s)
    assert figures == (0.0, 0.5, 15.0, 1.0)
    assert {type(figure) for figure in figures} == {float}


@pytest.mark.parametrize("rules", [None, "maveriq", {"execution": "exclusive"}, ServingRules])
def test_what_is_no_rules_is_refused(rules):
    with pytest.raises(InvalidConfigError, match="rules must be ServingRules, such as ALPASERVE or MAVERIQ, got"):
        check_rules(rules)


def test_rules_are_frozen_and_hashable():
    with pytest.raises(FrozenInstanceError):
        ALPASERVE.execution = "exclusive"
    assert len({ALPASERVE, MAVERIQ, ServingRules()}) == 2


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("value", ["", "fastest", None, 3, True])
def test_a_rule_that_is_none_of_its_choices_is_refused(name, value):
    with pytest.raises(UnknownNameError, match=f"{name} rule .*{CHOICES[name][0]}, {CHOICES[name][1]}"):
        replace(ALPASERVE, **{name: value})


FIGURES = [field.name for field in fields(ServingRules) if isinstance(field.default, float)]


@pytest.mark.parametrize("name", FIGURES)
@pytest.mark.parametrize("value", [-1e-9, math.nan, "0.1", None, True])
def test_a_figure_must_be_a_number_of_at_least_zero(name, value):
    with pytest.raises(InvalidConfigError, match=name):
        replace(ALPASERVE, **{name: value})


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "idle_after_s"])
def test_a_figure_must_be_finite(name):
    with pytest.raises(InvalidConfigError, match=name):
        replace(ALPASERVE, **{name: math.inf})


@pytest.mark.parametrize("seed", [-1, 0.5, None, True])
def test_the_seed_must_be_a_whole_number(seed):
    with pytest.raises(InvalidConfigError, match="seed"):
        replace(ALPASERVE, seed=seed)


def test_an_idle_penalty_without_a_time_after_which_a_group_is_idle_contradicts_itself():
    with pytest.raises(
        InvalidConfigError, match=r"idle_penalty_s is 0\.1 s but idle_after_s is infinite.*set idle_after_s too"
    ):
        ServingRules(idle_penalty_s=0.1)
    assert ServingRules(idle_penalty_s=0.1, idle_after_s=2).idle_after_s == 2
