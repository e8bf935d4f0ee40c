"""Cases that both simulators are put through."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import strategies as st

from alpa_serve.placement import ModelData, ModelPlacement
from alpa_serve.profiles.result import PrefillDecode
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
