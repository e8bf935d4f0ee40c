"""The command line: a deployment strategy (``place``), or what it takes to reach an SLO attainment (``plan``)."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alpa_serve.errors import AlpaServeError, PlanInterrupted
from alpa_serve.experiments import maveriq, results_file
from alpa_serve.experiments.job import BASELINES, JobSettings, deployment_job
from alpa_serve.placement_policy import (
    CapacityPlan,
    PlacementEvaluator,
    highest_rate_scale,
    plan_capacity,
    tightest_slo_scale,
)
from alpa_serve.placement_policy.plan_search import SearchSettings
from alpa_serve.placement_policy.scale_search import scaled_workload
from alpa_serve.report.progress_bar import search_progress_bar
from alpa_serve.report.strategy import format_strategy
from alpa_serve.trace.llm import BUILT_IN_TRACES
from alpa_serve.util import GB

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from alpa_serve.experiments.job import Job
    from alpa_serve.placement import ModelPlacement
    from alpa_serve.placement_policy import ScalePlan
    from alpa_serve.placement_policy.plan_search import UpperBound

STOPPED = 130
"""Exit code after Ctrl-C, as shells have it."""

AXES = ("devices", "rate", "slo")
"""What ``plan`` looks for: the fewest devices, the highest rate scale, the tightest SLO scale."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a sub-command; return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if left out.
    """
    settings = JobSettings()
    parser = argparse.ArgumentParser(
        prog="alpa-serve", description="Decides how many models share a GPU cluster, by simulating a request trace."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _place_flags(commands.add_parser("place", help="print a deployment strategy", description=_PLACE), settings)
    _plan_flags(commands.add_parser("plan", help="print what it takes to reach a target", description=_PLAN), settings)
    options = parser.parse_args(argv)
    return _run({"place": _place, "plan": _plan}[options.command], options, settings)


def place(argv: Sequence[str] | None, settings: JobSettings) -> int:
    """Run ``place`` alone, with other settings to start from; return the exit code."""
    parser = argparse.ArgumentParser(description=_PLACE)
    _place_flags(parser, settings)
    return _run(_place, parser.parse_args(argv), settings)


_PLACE = "Print a deployment strategy for MaverIQ's models and traces."
_PLAN = (
    "Print what it takes to reach an SLO attainment: the fewest devices, or on given devices the highest rate or the "
    "tightest SLOs, with the deployment strategy."
)


# ---- flags ----------------------------------------------------------------------------------------------------------


def _place_flags(parser: argparse.ArgumentParser, settings: JobSettings) -> None:
    _problem_flags(parser, settings)
    _search_flags(parser, "alpaserve")
    parser.add_argument("--output", type=Path, metavar="RESULTS.csv", help="append the result to this file")


def _plan_flags(parser: argparse.ArgumentParser, settings: JobSettings) -> None:
    _problem_flags(parser, settings)
    _search_flags(parser, "mixed")
    parser.add_argument("--target", type=float, default=0.99, help="SLO attainment to reach (default: %(default)s)")
    parser.add_argument(
        "--axis",
        choices=AXES,
        default="devices",
        help="fewest devices (--num-devices is where the search starts), highest factor on the rate, or smallest "
        "factor on every SLO (default: %(default)s)",
    )
    parser.add_argument("--max-devices", type=int, help="largest number of devices to try (default: 1024)")
    parser.add_argument(
        "--tolerance", type=float, default=0.01, help="relative, of the rate and SLO factors (default: %(default)s)"
    )


def _problem_flags(parser: argparse.ArgumentParser, settings: JobSettings) -> None:
    cluster = settings.cluster_env
    parser.add_argument(
        "--model-set",
        choices=maveriq.MODEL_SETS,
        default=settings.model_set,
        help=f"(default: {settings.model_set or 'the model_list of the script'})",
    )
    parser.add_argument(
        "--trace",
        default=settings.trace,
        metavar="NAME|FILE",
        help=f"{', '.join(BUILT_IN_TRACES)}, poisson, or a file of a published form (default: %(default)s)",
    )
    parser.add_argument("--scale-rate", type=float, default=settings.scale_rate, help="(default: %(default)s)")
    parser.add_argument(
        "--slo", type=float, default=settings.slo, help="factor on a request's own time (default: %(default)s)"
    )
    parser.add_argument("--num-devices", type=int, default=cluster.num_devices, help="(default: %(default)s)")
    parser.add_argument(
        "--mem-budget", type=float, default=cluster.mem_budget / GB, help="GiB a device (default: %(default)g)"
    )
    parser.add_argument(
        "--num-devices-per-node", type=int, default=cluster.num_devices_per_node, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--rules",
        choices=list(maveriq.RULES),
        default=settings.rules,
        help="how the cluster serves: as AlpaServe takes for granted, or as MaverIQ's hardware was measured to, with "
        "profiles as measured (default: %(default)s)",
    )
    parser.add_argument(
        "--published-naming",
        action="store_true",
        help="name models by position from m0, as the published experiments did: requests go to the next model",
    )
    parser.add_argument("--dataset", help="Hugging Face data set to take prompts from (they change no placement)")


def _search_flags(parser: argparse.ArgumentParser, baseline: str) -> None:
    parser.add_argument(
        "--baseline",
        choices=BASELINES,
        default=baseline,
        help="alpaserve: equal groups; alpaserve-star: one group over all devices that holds every model; "
        "mixed: groups of any shape (default: %(default)s)",
    )
    parser.add_argument(
        "--time-budget", type=float, default=10.0, help="seconds of a mixed search (default: %(default)g)"
    )
    parser.add_argument(
        "--max-evaluations", type=int, help="placements that a mixed search simulates, in place of --time-budget"
    )
    parser.add_argument("--seed", type=int, default=0, help="of a mixed search (default: %(default)s)")
    parser.add_argument(
        "--num-workers", type=int, default=1, help="of a mixed search: 2 or more are Ray tasks (default: %(default)s)"
    )
    parser.add_argument("--address", help="Ray cluster to join with 2 workers or more (default: one of this machine)")


def _job(options: argparse.Namespace, settings: JobSettings) -> Job:
    return deployment_job(
        settings,
        model_set=options.model_set,
        trace=options.trace,
        scale_rate=options.scale_rate,
        slo=options.slo,
        num_devices=options.num_devices,
        mem_budget_gib=options.mem_budget,
        num_devices_per_node=options.num_devices_per_node,
        rules=options.rules,
        published_naming=options.published_naming,
        dataset=options.dataset,
    )


def _search_settings(options: argparse.Namespace) -> SearchSettings:
    return SearchSettings(
        rules=maveriq.RULES[options.rules],
        time_budget=options.time_budget,
        max_evaluations=options.max_evaluations,
        seed=options.seed,
        max_pp=maveriq.MAX_DEGREE,
        max_op=maveriq.MAX_DEGREE,
        num_workers=options.num_workers,
        address=options.address,
    )


# ---- commands -------------------------------------------------------------------------------------------------------


def _run(
    command: Callable[[argparse.Namespace, JobSettings], int], options: argparse.Namespace, settings: JobSettings
) -> int:
    try:
        return command(options, settings)
    except (AlpaServeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; no strategy was found yet", file=sys.stderr)
        return STOPPED


def _place(options: argparse.Namespace, settings: JobSettings) -> int:
    """Search and print the strategy, or after Ctrl-C the best so far."""
    if options.output is not None:
        results_file.check_results_file(options.output)
    job = _job(options, settings)
    search = _search_settings(options)
    find = job.finder(options.baseline, search)
    stopped = False
    with search_progress_bar() as watch:
        try:
            placement = find(job.model_datas, job.cluster_env, job.workload, (), watch)
        except KeyboardInterrupt as stop:
            best = getattr(stop, "placement", None) or watch.placement
            if best is None:
                raise
            placement, stopped = best, True
    strategy = None
    if not stopped:
        try:
            strategy = _strategy(job, placement, search.bound)
        except KeyboardInterrupt:
            # who does not want to wait for the proof still wants the strategy
            stopped = True
    if strategy is None:
        strategy = _strategy(job, placement)
    cluster = job.cluster_env
    print(
        f"{len(job.labels)} models on {cluster.num_devices} devices of {cluster.mem_budget / GB:g} GiB, "
        f"{options.baseline}, {job.load}\n"
    )
    if stopped:
        print("Stopped before the search was done; the best strategy so far:\n")
    print(strategy)
    if stopped:
        print("stopped; this is the best strategy so far", file=sys.stderr)
        return STOPPED
    if options.output is not None:
        results_file.append_result(options.output, _result(options, job, placement))
    return 0


def _strategy(job: Job, placement: ModelPlacement, upper_bound: UpperBound | None = None) -> str:
    return format_strategy(
        placement,
        job.model_datas,
        job.labels,
        job.cluster_env,
        job.workload,
        rules=job.rules,
        upper_bound=upper_bound,
    )


def _result(options: argparse.Namespace, job: Job, placement: ModelPlacement) -> dict[str, object]:
    """Return the row of a strategy in the results file."""
    evaluator = PlacementEvaluator(job.model_datas, job.cluster_env, job.workload, rules=job.rules)
    evaluation = evaluator.evaluate(placement)
    row = (
        options.baseline,
        options.model_set or "model_list",
        options.trace,
        options.scale_rate,
        options.slo,
        job.cluster_env.num_devices,
        options.mem_budget,
        job.cluster_env.num_devices_per_node,
        options.published_naming,
        options.rules,
        len(job.workload),
        f"{evaluation.goodput:.6f}",
        f"{evaluation.latency_mean:.6f}",
        placement,
    )
    return dict(zip(results_file.COLUMNS, row, strict=True))


def _plan(options: argparse.Namespace, settings: JobSettings) -> int:
    """Plan and print the plan with its strategy, or after Ctrl-C the best so far."""
    search = _search_settings(options)
    job = _job(options, settings)
    shared: dict[str, Any] = {
        "rules": job.rules,
        "time_budget": search.time_budget,
        "max_evaluations": search.max_evaluations,
        "seed": search.seed,
        "max_pp": search.max_pp,
        "max_op": search.max_op,
        "num_workers": search.num_workers,
        "address": search.address,
        "find": job.finder(options.baseline, search),
    }
    problem = (job.model_datas, job.workload, options.target, job.cluster_env)
    stop: PlanInterrupted | None = None
    plan: CapacityPlan | ScalePlan
    with search_progress_bar() as watch:
        try:
            if options.axis == "devices":
                resize = options.baseline == "mixed"
                plan = plan_capacity(*problem, **shared, max_devices=options.max_devices, resize=resize, callback=watch)
            else:
                planner = highest_rate_scale if options.axis == "rate" else tightest_slo_scale
                plan = planner(*problem, **shared, tolerance=options.tolerance, callback=watch)
        except PlanInterrupted as interrupt:
            stop = interrupt
            if stop.placement is None:
                raise
            plan = stop.plan
    if stop is not None and stop.plan is None:
        attained = stop.evaluation.goodput
        print(f"Stopped before a placement reached {options.target:g}; the best attains {attained:.4f}:\n")
        print(stop.placement)
        print("stopped; no plan was found yet", file=sys.stderr)
        return STOPPED
    where = "devices" if options.axis == "devices" else f"{job.cluster_env.num_devices} devices"
    print(
        f"{len(job.labels)} models on {where} of {job.cluster_env.mem_budget / GB:g} GiB, {options.baseline}, "
        f"{job.load}\n"
    )
    if stop is not None:
        print("Stopped before the search was done; the best plan so far:\n")
    known = _known_bound(plan)
    strategy = _strategy(_planned(job, plan), plan.placement, None if known is None else lambda *_: known)
    print(plan.summary(), strategy, sep="\n\n")
    if stop is not None:
        print("stopped; this is the best plan so far", file=sys.stderr)
        return STOPPED
    return 0


def _known_bound(plan: CapacityPlan | ScalePlan) -> float | None:
    """Return the bound that the plan has for what it came to, if it needed one there."""
    if isinstance(plan, CapacityPlan):
        return next((tried.bound for tried in plan.tried if tried.num_devices == plan.num_devices), None)
    return next((tried.bound for tried in plan.tried if tried.scale == plan.scale), None)


def _planned(job: Job, plan: CapacityPlan | ScalePlan) -> Job:
    """Return the job with the cluster, or with the requests and SLOs, of the plan."""
    if isinstance(plan, CapacityPlan):
        return replace(job, cluster_env=replace(job.cluster_env, num_devices=plan.num_devices))
    if plan.axis == "rate":
        return replace(job, workload=scaled_workload(job.workload, rate_scale=plan.scale))
    return replace(
        job,
        workload=scaled_workload(job.workload, slo_scale=plan.scale),
        model_datas=[replace(data, slo=data.slo * plan.scale) for data in job.model_datas],
    )
