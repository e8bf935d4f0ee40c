"""MaverIQ's command lists: its model sets, traces and SLO labels, and the script that writes them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alpa_serve.errors import AlpaServeError, InvalidConfigError
from alpa_serve.experiments.hardware_replay import labelled_slo_s
from alpa_serve.experiments.maveriq import PUBLISHED_CLUSTER, model_list
from alpa_serve.experiments.placement_source import add_placement_flags, experiment_of, placement_of
from alpa_serve.experiments.trace_steps import trace_step_counts
from alpa_serve.export.command_files import FORMATS, format_commands
from alpa_serve.export.maveriq_commands import SEED, Deploy, maveriq_commands
from alpa_serve.files import replacing
from alpa_serve.validation import check_int

if TYPE_CHECKING:
    from collections.abc import Sequence

    from alpa_serve.experiments.maveriq import Experiment
    from alpa_serve.export.maveriq_commands import Command
    from alpa_serve.placement import ClusterEnv, ModelPlacement


def command_list(
    placement: ModelPlacement,
    experiment: Experiment,
    *,
    cluster_env: ClusterEnv = PUBLISHED_CLUSTER,
    batch_size: int = 1,
    seed: int = SEED,
) -> list[Command]:
    """Return the timed commands of an experiment with MaverIQ's names (:func:`maveriq_commands`).

    Parameters
    ----------
    placement : ModelPlacement
        Of ``model_list(experiment.model_set)``, by position.
    experiment : Experiment
        Its trace may be "poisson" too.
    cluster_env : ClusterEnv
    batch_size : int
    seed : int

    Raises
    ------
    AlpaServeError
        As :func:`~alpa_serve.experiments.trace_steps.trace_step_counts` and :func:`maveriq_commands` do.
    """
    models = model_list(experiment.model_set)
    return maveriq_commands(
        placement,
        models,
        cluster_env,
        trace_step_counts(experiment.trace, experiment.scale_rate, seed),
        [labelled_slo_s(experiment.slo_scale, model["name"]) for model in models],
        batch_size=batch_size,
        seed=seed,
    )


def main(argv: Sequence[str] | None = None, default_configs: Path = Path("alpaserve_configs.txt")) -> int:
    """Write the command list that the flags ask for; return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process if left out.
    default_configs : Path
        File of the published placements.
    """
    parser = argparse.ArgumentParser(description="Write a placement and a trace as MaverIQ's timed commands.")
    add_placement_flags(parser, default_configs)
    parser.add_argument("--trace", default="conversation", help="code, conversation, poisson, or the file of a trace")
    parser.add_argument("--batch_size", type=int, default=1, help="largest batch of each replica")
    parser.add_argument("--seed", type=int, default=SEED, help="of times and choices (default: %(default)s)")
    parser.add_argument("--format", choices=FORMATS, default=FORMATS[0], help="default: %(default)s")
    parser.add_argument("--output", type=Path, metavar="FILE", help="file to write; standard output if left out")
    options = parser.parse_args(argv)
    try:
        text = _text(options)
        if options.output is not None:
            try:
                with replacing(options.output) as file:
                    file.write(text.encode())
            except OSError as error:
                raise InvalidConfigError(f"--output: {options.output} cannot be written: {error}") from None
            return 0
    except AlpaServeError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(text)
    return 0


def _text(options: argparse.Namespace) -> str:
    experiment = experiment_of(options)
    placement = placement_of(options, experiment)
    seed = check_int(options.seed, "seed", minimum=0)
    commands = command_list(placement, experiment, batch_size=options.batch_size, seed=seed)
    num_deploys = sum(isinstance(command, Deploy) for command in commands)
    source = f"{options.configs.name}, {options.naming}" if options.placement is None else options.placement.name
    comments = [
        f"{experiment.baseline}, model list {experiment.model_set}, trace {experiment.trace}, "
        f"scale {experiment.scale_rate:g}, slo factor {experiment.slo_scale:g}, seed {seed}",
        f"placement: {source}; {num_deploys} deployments, {len(commands) - num_deploys} requests",
        "seconds command arguments",
    ]
    return format_commands(commands, options.format, comments)


if __name__ == "__main__":
    sys.exit(main())
