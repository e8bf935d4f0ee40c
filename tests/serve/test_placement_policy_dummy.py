"""AlpaServe's deployment strategy for MaverIQ's models and traces, without a GPU.

Run as a script, it prints the strategy for the settings below (each of them is a flag too, see --help). Run by pytest
or unittest, it checks the published placements.
"""

import argparse
import csv
import os
import sys
import unittest
from dataclasses import replace
from pathlib import Path

from parameterized import parameterized
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from alpa_serve.errors import AlpaServeError, InvalidConfigError
from alpa_serve.experiments import maveriq
from alpa_serve.experiments.published import read_entries, recompute
from alpa_serve.placement_policy import ClusterEnv, ModelData, PlacementEvaluator
from alpa_serve.profiling import load_test_prof_result_v2
from alpa_serve.report.strategy import format_strategy
from alpa_serve.scheduling import ALPASERVE
from alpa_serve.simulator.trace_workload import model_slo
from alpa_serve.simulator.workload import WorkloadFromTrace
from alpa_serve.trace.llm import BUILT_IN_TRACES, load_azure_llm_trace
from alpa_serve.util import GB

# ---- settings: edit them, or pass the flag of the same name ---------------------------------------------------------

scale_rate = 0.4  # factor on the requests per minute of the trace
trace_name = "Conversation"  # "Conversation" | "Coding" | a file like AzureLLMInferenceTrace_conv.csv
rules_name = "alpaserve"  # how the cluster serves: "alpaserve" as published | "maveriq" as measured on real hardware
slo = 5.0  # factor on the time that a single request takes: TTFT + TPOT * output_length

# the models to deploy, in the order of loading; load_time counts steps of 30 s, requests for a model name m{id}
model_list = [
    {"id": 1, "name": "llama-2-70b", "load_time": 0, "output_length": 20},
    {"id": 2, "name": "falcon-40b", "load_time": 5, "output_length": 20},
    {"id": 3, "name": "llama-2-7b", "load_time": 10, "output_length": 20},
    {"id": 4, "name": "falcon-40b", "load_time": 15, "output_length": 20},
]

# the same models as the search takes them: name, SLO in s, requests/s, cv, profile. The search replays the trace, so
# rate and cv matter only to policies that work without one. Rules other than "alpaserve" bring profiles of their own
model_datas = [
    ModelData(
        f"m{model['id']}",
        model_slo(model["name"], model["output_length"], slo),
        1.0,
        1.0,
        load_test_prof_result_v2(model["name"]),
    )
    for model in model_list
]

cluster_env = ClusterEnv(num_devices=8, mem_budget=48 * GB, num_devices_per_node=8)

# ---------------------------------------------------------------------------------------------------------------------

BASELINES = {"alpaserve": "AlpaServe", "alpaserve-star": "AlpaServe*"}
CSV_COLUMNS = (
    "baseline",
    "models",
    "trace",
    "scale_rate",
    "slo",
    "num_devices",
    "mem_budget_gib",
    "num_devices_per_node",
    "published_naming",
    "rules",
    "num_requests",
    "slo_attainment",
    "latency_mean_s",
    "placement",
)


def parse_args(argv):
    parser = argparse.ArgumentParser(description="Print a deployment strategy for MaverIQ's models and traces.")
    parser.add_argument("--model-set", choices=maveriq.MODEL_SETS, help="instead of the model_list in this file")
    parser.add_argument(
        "--trace",
        default=trace_name,
        metavar="NAME|FILE.csv",
        help=f"{', '.join(BUILT_IN_TRACES)}, or an AzureLLMInferenceTrace file (default: %(default)s)",
    )
    parser.add_argument("--scale-rate", type=float, default=scale_rate, help="(default: %(default)s)")
    parser.add_argument("--slo", type=float, default=slo, help="factor on a request's own time (default: %(default)s)")
    parser.add_argument("--num-devices", type=int, default=cluster_env.num_devices, help="(default: %(default)s)")
    parser.add_argument(
        "--mem-budget", type=float, default=cluster_env.mem_budget / GB, help="GiB a device (default: %(default)g)"
    )
    parser.add_argument(
        "--num-devices-per-node", type=int, default=cluster_env.num_devices_per_node, help="(default: %(default)s)"
    )
    parser.add_argument(
        "--baseline",
        choices=list(BASELINES),
        default="alpaserve",
        help="alpaserve-star: one group over all devices that holds every model (default: %(default)s)",
    )
    parser.add_argument(
        "--rules",
        choices=list(maveriq.RULES),
        default=rules_name,
        help="how the cluster serves: as AlpaServe takes for granted, or as MaverIQ's hardware was measured to, with "
        "profiles as measured (default: %(default)s)",
    )
    parser.add_argument(
        "--published-naming",
        action="store_true",
        help="name models by position from m0, as the published experiments did: requests go to the next model",
    )
    parser.add_argument("--dataset", help="Hugging Face data set to take prompts from (they change no placement)")
    parser.add_argument("--output", type=Path, metavar="RESULTS.csv", help="append the result to this file")
    return parser.parse_args(argv)


def solve_with_progress(baseline, datas, cluster, workload, rules):
    """Search with a progress bar on standard error."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("searching", total=None)

        def show(progress):
            best = "" if progress.score is None else f", best score {progress.score:.4f}"
            bar.update(
                task, description=f"{progress.stage}{best}", completed=progress.done, total=progress.total or None
            )

        return maveriq.solve_baseline(baseline, datas, cluster, workload, callback=show, rules=rules)


def is_new(path):
    """Tell whether the results file is to be started; refuse a file that holds something else."""
    if not path.parent.is_dir():
        raise InvalidConfigError(f"--output: there is no folder {path.parent}")
    if path.exists() and not path.is_file():
        raise InvalidConfigError(f"--output: {path} is not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InvalidConfigError(f"--output: {path} cannot be written")
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open(encoding="utf-8", errors="replace", newline="") as file:
        header = next(csv.reader(file))
    if tuple(header) != CSV_COLUMNS:
        raise InvalidConfigError(f"{path} has other columns ({', '.join(header)}); take another --output")
    return False


def append_row(path, row):
    """Append a result, writing the header line first to a new file."""
    start = is_new(path)
    cut_short = not start and not path.read_bytes().endswith(b"\n")
    with path.open("a", encoding="utf-8", newline="") as file:
        if cut_short:
            file.write("\n")
        writer = csv.DictWriter(file, CSV_COLUMNS)
        if start:
            writer.writeheader()
        writer.writerow(row)


def edited_model_datas(options):
    """Return the model_datas of this file, with the SLO, the profiles and the naming that the flags ask for."""
    names, expected = [data.name for data in model_datas], [f"m{model['id']}" for model in model_list]
    if names != expected:
        raise InvalidConfigError(f"model_datas names {', '.join(names)}, model_list {', '.join(expected)}")
    datas = model_datas
    if options.slo != slo:
        datas = [
            replace(data, slo=model_slo(model["name"], model["output_length"], options.slo))
            for data, model in zip(datas, model_list, strict=True)
        ]
    rules = maveriq.RULES[options.rules]
    if rules != ALPASERVE:
        datas = [
            replace(data, profiling_result=maveriq.profile_for(model["name"], rules))
            for data, model in zip(datas, model_list, strict=True)
        ]
    if options.published_naming:
        datas = [replace(data, name=f"m{position}") for position, data in enumerate(datas)]
    return datas


def run(options):
    """Search and print the strategy."""
    if options.output is not None:
        is_new(options.output)
    rules = maveriq.RULES[options.rules]
    cluster = ClusterEnv(options.num_devices, options.mem_budget * GB, options.num_devices_per_node)
    models = maveriq.model_list(options.model_set) if options.model_set else model_list
    trace = WorkloadFromTrace(options.scale_rate, load_azure_llm_trace(options.trace))
    workload = trace.generate_workload(models, dataset=options.dataset, slo=options.slo)
    if options.model_set:
        datas = maveriq.model_datas(models, options.slo, workload, options.published_naming, rules=rules)
    else:
        datas = edited_model_datas(options)
    placement = solve_with_progress(BASELINES[options.baseline], datas, cluster, workload, rules)
    strategy = format_strategy(placement, datas, [model["name"] for model in models], cluster, workload, rules=rules)
    print(
        f"{len(models)} models on {cluster.num_devices} devices of {cluster.mem_budget / GB:g} GiB, "
        f"{options.baseline}, trace {options.trace} at scale_rate {options.scale_rate:g}, slo {options.slo:g}: "
        f"{len(workload)} requests, {workload.rate:.2f}/s, cv {workload.cv:.2f}"
        f"{'' if rules == ALPASERVE else f', rules {options.rules}'}\n"
    )
    print(strategy)
    if options.output is not None:
        evaluation = PlacementEvaluator(datas, cluster, workload, rules=rules).evaluate(placement)
        row = (
            options.baseline,
            options.model_set or "model_list",
            options.trace,
            options.scale_rate,
            options.slo,
            cluster.num_devices,
            options.mem_budget,
            cluster.num_devices_per_node,
            options.published_naming,
            options.rules,
            len(workload),
            f"{evaluation.goodput:.6f}",
            f"{evaluation.latency_mean:.6f}",
            placement,
        )
        append_row(options.output, dict(zip(CSV_COLUMNS, row, strict=True)))


def main(argv=None):
    options = parse_args(argv)
    try:
        run(options)
    except (AlpaServeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; no strategy was found yet", file=sys.stderr)
        return 130
    return 0


def published_cases():
    entries = read_entries(Path(__file__).parents[2] / "alpaserve_configs.txt")
    for entry in entries:
        run = entry.experiment
        title = f"{run.baseline}_{run.model_set}_{run.trace}_{run.scale_rate}_{run.slo_scale}".replace("*", "Star")
        yield title, entry


class PublishedPlacementTest(unittest.TestCase):
    @parameterized.expand(published_cases)
    def test_search_reproduces_the_published_placement(self, _title, entry):
        self.assertEqual(recompute(entry.experiment), entry)


if __name__ == "__main__":
    sys.exit(main())
