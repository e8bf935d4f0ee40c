"""Cases and rules that the simulators are put through, and changes of a placement for the incremental one."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from alpa_serve.placement import ModelData, ModelPlacement
from alpa_serve.profiles.prefill_decode import PrefillDecode
from alpa_serve.profiling import ParallelConfig
from alpa_serve.simulator import groups as engine_groups
from alpa_serve.simulator.fast import simulate_counts
from alpa_serve.simulator.problem import ModelTable, ReplicaTable, RequestTable
from alpa_serve.simulator.search_problem import SearchProblem, search_problem
from alpa_serve.simulator.workload import Workload


class SimulationCase(NamedTuple):
    """Arguments of simulate()."""

    placement: ModelPlacement
    models: list
    workload: Workload


@pytest.fixture(scope="session")
def simulation_cases(simulator_problems):
    """Return a hypothesis strategy of small SimulationCases: tokens, uneven stages, requests for unknown models."""

    @st.composite
    def draw_case(draw):
        problem = draw(simulator_problems)
        names = [f"m{i}" for i in range(len(problem.profiles))]
        for profile in problem.profiles:
            for config, data in profile.para_dict.items():
                seconds = sum(data.latency[1])
                prompt = draw(st.sampled_from([None, 100]))
                data.prefill_decode[1] = PrefillDecode(seconds / 4, seconds / 8 / config.op, prompt)
        tokens = st.lists(st.sampled_from([0, 1, 2, 9]), min_size=len(problem.arrivals), max_size=len(problem.arrivals))
        workload = Workload.from_columns(
            problem.arrivals,
            np.where(problem.model_ids < 0, len(names), problem.model_ids),
            [*names, "unknown"],
            problem.slos,
            input_tokens=[10 * count for count in draw(tokens)],
            output_tokens=draw(tokens),
        )
        models = [ModelData(name, 1.0, 1.0, 1.0, prof) for name, prof in zip(names, problem.profiles, strict=True)]
        return SimulationCase(problem.placement, models, workload)

    return draw_case()


class EngineCase(NamedTuple):
    """A problem under rules that give each group its own queue, as tables and as the compiled searches take it."""

    models: ModelTable
    requests: RequestTable
    configs: list
    problem: SearchProblem

    @property
    def sizes(self):
        """Models and configs that there are."""
        return len(self.models), len(self.configs)


@pytest.fixture(scope="session")
def engine_cases(serving_rules, profile_of):
    """Return a hypothesis strategy of EngineCases: simultaneous arrivals, zero latencies, unregistered models."""
    configs = [ParallelConfig(1, 1, 1), ParallelConfig(1, 2, 1), ParallelConfig(1, 1, 2), ParallelConfig(1, 1, 3)]

    @st.composite
    def draw_case(draw):
        rules = replace(draw(serving_rules), queueing="per_group")
        num_models = draw(st.integers(1, 5))
        num_requests = draw(st.integers(0, 250))
        # long columns are drawn by seed: element by element they would be all that hypothesis does
        rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
        profiles = []
        for _ in range(num_models):
            stages = {config: rng.choice([0.0, 0.03, 0.05, 0.1, 0.17, 0.4], config.pp).tolist() for config in configs}
            profile = profile_of({config: {1: seconds} for config, seconds in stages.items()})
            for config, seconds in stages.items():
                data = profile.para_dict[config].prefill_decode
                data[1] = PrefillDecode(sum(seconds) / 4, sum(seconds) / 8, None if rng.random() < 0.5 else 100)
            profiles.append(profile)
        models = ModelTable([f"m{i}" for i in range(num_models)], profiles, rules=rules)
        requests = RequestTable.of_arrays(
            np.cumsum(rng.choice(draw(st.sampled_from([(0.0, 0.01, 0.3), (0.0, 0.05, 1.0)])), num_requests)),
            rng.integers(-1, num_models, num_requests).astype(np.int32),
            rng.choice([0.05, 0.15, 0.3, 0.6, 1.5, np.inf], num_requests),
            num_models,
            input_tokens=rng.choice([0, 10, 90], num_requests),
            output_tokens=rng.choice([0, 1, 9], num_requests),
        )
        return EngineCase(
            models, requests, configs, search_problem(models, requests, configs, np.ones((num_models, len(configs))))
        )

    return draw_case()


@dataclass(frozen=True)
class Toggle:
    """Take a model out of a group, or put it in."""

    slot: int
    model: int

    def __call__(self, groups):
        if groups.config[self.slot] == engine_groups.FREE:
            return
        change = engine_groups.remove_replica if groups.holds[self.slot, self.model] else engine_groups.add_replica
        change(groups, self.slot, self.model)


@dataclass(frozen=True)
class Renew:
    """Put another group into a slot, or free it."""

    slot: int
    config: int
    node: int
    models: tuple

    def __call__(self, groups):
        engine_groups.clear_group(groups, self.slot)
        engine_groups.set_config(groups, self.slot, self.config)
        engine_groups.set_node(groups, self.slot, self.node)
        for model in self.models if self.config != engine_groups.FREE else ():
            engine_groups.add_replica(groups, self.slot, model)


@pytest.fixture(scope="session")
def group_changes():
    """Return group_changes(num_slots, num_models, num_configs) -> a strategy of Toggles and Renewals, to be called."""

    def changes(num_slots, num_models, num_configs):
        slots, models = st.integers(0, num_slots - 1), st.integers(0, num_models - 1)
        some_models = st.lists(models, unique=True).map(tuple)
        # toggles are drawn more often
        toggles = st.builds(Toggle, slots, models)
        return toggles | toggles | st.builds(Renew, slots, st.integers(-1, num_configs - 1), slots, some_models)

    return changes


@pytest.fixture(scope="session")
def drawn_groups():
    """Return drawn_groups(draw, num_models, num_configs) -> Groups, some of them in a slot that is free or empty."""

    def build(draw, num_models, num_configs):
        members = st.lists(st.integers(0, num_models - 1), unique=True)
        drawn = draw(st.lists(st.tuples(st.integers(0, num_configs - 1), members), max_size=5))
        num_slots = len(drawn) + draw(st.integers(0 if drawn else 1, 2))
        return engine_groups.make_groups(
            num_slots, num_models, [config for config, _ in drawn], [models for _, models in drawn]
        )

    return build


@pytest.fixture(scope="session")
def counts_anew():
    """Return counts_anew(case, groups) -> (good and latency per model, requests per slot) of a full simulation."""

    def simulate(case, groups):
        order = [slot for slot in np.argsort(groups.rank).tolist() if groups.config[slot] != engine_groups.FREE]
        counts = simulate_counts(
            case.requests,
            ReplicaTable.of_groups(
                case.models,
                [case.configs[groups.config[slot]] for slot in order],
                [groups.models[slot, : groups.num_models[slot]].tolist() for slot in order],
            ),
        )
        by_slot = np.zeros(len(groups.config), np.int64)
        by_slot[order] = counts.group_num_requests
        return counts.model_num_good, counts.model_latency, by_slot

    return simulate
