"""A placement as text: what each group holds, what each model attains, and what was left out, with the reason."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alpa_serve.placement_policy import PlacementEvaluator
from alpa_serve.report.plain_table import plain_table
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.util import GB

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.placement import ClusterEnv, ModelData, ModelPlacement, ReplicaDeployment
    from alpa_serve.placement_policy.evaluator import Evaluation
    from alpa_serve.placement_policy.plan_search import UpperBound
    from alpa_serve.scheduling import ServingRules
    from alpa_serve.simulator.columnar_workload import Workload


def format_strategy(
    placement: ModelPlacement,
    model_datas: Sequence[ModelData],
    model_labels: Sequence[str],
    cluster_env: ClusterEnv,
    workload: Workload,
    *,
    rules: ServingRules = ALPASERVE,
    upper_bound: UpperBound | None = None,
) -> str:
    """Write a placement and what it attains as text.

    Parameters
    ----------
    placement : ModelPlacement
    model_datas : sequence of ModelData
    model_labels : sequence of str
        What to call each model, beside its name; labels may repeat.
    cluster_env : ClusterEnv
    workload : Workload
        What the placement is simulated with.
    rules : ServingRules
        How the cluster serves.
    upper_bound : callable, optional
        Bounds the SLO attainment of every placement on the cluster; the text says by how much this one could be beaten.

    Returns
    -------
    str
        Lines without trailing blanks: groups, models, models that are not placed, the placement, the deployment.
    """
    evaluator = PlacementEvaluator(model_datas, cluster_env, workload, rules=rules)
    evaluation = evaluator.evaluate(placement)
    called = [f"{data.name} {label}" for data, label in zip(model_datas, model_labels, strict=True)]
    sections = [
        "Groups\n" + _group_table(placement, called, evaluator, evaluation, cluster_env),
        "Models\n" + _model_table(placement, called, evaluator, evaluation) + _unregistered(evaluator),
    ]
    absent = [m for m in range(len(model_datas)) if m not in placement.placed_models()]
    if absent:
        reasons = [f"  {called[m]}: {_why_absent(m, placement, evaluator, cluster_env)}" for m in absent]
        sections.append("\n".join(["Not placed", *reasons]))
    sections.append(
        f"SLO attainment {evaluation.goodput:.4f} over {len(workload)} requests, "
        f"{_possible(evaluator, upper_bound, evaluation.goodput)}mean latency {evaluation.latency_mean:.3f} s"
    )
    sections.append(str(placement))
    sections.append("Deployment\n" + _deployment_table(placement.deployment(model_labels, cluster_env)))
    return "\n\n".join(sections)


def _possible(evaluator: PlacementEvaluator, upper_bound: UpperBound | None, attained: float) -> str:
    """Say what any placement can attain at most, if that is to be said."""
    if upper_bound is None:
        return ""
    # a bound can take long to prove; none is below what was attained, or above 1
    bound = 1.0
    if attained < 1:
        bound = upper_bound(evaluator.model_datas, evaluator.cluster_env, evaluator.workload, evaluator.rules)
    return f"at most {bound:.4f} is possible, "


def _group_table(
    placement: ModelPlacement,
    called: Sequence[str],
    evaluator: PlacementEvaluator,
    evaluation: Evaluation,
    cluster_env: ClusterEnv,
) -> str:
    rows = []
    devices = placement.assign_devices(cluster_env)
    for group_id, (config, models) in enumerate(zip(placement.group_configs, placement.group_models, strict=True)):
        gib = evaluator.weights(config) / GB
        rows.append(
            (
                str(group_id),
                _span(devices[group_id]),
                str(config.op),
                str(config.pp),
                str(evaluation.group_num_requests[group_id]),
                "\n".join([*(called[m] for m in models), f"used of {cluster_env.mem_budget / GB:.2f}"]),
                "\n".join([*(f"{gib[m]:.2f}" for m in models), f"{gib[models].sum():.2f}"]),
            )
        )
    return plain_table(("#group", "devices", "#tp", "#pp", "#requests", "models", "#GiB/device"), rows)


def _span(devices: Sequence[int]) -> str:
    """Write the devices of a group, which are consecutive, as "first-last"."""
    return f"{devices[0]}-{devices[-1]}" if len(devices) > 1 else str(devices[0])


def _model_table(
    placement: ModelPlacement, called: Sequence[str], evaluator: PlacementEvaluator, evaluation: Evaluation
) -> str:
    rows = []
    for model_id, data in enumerate(evaluator.model_datas):
        num_requests = int(evaluator.model_num_requests[model_id])
        attained = int(evaluation.model_num_good[model_id]) / num_requests if num_requests else None
        holders = [str(g) for g, models in enumerate(placement.group_models) if model_id in models]
        rows.append(
            (
                called[model_id],
                f"{data.slo:.3f}",
                str(num_requests),
                "no request" if attained is None else f"{attained:.4f}",
                ", ".join(holders) or "none",
            )
        )
    return plain_table(("model", "#SLO (s)", "#requests", "#SLO attainment", "groups"), rows)


def _unregistered(evaluator: PlacementEvaluator) -> str:
    """Tell of requests that name no model, if there are any."""
    count = len(evaluator.workload) - int(evaluator.model_num_requests.sum())
    return f"\n  {count} requests name a model that does not exist and are not served" if count else ""


def _why_absent(
    model_id: int, placement: ModelPlacement, evaluator: PlacementEvaluator, cluster_env: ClusterEnv
) -> str:
    """Say why no group holds the model: its need on each group's config against what is free there."""
    profile = evaluator.model_datas[model_id].profiling_result
    reasons: dict[tuple[int, ...], tuple[float, str]] = {}
    for config, models in zip(placement.group_configs, placement.group_models, strict=True):
        need = evaluator.weights(config)[model_id]
        free = cluster_env.mem_budget - evaluator.weights(config)[models].sum()
        if config not in profile.para_dict:
            reason = "it has no profile there"
        elif need > cluster_env.mem_budget:
            reason = f"it needs {need / GB:.2f} GiB a device of {cluster_env.mem_budget / GB:.2f}"
        elif need > free:
            reason = f"it needs {need / GB:.2f} GiB a device, at most {free / GB:.2f} GiB are free"
        else:
            reason = f"it would fit ({need / GB:.2f} GiB a device), but the search did not take it"
        if tuple(config) not in reasons or free > reasons[tuple(config)][0]:
            reasons[tuple(config)] = (free, reason)
    return "; ".join(f"on groups of {config} {reason}" for config, (_, reason) in reasons.items()) or "no group"


def _deployment_table(deployment: Sequence[ReplicaDeployment]) -> str:
    rows = []
    for replica in deployment:
        placed = bool(replica.device_assigned)
        rows.append(
            (
                str(replica.replica_id),
                replica.model,
                ",".join(map(str, replica.device_assigned)) if placed else "not placed",
                str(replica.tp_size) if placed else "",
                str(replica.pp_size) if placed else "",
            )
        )
    return plain_table(("#id", "model", "device_assigned", "#tp_size", "#pp_size"), rows)
