"""The 49 published placements: recomputing them, and the file ``alpaserve_configs.txt`` that lists them.

``python -m alpa_serve.experiments.published --output alpaserve_configs.txt`` regenerates the file.
"""

from __future__ import annotations

import argparse
import configparser
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import track

from alpa_serve.errors import InfeasiblePlacementError, InvalidPlacementError
from alpa_serve.experiments.maveriq import (
    PUBLISHED_CLUSTER,
    Experiment,
    model_datas,
    model_list,
    solve_baseline,
)
from alpa_serve.files import replacing
from alpa_serve.placement import ModelPlacement, ReplicaDeployment
from alpa_serve.placement_policy import PlacementEvaluator
from alpa_serve.profiling import ParallelConfig

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Sequence

    from alpa_serve.simulator.columnar_workload import Workload

NOT_FEASIBLE = "NOT FEASIBLE"
NOT_PLACED = "not placed"

_HEADER = """\
# Placements of the published experiments: AlpaServe and AlpaServe* on 8 devices of 48 GiB in one node, under the
# Azure LLM 2023 traces.
#
# Each section: baseline | model set | trace | scale_rate | slo factor.
#   published ...  models named m0, m1, ... by position as in the published experiments, requests m1, m2, ... by id:
#                  each request went to the next model of the list, those for the last were not served.
#   aligned ...    models named like their requests.
#   placement      a group a line, (dp, op, pp): positions of its models in the model list, from 0
#   deployment     a replica a line: id, model, device_assigned, tp_size, pp_size
#   attainment     share of requests that meet their SLO in AlpaServe's simulation
#
# Regenerate: python -m alpa_serve.experiments.published --output alpaserve_configs.txt
"""


@dataclass(frozen=True)
class Outcome:
    """What a baseline chose under one naming of the models, and what it attains.

    Attributes
    ----------
    placement : ModelPlacement
    deployment : list of ReplicaDeployment
    attainment : float
        Simulated SLO attainment, rounded to six places.
    """

    placement: ModelPlacement
    deployment: list[ReplicaDeployment]
    attainment: float


@dataclass(frozen=True)
class PublishedEntry:
    """An experiment and its outcomes; None where no placement is feasible.

    Attributes
    ----------
    experiment : Experiment
    num_requests : int
    published : Outcome or None
        With the models named as in the published experiments.
    aligned : Outcome or None
        With the models named like their requests.
    """

    experiment: Experiment
    num_requests: int
    published: Outcome | None
    aligned: Outcome | None


def published_experiments() -> list[Experiment]:
    """List the 49 experiments, in the order in which they were published."""
    scales, more_scales = (0.1, 0.2, 0.3, 0.4), (0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
    runs = [
        *(("large", trace, scale, 5.0) for trace in ("code", "conversation") for scale in scales),
        ("regular", "code", 0.4, 5.0),
        *(("large", "conversation", scale, 2.5) for scale in more_scales),
        *(("large", "conversation", scale, 5.0) for scale in (0.15, 0.25)),
        *(("large", "conversation", scale, 7.5) for scale in more_scales),
        ("twentyone", "conversation", 0.2, 5.0),
    ]
    last = ("twentyone", "conversation", 0.4, 5.0)
    return [
        *(Experiment("AlpaServe", *run) for run in [*runs, last]),
        *(Experiment("AlpaServe*", *run) for run in runs),
    ]


def recompute(experiment: Experiment) -> PublishedEntry:
    """Run an experiment under both namings of the models."""
    workload = experiment.workload()
    return PublishedEntry(
        experiment,
        len(workload),
        _outcome(experiment, workload, published_naming=True),
        _outcome(experiment, workload, published_naming=False),
    )


def _outcome(experiment: Experiment, workload: Workload, published_naming: bool) -> Outcome | None:
    models = model_list(experiment.model_set)
    datas = model_datas(models, experiment.slo_scale, workload, published_naming)
    try:
        placement = solve_baseline(experiment.baseline, datas, PUBLISHED_CLUSTER, workload)
    except InfeasiblePlacementError:
        return None
    evaluation = PlacementEvaluator(datas, PUBLISHED_CLUSTER, workload).evaluate(placement)
    deployment = placement.deployment([model["name"] for model in models], PUBLISHED_CLUSTER)
    return Outcome(placement, deployment, round(evaluation.goodput, 6))


def format_entries(entries: Iterable[PublishedEntry]) -> str:
    """Write entries as the text of ``alpaserve_configs.txt``."""
    return _HEADER + "".join(f"\n{_format_entry(entry)}" for entry in entries)


def _format_entry(entry: PublishedEntry) -> str:
    run = entry.experiment
    lines = [
        f"[{run.baseline} | {run.model_set} | {run.trace} | scale {run.scale_rate:g} | slo {run.slo_scale:g}]",
        f"requests = {entry.num_requests}",
    ]
    for naming, outcome in (("published", entry.published), ("aligned", entry.aligned)):
        if outcome is None:
            lines.append(f"{naming} placement = {NOT_FEASIBLE}")
            continue
        placement = outcome.placement
        lines.append(f"{naming} placement =")
        for config, models in zip(placement.group_configs, placement.group_models, strict=True):
            lines.append(f"    {tuple(config)}: {' '.join(map(str, models))}")
        lines.append(f"{naming} attainment = {outcome.attainment:.6f}")
        lines.append(f"{naming} deployment =")
        lines += [f"    {format_replica(replica)}" for replica in outcome.deployment]
    return "\n".join(lines) + "\n"


def format_replica(replica: ReplicaDeployment) -> str:
    """Write one replica as a line of a deployment list."""
    if not replica.device_assigned:
        return f"{replica.replica_id} {replica.model}: {NOT_PLACED}"
    devices = ",".join(map(str, replica.device_assigned))
    return (
        f"{replica.replica_id} {replica.model}: device_assigned={devices} "
        f"tp_size={replica.tp_size} pp_size={replica.pp_size}"
    )


_SECTION = re.compile(r"(\S+) \| (\S+) \| (\S+) \| scale (\S+) \| slo (\S+)")
_GROUP = re.compile(r"\((\d+), (\d+), (\d+)\):((?: \d+)*) ?")
_REPLICA = re.compile(r"(\d+) (\S+): (?:not placed|device_assigned=([\d,]+) tp_size=(\d+) pp_size=(\d+))")


def parse_entries(text: str) -> list[PublishedEntry]:
    """Read the text of ``alpaserve_configs.txt``.

    Raises
    ------
    InvalidPlacementError
        Naming the section and the line that cannot be read.
    """
    parser = configparser.ConfigParser(delimiters=("=",), comment_prefixes=("#",), interpolation=None)
    try:
        parser.read_string(text)
    except configparser.Error as error:
        raise InvalidPlacementError(f"not a list of placements: {error}") from error
    entries = []
    for name in parser.sections():
        try:
            entries.append(_parse_section(name, parser[name]))
        except InvalidPlacementError:
            raise
        except KeyError as error:
            raise InvalidPlacementError(f"section [{name}] lacks {error}") from error
        except ValueError as error:
            raise InvalidPlacementError(f"section [{name}]: {error}") from error
    return entries


def read_entries(path: str | os.PathLike[str]) -> list[PublishedEntry]:
    """Read a file in the form of ``alpaserve_configs.txt`` (:func:`parse_entries`)."""
    return parse_entries(Path(path).read_text(encoding="utf-8"))


def _parse_section(name: str, section: configparser.SectionProxy) -> PublishedEntry:
    baseline, model_set, trace, scale, slo = _match(_SECTION, name, name)
    return PublishedEntry(
        Experiment(baseline, model_set, trace, float(scale), float(slo)),
        int(section["requests"]),
        _parse_outcome(name, section, "published"),
        _parse_outcome(name, section, "aligned"),
    )


def _parse_outcome(name: str, section: configparser.SectionProxy, naming: str) -> Outcome | None:
    placement = section[f"{naming} placement"]
    if placement == NOT_FEASIBLE:
        return None
    groups = [_match(_GROUP, line, name) for line in placement.split("\n")[1:]]
    replicas = [_match(_REPLICA, line, name) for line in section[f"{naming} deployment"].split("\n")[1:]]
    return Outcome(
        ModelPlacement(
            [ParallelConfig(int(dp), int(op), int(pp)) for dp, op, pp, _ in groups],
            [[int(model_id) for model_id in models.split()] for *_, models in groups],
        ),
        [
            ReplicaDeployment(
                int(replica_id),
                model,
                tuple(int(device) for device in devices.split(",")) if devices else (),
                int(tp) if tp else None,
                int(pp) if pp else None,
            )
            for replica_id, model, devices, tp, pp in replicas
        ],
        float(section[f"{naming} attainment"]),
    )


def _match(pattern: re.Pattern[str], line: str, section: str) -> tuple[str, ...]:
    match = pattern.fullmatch(line)
    if match is None:
        raise InvalidPlacementError(f"section [{section}]: cannot read {line!r}")
    return match.groups()


def main(argv: Sequence[str] | None = None) -> None:
    """Recompute all published placements and write them."""
    parser = argparse.ArgumentParser(description="Recompute the published placements.")
    parser.add_argument("--output", type=Path, help="file to write; standard output if left out")
    options = parser.parse_args(argv)
    # the published naming leaves requests unserved on purpose: no warning for each
    logging.getLogger("alpa_serve.simulator").setLevel(logging.ERROR)
    experiments = track(published_experiments(), "experiments", console=Console(stderr=True))
    text = format_entries(recompute(experiment) for experiment in experiments)
    if options.output is None:
        sys.stdout.write(text)
    else:
        with replacing(options.output) as file:
            file.write(text.encode())


if __name__ == "__main__":
    main()
