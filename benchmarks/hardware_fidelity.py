"""What the simulator predicts for recorded runs on real hardware, against what was measured.

``python benchmarks/hardware_fidelity.py RUNS_DIR`` replays the recorded arrivals of every run on its placement under
the MAVERIQ rules and, beside them, under the ALPASERVE rules with the published profiles, and prints both with their
errors. Replicas are pinned as recorded, requests that were rejected for want of a loaded model are left out, and only
requests that are predicted to be done by the end of the recording count. Runs with many models are reported apart.

The file of --json has, in seconds and shares and without rounding (null where nothing was served):

- ``runs``: per run ``experiment``, ``baseline``, ``model_set``, ``trace``, ``scale``, ``slo_factor``,
  ``last_finish_s``, ``num_clients``, ``many_models``, ``load_times_known``; ``rules`` (the constants) and whether they
  were ``estimated_from_this_run`` among others; ``cells`` (pairs of model and config) and how many of them are
  ``calibrated``; and ``measured``, ``predicted``, ``predicted_crowded``
  (null unless many_models) and ``predicted_alpaserve``, each with ``num_served``, ``mean_latency_s``,
  ``p90_latency_s``, ``p99_latency_s`` and ``attainment``.
- ``mean_absolute_error``: of ``few_models``, ``many_models`` and ``calibrated`` (the runs with few models of which all
  cells are calibrated), by prediction: ``mean_latency`` (relative), ``attainment`` (share) and ``num_runs``.
- ``not_replayed``: runs of which every request was rejected.
- ``left_out_of_own_calibration``: the runs that were also given to calibrate with.
- ``estimates``: with --estimate, the constants by what they were estimated from.
"""

import argparse
import json
import math
import sys
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from alpa_serve.errors import AlpaServeError, InvalidConfigError
from alpa_serve.experiments.hardware_estimates import (
    SHIPPED_FROM,
    estimate_rules,
    mean_service,
    other_runs,
    runs_of_other_placements,
)
from alpa_serve.experiments.hardware_replay import CROWDING_S, deploy_times, measured, replay
from alpa_serve.experiments.hardware_runs import read_runs
from alpa_serve.experiments.maveriq import MODEL_SETS, model_list
from alpa_serve.profiling import load_test_prof_result_v2
from alpa_serve.scheduling import ALPASERVE, MAVERIQ

MANY_MODELS = 12
"""From this many models on a run is reported apart: there service times grow for reasons that are not understood."""

CONSTANTS = ("dispatch_interval_s", "request_overhead_s", "idle_after_s", "idle_penalty_s")
PREDICTIONS = ("predicted", "predicted_crowded", "predicted_alpaserve")
LATENCIES = ("mean_latency_s", "p90_latency_s", "p99_latency_s")

# rich's SIMPLE_HEAD in ASCII: the README shows it
RULED = box.Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


def has_many_models(run):
    # of a set that is not known, each client could be a model
    num_models = len(model_list(run.model_set)) if run.model_set in MODEL_SETS else len(run.clients)
    return num_models >= MANY_MODELS


def constants(rules):
    return {name: getattr(rules, name) for name in CONSTANTS}


def estimated_without(run, runs):
    """Return the rules as the runs of other placements show them; crowded ones would say something else."""
    others = [other for other in runs_of_other_placements(runs, run) if not has_many_models(other)]
    if not others:
        raise InvalidConfigError(
            f"--leave-one-out: no run of another placement to take the constants for {run.experiment} from"
        )
    return estimate_rules(others)


def compare(run, rules, calibration, stalls):
    """Return what is reported of a run."""
    service = mean_service(other_runs(calibration, run)) if calibration else None
    prediction = replay(run, rules, service, stalls=stalls)
    crowded = None
    if has_many_models(run):
        crowded = replay(run, rules, service, stalls=stalls, crowding_s=CROWDING_S).figures
    alpaserve = replay(run, ALPASERVE, stalls=(), load_profile=load_test_prof_result_v2)
    described = ("experiment", "baseline", "model_set", "trace", "scale", "slo_factor", "last_finish_s")
    return {
        **{name: getattr(run, name) for name in described},
        "num_clients": len(run.clients),
        "many_models": has_many_models(run),
        "load_times_known": deploy_times(run) is not None,
        "rules": constants(rules),
        "estimated_from_this_run": rules == MAVERIQ and run.experiment in SHIPPED_FROM,
        "cells": len(prediction.calibrated),
        "calibrated": sum(prediction.calibrated.values()),
        "measured": asdict(measured(run)),
        "predicted": asdict(prediction.figures),
        "predicted_crowded": asdict(crowded) if crowded else None,
        "predicted_alpaserve": asdict(alpaserve.figures),
    }


def relative_error(row, prediction, figure):
    actual = row["measured"][figure]
    return row[prediction][figure] / actual - 1 if actual > 0 else math.nan


def attainment_error(row, prediction):
    return row[prediction]["attainment"] - row["measured"]["attainment"]


def mean_absolute_errors(rows):
    """Return the mean absolute errors of each prediction, over the runs for which it has figures."""
    summary = {}
    for prediction in PREDICTIONS:
        errors = [
            (abs(relative_error(row, prediction, "mean_latency_s")), abs(attainment_error(row, prediction)))
            for row in rows
            if row[prediction]
        ]
        known = [pair for pair in errors if not any(map(math.isnan, pair))]
        if known:
            latency, attainment = (sum(column) / len(known) for column in zip(*known, strict=True))
            summary[prediction] = {"mean_latency": latency, "attainment": attainment, "num_runs": len(known)}
    return summary


def table(*columns):
    made = Table(box=RULED, show_edge=False, pad_edge=True, padding=(0, 1))
    for column in columns:
        made.add_column(column.lstrip("<"), justify="left" if column.startswith("<") else "right")
    return made


def called(row):
    return f"{row['baseline']} {row['model_set']} {row['trace']} {row['scale']:g}, slo {row['slo_factor']:g}"


def against(row, prediction, figure):
    predicted, error = row[prediction][figure], relative_error(row, prediction, figure)
    return f"{row['measured'][figure]:.3f} {predicted:8.3f} {100 * error:+6.1f}"


def attained(row, prediction):
    return f"{100 * row[prediction]['attainment']:6.2f} {100 * attainment_error(row, prediction):+7.2f}"


def latency_table(rows, prediction):
    calibrated = any(row["calibrated"] for row in rows)
    columns = ["<run", "served", "predicted", "mean (s)  error", "p90 (s)  error", "p99 (s)  error"]
    made = table(*columns, *(["calibrated"] if calibrated else []))
    for row in rows:
        made.add_row(
            called(row),
            str(row["measured"]["num_served"]),
            str(row[prediction]["num_served"]),
            *(against(row, prediction, figure) for figure in LATENCIES),
            *([f"{row['calibrated']} of {row['cells']}"] if calibrated else []),
        )
    return made


def attainment_table(rows, prediction):
    made = table("<run", "measured", "MAVERIQ  error", "ALPASERVE  error", "ALPASERVE's mean (s)  error")
    for row in rows:
        made.add_row(
            called(row),
            f"{100 * row['measured']['attainment']:.2f}",
            attained(row, prediction),
            attained(row, "predicted_alpaserve"),
            against(row, "predicted_alpaserve", "mean_latency_s"),
        )
    return made


def is_calibrated(row):
    return row["calibrated"] == row["cells"]


def show_mean_errors(rows, prediction, which, show):
    summary = mean_absolute_errors(rows)
    for name, rules in ((prediction, "MAVERIQ"), ("predicted_alpaserve", "ALPASERVE")):
        if name in summary:
            errors = summary[name]
            show(
                f"Mean absolute error over {errors['num_runs']} {which}, {rules} rules: mean latency "
                f"{100 * errors['mean_latency']:.2f} %, SLO attainment {100 * errors['attainment']:.2f} points"
            )


def report(rows, title, prediction, show):
    """Print the tables of some runs and what is wrong on average."""
    show(f"{title}\n\nLatency: measured, predicted, error in %")
    show(latency_table(rows, prediction))
    show("\nSLO attainment in %: measured, predicted, error in points; and what ALPASERVE's rules predict")
    show(attainment_table(rows, prediction))
    show("")
    show_mean_errors(rows, prediction, "runs", show)
    calibrated = [row for row in rows if is_calibrated(row)]
    if 0 < len(calibrated) < len(rows):
        show_mean_errors(calibrated, prediction, "runs that are calibrated throughout", show)


def estimates_of(runs):
    """Return the constants as all runs show them, and as all but each of them do."""
    few = [run for run in runs if not has_many_models(run)]
    found = {"all runs": constants(estimate_rules(few))} if few else {}
    for run in few:
        others = runs_of_other_placements(few, run)
        if others:
            found[f"without the placement of {run.experiment}"] = constants(estimate_rules(others))
    return found


def estimates_table(estimates):
    made = table("<estimated from", *(f"{name.removesuffix('_s')} (s)" for name in CONSTANTS))
    for name, found in estimates.items():
        made.add_row(name, *(f"{seconds:.4f}" for seconds in found.values()))
    return made


def draw(rows, path):
    """Draw predicted against measured figures."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise InvalidConfigError('--plot needs matplotlib: pip install "alpa_serve[plot]"') from None
    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5), layout="constrained")
    for key, marker in (("mean_latency_s", "o"), ("p90_latency_s", "^"), ("p99_latency_s", "s")):
        points = [(row["measured"][key], row["predicted"][key]) for row in rows]
        left.scatter(*zip(*points, strict=True), marker=marker, label=f"{key.split('_')[0]}, MAVERIQ", alpha=0.8)
    points = [(row["measured"]["mean_latency_s"], row["predicted_alpaserve"]["mean_latency_s"]) for row in rows]
    left.scatter(*zip(*points, strict=True), marker="x", color="grey", label="mean, ALPASERVE")
    left.set(xscale="log", yscale="log", title="Latency (s)")
    for prediction, marker, color in (("predicted", "o", None), ("predicted_alpaserve", "x", "grey")):
        points = [(100 * row["measured"]["attainment"], 100 * row[prediction]["attainment"]) for row in rows]
        label = "MAVERIQ" if prediction == "predicted" else "ALPASERVE"
        right.scatter(*zip(*points, strict=True), marker=marker, color=color, label=label)
    right.set(title="SLO attainment (%)")
    for axes in (left, right):
        low, high = min(axes.get_xlim()[0], axes.get_ylim()[0]), max(axes.get_xlim()[1], axes.get_ylim()[1])
        axes.plot([low, high], [low, high], color="black", linewidth=0.8)
        axes.set(xlabel="measured", ylabel="predicted", xlim=(low, high), ylim=(low, high))
        axes.legend()
    figure.savefig(path, dpi=120)


def without_nan(value):
    """Return the value as JSON can hold it."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_calibration(places):
    """Return the runs of several folders and files, each experiment once."""
    runs = chain.from_iterable(read_runs(place) for place in places)
    return list({run.experiment: run for run in runs}.values())


def run_benchmark(arguments, show):
    for target in (arguments.json, arguments.plot):
        if target is not None and not target.parent.is_dir():
            raise InvalidConfigError(f"there is no folder {target.parent} to write {target.name} to")
    runs = read_runs(arguments.runs)
    calibration = read_calibration(arguments.calibrate)
    rejected = [run.experiment for run in runs if not len(run.load)]
    rows = [
        compare(
            run,
            estimated_without(run, runs) if arguments.leave_one_out else MAVERIQ,
            calibration,
            () if arguments.no_stalls else None,
        )
        for run in runs
        if run.experiment not in rejected
    ]
    left_out = [run.experiment for run in runs if len(other_runs(calibration, run)) < len(calibration)]
    few, many = ([row for row in rows if row["many_models"] == apart] for apart in (False, True))
    origin = "estimated from the runs of other placements" if arguments.leave_one_out else "as shipped"
    service = "other runs where they have it, else the profile" if calibration else "the profile"
    how = f"constants of the rules {origin}; service time from {service}{'; no stalls' if arguments.no_stalls else ''}"
    if few:
        report(few, f"Recorded runs: {how}", "predicted", show)
    if many:
        if few:
            show("")
        report(many, f"Runs with many models: {how}", "predicted", show)
        show("")
        report(
            many,
            f"The same with crowding: {CROWDING_S:g} s more service per model resident in the cluster, a figure from "
            "MaverIQ's\nevaluation of such runs; its cause is not known, and no run with fewer models shows it",
            "predicted_crowded",
            show,
        )
    notes = [f"Left out of the calibration of its own prediction: {name}" for name in left_out]
    known = sum(row["estimated_from_this_run"] for row in rows)
    if known:
        notes.append(
            f"The shipped constants come, among others, from {known} of these runs; --leave-one-out takes them from "
            "runs of other placements"
        )
    notes += [f"Not replayed, every request was rejected: {name}" for name in rejected]
    notes += [
        f"When models were loaded is not known for {row['experiment']}: it does not fit model set {row['model_set']!r}"
        for row in rows
        if not row["load_times_known"]
    ]
    if notes:
        show("\n" + "\n".join(notes))
    document = {
        "runs": rows,
        "mean_absolute_error": {
            "few_models": mean_absolute_errors(few),
            "many_models": mean_absolute_errors(many),
            "calibrated": mean_absolute_errors([row for row in few if is_calibrated(row)]),
        },
        "not_replayed": rejected,
        "left_out_of_own_calibration": left_out,
    }
    if arguments.estimate:
        document["estimates"] = estimates_of(runs)
        show("\nConstants of the rules\n")
        show(estimates_table(document["estimates"]))
    if arguments.json:
        arguments.json.write_text(json.dumps(without_nan(document), indent=2) + "\n", encoding="utf-8")
    if arguments.plot:
        draw(rows, arguments.plot)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", metavar="RUNS_DIR", type=Path, help="folder of run files, or one of them")
    parser.add_argument(
        "--calibrate",
        metavar="RUNS_DIR",
        type=Path,
        action="append",
        default=[],
        help="take mean service times per (model, op, pp) from these runs where they have them; a run is never "
        "calibrated with itself; may be given more than once",
    )
    parser.add_argument(
        "--leave-one-out",
        action="store_true",
        help="estimate the constants of the rules for each run from the runs of other placements in RUNS_DIR",
    )
    parser.add_argument("--no-stalls", action="store_true", help="nothing stalls while a model is loaded")
    parser.add_argument("--estimate", action="store_true", help="print the constants that the runs show")
    parser.add_argument("--json", metavar="FILE", type=Path, help="write all figures there")
    parser.add_argument("--plot", metavar="FILE", type=Path, help="draw predicted against measured; needs matplotlib")
    arguments = parser.parse_args()
    # wider than any table: nothing is wrapped or cut
    console = Console(width=200, color_system=None, highlight=False, markup=False, soft_wrap=True)

    def show(what):
        with console.capture() as captured:
            console.print(what)
        print("\n".join(line.rstrip() for line in captured.get().splitlines() if line.strip() or isinstance(what, str)))

    try:
        run_benchmark(arguments, show)
    except BrokenPipeError:
        # whoever reads the output has seen enough
        sys.stderr.close()
    except (AlpaServeError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
