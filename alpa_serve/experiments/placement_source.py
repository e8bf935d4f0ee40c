"""Which placement the scripts of the baselines work on: a published one, or one from a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from alpa_serve.errors import InvalidConfigError, InvalidPlacementError, UnknownNameError
from alpa_serve.experiments.maveriq import MODEL_SETS, PUBLISHED_CLUSTER, Experiment, model_list
from alpa_serve.experiments.published import format_replica, read_entries
from alpa_serve.placement_json import read_placement
from alpa_serve.validation import check_known, check_real

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from alpa_serve.experiments.published import PublishedEntry
    from alpa_serve.placement import ModelPlacement

NAMINGS = ("published", "aligned")
"""The two placements of a published entry; by default the first, which is what ran on hardware."""

_BASELINES = {"alpaserve": "AlpaServe", "alpaserve*": "AlpaServe*", "alpaservestar": "AlpaServe*"}
_TRACES = {"code": "code", "coding": "code", "conversation": "conversation"}


def add_placement_flags(parser: argparse.ArgumentParser, default_configs: Path) -> None:
    """Add the flags by which MaverIQ's experiments are named, and those that say where the placement is."""
    parser.add_argument("--baseline", default="AlpaServe", help="AlpaServe or AlpaServe* (also AlpaServeStar)")
    parser.add_argument("--model_list", default="large", help=f"model set: {', '.join(MODEL_SETS)}")
    parser.add_argument("--scale_factor", type=float, default=0.1, help="factor on the requests per minute")
    parser.add_argument("--slo", type=float, default=5.0, help="factor on the latency of a single request")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--configs",
        type=Path,
        default=default_configs,
        metavar="FILE",
        help="published placements, of which the flags above and --trace choose one (default: %(default)s)",
    )
    source.add_argument(
        "--placement", type=Path, metavar="FILE", help="JSON with a placement of the models m1, m2, ... instead"
    )
    parser.add_argument(
        "--naming", choices=NAMINGS, default=NAMINGS[0], help="which of the two published ones (default: %(default)s)"
    )


def experiment_of(options: argparse.Namespace) -> Experiment:
    """Return the experiment that parsed flags name, its names in the published spelling.

    Raises
    ------
    UnknownNameError, InvalidConfigError
        If a name is not known or a factor is not above 0.
    """
    baseline = options.baseline.lower()
    if options.placement is None and baseline not in _BASELINES:
        raise UnknownNameError(f"unknown baseline {options.baseline!r}; known: AlpaServe, AlpaServe*, AlpaServeStar")
    return Experiment(
        _BASELINES.get(baseline, options.baseline),
        check_known(options.model_list, MODEL_SETS, "model set"),
        _TRACES.get(options.trace.lower(), options.trace),
        check_real(options.scale_factor, "scale_factor", minimum=0.0, exclusive=True),
        check_real(options.slo, "slo (factor)", minimum=0.0, exclusive=True),
    )


def placement_of(options: argparse.Namespace, experiment: Experiment) -> ModelPlacement:
    """Return the placement that parsed flags choose, of ``model_list(experiment.model_set)`` by position.

    Raises
    ------
    InvalidConfigError, InvalidPlacementError
        If the file cannot be read, or has no such placement.
    """
    if options.placement is not None:
        names = [f"m{model['id']}" for model in model_list(experiment.model_set)]
        return read_placement(options.placement, names).placement
    try:
        entries = read_entries(options.configs)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidConfigError(f"{options.configs}: cannot be read: {error}") from None
    except InvalidPlacementError as error:
        raise InvalidPlacementError(f"{options.configs}: {error}") from None
    try:
        return published_placement(entries, experiment, options.naming)
    except InvalidPlacementError as error:
        raise InvalidPlacementError(f"{options.configs}: {error}") from None


def published_placement(
    entries: Sequence[PublishedEntry], experiment: Experiment, naming: str = NAMINGS[0]
) -> ModelPlacement:
    """Return a published placement.

    Parameters
    ----------
    entries : sequence of PublishedEntry
    experiment : Experiment
    naming : {"published", "aligned"}

    Raises
    ------
    UnknownNameError
        If there is no such naming.
    InvalidPlacementError
        If the entries lack the experiment, no placement is feasible for it, or the devices listed are not those that
        the placement gets.
    """
    check_known(naming, NAMINGS, "naming")
    entry = next((entry for entry in entries if entry.experiment == experiment), None)
    if entry is None:
        same = [
            f"{other.trace} {other.scale_rate:g} slo {other.slo_scale:g}"
            for other in (entry.experiment for entry in entries)
            if (other.baseline, other.model_set) == (experiment.baseline, experiment.model_set)
        ]
        raise InvalidPlacementError(
            f"no entry for {_title(experiment)}; with this baseline and model list there are: "
            f"{', '.join(same) or 'none'}. Another placement can be given as JSON"
        )
    outcome = entry.published if naming == "published" else entry.aligned
    if outcome is None:
        raise InvalidPlacementError(f"no placement is feasible for {_title(experiment)}")
    names = [model["name"] for model in model_list(experiment.model_set)]
    expected = outcome.placement.deployment(names, PUBLISHED_CLUSTER)
    for listed, replica in zip(outcome.deployment, expected, strict=False):
        if listed != replica:
            raise InvalidPlacementError(
                f"{_title(experiment)}, {naming} deployment: {format_replica(listed)!r} is not what the placement "
                f"gives: {format_replica(replica)!r}"
            )
    if len(outcome.deployment) != len(expected):
        raise InvalidPlacementError(
            f"{_title(experiment)}, {naming} deployment: {len(outcome.deployment)} lines, but the placement gives "
            f"{len(expected)}"
        )
    return outcome.placement


def _title(run: Experiment) -> str:
    return f"{run.baseline} | {run.model_set} | {run.trace} | scale {run.scale_rate:g} | slo {run.slo_scale:g}"
