"""MaverIQ's evaluation of AlpaServe: its model sets, its two baselines and its naming of the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import InvalidConfigError
from alpa_serve.experiments.trace_steps import step_process
from alpa_serve.placement import ClusterEnv, ModelData
from alpa_serve.placement_policy import ModelParallelismSearch
from alpa_serve.profiles import maveriq as measured
from alpa_serve.profiling import load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator.trace_workload import model_slo
from alpa_serve.util import GB
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from alpa_serve.placement import ModelPlacement
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.profiling import ProfilingResult
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

OUTPUT_LENGTH = 20
"""Output tokens of every request."""

MAX_DEGREE = 8
"""Largest pipeline and tensor parallel degree."""

PUBLISHED_CLUSTER = ClusterEnv(num_devices=8, mem_budget=48 * GB, num_devices_per_node=8)
"""Eight RTX A6000 in one node."""

RULES = {"alpaserve": ALPASERVE, "maveriq": MAVERIQ}
"""Serving rules by name: what the published experiments took for granted, and what the hardware was measured to do."""

ModelList = list[dict[str, Any]]
"""Dicts with id, name, load_time (step of the trace) and output_length (tokens)."""

_LARGE = ("llama-2-70b", "falcon-40b", "llama-2-7b", "falcon-40b")
_REGULAR = ("llama-2-7b", "gptj-6b", "falcon-40b", "llama-2-13b")
_MIXED = ("llama-2-7b", "llama-2-13b", "falcon-7b", "gptj-6b", "llama-2-70b", "llama-2-70b", "falcon-40b", "falcon-40b")

_MODEL_SETS: dict[str, tuple[tuple[str, ...], int]] = {
    "large": (_LARGE, 5),
    "regular": (_REGULAR * 2, 3),
    "twentyone": (_MIXED * 2 + _MIXED[:5], 1),
}
"""Models in the order of loading, and the steps between two loads."""

MODEL_SETS = tuple(_MODEL_SETS)
"""Names of the model sets."""

BASELINES = ("AlpaServe", "AlpaServe*")
"""AlpaServe's search, and the same with one group over all devices that holds every model."""


def model_list(model_set: str) -> ModelList:
    """Return the models of a set: "large" (4), "regular" (8) or "twentyone" (21).

    Raises
    ------
    UnknownNameError
        Listing the known sets.
    """
    names, steps_between_loads = _MODEL_SETS[check_known(model_set, MODEL_SETS, "model set")]
    return [
        {"id": position + 1, "name": name, "load_time": position * steps_between_loads, "output_length": OUTPUT_LENGTH}
        for position, name in enumerate(names)
    ]


def profile_for(name: str, rules: ServingRules) -> ProfilingResult:
    """Return the profile of a model: as measured if service is by tokens, else as published (five times faster)."""
    return measured.load(name) if rules.service == "tokens" else load_test_prof_result_v2(name)


def model_datas(
    models: Sequence[Mapping[str, Any]],
    slo_scale: float,
    workload: Workload,
    published_naming: bool = False,
    *,
    rules: ServingRules = ALPASERVE,
) -> list[ModelData]:
    """Return the models as a placement policy takes them.

    Parameters
    ----------
    models : sequence of mappings
        As :func:`model_list` gives them.
    slo_scale : float
        Factor on TTFT + TPOT * output_length.
    workload : Workload
        For the rate and cv of each model.
    published_naming : bool
        Name the models m0, m1, ... by position, as the published experiments did, where the requests are named
        m1, m2, ... by id: every request then goes to the next model in the list, and those for the last are not
        served. By default a model is named ``m{id}`` like its requests.
    rules : ServingRules
        Which the profiles are for (:func:`profile_for`).
    """
    datas = []
    for position, model in enumerate(models):
        name = f"m{position}" if published_naming else f"m{model['id']}"
        own = workload.select_models([name])
        datas.append(
            ModelData(
                name,
                model_slo(model["name"], model["output_length"], slo_scale),
                own.rate,
                own.cv,
                profile_for(model["name"], rules),
            )
        )
    return datas


@dataclass(frozen=True)
class Experiment:
    """One experiment of the published evaluation.

    Attributes
    ----------
    baseline : str
        "AlpaServe" or "AlpaServe*".
    model_set : str
        "large", "regular" or "twentyone".
    trace : str
        "code" or "conversation" (or any name or file that :func:`~alpa_serve.experiments.trace_steps.step_process`
        takes).
    scale_rate : float
        Factor on the requests per minute.
    slo_scale : float
        Factor on the single-request latency.
    """

    baseline: str
    model_set: str
    trace: str
    scale_rate: float
    slo_scale: float

    def workload(self) -> Workload:
        """Return the requests of this experiment."""
        trace = step_process(self.trace, self.scale_rate)
        return trace.generate_workload(model_list(self.model_set), slo=self.slo_scale)


def solve_baseline(
    baseline: str,
    datas: Sequence[ModelData],
    cluster_env: ClusterEnv,
    workload: Workload,
    callback: ProgressCallback | None = None,
    *,
    rules: ServingRules = ALPASERVE,
) -> ModelPlacement:
    """Return the placement that a baseline chooses.

    Parameters
    ----------
    baseline : str
        "AlpaServe": ModelParallelismSearch. "AlpaServe*": the same with one group over all devices that holds every
        model.
    datas : sequence of ModelData
    cluster_env : ClusterEnv
    workload : Workload
    callback : callable, optional
        Called with a SearchProgress as the search goes on.
    rules : ServingRules
        How the cluster serves.

    Raises
    ------
    InfeasiblePlacementError
        If there is no such placement.
    """
    if not len(workload):
        raise InvalidConfigError("the workload has no request: scale_rate is too small for this trace")
    one_group = check_known(baseline, BASELINES, "baseline") == "AlpaServe*"
    policy = ModelParallelismSearch(
        max_pp=MAX_DEGREE,
        max_op=MAX_DEGREE,
        require_all_models=one_group,
        num_groups=1 if one_group else None,
        callback=callback,
        rules=rules,
    )
    return policy.solve_placement(datas, cluster_env, workload)[0]
