"""A deployment to decide on: models, cluster, trace and serving rules, as the command line and the script name them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidConfigError
from alpa_serve.experiments import maveriq
from alpa_serve.experiments.maveriq import PUBLISHED_CLUSTER
from alpa_serve.experiments.trace_steps import step_process
from alpa_serve.placement import ClusterEnv
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.trace_workload import model_slo
from alpa_serve.util import GB
from alpa_serve.validation import check_known

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ModelData, ModelPlacement
    from alpa_serve.placement_policy.plan_search import FindPlacement, SearchSettings
    from alpa_serve.placement_policy.progress import ProgressCallback
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload

BASELINES = ("alpaserve", "alpaserve-star", "mixed")
"""AlpaServe's search; the same with one group over all devices that holds every model; groups of any shape."""

_PUBLISHED = {"alpaserve": "AlpaServe", "alpaserve-star": "AlpaServe*"}


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What is decided on unless flags say otherwise.

    Attributes
    ----------
    trace : str
        Name or file, as :func:`~alpa_serve.trace.llm.load_llm_trace` takes it.
    scale_rate : float
        Factor on the requests per minute of the trace.
    slo : float
        Factor on the time that a single request takes.
    rules : str
        "alpaserve" or "maveriq".
    cluster_env : ClusterEnv
    model_set : str or None
        Name of the models; None if they are those of the next two.
    model_list : list of dict
        Models in the order of loading, as :func:`~.maveriq.model_list` gives them.
    model_datas : list of ModelData
        The same models, of SLO factor `slo`, named ``m{id}``.
    """

    trace: str = "Conversation"
    scale_rate: float = 0.4
    slo: float = 5.0
    rules: str = "alpaserve"
    cluster_env: ClusterEnv = field(default_factory=lambda: replace(PUBLISHED_CLUSTER))
    model_set: str | None = "large"
    model_list: maveriq.ModelList = field(default_factory=list)
    model_datas: list[ModelData] = field(default_factory=list)


@dataclass(frozen=True, eq=False, kw_only=True)
class Job:
    """A deployment to decide on.

    Attributes
    ----------
    model_datas : list of ModelData
    labels : list of str
        What each model is.
    cluster_env : ClusterEnv
    workload : Workload
    rules : ServingRules
    load : str
        The workload and the rules in words.
    """

    model_datas: list[ModelData]
    labels: list[str]
    cluster_env: ClusterEnv
    workload: Workload
    rules: ServingRules
    load: str

    def finder(self, baseline: str, search: SearchSettings) -> FindPlacement:
        """Return the search that a baseline stands for.

        Parameters
        ----------
        baseline : str
            "alpaserve", "alpaserve-star" or "mixed".
        search : SearchSettings
            Of a mixed search; the others are as published.

        Raises
        ------
        UnknownNameError
            Listing the known baselines.
        """
        if check_known(baseline, BASELINES, "baseline") == "mixed":
            return search.find

        def published(
            model_datas: Sequence[ModelData],
            cluster_env: ClusterEnv,
            workload: Workload,
            starts: Sequence[ModelPlacement],
            callback: ProgressCallback,
        ) -> ModelPlacement:
            return maveriq.solve_baseline(
                _PUBLISHED[baseline], model_datas, cluster_env, workload, callback, rules=search.rules
            )

        return published


def deployment_job(
    settings: JobSettings,
    *,
    model_set: str | None,
    trace: str,
    scale_rate: float,
    slo: float,
    num_devices: int,
    mem_budget_gib: float,
    num_devices_per_node: int,
    rules: str,
    published_naming: bool = False,
    dataset: str | None = None,
) -> Job:
    """Return the job that flags describe.

    Parameters
    ----------
    settings : JobSettings
        For the models, if there is no `model_set`.
    model_set, trace, scale_rate, slo, num_devices, num_devices_per_node, rules
        In place of those of the settings.
    mem_budget_gib : float
        GiB a device.
    published_naming : bool
        Name models by position, as the published experiments did.
    dataset : str, optional
        Hugging Face data set to take prompts from.

    Raises
    ------
    AlpaServeError
        If a figure is out of range, a name unknown, or the trace cannot be read.
    """
    serving = maveriq.RULES[check_known(rules, maveriq.RULES, "rules")]
    cluster = ClusterEnv(num_devices, mem_budget_gib * GB, num_devices_per_node)
    models = maveriq.model_list(model_set) if model_set else settings.model_list
    requests = step_process(trace, scale_rate)
    workload = requests.generate_workload(models, dataset=dataset, slo=slo)
    if not len(workload):
        raise InvalidConfigError("the workload has no request: scale_rate is too small for this trace")
    if model_set:
        datas = maveriq.model_datas(models, slo, workload, published_naming, rules=serving)
    else:
        datas = _edited_model_datas(settings, slo, serving, published_naming)
    return Job(
        model_datas=datas,
        labels=[model["name"] for model in models],
        cluster_env=cluster,
        workload=workload,
        rules=serving,
        load=(
            f"trace {trace} at scale_rate {scale_rate:g}, slo {slo:g}: "
            f"{len(workload)} requests, {workload.rate:.2f}/s, cv {workload.cv:.2f}"
            f"{'' if serving == ALPASERVE else f', rules {rules}'}"
        ),
    )


def _edited_model_datas(
    settings: JobSettings, slo: float, rules: ServingRules, published_naming: bool
) -> list[ModelData]:
    """Return the model_datas of the settings, with the SLO, the profiles and the naming that are asked for."""
    models, datas = settings.model_list, settings.model_datas
    names, expected = [data.name for data in datas], [f"m{model['id']}" for model in models]
    if names != expected:
        raise InvalidConfigError(f"model_datas names {', '.join(names)}, model_list {', '.join(expected)}")
    if slo != settings.slo:
        datas = [
            replace(data, slo=model_slo(model["name"], model["output_length"], slo))
            for data, model in zip(datas, models, strict=True)
        ]
    if rules != ALPASERVE:
        datas = [
            replace(data, profiling_result=maveriq.profile_for(model["name"], rules))
            for data, model in zip(datas, models, strict=True)
        ]
    if published_naming:
        datas = [replace(data, name=f"m{position}") for position, data in enumerate(datas)]
    return datas
