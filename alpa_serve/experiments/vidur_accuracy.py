"""The script that exports a group as runs of Vidur and compares latencies."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alpa_serve.errors import AlpaServeError, InvalidConfigError
from alpa_serve.experiments.maveriq import RULES, model_datas, model_list
from alpa_serve.experiments.placement_source import add_placement_flags, experiment_of, placement_of
from alpa_serve.experiments.trace_steps import step_process
from alpa_serve.experiments.vidur_comparison import compare
from alpa_serve.experiments.vidur_export import LATENCIES, OURS_FILE, vidur_files, vidur_name, vidur_runs
from alpa_serve.export.vidur_run import NETWORKS
from alpa_serve.simulator.trace_workload import PROMPT_CHARACTERS, TOKEN_SOURCES
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

CHARACTERS_PER_TOKEN = 4
"""Of English text, about; MaverIQ's prompts have at most 512 characters and were not recorded."""


def main(argv: Sequence[str] | None = None, default_configs: Path = Path("alpaserve_configs.txt")) -> int:
    """Run a sub-command; return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if left out.
    default_configs : Path
        File of the published placements.
    """
    parser = argparse.ArgumentParser(description="Set this simulator's latencies beside Vidur's.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _export_flags(commands.add_parser("export", help="write a group as runs of Vidur, one per model"), default_configs)
    _compare_flags(commands.add_parser("compare", help="compare with the request_metrics.csv of such a run"))
    options = parser.parse_args(argv)
    try:
        sys.stdout.write({"export": _export, "compare": _compare}[options.command](options))
    except AlpaServeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _export_flags(parser: argparse.ArgumentParser, default_configs: Path) -> None:
    add_placement_flags(parser, default_configs)
    parser.add_argument("--trace", default="conversation", help="code, conversation, poisson, or the file of a trace")
    parser.add_argument("--group", type=int, default=0, help="number of the group, from 0 (default: %(default)s)")
    parser.add_argument("--rules", choices=RULES, default="maveriq", help="how the simulated cluster serves")
    parser.add_argument(
        "--tokens", choices=TOKEN_SOURCES, default=TOKEN_SOURCES[0], help="where token counts come from"
    )
    parser.add_argument(
        "--prompt_tokens",
        type=int,
        default=PROMPT_CHARACTERS // CHARACTERS_PER_TOKEN,
        help="input tokens of a request, unless they come from the trace (default: %(default)s)",
    )
    parser.add_argument("--device", choices=NETWORKS, default="a40", help="Vidur's device (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=1, help="most requests of a batch of Vidur's")
    parser.add_argument(
        "--vidur_model",
        action="append",
        default=[],
        metavar="MODEL=NAME",
        help="what Vidur calls a model, for one that it knows by another name than Hugging Face's",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="gets a folder per run")


def _compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN_FOLDER", help="a folder that export made")
    parser.add_argument("metrics", type=Path, metavar="METRICS", help="Vidur's request_metrics.csv of that run")
    parser.add_argument(
        "--latency",
        choices=LATENCIES,
        default=LATENCIES[0],
        help="ours with the model alone on its group, or among the group's others (default: %(default)s)",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="CSV to write, a row per request")


def _export(options: argparse.Namespace) -> str:
    experiment = experiment_of(options)
    placement = placement_of(options, experiment)
    prompt_tokens = check_int(options.prompt_tokens, "prompt_tokens", minimum=1)
    names = _given_names(options.vidur_model)
    models = [{**model, "input_length": prompt_tokens} for model in model_list(experiment.model_set)]
    trace = step_process(experiment.trace, experiment.scale_rate)
    workload = trace.generate_workload(models, slo=experiment.slo_scale, tokens=options.tokens)
    rules = RULES[options.rules]
    # requests go to the models that they name, as on the hardware, whichever naming chose the placement
    datas = model_datas(models, experiment.slo_scale, workload, rules=rules)
    lines, files = [], {}
    for run in vidur_runs(placement, datas, workload, rules, options.group):
        (model,) = (model for model in models if f"m{model['id']}" == run.model_name)
        folder = options.output / f"group{run.group_id}_{run.model_name}"
        title = (
            f"{experiment.baseline}, model list {experiment.model_set}, trace {experiment.trace}, "
            f"scale {experiment.scale_rate:g}, slo factor {experiment.slo_scale:g}, rules {options.rules}"
        )
        notes = []
        if rules.execution == "exclusive" and run.config.pp > 1:
            notes.append("Vidur works on another batch in each stage; by these rules a request holds the whole group.")
        if not len(run):
            lines.append(f"{folder}: left out, no request for {run.model_name} was served there")
            continue
        files[folder] = vidur_files(
            run,
            model["name"],
            vidur_name(model["name"], names),
            device=options.device,
            batch_size=options.batch_size,
            comments=[title, *notes],
        )
        lines.append(f"{folder}: {len(run)} requests for {run.model_name} {model['name']}")
    # all or none, as far as it depends on the requests
    for folder, contents in files.items():
        contents.write(folder)
    return "".join(f"{line}\n" for line in lines)


def _given_names(pairs: Iterable[str]) -> dict[str, str]:
    names = {}
    for pair in pairs:
        model, equals, name = pair.partition("=")
        if not (model and equals and name):
            raise InvalidConfigError(f"--vidur_model is MODEL=NAME, got {pair!r}")
        names[model] = name
    return names


def _compare(options: argparse.Namespace) -> str:
    comparison = compare(options.run / OURS_FILE, options.metrics, options.latency)
    if options.output is not None:
        try:
            comparison.to_frame().to_csv(options.output, index=False)
        except OSError as error:
            raise InvalidConfigError(f"--output: {options.output} cannot be written: {error}") from None
    return comparison.summary() + "\n"


if __name__ == "__main__":
    sys.exit(main())
