"""How good the placements are that a mixed search finds: SLO attainment beside AlpaServe's, and the most possible.

``python benchmarks/search_quality.py`` prints

1. the problems of AlpaServe's golden figures (``../shared/golden``; left out where that folder is absent),
2. MaverIQ's four large models on eight devices, served as the hardware was measured to, with one queue for all groups
   or one for each: the arrivals of the recorded runs (``../shared/data/hardware_runs``) and of the shipped traces,
3. with ``--scaling``, the benchmark problem of many models (`problems.py`).

AlpaServe's placements are those of ModelParallelismSearch by the same rules; "published" is the placement of MaverIQ's
evaluation. Every search takes ``--time-budget`` seconds for every one of ``--seeds``; the worst and the best are shown.
With ``--max-evaluations`` searches and bounds do the same on every machine, and no seconds are shown.
"""

import argparse
import json
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import NamedTuple

from problems import search_problem

from alpa_serve.experiments.hardware_replay import INPUT_TOKENS, slo_s
from alpa_serve.experiments.hardware_runs import read_runs
from alpa_serve.experiments.maveriq import (
    MAX_DEGREE,
    OUTPUT_LENGTH,
    PUBLISHED_CLUSTER,
    model_datas,
    model_list,
    profile_for,
)
from alpa_serve.experiments.published import read_entries
from alpa_serve.placement_policy import (
    ClusterEnv,
    MixedParallelismSearch,
    ModelData,
    ModelParallelismSearch,
    ModelPlacement,
    PlacementEvaluator,
    placement_upper_bound,
)
from alpa_serve.profiling import load_test_prof_result, load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ
from alpa_serve.simulator.workload import GammaProcess, Workload
from alpa_serve.util import GB

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
QUEUES = {"one queue": MAVERIQ, "a queue each": replace(MAVERIQ, queueing="per_group")}

BOUND_VISITS = 20_000_000

# models, devices, GiB a device -> the attainment that the issue asks for
WANTED = {(6, 8, 24): 0.862, (8, 8, 48): 0.839, (12, 16, 24): 0.893, (10, 8, 40): 0.600, (16, 16, 48): 0.999}


class Problem(NamedTuple):
    """A line of a table."""

    title: str
    datas: list
    cluster: ClusterEnv
    workload: Workload
    rules: object = ALPASERVE
    wanted: float | None = None
    published: ModelPlacement | None = None


def golden_problems():
    """Yield the ModelParallelismSearch cases of the golden figures, and one of them with other nodes."""
    path = SHARED / "golden" / "policies.json"
    if not path.is_file():
        print("left out: no golden figures in ../shared/golden\n")
        return
    for entry in json.loads(path.read_text(encoding="utf-8")):
        size = len(entry["models"]), entry["num_devices"], entry["mem_budget_gb"]
        if entry["policy"]["policy"] != "ModelParallelismSearch" or size not in WANTED:
            continue
        datas = [
            ModelData(f"m{i}", model["slo"], model["rate"], model["cv"], profile(model["profile"]))
            for i, model in enumerate(entry["models"])
        ]
        workload = Workload.merge(
            *(
                GammaProcess(data.rate, data.cv).generate_workload(
                    data.name, 0, entry["duration"], slo=data.slo, seed=i
                )
                for i, data in enumerate(datas)
            )
        )
        cluster = ClusterEnv(size[1], size[2] * GB, entry["num_devices_per_node"])
        wanted = WANTED[size]
        yield Problem(f"{size[0]} models, {size[1]} x {size[2]} GiB", datas, cluster, workload, wanted=wanted)
        if size[1] > cluster.num_devices_per_node:
            one_node = replace(cluster, num_devices_per_node=size[1])
            yield Problem("  the same in one node", datas, one_node, workload, wanted=wanted)


def profile(name):
    return load_test_prof_result(name) if name.startswith(("test", "alpa/")) else load_test_prof_result_v2(name)


def recorded_problems():
    """Yield the arrivals of the recorded runs of the four large models, by both kinds of queueing."""
    folder = SHARED / "data" / "hardware_runs"
    if not folder.is_dir():
        print("left out: no recorded runs in ../shared/data/hardware_runs\n")
        return
    for run in read_runs(folder):
        # those of one group hold each model once: a client is a model
        if run.model_set != "large" or run.baseline != "AlpaServe*":
            continue
        clients = sorted(run.clients)
        names = [run.clients[client] for client in clients]
        datas = [
            ModelData(f"m{client}", slo_s(run, name), 1.0, 1.0, profile_for(name, MAVERIQ))
            for client, name in zip(clients, names, strict=True)
        ]
        model_ids = [clients.index(client) for client in run.load["client_id"]]
        workload = Workload.from_columns(
            run.load["arrival_s"].to_numpy(),
            model_ids,
            [data.name for data in datas],
            [datas[model].slo for model in model_ids],
            input_tokens=INPUT_TOKENS,
            output_tokens=OUTPUT_LENGTH,
        )
        published = ModelPlacement(
            list(run.groups.values()),
            [[k for k, c in enumerate(clients) if run.replicas[c].devices == devices] for devices in run.groups],
        )
        for queue, rules in QUEUES.items():
            title = f"recorded {run.trace} {run.scale:g}, {queue}"
            yield Problem(title, datas, PUBLISHED_CLUSTER, workload, rules, published=published)


def traced_problems():
    """Yield the shipped traces at every published scale of the four large models, by both kinds of queueing."""
    for entry in read_entries(ROOT / "alpaserve_configs.txt"):
        run = entry.experiment
        if run.baseline != "AlpaServe" or run.model_set != "large" or run.slo_scale != 5:
            continue
        workload = run.workload()
        datas = model_datas(model_list(run.model_set), run.slo_scale, workload, rules=MAVERIQ)
        for queue, rules in QUEUES.items():
            title = f"{run.trace} {run.scale_rate:g}, {queue}"
            published = None if entry.published is None else entry.published.placement
            yield Problem(title, datas, PUBLISHED_CLUSTER, workload, rules, published=published)


def scaling_problems(sizes):
    for num_models, num_requests in sizes:
        datas, cluster, workload = search_problem(num_models, num_requests)
        yield Problem(f"{num_models} models, {num_models} x 24 GiB", datas, cluster, workload)


def attains(problem, placement):
    placement.verify(problem.datas, problem.cluster)
    evaluator = PlacementEvaluator(problem.datas, problem.cluster, problem.workload, rules=problem.rules)
    return evaluator.evaluate(placement).goodput


def show(title, problems, options):
    """Print a table, a line for each problem as it is solved."""
    print(title)
    print(
        f" {'problem':<38}{'requests':>10}{'published':>11}{'AlpaServe':>11}{'mixed':>9}{'worst':>8}{'wanted':>8}"
        f"{'at most':>9}{'' if options.max_evaluations else '      s'}  placement (tp, pp): models"
    )
    print("-" * 150)
    for problem in problems:
        arguments = problem.datas, problem.cluster, problem.workload
        classic = ModelParallelismSearch(max_pp=MAX_DEGREE, max_op=MAX_DEGREE, rules=problem.rules)
        alpaserve = attains(problem, classic.solve_placement(*arguments)[0])
        found = []
        for seed in range(options.seeds):
            policy = MixedParallelismSearch(
                inf if options.max_evaluations else options.time_budget,
                seed,
                rules=problem.rules,
                max_evaluations=options.max_evaluations,
            )
            placement, info = policy.solve_placement(*arguments)
            found.append((attains(problem, placement), info["seconds"], placement))
        best, worst = max(found, key=lambda row: row[0]), min(found, key=lambda row: row[0])
        visits = None if options.max_evaluations is None else BOUND_VISITS
        bound = placement_upper_bound(*arguments, problem.rules, time_limit=options.bound_time, max_visits=visits)
        published = "" if problem.published is None else f"{attains(problem, problem.published):.4f}"
        wanted = "" if problem.wanted is None else f"{problem.wanted:.3f}"
        seconds = "" if options.max_evaluations else f"{max(row[1] for row in found):7.1f}"
        groups = "; ".join(
            f"({config.op}, {config.pp}): {' '.join(problem.datas[model].name for model in models)}"
            for config, models in zip(best[2].group_configs, best[2].group_models, strict=True)
        )
        print(
            f" {problem.title:<38}{len(problem.workload):>10,}{published:>11}{alpaserve:>11.4f}{best[0]:>9.4f}"
            f"{worst[0]:>8.4f}{wanted:>8}{bound:>9.4f}{seconds}  "
            f"{groups if len(best[2].group_configs) <= 8 else f'{len(best[2].group_configs)} groups'}",
            flush=True,
        )
    print()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--time-budget", type=float, default=10.0, help="seconds of a search (default: %(default)g)")
    parser.add_argument("--bound-time", type=float, default=10.0, help="seconds of a bound (default: %(default)g)")
    parser.add_argument("--seeds", type=int, default=2, help="searches of each problem (default: %(default)s)")
    parser.add_argument("--max-evaluations", type=int, help="placements to simulate, instead of the seconds")
    parser.add_argument("--golden", action="store_true", help="only the golden problems")
    parser.add_argument("--scaling", action="store_true", help="also 64 to 256 models on as many devices")
    parser.add_argument("--quick", action="store_true", help="a few problems, a second each")
    options = parser.parse_args()
    if options.quick:
        options.time_budget, options.bound_time, options.seeds = 1.0, 1.0, 1
    show("Golden problems, AlpaServe's rules", golden_problems(), options)
    if options.quick or options.golden:
        return
    title = "Four large models on 8 x 48 GiB, MaverIQ's rules, SLO factor 5, "
    show(title + "recorded arrivals", recorded_problems(), options)
    show(title + "shipped traces", traced_problems(), options)
    if options.scaling:
        sizes = [(64, 100_000), (128, 150_000), (256, 300_000)]
        show("Many models, AlpaServe's rules", scaling_problems(sizes), options)


if __name__ == "__main__":
    main()
